# SPDX-License-Identifier: Apache-2.0
"""Widths of single weights, chosen for a size or for a loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import samq_onnx
from samq_onnx import quantize
from samq_onnx.analysis.judge import Loss
from samq_onnx.analysis.widths import SiteCost, cheapest
from samq_onnx.errors import UserError
from samq_onnx.plan import QuantPlan


@pytest.fixture(scope="module")
def four_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    random = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def _costs(added: list[float], saved: list[int]) -> list[SiteCost]:
    pairs = enumerate(zip(added, saved, strict=True))
    return [SiteCost("model", str(n), 8, Loss(1.0), Loss(1.0 + error), size) for n, (error, size) in pairs]


def test_the_choice_is_the_best_there_is() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        added, saved = random.exponential(size=8).tolist(), random.integers(1, 50, 8).tolist()
        costs = _costs(added, saved)
        needed = int(random.integers(0, sum(saved) + 1))
        subsets = (
            subset for count in range(9) for subset in itertools.combinations(costs, count)
            if sum(cost.saved for cost in subset) >= needed
        )  # fmt: skip
        best = min(sum(cost.added for cost in subset) for subset in subsets)
        found = cheapest(costs, needed)
        assert sum(cost.saved for cost in found) >= needed
        assert sum(cost.added for cost in found) == pytest.approx(best)


def test_what_cannot_be_saved_is_refused() -> None:
    with pytest.raises(ValueError, match="save less than 11"):
        cheapest(_costs([1.0, 2.0], [5, 5]), 11)
    assert cheapest(_costs([1.0, 2.0], [5, 5]), 0) == []


def _stored(folder: Path) -> int:
    """Bytes of the weights in the files of a folder."""
    total = 0
    for file in folder.glob("*.onnx"):
        for tensor in onnx.load(file).graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            packed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
            total += -(-array.size // 2) if packed else array.nbytes
    return total


def _packed(plans: dict[str, QuantPlan]) -> set[tuple[str, str]]:
    return {(part, name) for part, plan in plans.items() for name, one in plan.linears.items() if one.weight.bits == 4}


def test_a_size_is_kept_and_what_was_predicted_is_so(tiny_sam: Path, four_images: Path, tmp_path: Path) -> None:
    wide = samq_onnx.quantize(tiny_sam, four_images, method="minmax")
    wide.save(tmp_path / "wide")
    budget = _stored(tmp_path / "wide") - 1500
    result = samq_onnx.quantize(tiny_sam, four_images, method="minmax", budget_mb=budget / 1e6)
    result.save(tmp_path / "mixed")
    assert result.widths is not None and 0 < len(_packed(result.plans)) < len(result.widths["sites"])
    chosen = {(site["part"], site["site"]) for site in result.widths["sites"] if site["chosen"]}
    assert chosen == _packed(result.plans)
    assert budget - 300 < _stored(tmp_path / "mixed") <= budget
    found = result.widths
    assert found["measured"]["bytes"] == _stored(tmp_path / "mixed")
    assert found["measured"]["bytes"] <= found["predicted"]["bytes"] <= budget
    assert found["predicted"]["bytes"] - found["measured"]["bytes"] < 100  # constants that two sites share
    assert found["measured"]["points_lost"] > 0 and found["predicted"]["error"] > 0


def test_a_size_that_cannot_be_kept_says_the_least(tiny_sam: Path, four_images: Path) -> None:
    with pytest.raises(UserError, match=r"they take [0-9.]+ MB; give that or more") as refused:
        samq_onnx.quantize(tiny_sam, four_images, method="minmax", budget_mb=0.001)
    least = float(str(refused.value).split("they take ")[1].split(" ")[0])
    result = samq_onnx.quantize(tiny_sam, four_images, method="minmax", budget_mb=least)
    assert result.widths is not None and len(_packed(result.plans)) == len(result.widths["sites"])


def test_a_loss_is_kept_on_images_held_out(tiny_sam: Path, four_images: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [str(tiny_sam), "--calib", str(four_images), "-o", str(tmp_path / "made"), "--method", "minmax"]
    assert quantize.main([*words, "--max-loss", "15", "--json", str(report)]) == 0
    found = json.loads(report.read_text())["widths"]
    assert found["measured"]["held_out"] and found["measured"]["points_lost"] <= 15
    tried = found["measured"]["tried"]
    kept = [line for line in tried if line["points_lost"] <= 15]
    assert len(tried) > 1 and max(line["packed"] for line in kept) == sum(site["chosen"] for site in found["sites"])
    assert _stored(tmp_path / "made") < found["bytes_most"]


def test_goals_that_cannot_be_are_refused(
    tiny_sam: Path, one_image: Path, four_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tiny_sam / "encoder.onnx"
    with pytest.raises(UserError, match="one image; to keep a loss"):
        samq_onnx.quantize(tiny_sam, one_image, method="minmax", max_loss=1.0)
    with pytest.raises(UserError, match="takes a folder"):
        samq_onnx.quantize(encoder, four_images, method="minmax", max_loss=1.0)
    with pytest.raises(UserError, match="with no weight packed"):
        samq_onnx.quantize(tiny_sam, four_images, method="minmax", bits="w5a3", max_loss=0.01)
    with pytest.raises(UserError, match="cannot both"):
        samq_onnx.quantize(encoder, four_images, budget_mb=1.0, max_loss=1.0)
    with pytest.raises(UserError, match="strict is one width"):
        samq_onnx.quantize(encoder, four_images, budget_mb=1.0, strict=True)
    with pytest.raises(UserError, match="leave out --minutes"):
        samq_onnx.quantize(encoder, four_images, method="adaround", budget_mb=1.0, minutes=1.0)
    for wrong in (0, -1.0, float("nan"), True, "1"):
        with pytest.raises(UserError, match="wanted a number above 0"):
            samq_onnx.quantize(encoder, four_images, budget_mb=wrong)  # type: ignore[arg-type]
    assert quantize.main([str(encoder), "--budget-mb", "1", "--max-loss", "1"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_width_that_a_user_gave_stays(tiny_sam: Path, one_image: Path) -> None:
    encoder = tiny_sam / "encoder.onnx"
    names = list(samq_onnx.quantize(encoder, one_image, method="minmax").plan.linears)
    with pytest.raises(UserError, match="give that or more"):
        samq_onnx.quantize(encoder, one_image, method="minmax", budget_mb=1e-6)
    result = samq_onnx.quantize(
        encoder, one_image, method="minmax", budget_mb=1.0, site_bits={names[0]: {"weight": 8, "input": 7}}
    )
    assert result.widths is not None and names[0] not in {site["site"] for site in result.widths["sites"]}
    assert result.plan.linears[names[0]].input.bits == 7
