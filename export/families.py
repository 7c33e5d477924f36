# SPDX-License-Identifier: Apache-2.0
"""The model types by name, and which of them a state dict is of, judged by its names and shapes."""

from __future__ import annotations

import torch

from samq_onnx.errors import UserError
from samq_onnx.export import nano, segment_anything_vit
from samq_onnx.export.checkpoint import StateDict, short, to_single
from samq_onnx.export.sam import Sam

__all__ = ["BUILDERS", "build"]

BUILDERS = {**segment_anything_vit.BUILDERS, **nano.BUILDERS}


def build(model_type: str, state: StateDict, where: str) -> Sam:
    """A model that holds the tensors of ``state``, in evaluation mode, without gradients.

    Args:
        model_type: a key of `BUILDERS`.
        state: floating tensors by name; they are copied, as float32, once their shapes are known to be right.
        where: names the checkpoint in messages.

    Raises:
        UserError: no such model type, or the state dict is not of it (says of which it is, if any), or it holds
            values that are not finite.
    """
    if model_type not in BUILDERS:
        raise UserError(f"{model_type}: no such model type; choose one of {', '.join(BUILDERS)}")
    sam = _empty(model_type)
    difference = _difference(sam, state)
    if difference:
        fitting = [name for name in BUILDERS if name != model_type and not _difference(_empty(name), state)]
        advice = f"its shapes are those of {fitting[0]}" if fitting else f"nor any other model type: {difference}"
        advice += f"; use --model-type {fitting[0]}" if fitting else ""
        raise UserError(f"{where}: does not fit model type {model_type}{':' if fitting else ''} {advice}")
    sam.load_state_dict(to_single(state, where), assign=True)
    return sam.requires_grad_(False)


def _empty(model_type: str) -> Sam:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return BUILDERS[model_type]().eval()


def _difference(sam: Sam, state: StateDict) -> str:
    """What keeps ``state`` from being of ``sam``, in words; empty if nothing does."""
    wanted = {name: tuple(tensor.shape) for name, tensor in sam.state_dict().items()}
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing:
        return f"it lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}"
    if unknown:
        return f"the model does not know {len(unknown)} of its tensors, the first is {short(unknown[0])}"
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            return f"its {name} is {list(state[name].shape)}, not {list(shape)}"
    return ""
