# SPDX-License-Identifier: Apache-2.0
"""Hybrid codes for what a GELU or ReLU gives to a linear (HLUQ, AHCPTQ)."""

from __future__ import annotations

import itertools

import numpy as np

from samq_onnx.calibrate.statistics import RowSamples, Statistic, TensorStats
from samq_onnx.codes import HybridCodes
from samq_onnx.codes.hybrid import GRID_BITS
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.replan import with_input
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Linear
from samq_onnx.passes.report import Report

__all__ = ["HybridInputs", "best_hybrid"]

LOG_RANGES = (0.1, 0.3, 0.5)  # alpha
LOG_SHARES = (1 / 8, 1 / 4, 1 / 2)  # beta


def best_hybrid(rows: np.ndarray, weight: np.ndarray, low: float, high: float, bits: int) -> HybridCodes:
    """Of nine, the codes that leave the least squared error of a linear's output, as they run.

    Args:
        rows: what it reads, float32 [rows, in]. weight: [in, out]. low, high: the range.
    """
    made = [
        HybridCodes.of_range(low, high, bits, log_range=log_range, log_share=log_share)
        for log_range, log_share in itertools.product(LOG_RANGES, LOG_SHARES)
    ]
    return min(made, key=lambda codes: output_error(codes.on_grid(rows), rows, weight))


def output_error(coded: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> float:
    """|| (x^ - x) W ||^2."""
    return float(np.square((coded - rows) @ weight.astype(np.float64)).sum())


class HybridInputs(Step):
    """`codes.hybrid` in place of the uniform input codes of each linear that reads a GELU or ReLU.

    The range is the mean of the least and of the largest values of the inputs. Refuses codes of 8 bits, which the grid
    has no room for.

    Args:
        always: also where uniform codes leave a smaller error of the linear's output, as in the paper.
    """

    name = "hybrid codes (HLUQ)"
    reads_plan = True

    def __init__(self, *, always: bool) -> None:
        self.always = always

    def _linears(self, work: Work) -> list[Linear]:
        curves = {gelu.output for gelu in work.lifted.gelus}
        found = []
        for linear in work.linears:
            maker = linear.x.producer()
            relu = maker is not None and maker.op_type == "Relu" and not maker.domain
            if linear.node.op_type != "Conv" and linear.name in work.plan.linears and (linear.x in curves or relu):
                found.append(linear)
        return found

    def wants(self, work: Work) -> list[Statistic]:
        wanted: list[Statistic] = []
        for linear in self._linears(work):
            wanted += [_rows(linear), TensorStats(linear.x.name or "")]
        return wanted

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        shares = []
        for linear in self._linears(work):
            held = work.plan.linears[linear.name]
            if held.input.bits >= GRID_BITS:
                report.refuse(linear.name, f"uniform codes of {GRID_BITS} bits are the grid that hybrid ones lie on")
                continue
            stats, rows = work.found(TensorStats(linear.x.name or "")), work.found(_rows(linear)).rows
            weight = constant(linear.weight)
            weight = weight if linear.out_axis else weight.T
            low, high = float(np.mean(stats.lows)), float(np.mean(stats.highs))
            codes = best_hybrid(rows, weight, low, high, held.input.bits)
            before, after = (
                output_error(one, rows, weight) for one in (held.input.fake_quantize(rows), codes.on_grid(rows))
            )
            if not self.always and after >= before:
                continue
            if before > 0 and after > 0:
                shares.append(np.log(after / before))
            work.plan.linears[linear.name] = with_input(linear, held, codes.grid, codes)
            report.done.append(linear.name)
        if shares:
            report.facts["squared error of outputs, as a share of that of uniform codes"] = float(
                np.exp(np.mean(shares))
            )
        return report


def _rows(linear: Linear) -> RowSamples:
    return RowSamples(linear.x.name or "", channels=linear.in_features)
