# SPDX-License-Identifier: Apache-2.0
"""Which family and size a checkpoint is of, judged by names and shapes of its tensors, and the model that holds it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.checkpoint import StateDict, short, to_single
from samq_onnx.export.family import Family
from samq_onnx.export.mobile_sam import MobileSam
from samq_onnx.export.sam2 import Sam2
from samq_onnx.export.sam_hq import SamHq
from samq_onnx.export.segment_anything_vit import SegmentAnything

__all__ = ["BUILDERS", "FAMILIES", "build", "check_type", "family_of", "found_type"]

FAMILIES: tuple[Family, ...] = (SegmentAnything(), MobileSam(), SamHq(), Sam2())
BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    name: functools.partial(family.make, name) for family in FAMILIES for name in family.types
}


def check_type(model_type: str) -> None:
    """Refuse a model type that there is not."""
    if model_type not in BUILDERS:
        raise UserError(f"{model_type}: no such model type; choose one of {', '.join(BUILDERS)}")


def family_of(model_type: str) -> Family:
    """The family that has that size."""
    return next(family for family in FAMILIES if model_type in family.types)


def found_type(state: StateDict, where: str) -> str:
    """The model type that a state dict is of.

    Raises:
        UserError: it is of none, or its family needs a package that is not installed.
    """
    fitting = _fitting(state)
    if fitting is None:
        family = next((family for family in FAMILIES if family.takes(state)), None)
        if family is None:
            raise UserError(
                f"{where}: is no checkpoint of segment_anything, SAM-HQ, MobileSAM or SAM 2 (its first tensor is "
                f"{short(min(state))}); of transformers, give the folder with its config.json"
            )
        nearest = min(_difference(family, name, state) for name in family.types)
        raise UserError(f"{where}: fits none of {', '.join(family.types)}: {nearest.first}")
    return fitting


def build(model_type: str, state: StateDict, where: str) -> Any:
    """A model that holds the tensors of ``state``, in evaluation mode, without gradients.

    Args:
        model_type: a key of `BUILDERS`.
        state: tensors by name; they are copied, floating ones as float32, once their shapes are known to be right.
        where: names the checkpoint in messages.

    Raises:
        UserError: no such model type, or the state dict is not of it (says of which it is, if any), or it holds
            values that are not finite, or a package is missing.
    """
    check_type(model_type)
    family = family_of(model_type)
    difference = _difference(family, model_type, state)
    if difference.tensors:
        fitting = _fitting(state)
        advice = f"its shapes are those of {fitting}" if fitting else f"nor any other model type: {difference.first}"
        advice += f"; use --model-type {fitting}" if fitting else ""
        raise UserError(f"{where}: does not fit model type {model_type}{':' if fitting else ''} {advice}")
    model = _empty(model_type)
    model.load_state_dict(to_single(family.own(state), where), assign=True)
    return model.requires_grad_(False).train().eval()  # some keep what they computed of weights when they were made


def _fitting(state: StateDict) -> str | None:
    for family in FAMILIES:
        if family.takes(state):
            for name in family.types:
                if not _difference(family, name, state).tensors:
                    return name
    return None


def _empty(model_type: str) -> nn.Module:
    """The model, where its package can without memory for its weights."""
    with torch.device("meta"):
        return BUILDERS[model_type]().eval()


class _Difference(NamedTuple):
    """What keeps a state dict from being of a model: how many tensors, and the first in words."""

    tensors: int
    first: str = ""


def _difference(family: Family, model_type: str, state: StateDict) -> _Difference:
    wanted, given = _empty(model_type).state_dict(), family.own(state)
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing:
        return _Difference(len(missing), f"it lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}")
    if unknown:
        first = f"the model does not know {len(unknown)} of its tensors, the first is {short(unknown[0])}"
        return _Difference(len(unknown), first)
    other = [name for name, tensor in wanted.items() if _form(given[name]) != _form(tensor)]
    if not other:
        return _Difference(0)
    shape, kind = _form(given[other[0]])
    return _Difference(len(other), f"its {other[0]} is {shape}{kind}, not {''.join(map(str, _form(wanted[other[0]])))}")


def _form(tensor: torch.Tensor) -> tuple[list[int], str]:
    return list(tensor.shape), "" if tensor.is_floating_point() else " of integers"
