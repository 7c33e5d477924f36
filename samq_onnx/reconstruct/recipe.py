# SPDX-License-Identifier: Apache-2.0
"""How a method learns a unit: what, with which loss, and for how long."""

from __future__ import annotations

import dataclasses

__all__ = ["Phase", "Recipe"]

FASTEST = 1e-2  # rate of roundings, where there is time for much fewer iterations than a paper has
FASTEST_SCALE = 5e-3  # of logarithms of scales


@dataclasses.dataclass(frozen=True)
class Phase:
    """One descent.

    Attributes:
        iterations: of the paper. Where fewer are run, rates are larger in proportion, up to `FASTEST`.
        rounding: which of two codes each weight takes is learned. weights: they are, by straight-through gradients.
        weight_scales, scales, zeros: of weights, of activations and post-softmax maps, zero points of activations.
        rate: of rounding and weights. scale_rate: of logarithms of scales, and a thousandth of that of zero points.
        drop: probability that an element of an activation is quantized; 0 leaves activations float.
        mix: probability that an element of what enters comes from quantized predecessors, rather than from the float
            model.
        regulariser: weight of `AdaRoundWeight.undecided`, from the share ``warm_up`` of the iterations on, while its
            power falls from the first to the second of ``powers``.
    """

    iterations: int
    rounding: bool = False
    weights: bool = False
    weight_scales: bool = False
    scales: bool = False
    zeros: bool = False
    rate: float = 1e-3
    scale_rate: float = 4e-5
    drop: float = 1.0
    mix: float = 1.0
    regulariser: float = 0.01
    warm_up: float = 0.2
    powers: tuple[float, float] = (20.0, 2.0)

    def power(self, progress: float) -> float | None:
        """Of the regulariser, when a share ``progress`` of the iterations is done; None while there is none."""
        if not self.rounding or self.regulariser == 0 or progress < self.warm_up:
            return None
        share = (progress - self.warm_up) / (1 - self.warm_up)
        return self.powers[1] + (self.powers[0] - self.powers[1]) * max(0.0, 1 - share)

    def rates(self, iterations: int) -> tuple[float, float]:
        """``rate`` and ``scale_rate`` where so many iterations are run."""
        hurry = max(1.0, self.iterations / iterations)
        return (
            max(self.rate, min(FASTEST, hurry * self.rate)),
            max(self.scale_rate, min(FASTEST_SCALE, hurry * self.scale_rate)),
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How all units of a model are learned.

    Attributes:
        level: of units, as `samq_onnx.reconstruct.units`. phases: one after the other.
        iterations: of a unit, all phases together, in the proportion of theirs.
        batch: inputs of an iteration.
        objective: what is to come near the float model: ``plain``, the unit's outputs; ``fisher``, these weighed by the
            loss of the whole model; ``response``, what prompts make of them (`samq_onnx.reconstruct.response`).
        groups: of channels of what an encoder's norms give, in each clustering while a phase runs
            (`samq_onnx.reconstruct.regrouping`). features: that are clustered.
    """

    level: str
    phases: tuple[Phase, ...]
    iterations: int
    batch: int = 1
    objective: str = "plain"
    groups: tuple[int, ...] = ()
    features: str = "log"

    def shares(self, iterations: int) -> list[int]:
        """Of so many iterations, how many each phase has; at least one."""
        total = sum(phase.iterations for phase in self.phases)
        return [max(1, round(iterations * phase.iterations / total)) for phase in self.phases]
