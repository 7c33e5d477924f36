# SPDX-License-Identifier: Apache-2.0
"""The ONNX operators of SAM's transformers in torch, so that gradients can pass through a lifted graph.

Each entry takes the node and its inputs (None where absent) and gives its outputs. Values computed from shapes are
torch tensors too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as functional

__all__ = ["OPERATORS", "attention_logits"]

Tensors = Sequence[Any]  # torch.Tensor, or None for an absent input


def _get(node: ir.Node, name: str, default: Any = None) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _axes(node: ir.Node, inputs: Tensors) -> list[int]:
    """Axes of a node, an attribute in older opsets and an input in newer ones."""
    return list(_get(node, "axes") or inputs[1].tolist())


def _reshape(node: ir.Node, inputs: Tensors) -> torch.Tensor:
    x, shape = inputs[0], inputs[1].tolist()
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _unsqueeze(node: ir.Node, inputs: Tensors) -> torch.Tensor:
    x = inputs[0]
    axes = _axes(node, inputs)
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(node: ir.Node, inputs: Tensors) -> torch.Tensor:
    x, starts, ends = inputs[0], inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index: list[slice] = [slice(None)] * x.ndim
        index[axis] = slice(start, end, step)
        x = x[tuple(index)]
    return x


def _split(node: ir.Node, inputs: Tensors) -> tuple[torch.Tensor, ...]:
    axis = _get(node, "axis", 0)
    sizes = inputs[1].tolist() if len(inputs) > 1 else inputs[0].shape[axis] // len(node.outputs)
    return torch.split(inputs[0], sizes, axis)


def _pad(node: ir.Node, inputs: Tensors) -> torch.Tensor:
    x, pads = inputs[0], inputs[1].tolist()
    if _get(node, "mode", "constant") != "constant" or len(pads) != 2 * x.ndim:
        raise NotImplementedError("Pad other than with a constant on all axes")
    value = inputs[2].item() if len(inputs) > 2 and inputs[2] is not None else 0.0
    ends = zip(reversed(pads[: x.ndim]), reversed(pads[x.ndim :]), strict=True)  # torch counts axes from the last
    return functional.pad(x, [size for pair in ends for size in pair], value=value)


def _gather(node: ir.Node, inputs: Tensors) -> torch.Tensor:
    x, index, axis = inputs[0], inputs[1], _get(node, "axis", 0)
    taken = x.index_select(axis, index.reshape(-1).to(x.device))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gemm(node: ir.Node, inputs: Tensors) -> torch.Tensor:
    x = inputs[0].t() if _get(node, "transA", 0) else inputs[0]
    weight = inputs[1].t() if _get(node, "transB", 0) else inputs[1]
    y = _get(node, "alpha", 1.0) * (x @ weight)
    return y if len(inputs) < 3 else y + _get(node, "beta", 1.0) * inputs[2]


def _convolution(apply: Callable[..., torch.Tensor]) -> Callable[[ir.Node, Tensors], torch.Tensor]:
    def run(node: ir.Node, inputs: Tensors) -> torch.Tensor:
        pads = list(_get(node, "pads", [0, 0, 0, 0]))
        if (
            pads[:2] != pads[2:]
            or _get(node, "auto_pad", "NOTSET") != "NOTSET"
            or any(_get(node, name) for name in ("output_padding", "output_shape"))
        ):
            raise NotImplementedError(f"{node.op_type} with uneven padding")
        bias = inputs[2] if len(inputs) > 2 else None
        steps = {"stride": list(_get(node, "strides", [1, 1])), "dilation": list(_get(node, "dilations", [1, 1]))}
        return apply(inputs[0], inputs[1], bias, **steps, padding=pads[:2], groups=_get(node, "group", 1))

    return run


def attention_logits(
    node: ir.Node, q: torch.Tensor, k: torch.Tensor, terms: Tensors, places: torch.Tensor | None = None
) -> torch.Tensor:
    """scale * q kT, with the decomposed relative position of two tables, or with a bias, where the site has them.

    Args:
        places: of the queries that there are, int64, where there is no bias; None where all are there.
    """
    logits = (q @ k.transpose(-1, -2)) * _get(node, "scale")
    if not terms:
        return logits
    if len(terms) == 1:
        return (logits.reshape(-1, *terms[0].shape) + terms[0]).reshape(logits.shape)
    table_h, table_w = terms
    if places is not None:
        down, along = places // table_w.shape[0], places % table_w.shape[0]
        by_row = torch.einsum("...nc,nkc->...nk", q, table_h[down])[..., :, None]
        by_column = torch.einsum("...nc,nkc->...nk", q, table_w[along])[..., None, :]
        return logits + (by_row + by_column).reshape(logits.shape)
    grid = q.reshape(-1, table_h.shape[0], table_w.shape[0], q.shape[-1])
    by_row = torch.einsum("bhwc,hkc->bhwk", grid, table_h)[..., :, None]
    by_column = torch.einsum("bhwc,wkc->bhwk", grid, table_w)[..., None, :]
    return logits + (by_row + by_column).reshape(logits.shape)


OPERATORS: dict[str, Callable[[ir.Node, Tensors], Any]] = {
    "Add": lambda node, x: x[0] + x[1],
    "Concat": lambda node, x: torch.cat(list(x), _get(node, "axis")),
    "Conv": _convolution(functional.conv2d),
    "ConvTranspose": _convolution(functional.conv_transpose2d),
    "Div": lambda node, x: x[0] / x[1],
    "Erf": lambda node, x: torch.erf(x[0]),
    "Gather": _gather,
    "Gelu": lambda node, x: functional.gelu(x[0], approximate=_get(node, "approximate", "none")),
    "Gemm": _gemm,
    "Identity": lambda node, x: x[0],
    "LayerNormalization": lambda node, x: functional.layer_norm(
        x[0], x[1].shape, x[1], x[2] if len(x) > 2 else None, _get(node, "epsilon", 1e-5)
    ),
    "MatMul": lambda node, x: x[0] @ x[1],
    "Mul": lambda node, x: x[0] * x[1],
    "Pad": _pad,
    "Pow": lambda node, x: x[0] ** x[1],
    "ReduceMean": lambda node, x: x[0].mean(_axes(node, x), keepdim=bool(_get(node, "keepdims", 1))),
    "Relu": lambda node, x: x[0].relu(),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": lambda node, x: x[0].sqrt(),
    "Squeeze": lambda node, x: x[0].squeeze(_axes(node, x)),
    "Sub": lambda node, x: x[0] - x[1],
    "Transpose": lambda node, x: x[0].permute(*_get(node, "perm")),
    "Unsqueeze": _unsqueeze,
}
