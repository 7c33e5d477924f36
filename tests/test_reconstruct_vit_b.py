# SPDX-License-Identifier: Apache-2.0
"""The benchmark of learning at real size, on a model of no size."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """benchmarks/reconstruct_vit_b.py, which finds its neighbours as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("reconstruct_vit_b")


@pytest.mark.slow
def test_units_their_time_and_what_a_full_run_takes(
    benchmark: ModuleType, tiny_sam: Path, one_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "MOST", "4")
    words = ["--calib", str(one_image), "--model", str(tiny_sam), "--minutes", "20", "--device", "cpu"]
    assert benchmark.main([*words, "--methods", "ptq4sam-l", "-o", str(tmp_path)]) == 0
    (record,) = json.loads((tmp_path / "reconstruct.json").read_text())
    assert [one["iterations"] for one in record["descents"]] == [4, 4, 4] and len(record["units"]) == 3
    each = sum(one["seconds"] / 4 for one in record["descents"])
    assert record["full_run_hours"] > 20_000 * each / 3600 and record["memory_gb"]["process"] > 0.1
    lines = (tmp_path / "reconstruct.md").read_text().splitlines()
    assert lines[0].startswith("**ptq4sam-l** w4a4, 1 images: ") and lines[0].endswith(" hours.")
    assert [line.split(" | ")[1:3] for line in lines[4:]] == [
        [unit.split(": loss")[0], "4"] for unit in record["units"]
    ]


def test_where_nothing_was_learned_it_says_so(benchmark: ModuleType) -> None:
    record = {"method": "auto", "bits": "w4a4", "images": 2, "seconds": 3.0, "descents": [], "units": []}
    page = benchmark.page([{**record, "memory_gb": {"process": 1.0}, "full_run_hours": None}])
    assert "2 images: 3 s, 1.0 GB of process. With 20000 iterations a unit and 32 images: not known" in page
