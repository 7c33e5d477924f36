# SPDX-License-Identifier: Apache-2.0
"""Clip the queries and keys of a decoder until attention would look elsewhere (SAQ-SAM, PCC).

At each decoder attention four tensors get ranges: what the linears of q and of k read, then q and k. Each takes the
candidate of `observers.focus.SHARES_KEPT` whose foci agree best with those of the float model, the others of the site
as they are by then; ties go to the narrower range. That is done twice, and what comes first in the graph is in codes
when the next site is searched. Weights are float, and softmax has no codes.

The released code does this first, and observes all other activations behind these codes. Here ranges came first, from
the float model, and these 28 are replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from samq_onnx.calibrate.statistics import Statistic, TensorStats
from samq_onnx.calibrate.stream import run
from samq_onnx.codes import UniformCodes
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.replan import with_input
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.observers.focus import SHARES_KEPT, focus, focus_loss
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import AttentionSite, Projection
from samq_onnx.passes.lift.kinds import DECODER_KINDS
from samq_onnx.passes.lower.fake import fake_quantize_inputs
from samq_onnx.passes.report import Report
from samq_onnx.sampling import stride

__all__ = ["ClipAs", "ClipByFocus"]

PROMPTS = 16  # the first ones: of one image, as in the paper, where it has eight objects
ROUNDS = 2
SAMPLES = 1 << 22  # values that the ends of a range are read from
ORDER = ("q input", "k input", "q", "k")


class _Inputs:
    """Keeps what the linears of q and k read."""

    inputs = None

    def __init__(self, site: AttentionSite) -> None:
        assert site.q is not None and site.k is not None
        self.tensors = (site.q.linear.x.name or "", site.k.linear.x.name or "")
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, *arrays: np.ndarray) -> None:
        self.seen.append((arrays[0].copy(), arrays[1].copy()))


@dataclasses.dataclass
class _Site:
    """A site, what it focuses on in the float model, feed by feed, and its codes so far, by the names of `ORDER`."""

    site: AttentionSite
    bits: dict[str, int]
    exact: list[np.ndarray] = dataclasses.field(default_factory=list)
    codes: dict[str, UniformCodes] = dataclasses.field(default_factory=dict)

    def places(self) -> dict[tuple[str, int], UniformCodes]:
        """Where its codes are in the graph."""
        assert self.site.q is not None and self.site.k is not None
        q, k = self.site.q.linear.name, self.site.k.linear.name
        where = {"q input": (q, 0), "k input": (k, 0), "q": (self.site.name, 0), "k": (self.site.name, 1)}
        return {where[name]: codes for name, codes in self.codes.items()}

    def tensors(self) -> dict[str, str]:
        """Names of the tensors that have codes."""
        assert self.site.q is not None and self.site.k is not None
        q, k = self.site.operand_names[:2]
        found = {"q input": self.site.q.linear.x.name, "k input": self.site.k.linear.x.name, "q": q, "k": k}
        return {name: found[name] or "" for name in ORDER if name in self.bits}

    def operand(self, name: str, x: np.ndarray) -> np.ndarray:
        """q or k of what its linear reads, through the codes of that."""
        codes = self.codes.get(f"{name} input")
        return _operand(getattr(self.site, name), x if codes is None else _through(codes, x))

    def through(self, name: str, operand: np.ndarray) -> np.ndarray:
        codes = self.codes.get(name)
        return operand if codes is None else _through(codes, operand)

    def loss(self, q: Sequence[np.ndarray], k: Sequence[np.ndarray]) -> float:
        """Of operands [batch, heads, rows, d] of each feed."""
        pairs = zip(self.exact, q, k, strict=True)
        return float(np.mean([focus_loss(exact, focus(_logits(self.site, a, b))) for exact, a, b in pairs]))

    def search(self, inputs: _Inputs) -> None:
        """Choose the codes of all four tensors anew, one after the other."""
        seen = dict(zip("qk", zip(*inputs.seen, strict=True), strict=True))
        for name in ORDER:
            if name not in self.bits:
                continue
            mine, other = name[0], "k" if name[0] == "q" else "q"
            held = [self.through(other, self.operand(other, x)) for x in seen[other]]
            values = [self.operand(mine, x) if name == mine else x for x in seen[mine]]
            losses = {}
            for codes in _candidates(values, self.bits[name]):
                self.codes[name] = codes
                operands = values if name == mine else [self.operand(mine, x) for x in values]
                made = [self.through(mine, operand) for operand in operands]
                losses[codes] = self.loss(*((made, held) if mine == "q" else (held, made)))
            self.codes[name] = min(losses, key=losses.__getitem__)


def _through(codes: UniformCodes, x: np.ndarray) -> np.ndarray:
    """`UniformCodes.fake_quantize` in float32."""
    work: np.ndarray = x * np.float32(1 / codes.scale)
    np.rint(work, out=work)
    np.clip(work, -codes.zero_point, 2**codes.bits - 1 - codes.zero_point, out=work)
    work *= np.float32(codes.scale)
    return work


def _operand(projection: Projection, x: np.ndarray) -> np.ndarray:
    """[batch, heads, rows, d] of [..., rows, in], float32."""
    linear = projection.linear
    weight = constant(linear.weight)
    made = x.reshape(-1, *x.shape[-2:]) @ (weight if linear.out_axis else weight.T)
    if linear.bias is not None:
        made = made + constant(linear.bias)
    return np.moveaxis(made[..., projection.channels], -2, -3)


def _logits(site: AttentionSite, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    logits: np.ndarray = np.float32(site.scale) * (q @ k.swapaxes(-1, -2))
    return logits


def _candidates(values: Sequence[np.ndarray], bits: int) -> list[UniformCodes]:
    """Codes of central shares of the values, the narrowest first, each once."""
    flat = np.concatenate([value.ravel() for value in values])
    flat = flat[:: stride(flat.size, SAMPLES)]
    shares = np.array(SHARES_KEPT)
    lows, highs = np.quantile(flat, 1 - shares), np.quantile(flat, shares)
    ranges = zip(lows.tolist(), highs.tolist(), strict=True)
    return list(dict.fromkeys(UniformCodes.of_range(low, high, bits) for low, high in ranges))


class ClipByFocus(Step):
    """PCC on the plan of a decoder; an encoder is left alone. Refuses sites whose q and k lack linears of their own."""

    name = "clipping by focus (PCC)"

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        found = _sites(work, report)
        if not found:
            return report
        feeds = [work.feeds[index] for index in range(min(PROMPTS, len(work.feeds)))]
        float_inputs = [_Inputs(one.site) for one in found]
        run(work.model, feeds, float_inputs, label=f"{work.label}: {self.name}")
        for one, inputs in zip(found, float_inputs, strict=True):
            one.exact = [focus(_logits(one.site, one.operand("q", a), one.operand("k", b))) for a, b in inputs.seen]
        del float_inputs
        for number in range(ROUNDS):
            for one in found:
                others = [other.places() for other in found if other is not one]
                model = work.model.clone()
                fake_quantize_inputs(model, {place: codes for places in others for place, codes in places.items()})
                inputs = _Inputs(one.site)
                run(model, feeds, [inputs], label=f"{work.label}: {one.site.kind}, round {number + 1}")
                one.search(inputs)
        for one in found:
            _write(work, one)
            report.done.append(one.site.name)
        return report


class ClipAs(Step):
    """The ranges of another observer for what `ClipByFocus` clips, to compare with."""

    name = "clipping"
    reads_plan = True

    def __init__(self, observer: str) -> None:
        self.observer = observer

    def wants(self, work: Work) -> list[Statistic]:
        sites = _sites(work, Report(self.name))
        return [TensorStats(tensor) for one in sites for tensor in one.tensors().values()]

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        for one in _sites(work, report):
            for name, tensor in one.tensors().items():
                one.codes[name] = TENSOR_OBSERVERS[self.observer](work.found(TensorStats(tensor)), one.bits[name])
            _write(work, one)
            report.done.append(one.site.name)
        return report


def _sites(work: Work, report: Report) -> list[_Site]:
    """The attentions of a decoder that are clipped; a report says which are not."""
    found = []
    for site in work.lifted.attentions:
        if site.kind not in DECODER_KINDS or site.name not in work.plan.attentions:
            continue
        reason = _refusal(site)
        if reason is not None:
            report.refuse(site.name, reason)
        else:
            found.append(_Site(site, _bits(work, site)))
    return found


def _refusal(site: AttentionSite) -> str | None:
    if site.q is None or site.k is None or "Conv" in (site.q.linear.node.op_type, site.k.linear.node.op_type):
        return "the linears that make q and k are not known"
    if site.q.pooled or site.k.pooled:
        return "its operands are pooled"
    return "one linear makes q and k" if site.q.linear.node is site.k.linear.node else None


def _bits(work: Work, site: AttentionSite) -> dict[str, int]:
    """Of the tensors that have codes, by the names of `ORDER`."""
    assert site.q is not None and site.k is not None
    found = {operand: work.scheme.bits(site.name, operand) for operand in "qk"}
    for operand, projection in (("q", site.q), ("k", site.k)):
        if projection.linear.name in work.plan.linears:
            found[f"{operand} input"] = work.scheme.bits(projection.linear.name, "input")
    return found


def _write(work: Work, found: _Site) -> None:
    """Put the codes into the plan."""
    site, plan = found.site, work.plan
    assert site.q is not None and site.k is not None
    plan.attentions[site.name] = dataclasses.replace(plan.attentions[site.name], q=found.codes["q"], k=found.codes["k"])
    for operand, projection in (("q", site.q), ("k", site.k)):
        codes, linear = found.codes.get(f"{operand} input"), projection.linear
        if codes is not None:
            plan.linears[linear.name] = with_input(linear, plan.linears[linear.name], codes)
