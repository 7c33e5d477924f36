# SPDX-License-Identifier: Apache-2.0
"""Widths of weights by what they cost: how much error a site adds at each width, and how many bytes it takes.

A weight of 4 bits or less is stored packed, two to a byte, a wider one in a byte. So 2 and 3 bits save nothing over 4,
nor 5 to 7 over 8: a site has the widest width of either kind, and all there is to choose is which sites are packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from samq_onnx.analysis.judge import Judge, Loss
from samq_onnx.analysis.sensitivity import Trial, sensitivity
from samq_onnx.analysis.sites import site_runs
from samq_onnx.analysis.subject import Subject
from samq_onnx.codes import WeightCodes
from samq_onnx.methods import Scheme
from samq_onnx.methods.step import Feeds
from samq_onnx.observers import WEIGHT_OBSERVERS
from samq_onnx.observers.weight import weight_scales
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Linear

__all__ = ["PACKED", "SiteCost", "cheapest", "predicted", "site_costs"]

PACKED = 4  # bits at most, of a weight that is stored two to a byte
WIDE, NARROW = "wide", "narrow"


@dataclasses.dataclass(frozen=True)
class SiteCost:
    """What packing the weight of a linear costs and saves.

    Attributes:
        part, site: where. bits: not packed.
        wide, packed: loss with the weight alone quantized to ``bits``, and to `PACKED` bits.
        saved: bytes.
    """

    part: str
    site: str
    bits: int
    wide: Loss
    packed: Loss
    saved: int

    @property
    def added(self) -> float:
        """Error that packing adds."""
        return max(0.0, self.packed.error - self.wide.error)


def site_costs(
    part: str, subject: Subject, scheme: Scheme, feeds: Feeds, judge: Judge, *, label: str
) -> list[SiteCost]:
    """Measure each linear whose weight has more than `PACKED` bits and whose width the scheme leaves open.

    Scales are those of least error, the same for every method, as only the order of the sites matters.
    """
    linears = [
        linear
        for linear in subject.lifted.linears
        if linear.name in subject.plan.linears
        and scheme.bits(linear.name, "weight") > PACKED
        and "weight" not in scheme.sites.get(linear.name, {})
    ]
    trials = {
        linear.name: [
            _trial(WIDE, subject, linear, scheme.bits(linear.name, "weight")),
            _trial(NARROW, subject, linear, PACKED),
        ]
        for linear in linears
    }
    if not trials:
        return []
    runs = site_runs(subject.lifted, subject.plan, {}, trials)
    losses = sensitivity(subject.lifted, runs, trials, feeds, judge, label=label).losses
    return [
        SiteCost(
            part, linear.name, scheme.bits(linear.name, "weight"),
            losses[linear.name][WIDE], losses[linear.name][NARROW], constant(linear.weight).size // 2,
        )
        for linear in linears
    ]  # fmt: skip


def _trial(name: str, subject: Subject, linear: Linear, bits: int) -> Trial:
    scales = weight_scales(constant(linear.weight), linear.out_axis, bits, WEIGHT_OBSERVERS["mse"])
    codes = WeightCodes(tuple(np.float32(scales).ravel().tolist()), bits)
    return Trial(name, dataclasses.replace(subject.plan.linears[linear.name], weight=codes), ("weight",))


def cheapest(costs: Sequence[SiteCost], saved: int) -> list[SiteCost]:
    """The sites whose packing saves so many bytes and adds the least error, errors of sites added up.

    Raises:
        ValueError: all of them do not save so much.
    """
    if sum(cost.saved for cost in costs) < saved:
        raise ValueError(f"all sites save less than {saved} bytes")
    if saved <= 0:
        return []
    added = np.array([cost.added for cost in costs])
    saves = np.array([cost.saved for cost in costs], np.float64)
    unit = added.max() or 1.0
    found = milp(
        added / unit,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(saves[None] / saved, lb=1.0),
        options={"mip_rel_gap": 0.0},
    )
    packed = found.x > 0.5
    if saves[packed].sum() < saved:  # by the solver's tolerance
        rest = [index for index in np.argsort(saves) if not packed[index]]
        packed[next(index for index in rest if saves[packed].sum() + saves[index] >= saved)] = True
    return [cost for cost, chosen in zip(costs, packed, strict=True) if chosen]


def predicted(costs: Sequence[SiteCost], packed: Iterable[SiteCost]) -> Mapping[str, float]:
    """Errors, and shares of mask pixels that flip, of all weights, added up."""
    chosen = {(cost.part, cost.site) for cost in packed}
    losses = [cost.packed if (cost.part, cost.site) in chosen else cost.wide for cost in costs]
    return {"error": sum(loss.error for loss in losses), "flips": sum(loss.flips or 0.0 for loss in losses)}
