# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: weights packed where that costs least, down to a size, or as far as a loss allows.

The error that each site adds is measured alone (`samq_onnx.analysis.widths`), at the masks where there is a decoder, so
that sites of both parts compare. What is chosen is given to the method as widths of sites, like those of a user.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samq_onnx.analysis.agreement import Masks
from samq_onnx.analysis.judge import Judge, MaskJudge, OutputJudge
from samq_onnx.analysis.subject import by_method, lowered, weight_bytes
from samq_onnx.analysis.widths import PACKED, SiteCost, cheapest, predicted, site_costs
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.families import NOTHING, Role, identify
from samq_onnx.feeds import Selection
from samq_onnx.float_model import check_float
from samq_onnx.models import load_model
from samq_onnx.samples import Sample
from samq_onnx.scratch import Scratch

if TYPE_CHECKING:
    from samq_onnx.api import Order, Result

__all__ = ["Goal", "Quantize", "meet"]

MEGABYTE = 1e6
INPUTS = 2  # that single sites are tried on
HELD_OUT = 8  # images at most, and a quarter of all
LOOKED_AT = 4  # images whose masks are compared where none are held out
SLACK = 64  # bytes; constants that sites share, such as zero points, differ a little with the widths
HALVINGS = 4  # of the bytes that may be saved

Quantize = Callable[["Order", Calibration], "Result"]
"""Quantizes the model at hand."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What widths are chosen for; one of the two.

    Attributes:
        budget_mb: megabytes (10^6 bytes) that the weights in the files may take together.
        max_loss: points of mean IoU with the float masks that may be lost, on images held out of the calibration.
    """

    budget_mb: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.budget_mb, self.max_loss) if value is not None]
        if len(given) != 1:
            raise UserError("a size and a loss cannot both decide the widths; give one of them")
        number = isinstance(given[0], (int, float)) and not isinstance(given[0], bool)
        if not number or not math.isfinite(given[0]) or given[0] <= 0:
            raise UserError(f"wanted a number above 0 as megabytes or points, got {given[0]!r}")


@dataclasses.dataclass
class _Case:
    """A model whose widths are to be chosen.

    Attributes:
        costs: of all sites that can be packed. stored: bytes of all weights with none packed.
    """

    order: Order
    quantize: Quantize
    say: Callable[[str], None]
    costs: list[SiteCost]
    stored: int

    @property
    def least(self) -> int:
        return self.stored - sum(cost.saved for cost in self.costs)

    def made(self, packed: Sequence[SiteCost], calibration: Calibration) -> Result:
        """The model with these sites packed."""
        sites = {
            name: {site: dict(roles) for site, roles in bits.items()} for name, bits in self.order.site_bits.items()
        }
        for cost in packed:
            sites.setdefault(cost.part, {}).setdefault(cost.site, {})["weight"] = PACKED
        return self.quantize(dataclasses.replace(self.order, site_bits=sites), calibration)

    def report(self, goal: Goal, packed: Sequence[SiteCost], result: Result, **measured: Any) -> dict[str, Any]:
        chosen = {(cost.part, cost.site) for cost in packed}
        return {
            "goal": dataclasses.asdict(goal),
            "sites": [{**dataclasses.asdict(cost), "chosen": (cost.part, cost.site) in chosen} for cost in self.costs],
            "predicted": {
                "bytes": self.stored - sum(cost.saved for cost in packed),
                **predicted(self.costs, packed),
            },
            "measured": {"bytes": sum(weight_bytes(part.model) for part in result.parts.values()), **measured},
            "bytes_least": self.least,
            "bytes_most": self.stored,
        }


def meet(
    goal: Goal,
    order: Order,
    files: dict[str, Path],
    calibration: Calibration,
    encoder: Path | None,
    quantize: Quantize,
    say: Callable[[str], None],
) -> Result:
    """Quantize with widths that meet a goal; the result says which, what was predicted and what was measured.

    Args:
        order: what else is asked for; its width of weights is that of sites that are not packed.
        files: part -> float model. encoder: float, for a decoder alone.
        quantize: makes a model. say: is told what is going on.

    Raises:
        UserError: the goal cannot be met; says the least that is possible.
    """
    if order.strict:
        raise UserError("strict is one width for everything; leave it out to let single sites have their own")
    if order.hints != NOTHING:
        raise UserError("a goal looks at masks of a model whose image its graph tells; leave out what is said of it")
    pair = (files["encoder"], files["decoder"]) if len(files) > 1 else None
    if goal.budget_mb is not None:
        case = _case(order, files, calibration, encoder, quantize, say)
        return _fit(goal, goal.budget_mb, case, calibration, pair)
    assert goal.max_loss is not None
    if pair is None:
        raise UserError("masks are compared to keep a loss, so it takes a folder of encoder.onnx and decoder.onnx")
    kept, held_out = _split(calibration)
    say(f"widths are chosen on {len(kept.images)} images, masks compared on {len(held_out)} others")
    case = _case(order, files, kept, encoder, quantize, say)
    return _search(goal, goal.max_loss, case, kept, Masks(pair, held_out, calibration.intake))


def _split(calibration: Calibration) -> tuple[Calibration, list[Sample]]:
    """All images but every fourth, or few, and these."""
    images = calibration.images
    if len(images) < 2:
        raise UserError(f"{calibration.folder}: one image; to keep a loss some are held out, give two or more")
    count = max(1, min(HELD_OUT, len(images) // 4))
    out = {images[(2 * index + 1) * len(images) // (2 * count)].path for index in range(count)}
    listed = [sample for sample in calibration.samples if sample.path in out]  # with annotations
    listed += [sample for sample in images if sample.path in out - {one.path for one in listed}]
    return calibration.only([sample for sample in calibration.samples if sample.path not in out]), listed


def _case(
    order: Order,
    files: dict[str, Path],
    calibration: Calibration,
    encoder: Path | None,
    quantize: Quantize,
    say: Callable[[str], None],
) -> _Case:
    costs: list[SiteCost] = []
    stored = 0
    for name, file in files.items():
        say(f"{file}: what each weight costs")
        model = load_model(file)
        check_float(model, file)
        part = identify(model, os.fspath(file))
        scheme = order.scheme(name, part)
        decoder = part.role is Role.DECODER
        feeds = part.feeds(calibration, files.get("encoder", encoder) if decoder else encoder, file.stem)
        places = sorted({len(feeds) * index // INPUTS for index in range(INPUTS)})
        judge: Judge = OutputJudge(part)
        if name == "encoder":
            judge = MaskJudge(part, files["decoder"], [feeds.samples[p] for p in places], calibration.intake)
        with by_method(
            model, part, feeds, order.method, scheme, order.target, label=file.stem, compensate=False
        ) as subject:
            costs += site_costs(name, subject, scheme, Selection(feeds, places), judge, label=file.stem)
            plan = subject.plan
        stored += weight_bytes(lowered(load_model(file), plan))
    return _Case(order, quantize, say, costs, stored)


def _fit(goal: Goal, budget: float, case: _Case, calibration: Calibration, pair: tuple[Path, Path] | None) -> Result:
    """Pack as much as the size asks for."""
    needed = case.stored - math.floor(budget * MEGABYTE)
    if case.stored - needed < case.least:
        raise UserError(
            f"weights of {budget:g} MB are not possible: with every quantized weight that may be packed they take "
            f"{_megabytes(case.least)} MB; give that or more"
        )
    if needed > 0:
        needed = min(needed + SLACK, case.stored - case.least)
    packed = cheapest(case.costs, needed)
    case.say(f"packing {len(packed)} of {len(case.costs)} weights")
    result = case.made(packed, calibration)
    measured: dict[str, Any] = {}
    if pair is not None:
        step = max(1, len(calibration.images) // LOOKED_AT)
        images = calibration.samples[::step][:LOOKED_AT]
        measured = {
            "points_lost": _points(Masks(pair, images, calibration.intake), result),
            "images": len(images),
            "held_out": False,
        }
    result.widths = case.report(goal, packed, result, **measured)
    return result


def _search(goal: Goal, most: float, case: _Case, calibration: Calibration, masks: Masks) -> Result:
    """Pack as much as the loss allows."""
    everything = sum(cost.saved for cost in case.costs)
    tried: dict[frozenset[str], tuple[float, Result, list[SiteCost]]] = {}
    lines: list[dict[str, float]] = []

    def lost(saved: int) -> float:
        packed = cheapest(case.costs, saved)
        key = frozenset(f"{cost.part} {cost.site}" for cost in packed)
        if key not in tried:
            result = case.made(packed, calibration)
            points = _points(masks, result)
            tried[key] = (points, result, packed)
            size = case.stored - sum(cost.saved for cost in packed)
            lines.append({"packed": len(packed), "bytes": size, "points_lost": points})
            case.say(
                f"{len(packed)} of {len(case.costs)} weights packed, {_megabytes(size)} MB: {points:.2f} points lost"
            )
        return tried[key][0]

    if lost(0) > most:
        raise UserError(
            f"a loss of {most:g} points is not possible: with no weight packed {lost(0):.2f} points are lost; allow "
            "that or more, or more bits"
        )
    low, high = 0, everything
    if lost(everything) > most:
        for _ in range(HALVINGS):
            middle = (low + high) // 2
            low, high = (middle, high) if lost(middle) <= most else (low, middle)
    fitting = [found for found in tried.values() if found[0] <= most]
    points, result, packed = max(fitting, key=lambda found: sum(cost.saved for cost in found[2]))
    result.widths = case.report(goal, packed, result, points_lost=points, held_out=True, tried=lines)
    return result


def _megabytes(size: int) -> str:
    """Rounded up, so that a budget of so many is met."""
    digits = max(2, 3 - math.floor(math.log10(max(size, 1) / MEGABYTE)))
    return f"{math.ceil(size / MEGABYTE * 10**digits) / 10**digits:.{digits}f}"


def _points(masks: Masks, result: Result) -> float:
    with Scratch() as folder:
        files = []
        for name, part in result.parts.items():
            files.append(folder / f"{name}.onnx")
            part.save(files[-1])
        return masks.points_lost((files[0], files[1]))
