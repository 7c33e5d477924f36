# SPDX-License-Identifier: Apache-2.0
"""Encoders as files and as sessions, and what is refused as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families.decoder import decoder_of
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from tests.families.exports import RGB, part_of
from tests.fuzz import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny SAM that a test may change."""
    onnx.save(tiny.encoder(), tmp_path / "encoder.onnx")
    onnx.save(tiny.decoder(), tmp_path / "decoder.onnx")
    return tmp_path


def test_a_session_is_what_its_file_is(folder: Path) -> None:
    one, two = Encoder(folder / "encoder.onnx"), Encoder(open_session(folder / "encoder.onnx"))
    (embedding,) = one.embed(RGB)
    assert embedding.shape == (1, 16, 4, 4)
    np.testing.assert_array_equal(two.embed(RGB)[0], embedding)
    with pytest.raises(UserError, match=r"^the encoder: not a SAM encoder \(takes image_embeddings"):
        Encoder(open_session(folder / "decoder.onnx"))


def test_the_output_is_the_one_that_the_decoder_wants(folder: Path) -> None:
    (expected,) = Encoder(folder / "encoder.onnx").embed(RGB)
    decoder = decoder_of(part_of(folder / "decoder.onnx"))
    model = tiny.encoder()
    model.graph.node.append(helper.make_node("GlobalAveragePool", ["image_embeddings"], ["pooled"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("pooled", 1, [1, 16, 1, 1]))
    onnx.save(model, folder / "two.onnx")
    encoder = Encoder(folder / "two.onnx")
    assert encoder.embed(RGB)[0].shape == (1, 16, 1, 1)
    encoder.pair(decoder)
    np.testing.assert_array_equal(encoder.embed(RGB)[0], expected)
    model.graph.node.append(helper.make_node("Neg", ["image_embeddings"], ["again"]))
    model.graph.output.append(helper.make_tensor_value_info("again", 1, [1, 16, 4, 4]))
    onnx.save(model, folder / "two.onnx")
    named = Encoder(folder / "two.onnx")
    named.pair(decoder)
    np.testing.assert_array_equal(named.embed(RGB)[0], expected)  # of several, that of the decoder's name
    del model.graph.output[1]
    model.graph.node.append(helper.make_node("Abs", ["image_embeddings"], ["another"]))
    model.graph.output.append(helper.make_tensor_value_info("another", 1, [1, 16, 4, 4]))
    onnx.save(model, folder / "two.onnx")
    with pytest.raises(UserError, match=r"two\.onnx: makes pooled .*; several of them fit"):
        Encoder(folder / "two.onnx").pair(decoder)
    del model.graph.output[1:]
    onnx.save(model, folder / "two.onnx")
    with pytest.raises(UserError, match=r"two\.onnx: makes pooled .*; use two of one model"):
        Encoder(folder / "two.onnx").pair(decoder)


def test_a_model_that_gives_no_numbers_is_told(folder: Path) -> None:
    model = tiny.encoder()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full_like(numpy_helper.to_array(model.graph.initializer[0]), np.nan), "w0")
    )
    onnx.save(model, folder / "nan.onnx")
    predictor = SamPredictor(folder / "nan.onnx", folder / "decoder.onnx")
    with pytest.raises(UserError, match=r"nan\.onnx: its output image_embeddings is not finite"):
        predictor.set_image(RGB)
