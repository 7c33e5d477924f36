# SPDX-License-Identifier: Apache-2.0
"""Whether a plan fits the model that it is to be lowered with, so that nothing of it is left out in silence."""

from __future__ import annotations

from collections.abc import Iterable

from samq_onnx.codes import UniformCodes
from samq_onnx.documents import brief
from samq_onnx.errors import UserError
from samq_onnx.passes.lift import Lifted, Linear
from samq_onnx.plan import LinearPlan, QuantPlan

__all__ = ["check_bits", "check_sites"]

WIDEST = 8


def check_bits(plan: QuantPlan, label: str) -> None:
    """Check the least bits that a plan gives its weights, by which the model is prepared.

    Raises:
        UserError: a weight has less, or these are bits that no weight has.
    """
    least = min([WIDEST, *(linear.weight.bits for linear in plan.linears.values())])
    if not 1 <= plan.weight_bits <= least:
        raise UserError(f"{label}: the plan's weight_bits is {brief(plan.weight_bits)}, wanted 1 to {least}")


def check_sites(plan: QuantPlan, lifted: Lifted, label: str) -> None:
    """Check that the model has every site of a plan, with its channels.

    Raises:
        UserError: names the first site that does not fit.
    """
    linears = {linear.name: linear for linear in lifted.linears}
    _all_there([*plan.linears, *plan.kept_float], linears, "linear", label)
    _all_there(plan.attentions, {site.name for site in lifted.attentions}, "attention", label)
    for name, given in plan.linears.items():
        reason = "is quantized and kept float" if name in plan.kept_float else _misfit(linears[name], given)
        if reason is not None:
            raise UserError(f"{label}: the plan does not fit: {name} {reason}; quantize the model again")
    for name, site in plan.attentions.items():
        codes = site.probabilities
        if isinstance(codes, UniformCodes) and codes.zero_point:
            raise UserError(f"{label}: the plan does not fit: probabilities of {name} begin below 0; quantize again")


def _all_there(names: Iterable[str], known: Iterable[str], kind: str, label: str) -> None:
    missing = sorted(set(names) - set(known))
    if missing:
        raise UserError(f"{label}: the plan is of another model: there is no {kind} {brief(missing[0])} here")


def _misfit(linear: Linear, plan: LinearPlan) -> str | None:
    scales = len(plan.weight.scale)
    if scales not in (1, linear.out_features):
        return f"has {scales} scales of its weight, wanted 1 or {linear.out_features}"
    if plan.hybrid is not None and plan.hybrid.grid != plan.input:
        return "has input codes that are not the grid of its hybrid codes"
    if plan.output is not None and linear.node.op_type != "Conv":
        return "has codes of its output, which convolutions alone have"
    return None
