# SPDX-License-Identifier: Apache-2.0
"""Statistics in a file: found again by what they are of, refused where they are of something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samq_onnx.calibrate.statistics import AttentionRows, ChannelMean, KeySamples, Statistic, TensorStats
from samq_onnx.calibrate.statistics_file import StatisticsFile
from samq_onnx.codes import UniformCodes
from samq_onnx.errors import UserError
from samq_onnx.reconstruct.moments import InputMoments

OWNER = {"model": "abc", "images": "def"}


def _all() -> list[Statistic]:
    return [
        TensorStats("x"),
        ChannelMean("x", 8),
        KeySamples("x"),
        InputMoments("x", UniformCodes(0.1, 3, 4)),
        AttentionRows(("x", "x", "x"), scale=0.5, tables=None),
    ]


def _seen() -> list[Statistic]:
    found = _all()
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    for statistic in found:
        statistic.update(*(x for _ in statistic.tensors))
    return found


def test_every_statistic_comes_back_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "stats.npz"
    kept = StatisticsFile(file, OWNER)
    for statistic in _seen():
        assert not kept.restore("fed", statistic)
        kept.keep("fed", statistic)
    kept.save()
    again = StatisticsFile(file, OWNER)
    for empty, seen in zip(_all(), _seen(), strict=True):
        assert not again.restore("fed otherwise", empty)
        assert again.restore("fed", empty)
        for name, array in seen.state().items():
            np.testing.assert_array_equal(empty.state()[name], array)
    assert again.found == len(_all()) and again.collected == 0


def test_a_statistic_of_other_codes_is_another(tmp_path: Path) -> None:
    kept = StatisticsFile(tmp_path / "stats.npz", OWNER)
    kept.keep("fed", _seen()[3])
    assert not kept.restore("fed", InputMoments("x", UniformCodes(0.2, 3, 4)))


@pytest.mark.parametrize("owner", [{**OWNER, "images": "other"}, {"model": "abc"}, {**OWNER, "decoder": "x"}])
def test_those_of_another_model_or_other_images_are_refused(owner: dict[str, str], tmp_path: Path) -> None:
    kept = StatisticsFile(tmp_path / "stats.npz", OWNER)
    kept.keep("fed", _seen()[0])
    kept.save()
    before = kept.path.read_bytes()
    with pytest.raises(UserError, match="statistics of another"):
        StatisticsFile(kept.path, owner)
    assert kept.path.read_bytes() == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "stats.npz"
    for content in (b"", b"text", b"PK\x03\x04broken"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not statistics of this version"):
            StatisticsFile(file, OWNER)
    with file.open("wb") as stream:
        np.savez(stream, header=np.array('{"format": "samq_onnx.statistics/1", "owner": {}, "entries": {"a": ["b"]}}'))
    with pytest.raises(UserError, match="not statistics of this version"):
        StatisticsFile(file, {})


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    StatisticsFile(tmp_path / "stats.npz", OWNER).save()
    assert not list(tmp_path.iterdir())
