# SPDX-License-Identifier: Apache-2.0
"""What a site costs when it alone is quantized: the error at the model's output, all else in float.

The model runs block by block (`samq_onnx.calibrate.blocks`). Where a site's block has been run in float, its output is
computed anew with the site quantized, put in its place, and the model goes on from there: what lies before the site is
never run again. Where that would take too long, only the block of the site goes on, and the error at the block's end is
multiplied by what the rest of the model makes of such an error, which is measured once for each block and input.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from tqdm import tqdm

from samq_onnx.analysis.judge import Judge, Loss, relative_error
from samq_onnx.analysis.sites import SiteCodes, SiteRun, site_runs
from samq_onnx.calibrate.blocks import Block, cut
from samq_onnx.calibrate.stream import open_block
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.progress import progress_bar
from samq_onnx.runtime import run_session

__all__ = ["ALL", "Sensitivity", "Trial", "plan_trials", "sensitivity", "sensitivity_of_plan"]

SECONDS = 300.0  # that running to the model's end may take
ALL = "all"

Feed = Mapping[str, np.ndarray]
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A site quantized: its codes, the roles that use them (all if none are named), and what to call it."""

    name: str
    codes: SiteCodes
    roles: tuple[str, ...] = ()


@dataclasses.dataclass
class Sensitivity:
    """What was measured.

    Attributes:
        losses: site -> name of a trial -> loss at the model's output, mean over the inputs.
        weighted: the errors are those at the ends of blocks, weighted; flips are not known then.
        inputs: how many were run. seconds: it took.
    """

    losses: dict[str, dict[str, Loss]]
    weighted: bool
    inputs: int
    seconds: float

    def worst(self, trial: str = ALL) -> list[str]:
        """Sites by falling error."""
        return sorted(self.losses, key=lambda site: -self.losses[site][trial].error)


def plan_trials(plan: QuantPlan, runs: Mapping[str, SiteRun]) -> dict[str, list[Trial]]:
    """Each site as the plan has it, as a whole and in each of its roles alone."""
    codes: dict[str, SiteCodes] = {**plan.linears, **plan.attentions}
    return {
        name: [Trial(ALL, codes[name]), *(Trial(role, codes[name], (role,)) for role in run.roles(codes[name]))]
        for name, run in runs.items()
    }


class _Piece:
    """A block that is open, and what the judge looks at of it."""

    def __init__(self, block: Block, runs: Sequence[SiteRun], judged: Sequence[str]) -> None:
        self.block, self.runs, self.judged = block, runs, judged
        self.session = _open(block.model)
        self.ends = [*([block.carried_out] if block.carried_out is not None else []), *judged]

    def run(self, carried: np.ndarray | None, feed: Feed, names: Sequence[str]) -> Tensors:
        """Tensors of these names."""
        tensors = self.entering(carried, feed)
        made = [name for name in names if name not in tensors]
        found = run_session(self.session, tensors, "the model", made)
        return {**tensors, **dict(zip(made, found, strict=True))}

    def entering(self, carried: np.ndarray | None, feed: Feed) -> Tensors:
        tensors = {name: feed[name] for name in self.block.feed_inputs}
        if self.block.carried_in is not None and carried is not None:
            tensors[self.block.carried_in] = carried
        return tensors

    def behind(self, site: SiteRun) -> ort.InferenceSession | None:
        """The block from a site's output on; None where that is all that leaves it."""
        wanted = [name for name in self.ends if name != site.output]
        if not wanted:
            return None
        graph = self.block.model.graph
        inputs = [value.name or "" for value in graph.inputs]
        extracted = ir.convenience.extract(graph, [*dict.fromkeys([*inputs, site.output])], wanted)
        extracted.opset_imports.update(graph.opset_imports)
        functions = [function.clone() for function in self.block.model.functions.values()]
        return _open(ir.Model(extracted, ir_version=self.block.model.ir_version, functions=functions))


def _open(model: ir.Model) -> ort.InferenceSession:
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    return open_block(model, gives_back=True)


def sensitivity(
    lifted: Lifted,
    runs: Mapping[str, SiteRun],
    trials: Mapping[str, Sequence[Trial]],
    feeds: Sequence[Feed],
    judge: Judge,
    *,
    label: str,
    seconds: float = SECONDS,
) -> Sensitivity:
    """Try each site alone.

    Args:
        lifted: the float model. runs: its sites. trials: site -> what to try there.
        feeds: inputs; one or two are enough to rank sites.
        judge: compares outputs. label: of the progress bar. seconds: about how long it may take before errors are
            measured at the ends of blocks; without an end, what is found does not depend on the machine.

    Raises:
        UserError: the model does not run.
    """
    started = time.perf_counter()
    pieces = _pieces(lifted, [runs[name] for name in trials], judge)
    references, times = _float_outputs(pieces, feeds, judge)
    spent = [len(trials[site.name]) for piece in pieces for site in piece.runs]
    wanted = sum(
        len(trials[site.name]) * sum(times[number:]) for number, piece in enumerate(pieces) for site in piece.runs
    )
    weighted = wanted * len(feeds) > seconds
    losses: dict[str, dict[str, list[Loss]]] = {site: {one.name: [] for one in tried} for site, tried in trials.items()}
    with progress_bar(sum(spent) * len(feeds), f"{label}: one site at a time", "trial") as bar:
        carried: list[np.ndarray | None] = [None] * len(feeds)
        for number, piece in enumerate(pieces):
            behind = {site.name: piece.behind(site) for site in piece.runs}
            for index, (feed, reference) in enumerate(zip(feeds, references, strict=True)):
                after = _After(pieces[number + 1 :], index, feed, reference, judge)
                carried[index] = _try_block(piece, behind, trials, carried[index], after, weighted, losses, bar)
    means = {site: {name: Loss.mean(found) for name, found in tried.items()} for site, tried in losses.items()}
    return Sensitivity(means, weighted, len(feeds), time.perf_counter() - started)


def _pieces(lifted: Lifted, runs: Sequence[SiteRun], judge: Judge) -> list[_Piece]:
    groups = [*((*run.inputs, run.output) for run in runs), *((name,) for name in judge.outputs)]
    pieces = []
    for block in cut(lifted.model, groups):
        mine = [runs[index] for index in block.groups if index < len(runs)]
        judged = [groups[index][0] for index in block.groups if index >= len(runs)]
        pieces.append(_Piece(block, mine, judged))
    return pieces


def _float_outputs(pieces: Sequence[_Piece], feeds: Sequence[Feed], judge: Judge) -> tuple[list[Tensors], list[float]]:
    """Outputs of each feed, and seconds that each block took, judging the last one's among them."""
    outputs, times = [], [0.0] * len(pieces)
    for index, feed in enumerate(feeds):
        carried: np.ndarray | None = None
        found: Tensors = {}
        for number, piece in enumerate(pieces):
            began = time.perf_counter()
            made = piece.run(carried, feed, piece.ends)
            carried = made.get(piece.block.carried_out or "")
            found |= {name: made[name] for name in piece.judged}
            times[number] = time.perf_counter() - began
        began = time.perf_counter()
        judge(index, found, found)
        times[-1] += time.perf_counter() - began
        outputs.append(found)
    return outputs, times


@dataclasses.dataclass
class _After:
    """What follows a block, on one input."""

    pieces: Sequence[_Piece]
    index: int
    feed: Feed
    reference: Tensors
    judge: Judge

    def loss(self, ends: Tensors, carried: np.ndarray | None) -> Loss:
        """At the end, where the block gave ``ends`` and ``carried``."""
        found = {**self.reference, **{name: array for name, array in ends.items() if name in self.reference}}
        for piece in self.pieces:
            made = piece.run(carried, self.feed, piece.ends)
            carried = made.get(piece.block.carried_out or "")
            found |= {name: made[name] for name in piece.judged}
        return self.judge(self.index, self.reference, found)


def _try_block(
    piece: _Piece,
    behinds: Mapping[str, ort.InferenceSession | None],
    trials: Mapping[str, Sequence[Trial]],
    carried: np.ndarray | None,
    after: _After,
    weighted: bool,
    losses: dict[str, dict[str, list[Loss]]],
    bar: tqdm,
) -> np.ndarray | None:
    """All trials of a block on one input; gives what leaves it in float. ``behinds`` go on from each site."""
    names = list(dict.fromkeys([*(name for site in piece.runs for name in (*site.inputs, site.output)), *piece.ends]))
    tensors = piece.run(carried, after.feed, names)
    leaving = piece.block.carried_out
    weigh = weighted and leaving is not None and not piece.judged
    factor: float | None = None
    for site in piece.runs:
        behind = behinds[site.name]
        arrays = [tensors[name] for name in site.inputs]
        for trial in trials[site.name]:
            roles = trial.roles or site.roles(trial.codes)
            ends = {site.output: site.run(arrays, trial.codes, roles).reshape(tensors[site.output].shape)}
            if behind is not None:
                fed = {**piece.entering(carried, after.feed), **ends}
                wanted = [output.name for output in behind.get_outputs()]
                ends |= dict(zip(wanted, run_session(behind, fed, "the model", wanted), strict=True))
            if not weigh:
                loss = after.loss(ends, ends.get(leaving or ""))
            else:
                assert leaving is not None
                here = relative_error(tensors[leaving], ends[leaving])
                if factor is None and here > 0:
                    factor = after.loss(ends, ends[leaving]).error / here
                loss = Loss(here * (factor or 0.0))
            losses[site.name][trial.name].append(loss)
            bar.update()
    return tensors.get(leaving or "")


def sensitivity_of_plan(
    lifted: Lifted,
    plan: QuantPlan,
    rounded: Mapping[str, np.ndarray],
    feeds: Sequence[Feed],
    judge: Judge,
    *,
    label: str,
    seconds: float = SECONDS,
) -> Sensitivity:
    """Each site of a plan as it is planned, as a whole (`ALL`) and in each role alone; arguments as `sensitivity`.

    Args:
        rounded: the constants of the plan that are no longer the float model's.
    """
    runs = site_runs(lifted, plan, rounded)
    return sensitivity(lifted, runs, plan_trials(plan, runs), feeds, judge, label=label, seconds=seconds)
