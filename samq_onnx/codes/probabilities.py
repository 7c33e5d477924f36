# SPDX-License-Identifier: Apache-2.0
"""What all codes of post-softmax maps have in common, and the kinds there are, by name."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from samq_onnx.registry import Registry

__all__ = ["PROBABILITY_CODES", "ProbabilityCodes"]


class ProbabilityCodes(Protocol):
    """Codes of a map of probabilities [..., N], a frozen dataclass of numbers.

    Attributes:
        kind: name of the kind, as in `PROBABILITY_CODES`.
        bits: width of a code.
        operator: of domain ``samq``, that takes q, k and v as codes and gives the attention's output.
        attributes: of the operator, beside its scale.
        operand: a number that the operator takes as its input ``p_scale``, or None where it has no such input.
    """

    kind: ClassVar[str]

    @property
    def bits(self) -> int: ...

    @property
    def operator(self) -> str: ...

    @property
    def attributes(self) -> dict[str, int]: ...

    @property
    def operand(self) -> float | None: ...

    def fake_quantize(self, probabilities: np.ndarray) -> np.ndarray:
        """float32 [..., N] through codes and back: the specification of the operator, but for its rounding."""
        ...


PROBABILITY_CODES: Registry[type[ProbabilityCodes]] = Registry("kind of post-softmax codes", "samq_onnx.codes")
