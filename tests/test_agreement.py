# SPDX-License-Identifier: Apache-2.0
"""Agreement with float: its statistics, and that only the worst objects are kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from samq_onnx.agreement import WORST, Agreement, paired
from samq_onnx.scoring import Score


def filled(ious: list[float]) -> tuple[Agreement, list[int]]:
    """What has seen these IoUs, and the objects that were drawn."""
    agreement, drawn = Agreement(), []

    def draw(number: int) -> np.ndarray:
        drawn.append(number)
        return np.full((1, 1, 3), number, np.uint8)

    for number, iou in enumerate(ious):
        score = Score(iou, iou, iou)
        agreement.add(Path("a.png"), number, iou, score, score, lambda number=number: draw(number))
    return agreement, drawn


def test_the_worst_are_kept_and_only_they_are_drawn() -> None:
    ious = np.random.default_rng(0).random(100).round(2).tolist()  # with ties
    agreement, drawn = filled(ious)
    expected = sorted(range(100), key=lambda number: (ious[number], number))[:WORST]
    assert [bad.number for bad in agreement.worst] == expected
    assert [int(bad.picture[0, 0, 0]) for bad in agreement.worst if bad.picture is not None] == expected
    assert set(expected) < set(drawn) and len(drawn) < 60
    assert filled(sorted(ious))[1] == list(range(WORST))


def test_shares_include_their_level() -> None:
    report = filled([0.5, 0.9, 0.96, 0.99, 1.0])[0].report()
    assert report["shares"] == {"0.90": 0.8, "0.96": 0.6, "0.99": 0.4}
    assert report["mean_iou"] == pytest.approx(0.87)


def test_the_error_is_that_of_paired_differences() -> None:
    assert paired([0.1, 0.9, 0.5], [0.2, 1.0, 0.6]) == pytest.approx({"mean": -0.1, "standard_error": 0}, abs=1e-12)
    assert paired([1, 0], [0, 0]) == pytest.approx({"mean": 0.5, "standard_error": 0.5})
    assert math.isnan(paired([1], [0])["standard_error"])
