# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file computes what PyTorch computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from samq_onnx.errors import UserError
from samq_onnx.export.part import Part

__all__ = ["Difference", "check"]

TOLERANCE = 1e-3
TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass
class Difference:
    """The largest difference found, and the largest relative to its tensor's largest value."""

    absolute: float = 0.0
    relative: float = 0.0

    def update(self, found: np.ndarray, wanted: torch.Tensor) -> None:
        """Compare two float32 arrays of one shape."""
        reference = wanted.numpy()
        if found.shape != reference.shape:
            raise UserError(f"the exported model gives {list(found.shape)} where PyTorch gives {list(reference.shape)}")
        absolute = np.abs(found - reference).max()
        # np.maximum keeps not-a-number, max does not
        self.absolute = float(np.maximum(self.absolute, absolute))
        self.relative = float(np.maximum(self.relative, absolute / np.maximum(np.abs(reference).max(), TINY)))

    def check(self, name: str) -> None:
        """Raise `UserError` if the relative difference exceeds the tolerance or is not a number."""
        if not self.relative <= TOLERANCE:
            raise UserError(
                f"{name}: differs from PyTorch by {self.relative:.1e} of its largest value (limit {TOLERANCE:.0e}); "
                "nothing was written; is the checkpoint damaged?"
            )


def check(path: Path, part: Part) -> Difference:
    """Compare a file with PyTorch on the inputs that the part brings along."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = Difference()
    with torch.no_grad():
        for feed, wanted in part.checks():
            found = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
            for one, other in zip(found, wanted, strict=True):
                difference.update(one, other)
    return difference
