# SPDX-License-Identifier: Apache-2.0
"""Masks of run lengths and polygons: those of pycocotools where it can be asked, a reason where it would crash."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from samq_onnx import masks

coco = pytest.importorskip("pycocotools.mask")
HEIGHT, WIDTH = 64, 48


def test_run_lengths_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    for number in range(200):
        height, width = (int(side) for side in random.integers(1, 40, 2))
        mask = random.random((height, width)) < random.random()
        if number % 2:  # longer runs, that need more characters
            mask = mask.repeat(int(random.integers(1, 40)), axis=0).repeat(9, axis=1)
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = json.loads(json.dumps({"size": encoded["size"], "counts": encoded["counts"].decode()}))
        assert np.array_equal(masks.decode(segmentation, *mask.shape), mask)


def test_polygons_are_those_of_pycocotools_also_where_they_reach_out_of_the_image() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        outline = random.uniform(-0.9 * HEIGHT, 1.9 * WIDTH, 2 * int(random.integers(3, 9))).tolist()
        expected = coco.decode(coco.frPyObjects([outline], HEIGHT, WIDTH))[:, :, 0].astype(bool)
        assert np.array_equal(masks.decode([outline], HEIGHT, WIDTH), expected)


def test_what_lies_far_outside_of_the_image_changes_nothing_inside() -> None:
    def filled(*outline: float) -> np.ndarray:
        return masks.decode([list(outline)], HEIGHT, WIDTH)

    near, far = 100, 900_000
    assert np.array_equal(filled(10, 5, near, 5, near, 50, 10, 50), filled(10, 5, far, 5, far, 50, 10, 50))
    assert np.array_equal(filled(10, 5, 30, 5, 30, near, 10, near), filled(10, 5, 30, 5, 30, far, 10, far))
    assert filled(-far, -far, far, -far, far, far, -far, far).all()
    assert np.array_equal(filled(-near, -near, near, -near, near, near), filled(-far, -far, far, -far, far, far))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "there is none"),
        ([], "there is none"),
        ("x", "neither polygons nor run lengths"),
        (5, "neither polygons nor run lengths"),
        ([1, 2, 3, 4, 5, 6], "a polygon is 1, not a list"),
        ([{"a": 1}], "a polygon is"),
        ([None], "a polygon is None"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 coordinates, an odd number"),
        ([["1", 2, 3, 4, 5, 6]], "'1' is not a number"),
        ([[True, 2, 3, 4, 5, 6]], "True is not a number"),
        ([[None, 2, 3, 4, 5, 6]], "None is not a number"),
        ([[[1, 2], [3, 4], [5, 6]]], "is not a number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, float("-inf")]], "not finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "not finite"),
        ([[0, 0, 1e18, 0, 1e18, 1e18]], "far out of the image"),
        ([[1, 2, 3, 4]], "no polygon of three points"),
        ([[0, 0, WIDTH, HEIGHT] * 50_000], "no outline of an object"),
        ([[0, 0, 1, 0, 1, 1]] * 20_000, "no outline of an object"),
        ({}, "its size None"),
        ({"size": [WIDTH, HEIGHT], "counts": "1"}, "is not the image's"),
        ({"size": [HEIGHT, WIDTH]}, "its run lengths are None"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "no complete numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, "no complete numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": "\u20ac1"}, "no complete numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": " "}, "no complete numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": "P" * 100_000 + "0"}, "a number without end"),
        ({"size": [HEIGHT, WIDTH], "counts": "1"}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooo?"}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 1, -1]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 0.5, 0.5]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**32 + HEIGHT * WIDTH]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**400]}, "not finite"),
        ({"size": [HEIGHT, WIDTH], "counts": ["1"]}, "is not a number"),
    ],
)
def test_a_segmentation_that_is_none_has_a_reason(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        masks.decode(segmentation, HEIGHT, WIDTH)
