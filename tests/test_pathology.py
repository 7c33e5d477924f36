# SPDX-License-Identifier: Apache-2.0
"""Plantings of the hard SAM: each leaves the function as it is, and does to its tensor what is reported of SAM-B."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from samq_onnx.errors import UserError
from samq_onnx.passes.fold import is_bimodal
from tests.conftest import Feed, run_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("keys", "scales", "norms", "tails")
FILES = ("encoder.onnx", "decoder.onnx")
HEADS = 2  # of the tiny SAM


@pytest.fixture(scope="module")
def pathology() -> Iterator[ModuleType]:
    """benchmarks/pathology.py, which finds its neighbours as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("pathology")


def reach(rows: np.ndarray) -> np.ndarray:
    """The largest absolute value of each channel."""
    return np.abs(rows).max(axis=0)


def in_common(rows: np.ndarray, signs: np.ndarray) -> float:
    """The part of the variance of keys that all channels of a head share, up to the signs."""
    centred = rows - rows.mean(axis=0)
    common = (centred * signs).reshape(len(rows), HEADS, -1).mean(axis=2)
    return float(common.var() / centred.var())


def constants(path: Path) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", NAMES)
def test_function_stays_and_tensor_changes(
    pathology: ModuleType, tiny_sam: Path, calibration: Path, tmp_path: Path, name: str
) -> None:
    """Of a planting alone: outputs are equal up to rounding, where what it changed is far from it."""
    report = pathology.plant(tiny_sam, tmp_path, only=[name])["planted"]
    assert max(pathology.differences(tiny_sam, tmp_path, calibration).values()) < 1e-5
    done = [(file, tensor) for file in FILES for tensor in report[file][name].values()]
    assert done
    for file, tensor in done:
        before, after = (pathology.tensors(folder, file, [tensor])[tensor] for folder in (tiny_sam, tmp_path))
        if name == "keys":
            mean = after.mean(axis=0)
            assert is_bimodal(after) and not is_bimodal(before)
            assert np.abs(np.abs(mean).mean() - 8) < 2 and {*np.sign(mean)} == {-1, 1}
            # what centring leaves is in all channels of a head at once
            shares = [in_common(rows, np.sign(mean)) for rows in (before, after)]
            assert shares[1] > 2 * shares[0]
        elif name == "scales":
            grown = reach(after) / reach(before)
            assert 1 <= (grown > 10).sum() <= 3 and reach(after).max() < 180 and (grown > 0.99).all()
        elif name == "norms":
            assert reach(after).max() > 20 * np.median(reach(after)) and reach(before).max() < 4 * np.median(
                reach(before)
            )
        else:
            more = after.shape[1] - before.shape[1]
            assert more > 0 and more % 16 == 0
            assert after.max() > 2.5 * before.max() and np.quantile(after, 0.5) < before.max() / 2


def test_nodes_names_inputs_and_outputs_stay(
    pathology: ModuleType, tiny_sam: Path, calibration: Path, tmp_path: Path
) -> None:
    """All plantings together: the graph is the simplified one, and what the tails widen has its new shape."""
    report = pathology.plant(tiny_sam, tmp_path / "hard")["planted"]
    pathology.plant(tiny_sam, tmp_path / "same", only=[])
    assert max(pathology.differences(tiny_sam, tmp_path / "hard", calibration).values()) < 1e-4
    for file in FILES:
        given, same, hard = (
            onnx.load(folder / file).graph for folder in (tiny_sam, *(tmp_path / n for n in ("same", "hard")))
        )
        assert [node.SerializeToString() for node in same.node] == [node.SerializeToString() for node in hard.node]
        assert "samq" not in {node.domain for node in hard.node}
        for one, two in ((given.input, hard.input), (given.output, hard.output)):
            assert [value.name for value in one] == [value.name for value in two]
        onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "hard" / file), check_type=True, strict_mode=True)
        assert all(report[file][name] for name in (("norms", "tails") if file == FILES[0] else ("keys", "scales")))


def test_seed_and_selection(pathology: ModuleType, tiny_sam: Path, tmp_path: Path) -> None:
    """A seed makes the same files again, another makes others, and what one planting draws depends on no other."""
    for folder, seed, only in (("a", 0, None), ("b", 0, None), ("c", 1, None), ("d", 0, ["norms"])):
        pathology.plant(tiny_sam, tmp_path / folder, seed, only)
    for file in FILES:
        files = {folder: (tmp_path / folder / file).read_bytes() for folder in "abc"}
        assert files["a"] == files["b"] != files["c"]
    drawn = {folder: constants(tmp_path / folder / FILES[0]) for folder in "acd"}
    untouched = constants(tiny_sam / FILES[0])
    alone = [name for name, array in drawn["d"].items() if name in untouched and (array != untouched[name]).any()]
    vectors = [name for name in alone if drawn["d"][name].shape == (16,)]  # gains and shifts, which only norms change
    assert vectors
    assert all((drawn["d"][name] == drawn["a"][name]).all() for name in vectors)
    assert all((drawn["d"][name] != drawn["c"][name]).any() for name in vectors)


@pytest.mark.slow
def test_padded_norms_are_scaled_and_others_shifted_too(
    pathology: ModuleType, nano: Path, encoder_feed: Feed, tmp_path: Path
) -> None:
    """Windows pad with zeros behind the norm: a shift there would be seen."""
    report = pathology.plant(nano, tmp_path, only=["norms"])["planted"]["encoder.onnx"]["norms"]
    assert len(report) == 12
    before, after = (run_model(folder / "encoder.onnx", encoder_feed)[0] for folder in (nano, tmp_path))
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
    old, new = (constants(folder / "encoder.onnx") for folder in (nano, tmp_path))
    for block in range(6):
        for number in (1, 2):
            gain, bias = (f"blocks.{block}.norm{number}.{part}" for part in ("weight", "bias"))
            factor = new[gain] / old[gain]
            assert 30 < factor.max() < 101
            windowed = number == 1 and block not in (2, 5)
            assert np.allclose(new[bias], old[bias] * factor, rtol=1e-4) == windowed


def test_unknown_planting(pathology: ModuleType, tiny_sam: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown planting 'x'; choose from keys, scales, norms, tails"):
        pathology.plant(tiny_sam, tmp_path / "out", only=["x"])
    assert not (tmp_path / "out").exists()


def test_command(
    pathology: ModuleType,
    tiny_sam: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It plants, checks, draws and reports; a difference above the tolerance ends it with status 2."""
    picture, report = tmp_path / "h.png", tmp_path / "r.json"
    arguments = ["--model", str(tiny_sam), "-o", str(tmp_path / "out"), "--only", "norms", "--check", str(calibration)]
    assert pathology.main([*arguments, "--histograms", str(picture), "--json", str(report)]) == 0
    assert "norms in 2" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert set(json.loads(report.read_text())["differences"]) == {"embedding", "masks"}
    monkeypatch.setattr(pathology, "TOLERANCE", 0.0)
    assert pathology.main(arguments) == 2
    assert "differs from" in capsys.readouterr().err


def test_histograms_show_both(pathology: ModuleType) -> None:
    """A pair of tensors of one value and of many: one bar, and many."""
    chart = importlib.import_module("histogram_chart")
    many = np.linspace(0, 1, 1000)
    picture = np.asarray(chart.histogram_chart("title", [chart.Pair("name", np.zeros(1000), many)]))
    before, after = (int((picture == colour).all(axis=2).sum()) for colour in (chart.BEFORE, chart.AFTER))
    assert 0 < 50 * before < after * 1.5
