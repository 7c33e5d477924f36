# SPDX-License-Identifier: Apache-2.0
"""Pictures of one object: they show all of it, in place, also where the image is reduced."""

from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.closeup import closeup
from samq_onnx.overlay import CAPTION, GAP, OUTLINE_COLOUR, PANEL_SIDE


@pytest.mark.parametrize("reduced", [1, 2])
@pytest.mark.parametrize("prompt", [[100, 60, 140, 100], [120, 80]])
def test_masks_are_drawn_where_they_are(reduced: int, prompt: list[float]) -> None:
    height, width = 200, 300
    rgb = np.full((height // reduced, width // reduced, 3), 200, np.uint8)
    rgb[60 // reduced : 100 // reduced, 100 // reduced : 140 // reduced] = 0  # the object
    truth = np.zeros((height, width), bool)
    truth[60:100, 100:140] = True
    empty = np.zeros_like(truth)
    picture = closeup(rgb, truth, truth, empty, prompt, "title")
    assert picture.shape == (PANEL_SIDE + CAPTION + GAP, 2 * PANEL_SIDE + 3 * GAP, 3)
    right = picture[CAPTION:-GAP, -GAP - PANEL_SIDE : -GAP]
    outline = (right == OUTLINE_COLOUR).all(axis=2)
    rows, columns = np.nonzero(outline)
    scale = PANEL_SIDE / (40 + 2 * 16)
    for spots in (rows, columns):  # 16 pixels around an object of 40
        assert [spots.min(), spots.max() + 1] == pytest.approx([16 * scale, 56 * scale], abs=2)
    inside = right[rows.min() + 8 : rows.max() - 8, columns.min() + 8 : columns.max() - 8]
    assert (inside == 0).all()  # the empty mask tints nothing


def test_an_object_at_the_edge_is_cut_there() -> None:
    truth = np.zeros((50, 100), bool)
    truth[:, :20] = True
    picture = closeup(np.zeros((50, 100, 3), np.uint8), truth, truth, truth, [0, 0, 20, 50], "title")
    assert picture.shape == (PANEL_SIDE + CAPTION + GAP, 2 * round(36 * PANEL_SIDE / 50) + 3 * GAP, 3)
