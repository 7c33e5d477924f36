# SPDX-License-Identifier: Apache-2.0
"""Learn the weights and codes of a quantized model by gradients from its float self, without labels.

The quantized part of the graph runs in torch with simulated codes and is taught what the float model gives on the
calibration inputs. What counts as near depends on the model:

* an encoder: mean squared error of the embedding, relative to its variance;
* a decoder: masks and IoU estimates. A mask counts by its pixels on the object as much as by those off it, because
  the object is a small part of the image:
  balanced cross entropy + dice distance of the soft masks + squared error of the logits relative to their variance
  + IOU_WEIGHT * squared error of the IoU estimates.

The inputs of a decoder may come from a quantized encoder while the targets come from the float one: then it also
learns to live with the encoder's error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as functional

from samq_onnx.calibrate import resident_memory, run
from samq_onnx.passes.lift import Lifted as Structure
from samq_onnx.plan import QuantPlan
from samq_onnx.progress import progress_bar
from samq_onnx.reconstruct.learned import Learned, NotLearnable
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.scratch import Scratch

__all__ = ["learn"]

LOGITS, IOU = "low_res_masks", "iou_predictions"  # outputs of segment-anything's exported decoder
SCALE_RATE = 5.0  # of the logarithm, times that of the weights
ZERO_RATE = 50.0  # of a code, times that of the weights
WARM_UP = 0.1
LARGEST_GRADIENT = 1.0
IOU_WEIGHT = 5.0
SMALLEST_VARIANCE = 1e-6
LARGEST_WORK = 50e9  # MACs of one input; what is larger takes many hours and tens of GB without a GPU

Feed = Mapping[str, np.ndarray]
Tensors = Sequence[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class _Lesson:
    """What is taught and how.

    Attributes:
        outputs: names of the outputs taught. loss: their distance from the float ones.
        rate: of the weights. epochs: how often the inputs are seen.
        batch: inputs of a step.
    """

    outputs: tuple[str, ...]
    loss: Callable[[Tensors, Tensors], torch.Tensor]
    rate: float
    epochs: int
    batch: int


def _mask_loss(made: Tensors, wanted: Tensors) -> torch.Tensor:
    """Distance of (logits [..., masks, H, W], IoU estimates) from those of the float model."""
    logits, wanted_logits = made[0].flatten(-2), wanted[0].flatten(-2)
    target = wanted_logits.sigmoid()
    soft = logits.sigmoid()
    weight = target + target.mean(-1, keepdim=True)  # object and background weigh about the same
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * weight).sum(-1) / weight.sum(-1)
    overlap = (soft * target).sum(-1)
    dice = 1 - (2 * overlap + 1) / (soft.square().sum(-1) + target.square().sum(-1) + 1)
    error = (logits - wanted_logits).square().mean(-1) / wanted_logits.var(-1).clamp_min(SMALLEST_VARIANCE)
    return (entropy + dice + error).mean() + IOU_WEIGHT * functional.mse_loss(made[1], wanted[1])


def _embedding_loss(made: Tensors, wanted: Tensors) -> torch.Tensor:
    return functional.mse_loss(made[0], wanted[0]) / wanted[0].var().clamp_min(SMALLEST_VARIANCE)


def _lesson(model: ir.Model) -> _Lesson:
    names = [value.name or "" for value in model.graph.outputs]
    given = [value.name or "" for value in model.graph.outputs if value.is_initializer()]
    if given:
        raise NotLearnable(f"it gives out weights, {', '.join(given)}")
    if {LOGITS, IOU} <= set(names):
        return _Lesson((LOGITS, IOU), _mask_loss, rate=5e-5, epochs=4, batch=8)
    if len(names) == 1:
        return _Lesson((names[0],), _embedding_loss, rate=1e-3, epochs=32, batch=2)
    raise NotLearnable(f"its outputs are neither one embedding nor {LOGITS} and {IOU}")


class _Spill:
    """Collects tensors of each feed on disk; equal ones, as the image of many prompts, are kept once."""

    def __init__(self, tensors: Sequence[str], folder: Path) -> None:
        self.tensors = tuple(tensors)
        self._folder = folder
        self._files: list[list[Path]] = []

    def update(self, *arrays: np.ndarray) -> None:
        files = []
        for array in arrays:
            file = self._folder / f"{hashlib.sha256(array.tobytes()).hexdigest()}-{array.ndim}.npy"
            if not file.exists():
                np.save(file, array, allow_pickle=False)
            files.append(file)
        self._files.append(files)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.load(file, allow_pickle=False)) for file in self._files[index]]

    def __len__(self) -> int:
        return len(self._files)


def learn(
    model: ir.Model,
    structure: Structure,
    plan: QuantPlan,
    feeds: Sequence[Feed],
    targets: Sequence[Feed],
    *,
    label: str,
) -> Learned:
    """Learn the plan and the constants of a lifted float model, in place.

    Args:
        feeds: inputs of the quantized model. targets: the same inputs as the float model sees them.

    Raises:
        NotLearnable: no lesson for these outputs, an operator without a gradient, too much work for this machine, or
            numbers that float32 does not hold on the way; nothing was changed.
    """
    lesson = _lesson(model)
    outputs = {value.name: value for value in model.graph.outputs}
    simulation = Simulation(model.graph, structure, plan, [outputs[name] for name in lesson.outputs])
    if simulation.unknown:
        raise NotLearnable(f"no gradient for {', '.join(simulation.unknown)}")
    unreached = [value.name or "" for value in simulation.outputs if value.producer() not in simulation.nodes]
    if unreached:
        raise NotLearnable(f"nothing quantized leads to {', '.join(unreached)}")
    if simulation.work > LARGEST_WORK:
        raise NotLearnable(
            f"one input takes {simulation.work / 1e9:.0f} GMAC, gradients are affordable up to {LARGEST_WORK / 1e9:.0f}"
        )
    with Scratch() as scratch:
        wanted = _Spill(lesson.outputs, scratch)
        run(model, targets, [wanted], label=f"{label}: targets")
        given = _Spill([value.name or "" for value in simulation.inputs], scratch)
        run(model, feeds, [given], label=f"{label}: inputs")
        losses = _train(simulation, lesson, given, wanted, label)
    simulation.write_back(plan)
    tenth = max(1, len(losses) // 10)
    return Learned(len(feeds), float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])))


def _simulated(simulation: Simulation, given: Tensors) -> list[torch.Tensor]:
    try:
        return simulation(dict(zip(simulation.inputs, given, strict=True)))
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise NotLearnable(f"an operator is used in a way that has no gradient here ({error})") from error


def _train(simulation: Simulation, lesson: _Lesson, given: _Spill, wanted: _Spill, label: str) -> list[float]:
    """Loss of each step."""
    rates = [lesson.rate, SCALE_RATE * lesson.rate, ZERO_RATE * lesson.rate]
    groups = [simulation.weights(), simulation.log_scales(), simulation.zeros()]
    optimizer = torch.optim.Adam([{"params": group} for group in groups])
    steps = max(1, lesson.epochs * len(given) // lesson.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=WARM_UP)
    random = np.random.default_rng(0)
    waiting: list[int] = []
    losses: list[float] = []
    bar = progress_bar(steps, f"{label}: learning", "step")
    with bar:
        for _ in range(steps):
            losses.append(0.0)
            for _ in range(lesson.batch):
                waiting = waiting or random.permutation(len(given)).tolist()
                index = waiting.pop()
                made = _simulated(simulation, given[index])
                loss = lesson.loss(made, wanted[index]) / lesson.batch
                loss.backward()  # type: ignore[no-untyped-call]
                losses[-1] += loss.item()
            torch.nn.utils.clip_grad_norm_(groups[0], LARGEST_GRADIENT)
            optimizer.step()
            if not math.isfinite(losses[-1]) or not all(value.isfinite().all() for group in groups for value in group):
                raise NotLearnable("its loss or what it would learn is not finite on these calibration inputs")
            optimizer.zero_grad()
            schedule.step()
            bar.set_postfix_str(f"loss {losses[-1]:.3f}, {resident_memory()}", refresh=False)
            bar.update()
    return losses
