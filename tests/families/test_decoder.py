# SPDX-License-Identifier: Apache-2.0
"""What decoders of all families have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samq_onnx.data import Calibration
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import Role
from samq_onnx.families.decoder import decoder_of
from samq_onnx.families.ports import Port
from samq_onnx.runtime import open_session
from tests.families.exports import part_of


def test_it_is_calibrated_on_an_encoder(folder: Path, one_image: Path) -> None:
    part = part_of(folder / "decoder.onnx")
    with pytest.raises(UserError, match=r"decoder\.onnx: a decoder is calibrated on .*give --encoder ENCODER\.onnx"):
        part.feeds(Calibration(one_image), None, "decoder")
    by_path = part.feeds(Calibration(one_image), folder / "encoder.onnx", "decoder")
    opened = part.feeds(Calibration(one_image), Encoder(folder / "encoder.onnx"), "decoder")
    assert len(by_path) == len(opened) == 4  # a grid of points
    for one, two in zip(by_path, opened, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_what_is_none_is_refused_by_what_it_lacks(folder: Path) -> None:
    assert decoder_of(part_of(folder / "decoder.onnx")).role is Role.DECODER
    with pytest.raises(UserError, match=r"encoder\.onnx: not a SAM decoder \(has no input has_mask_input, .*see samq"):
        decoder_of(part_of(folder / "encoder.onnx"))


def test_the_output_that_fits(folder: Path) -> None:
    decoder = decoder_of(part_of(folder / "decoder.onnx"))  # takes [1, 16, 4, 4]
    fitting = Port("a", "float32", ("n", 16, 4, "side"))
    others = [Port("b", "float32", (1, 16, 4)), Port("c", "float32", (1, 8, 4, 4))]
    assert decoder.source([*others, fitting], "it") == ("a",)
    assert decoder.source([Port("a", "float32", None)], "it") == ("a",)
    with pytest.raises(UserError, match=r"^it: makes b float32 \[1, 16, 4\], c .*; use two of one model"):
        decoder.source(others, "it")
    with pytest.raises(UserError, match="several of them fit"):
        decoder.source([fitting, fitting], "it")


def test_samples_are_of_an_image_or_random(folder: Path) -> None:
    part, session = part_of(folder / "decoder.onnx"), open_session(folder / "decoder.onnx")
    random, image = part.sample_feed(), part.sample_feed(encoder=folder / "encoder.onnx")
    differing = [name for name in random if not np.array_equal(random[name], image[name])]
    assert differing == ["image_embeddings"]
    for feed in (random, image):
        session.run(None, feed)
