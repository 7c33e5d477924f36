# SPDX-License-Identifier: Apache-2.0
"""The bench command: its numbers fit together, its counts are exact, and what fails is one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest

from samq_onnx import assets, bench, quantize, worker_pool
from samq_onnx.errors import UserError
from samq_onnx.families import identify
from samq_onnx.fusion import fusion_report
from samq_onnx.isolate import isolated
from samq_onnx.models import read_model
from samq_onnx.roofline import KINDS
from samq_onnx.worker import Memory, Worker
from tests import nets
from tests.conftest import Quantized

# by hand: output positions x output channels x inputs of each
MACS = {
    "convolutional": 32 * 32 * 8 * 27 + 16 * 16 * 16 * 72 + 16 * 32 + 32 * 10,
    "transformer_mlp": 64 * 48 * 192 + 64 * 48 * 96 + 64 * 96 * 48 + 48 * 10,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both nets, float and quantized, one of them with external data, a text, and a model that fails when it runs."""
    folder = tmp_path_factory.mktemp("bench")
    for name in nets.NETS:
        onnx.save(nets.build(name), folder / f"{name}.onnx")
        arguments = [str(folder / f"{name}.onnx"), "-o", str(folder / f"{name}_w8a8.onnx")]
        assert quantize.main([*arguments, "--calib", str(assets.calibration_images())]) == 0
    onnx.save(nets.build("transformer_mlp"), folder / "external.onnx", save_as_external_data=True, location="weights")
    (folder / "text.onnx").write_text("this is not a model")
    fails = """<ir_version: 8, opset_import: ["" : 17]>
        fails (float[N, 3] x) => (float[A, B] y) <int64[2] shape = {7, 5}> { y = Reshape(x, shape) }"""
    onnx.save(onnx.parser.parse_model(fails), folder / "fails.onnx")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """The command's report on three models, operators included."""
    models = [str(folder / f"{name}.onnx") for name in ("transformer_mlp", "transformer_mlp_w8a8", "external")]
    arguments = [*models, "--runs", "3", "--threads", "1", "--profile", "--json", str(folder / "new" / "report.json")]
    assert bench.main(arguments) == 0
    content: dict[str, Any] = json.loads((folder / "new" / "report.json").read_text())
    assert [row["name"] for row in content["models"]] == models
    return content


def test_numbers_fit_together(report: dict[str, Any]) -> None:
    assert report["runs"] == 3 and report["threads"] == 1 and report["machine"]["processors"] >= 1
    first, rates = report["models"][0], {kind: report["gemm"][kind] for kind in ("float", "integer")}
    for rate in rates.values():
        assert rate["gmac_per_second"] * rate["seconds"] == pytest.approx(4096 * 768 * 3072 / 1e9)
    for row in report["models"]:
        seconds, memory, ratios, macs = row["seconds"], row["memory"], row["ratios"], row["macs"]
        assert len(seconds["runs"]) == 3 and min(seconds["runs"]) == seconds["min"] <= seconds["median"]
        assert seconds["median"] == statistics.median(seconds["runs"]) <= seconds["max"] == max(seconds["runs"])
        assert ratios["speed"] == pytest.approx(first["seconds"]["median"] / seconds["median"])
        assert ratios["memory"] == pytest.approx(first["memory"]["peak"] / memory["peak"])
        assert ratios["size"] == pytest.approx(first["bytes"] / row["bytes"])
        assert memory["peak"] >= memory["loaded"] > 1e7
        floor = (
            macs["integer_macs"] / rates["integer"]["gmac_per_second"]
            + macs["float_macs"] / rates["float"]["gmac_per_second"]
        ) / 1e9
        assert row["floor_seconds"] == pytest.approx(floor)
        assert row["times_floor"] == pytest.approx(seconds["median"] / floor)


def test_external_data_is_part_of_the_size(report: dict[str, Any], folder: Path) -> None:
    row = report["models"][2]
    assert row["bytes"] == (folder / "external.onnx").stat().st_size + (folder / "weights").stat().st_size


def test_operators_are_those_that_ran(report: dict[str, Any]) -> None:
    real, whole, _ = ({(one["operator"], one["input"]): one for one in row["operators"]} for row in report["models"])
    assert {("Gemm", "float"), ("Conv", "float")} <= real.keys()
    assert real["Gemm", "float"]["calls"] == 3
    assert {("QGemm", "uint8"), ("QLinearConv", "uint8")} <= whole.keys()
    for operators in (real, whole):
        assert sum(one["share"] for one in operators.values()) == pytest.approx(1)
        seconds = [one["seconds"] for one in operators.values()]
        assert seconds == sorted(seconds, reverse=True)
    for row in report["models"][:2]:
        for name in ("macs", "floor_seconds"):
            total = row["floor_seconds"] if name == "floor_seconds" else sum(row["macs"][f"{x}_macs"] for x in KINDS)
            assert sum(one[name] for one in row["operators"]) == pytest.approx(total)


@pytest.mark.parametrize("name", list(nets.NETS))
def test_multiply_accumulates_are_exact(folder: Path, name: str) -> None:
    feed = identify(read_model(folder / f"{name}.onnx"), name).sample_feed()
    real, whole = (fusion_report(folder / file, feed) for file in (f"{name}.onnx", f"{name}_w8a8.onnx"))
    assert (real.integer_macs, real.float_macs) == (0, MACS[name])
    assert (whole.integer_macs, whole.float_macs) == (MACS[name], 0)


def test_the_count_is_that_of_the_architecture(nano: Path, quantized_nano: Callable[[str, str], Quantized]) -> None:
    """Float and quantized, by kernels and by bodies; quantized, linears compute no padding of windows."""
    windows, tokens, d = 25 * 49, 32 * 32, 192
    padding = 4 * (windows - tokens) * 4 * d * d  # qkv and output projection
    made = quantized_nano("ptq4sam-s", "w8a8").folder
    for part in ("encoder", "decoder"):
        source, output = nano / f"{part}.onnx", made / f"{part}.onnx"
        feed = identify(read_model(source), part).sample_feed()
        reports = [fusion_report(file, feed, native=native) for file in (source, output) for native in (True, False)]
        totals = [one.integer_macs + one.float_macs for one in reports]
        saved = padding if part == "encoder" else 0
        assert totals[0] == totals[1] == totals[2] + saved == totals[3] + saved
        assert "QAttention" in " ".join(reports[2].operators)
        if part == "encoder":
            # patch embedding, per token and block qkv + projection + MLP, two neck convolutions
            linears = tokens * 768 * d + 6 * tokens * 12 * d * d + padding
            neck = tokens * (d * 128 + 9 * 128 * 128)
            attention = 2 * tokens * (2 * tokens + 2 * 32) * d + 4 * windows * (2 * 49 + 2 * 7) * d
            assert reports[0].float_macs == totals[0] == linears + neck + attention


class Machine:
    """Stands in for workers and memory: each run takes one second more than the one before, each worker 3 bytes."""

    def __init__(self, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = memory
        self.ran: list[str] = []
        self.alive: list[str] = []
        self.most = 0
        monkeypatch.setattr(worker_pool, "Worker", self.worker)
        monkeypatch.setattr(worker_pool, "free_memory", lambda: self.memory - 3 * len(self.alive))

    def worker(self, name: str, *_: Any) -> Any:
        @contextlib.contextmanager
        def living() -> Iterator[Any]:
            self.alive.append(name)
            self.most = max(self.most, len(self.alive))
            yield mock.Mock(run=run, memory=lambda: Memory(3, 2, 1))
            self.alive.remove(name)

        def run() -> float:
            self.ran.append(name)
            return float(len(self.ran))

        return living()


def test_runs_go_round_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(100, monkeypatch)
    measured = bench.measure([bench.Entry(name, Path(name), {}, 1) for name in "ab"], runs=2)
    assert machine.ran == ["a", "b"] * 3
    assert [one.seconds for one in measured] == [[3, 5], [4, 6]]  # without the first round
    assert machine.alive == []


def test_workers_make_room_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(8, monkeypatch)  # two
    measured = bench.measure([bench.Entry(name, Path(name), {}, 1) for name in "abc"], runs=1)
    assert machine.ran == ["a", "b", "c", *"aabbcc"]  # a process started again runs once more, which does not count
    assert [one.seconds for one in measured] == [[5], [7], [9]]
    assert (machine.most, machine.alive) == (2, [])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.onnx"], "missing.onnx: no such file"),
        (["text.onnx"], "text.onnx: not an ONNX model"),
        (["convolutional.onnx", "fails.onnx"], "fails.onnx: does not run"),
        (["convolutional.onnx", "--runs", "0"], "runs must be 1 or more"),
        (["convolutional.onnx", "--threads", "0"], "threads must be 1 to"),
        (["convolutional.onnx", "--threads", "100000"], "threads must be 1 to"),
        (["convolutional.onnx", "--json", "text.onnx/report.json"], "cannot write"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert bench.main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and reason in errors
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed, most likely for lack of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("sys.exit(3)", "status 3"),
    ],
)
def test_a_dead_worker_is_one_line_that_names_the_model(tmp_path: Path, death: str, reason: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"import os, signal, sys\nprint('{{}}', flush=True)\nsys.stdin.readline()\n{death}\n")
    with Worker("large.onnx", tmp_path, tmp_path, command=(sys.executable, str(script))) as worker:
        with pytest.raises(UserError, match=rf"^large\.onnx: .*{reason}"):
            worker.run()
        with pytest.raises(UserError, match=r"^large\.onnx"):
            worker.memory()


def _allocate(size: int) -> int:
    return len(bytearray(size))


def test_an_isolated_function_returns_fails_and_dies() -> None:
    assert isolated("sum", sum, [1, 2]) == 3
    with pytest.raises(ZeroDivisionError):
        isolated("division", divmod, 1, 0)
    with pytest.raises(UserError, match=r"^list: needs more memory"):
        isolated("list", _allocate, 1 << 50)
    with pytest.raises(UserError, match=r"^killed: needs more memory"):
        isolated("killed", signal.raise_signal, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^worker: needs more memory"):
        isolated("worker", os._exit, 1)
