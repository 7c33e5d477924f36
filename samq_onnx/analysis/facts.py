# SPDX-License-Identifier: Apache-2.0
"""What is said of each site, as JSON holds it: histograms, chosen ranges, noise, peaks, channels, errors of codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from samq_onnx.analysis.judge import Loss
from samq_onnx.analysis.observe import Observed, weight_stats
from samq_onnx.analysis.subject import Subject
from samq_onnx.calibrate.statistics import AttentionRows, TensorStats
from samq_onnx.codes import HybridCodes, LogCodes, RowCodes, UniformCodes
from samq_onnx.observers import agq, row
from samq_onnx.passes.fold import is_bimodal
from samq_onnx.passes.graph import constant
from samq_onnx.plan import AttentionPlan, LinearPlan

__all__ = ["site_facts"]

BINS = 80  # that are drawn
OUTLIER = 8.0  # times the reach of the middle channel

Facts = dict[str, Any]


def site_facts(
    subject: Subject, before: Observed, after: Observed, losses: Mapping[str, Mapping[str, Loss]]
) -> list[Facts]:
    """One entry for each quantized site, the costliest first.

    Args:
        before, after: of the model without and with its folds. losses: of sites quantized alone, by trial.
    """
    found: list[Facts] = []
    for linear in subject.lifted.linears:
        plan = subject.plan.linears.get(linear.name)
        if plan is not None:
            tensors = [
                _tensor("input", linear.x.name or "", before, after, plan.input, plan.hybrid),
                _weight(subject, linear.name, before, after, plan),
            ]
            if plan.output is not None:
                tensors.append(_tensor("output", linear.output.name or "", before, after, plan.output))
            tensors[0]["channels"] = _both(linear.name, "input", before, after)
            found.append({"site": linear.name, "kind": "linear", "tensors": tensors})
    for site in subject.lifted.attentions:
        codes = subject.plan.attentions.get(site.name)
        if codes is not None:
            operands = zip(("q", "k", "v"), site.operand_names, (codes.q, codes.k, codes.v), strict=True)
            tensors = [_tensor(role, name, before, after, one) for role, name, one in operands]
            for tensor, projection in zip(tensors, (site.q, site.k, site.v), strict=True):
                if projection is not None:
                    tensor["channels"] = _both(site.name, tensor["role"], before, after, projection.channels.ravel())
            tensors[1]["bimodal"] = {
                name: bool(is_bimodal(seen.keys[site.name].values))
                for name, seen in (("before", before), ("after", after))
            }
            tensors.append(_map(before.rows[site.name], after.rows[site.name], codes))
            found.append({"site": site.name, "kind": f"attention, {site.kind}", "tensors": tensors})
    for one in found:
        one["losses"] = {name: vars(loss) for name, loss in losses[one["site"]].items()}
    return sorted(found, key=lambda one: -one["losses"]["all"]["error"])


def _tensor(
    role: str, name: str, before: Observed, after: Observed, codes: UniformCodes, hybrid: HybridCodes | None = None
) -> Facts:
    stats = after.tensors[name]
    low, high = ((end - codes.zero_point) * codes.scale for end in (0, 2**codes.bits - 1))
    quantized = codes.fake_quantize(stats.centres) if hybrid is None else hybrid.on_grid(stats.centres)
    return {
        "role": role,
        "tensor": name,
        "bits": (hybrid or codes).bits,
        "range": [low, high],
        "sqnr_db": _sqnr(stats.counts, stats.centres, quantized),
        **_histograms(before.tensors[name], stats),
    }


def _weight(subject: Subject, site: str, before: Observed, after: Observed, plan: LinearPlan) -> Facts:
    linear = next(one for one in subject.lifted.linears if one.name == site)
    weight = subject.rounded.get(linear.weight.name or "", constant(linear.weight))
    decoded = plan.weight.decode(plan.weight.encode(weight, linear.out_axis), linear.out_axis)
    reference = constant(linear.weight)
    reach = max(plan.weight.scale) * 2 ** (plan.weight.bits - 1)
    return {
        "role": "weight",
        "tensor": linear.weight.name or "",
        "bits": plan.weight.bits,
        "range": [-reach, reach],
        "sqnr_db": _sqnr(np.ones(reference.size), reference.ravel().astype(np.float64), decoded.ravel()),
        **_histograms(before.weights[site], weight_stats(reference)),
    }


def _map(before: AttentionRows, after: AttentionRows, codes: AttentionPlan) -> Facts:
    chosen = codes.probabilities
    maps = [p for p, _ in after.samples]
    signal = sum(float(np.square(p, dtype=np.float64).sum()) for p in maps)
    noise = sum(float(np.square(chosen.fake_quantize(p) - p.astype(np.float64)).sum()) for p in maps)
    facts: Facts = {
        "role": "probabilities",
        "tensor": "post-softmax map",
        "bits": chosen.bits,
        "codes": chosen.kind,
        "sqnr_db": _decibels(signal, noise),
        "largest_of_row": float(np.median(np.concatenate([p.max(axis=-1).ravel() for p in maps]))),
        **_histograms(before.probabilities, after.probabilities),
    }
    if isinstance(chosen, RowCodes):
        errors = row.row_errors(after, chosen.bits)
        facts["tau"] = {"chosen": chosen.tau, "curve": [[t, float(e)] for t, e in zip(row.TAUS, errors, strict=True)]}
    elif isinstance(chosen, LogCodes):
        _, grid = agq.log_errors(after, chosen.bits)
        facts["tau"] = {
            "chosen": chosen.tau,
            "curve": [[t, float(e)] for t, e in zip(agq.TAUS, grid.min(axis=1), strict=True)],
        }
    elif isinstance(chosen, UniformCodes):
        facts["range"] = [0.0, chosen.scale * (2**chosen.bits - 1)]
    return facts


def _histograms(before: TensorStats, after: TensorStats) -> Facts:
    """Both on the same bins, and how far the largest value lies out."""
    low = min(0.0, *before.lows, *after.lows)
    high = max(0.0, *before.highs, *after.highs)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    power = float(after.counts @ np.square(after.centres) / max(after.counts.sum(), 1.0))
    return {
        "edges": [low, float(edges[-1])],
        "before": np.histogram(before.centres, edges, weights=before.counts)[0].tolist(),
        "after": np.histogram(after.centres, edges, weights=after.counts)[0].tolist(),
        "seen": [min(after.lows), max(after.highs)],
        "crest": max(-min(after.lows), max(after.highs)) / max(np.sqrt(power), 1e-30),
    }


def _both(site: str, role: str, before: Observed, after: Observed, which: np.ndarray | None = None) -> Facts:
    """Of channels of a tensor, all or which, without and with the folds."""
    chosen = slice(None) if which is None else which
    return {
        name: _channels(seen.channels[site][role].lows[chosen], seen.channels[site][role].highs[chosen])
        for name, seen in (("before", before), ("after", after))
    }


def _channels(low: np.ndarray, high: np.ndarray) -> Facts:
    """Ranges, and the channels that reach far beyond the middle one."""
    reach = np.maximum(-low, high)
    middle = max(float(np.median(reach)), 1e-30)
    return {
        "low": [float(value) for value in low],
        "high": [float(value) for value in high],
        "outliers": int((reach > OUTLIER * middle).sum()),
        "ratio": float(reach.max()) / middle,
    }


def _sqnr(counts: np.ndarray, values: np.ndarray, quantized: np.ndarray) -> float:
    return _decibels(float(counts @ np.square(values)), float(counts @ np.square(quantized - values)))


def _decibels(signal: float, noise: float) -> float:
    return float(10.0 * np.log10(max(signal, 1e-300) / max(noise, 1e-300)))
