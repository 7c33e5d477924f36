# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file is to SAM, and what its inputs and outputs are: each family is one module, found by itself.

A module of this package that registers a `Family` is all that a new kind of export takes:

    class Mine(Family):
        def part(self, signature): ...  # a `Part`, or None

    FAMILIES.add("mine")(Mine())

The other modules are what families are made of: `ports` (names, types, shapes), `pixels` and `image` (an image as
input), `decoder` (prompts as input).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.families.hints import Hints
from samq_onnx.families.part import (
    EMBEDDING,
    IOU,
    LOW_RES_MASKS,
    MASKS,
    NOTHING,
    OUTPUT,
    Family,
    Part,
    Role,
    Signature,
    Turn,
)
from samq_onnx.registry import Registry

__all__ = [
    "EMBEDDING",
    "FAMILIES",
    "IOU",
    "LOW_RES_MASKS",
    "MASKS",
    "NOTHING",
    "OUTPUT",
    "Family",
    "Hints",
    "Part",
    "Role",
    "Signature",
    "Turn",
    "families",
    "identify",
    "identify_session",
]

FAMILIES: Registry[Family] = Registry("family of models", "samq_onnx.families")


def families() -> Sequence[Family]:
    """All of them, in the order in which they are asked."""
    return [FAMILIES[name] for name in sorted(FAMILIES, key=lambda name: (FAMILIES[name].turn, name))]


def identify(model: ir.Model, where: str, hints: Hints = NOTHING) -> Part:
    """What a file is, by its graph. Its outputs are told at once, so the graph may be changed afterwards.

    Args:
        where: what messages call the file. hints: of its image, besides those that it carries.
    """
    part = _identified(Signature.of_model(model, where, hints))
    _ = part.outputs
    return part


def identify_session(
    session: ort.InferenceSession, where: str, graph: Callable[[], ir.Model | None], hints: Hints = NOTHING
) -> Part:
    """What the file of an open session is; ``graph`` reads it, and gives None where that is not possible."""
    return _identified(Signature.of_session(session, where, graph, hints))


def _identified(signature: Signature) -> Part:
    return next(part for family in families() if (part := family.part(signature)) is not None)
