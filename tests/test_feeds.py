# SPDX-License-Identifier: Apache-2.0
"""Sequences of inputs that are made on access."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from samq_onnx import assets, images
from samq_onnx.data import Calibration
from samq_onnx.families import identify
from samq_onnx.feeds import PROMPTS_PER_IMAGE, Selection
from samq_onnx.models import read_model


def test_selections() -> None:
    whole = [{"x": np.array(number)} for number in range(5)]
    some = Selection(whole, [4, 0, 2])
    assert [int(feed["x"]) for feed in some] == [4, 0, 2]
    assert len(some) == 3 and int(some[-1]["x"]) == 2
    assert [int(feed["x"]) for feed in some[1:]] == [0, 2]
    for index in (3, -4):
        with pytest.raises(IndexError):
            some[index]


def test_an_instance_gives_a_box_and_a_point(tiny_sam: Path) -> None:
    part = identify(read_model(tiny_sam / "decoder.onnx"), "decoder")
    calibration = Calibration(assets.calibration_images())
    feeds = part.feeds(calibration, tiny_sam / "encoder.onnx", "decoder")
    sample = calibration.samples[0]
    assert feeds.samples[0] is sample and len(sample.instances) >= PROMPTS_PER_IMAGE
    shown = [np.array(instance.box).reshape(2, 2) for instance in sample.instances]
    box, point = feeds[0], feeds[1]
    assert [box["point_labels"].tolist(), point["point_labels"].tolist()] == [[[2, 3]], [[1, -1]]]
    expected = images.to_model_coords(shown[0], sample.height, sample.width, 64)
    np.testing.assert_allclose(box["point_coords"][0], expected, rtol=1e-6)
    assert (expected[0] <= point["point_coords"][0, 0]).all() and (point["point_coords"][0, 0] <= expected[1]).all()
    assert box["orig_im_size"].tolist() == [sample.height, sample.width]
    same = [np.array_equal(feed["image_embeddings"], box["image_embeddings"]) for feed in feeds]
    assert sum(same) == 2 * PROMPTS_PER_IMAGE and all(same[: 2 * PROMPTS_PER_IMAGE])


def test_inputs_know_their_image(tiny_sam: Path) -> None:
    part = identify(read_model(tiny_sam / "decoder.onnx"), "decoder")
    calibration = Calibration(assets.calibration_images())
    few, many = calibration.samples[:2]
    calibration = calibration.only([dataclasses.replace(few, instances=few.instances[:1]), many])
    feeds = part.feeds(calibration, tiny_sam / "encoder.onnx", "decoder")
    assert list(feeds.places) == [0, 0] + [1] * 2 * PROMPTS_PER_IMAGE
    assert list(Selection(feeds, [5, 1, 2]).places) == [1, 0, 1]
    assert list(Selection([{}, {}, {}], [2, 0]).places) == [2, 0]
