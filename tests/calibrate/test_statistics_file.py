# SPDX-License-Identifier: Apache-2.0
"""Statistics in a file: found again by what they are of, refused where they are of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import samq_onnx
from samq_onnx.calibrate.statistics import (
    AttentionRows,
    ChannelMean,
    ChannelRange,
    KeySamples,
    RowSamples,
    State,
    Statistic,
    TensorStats,
)
from samq_onnx.calibrate.statistics_file import StatisticsFile
from samq_onnx.codes import UniformCodes
from samq_onnx.errors import UserError
from samq_onnx.methods.steps import gptq
from samq_onnx.reconstruct.moments import InputMoments

OWNER = {"model": "abc", "images": "def"}


def _all() -> list[Statistic]:
    return [
        TensorStats("x"),
        ChannelMean("x", 8, channels=4),
        KeySamples("x"),
        InputMoments("x", UniformCodes(0.1, 3, 4), width=4),
        AttentionRows(("x", "x", "x"), scale=0.5, tables=None),
        ChannelRange("x", channels=4),
        RowSamples("x", channels=4),
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


def _other(name: str, value: object) -> Callable[[State], State]:
    return lambda state: {**state, name: np.asarray(value)}


F32 = np.float32
DAMAGED: list[tuple[int, Callable[[State], State]]] = [
    (0, _other("lows", [])),
    (0, _other("lows", [[0.0, 0.0]])),
    (0, _other("lows", [1e9])),
    (0, _other("highs", [1e300])),
    (0, _other("counts", 3.0)),
    (0, _other("counts", np.ones((2, 3)))),
    (0, _other("counts", [-1.0, 9.0])),
    (0, _other("counts", np.ones(5000))),
    (0, _other("counts", ["a"])),
    (0, _other("width", [0.1])),
    (0, _other("width", -1.0)),
    (0, _other("first", 2**62)),
    (0, _other("first", 0.5)),
    (1, _other("sum", np.zeros(3))),
    (1, _other("sum", np.full(4, 1e300))),
    (1, _other("rows", 0)),
    (1, _other("rows", [12])),
    (2, _other("values", np.zeros(0, F32))),
    (2, _other("values", np.zeros((2, 2), F32))),
    (2, _other("values", np.zeros(4))),
    (3, _other("quantized", np.zeros((3, 3)))),
    (3, _other("quantized", -np.eye(4))),
    (3, _other("cross", np.zeros((4, 3)))),
    (3, _other("cross", np.full((4, 4), 1e300))),
    (3, _other("quantized", np.eye(4) + 5 * np.eye(4, k=1))),
    (3, _other("sum_float", np.zeros(5))),
    (3, _other("rows", 0)),
    (3, _other("quantized", np.zeros((4, 4)))),
    (4, _other("map 0", np.zeros((2, 6, 6), F32))),
    (4, _other("map 0", np.full((2, 6, 6), np.nan, F32))),
    (4, _other("map 0", np.full((6, 6), 1 / 6, F32))),
    (4, _other("map 0", np.full((2, 6, 6), 1 / 6))),
    (4, _other("v 0", np.zeros((2, 5, 4), F32))),
    (4, lambda state: {name: array for name, array in state.items() if name != "v 0"}),
    (5, _other("lows", np.zeros(3, F32))),
    (5, _other("lows", np.full(4, 1e9, F32))),
    (5, _other("highs", np.full(4, np.inf, F32))),
    (5, _other("highs", np.zeros(4))),
    (6, _other("rows", np.zeros((0, 4), F32))),
    (6, _other("rows", np.zeros((2, 3), F32))),
    (6, _other("rows", np.zeros((2, 4)))),
]


@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_what_no_statistic_holds_is_refused(number: int, tmp_path: Path) -> None:
    which, damage = DAMAGED[number]
    seen = _seen()[which]
    state = damage(seen.state())
    with pytest.raises((KeyError, ValueError)):
        _all()[which].restore(state)


def _written(path: Path, header: object, **arrays: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.savez(stream, header=np.array(header if isinstance(header, str) else json.dumps(header)), **arrays)


def test_a_file_is_what_its_header_says(tmp_path: Path) -> None:
    file = tmp_path / "stats.npz"
    good = {"format": "samq_onnx.statistics/1", "owner": OWNER, "entries": {"0" * 64: ["a"]}}
    array = {f"{'0' * 64}/0": np.zeros(2)}
    _written(file, good, **array)
    StatisticsFile(file, OWNER)
    headers: list[tuple[object, dict[str, np.ndarray]]] = [
        ({**good, "extra": 1}, array),
        ({**good, "entries": {}}, array),
        ({**good, "entries": {"../x": ["a"]}}, {"../x/0": np.zeros(2)}),
        ({**good, "entries": {"0" * 64: "a"}}, array),
        ({**good, "entries": {"0" * 64: []}}, {}),
        ({**good, "entries": {"0" * 64: ["a", "a"]}}, {**array, f"{'0' * 64}/1": np.zeros(2)}),
        ({**good, "owner": 3}, array),
        (json.dumps(good).replace('"owner"', '"format": 1, "owner"'), array),
        (good, {name: np.array(["text"]) for name in array}),
        (good, {name: np.array([np.inf]) for name in array}),
        ([], array),
        ("[" * 100_000, array),
    ]
    for header, arrays in headers:
        _written(file, header, **arrays)
        with pytest.raises(UserError, match="not statistics of this version") as caught:
            StatisticsFile(file, OWNER)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_moments_that_no_inputs_have_end_in_one_line(
    tiny_sam: Path, one_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compensate(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(gptq, "compensate", compensate)
    with pytest.raises(UserError, match=r"moments of \S+ are of no inputs"):
        samq_onnx.quantize(tiny_sam / "encoder.onnx", one_image, method="samq", bits="w6a6")
