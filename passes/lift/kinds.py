# SPDX-License-Identifier: Apache-2.0
"""Tell the attention sites of SAM apart by the shapes of their operands.

Relative position tables mark the encoder; a site there is windowed if its batch holds more than its heads. Without
tables, the token count of the image marks the decoder: queries shorter than keys read the image, queries longer than
keys update it, and equal ones are self-attention among tokens. The last reading with no update behind it is final.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.passes.graph import known_shape, tap
from samq_onnx.passes.lift.attention import Match

__all__ = ["DECODER_KINDS", "TOKEN_TO_IMAGE_KINDS", "site_kinds"]

TOKEN_TO_IMAGE_KINDS = frozenset({"decoder_token_to_image", "decoder_final"})
DECODER_KINDS = TOKEN_TO_IMAGE_KINDS | {"decoder_self", "decoder_image_to_token"}

SMALL = 2  # size given to dimensions that are not known

Shapes = list[tuple[list[int], list[int]]]


def _static(match: Match) -> tuple[list[int], list[int]] | None:
    q, columns = (known_shape(value) for value in match.scores.inputs)
    return (list(q), _swapped(columns)) if q is not None and columns is not None else None


def _swapped(shape: Sequence[int]) -> list[int]:
    return [*shape[:-2], shape[-1], shape[-2]]


def _measured(model: ir.Model, matches: Sequence[Match]) -> Shapes:
    """Shapes of q and k in a run on arbitrary inputs, unknown dimensions small; inputs that have a default keep it.

    Raises what onnx_ir, numpy and ONNX Runtime raise where there is no such run.
    """
    probe = ir.external_data.load_to_model(model.clone())
    probe.graph.outputs.clear()
    operands = [[value.name if value is not None else "" for value in match.scores.inputs] for match in matches]
    wanted = list(dict.fromkeys(name or "" for pair in operands for name in pair))
    tap(probe, wanted)
    random = np.random.default_rng(0)
    feed = {}
    for value in probe.graph.inputs:
        if value.is_initializer():
            continue
        dims = [d if isinstance(d, int) else SMALL for d in value.shape or ()]
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        feed[value.name or ""] = random.uniform(1, 2, dims).astype(dtype)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(probe).SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = dict(zip(wanted, session.run(wanted, feed), strict=True))
    sides = [[found[name or ""].shape for name in pair] for pair in operands]
    return [(list(q), _swapped(columns)) for q, columns in sides]


def site_kinds(model: ir.Model, matches: Sequence[Match]) -> list[str]:
    """The kind of each matched attention, in order; all are generic where shapes are not known and cannot be had."""
    shapes: Shapes = []
    for match in matches:
        static = _static(match)
        if static is None:
            try:
                shapes = _measured(model, matches)
            except Exception:  # of a model that does not run on any numbers
                return ["generic"] * len(matches)
            break
        shapes.append(static)
    crosses = any(q[-2] > k[-2] for q, k in shapes) and any(q[-2] < k[-2] for q, k in shapes)
    largest = max((q[-2] for q, _ in shapes), default=0)
    kinds = []
    for match, (q, k) in zip(matches, shapes, strict=True):
        if match.tables is not None:
            kinds.append("encoder")
        elif not crosses:
            kinds.append("generic")
        elif q[-2] == k[-2]:
            kinds.append("generic" if q[-2] == largest else "decoder_self")
        else:
            kinds.append("decoder_token_to_image" if q[-2] < k[-2] else "decoder_image_to_token")
    heads = min((q[0] for kind, (q, _) in zip(kinds, shapes, strict=True) if kind == "encoder"), default=0)
    for index, (q, _) in enumerate(shapes):
        if kinds[index] == "encoder":
            kinds[index] = "encoder_window" if q[0] > heads else "encoder_global"
    for index in range(len(kinds) - 1, -1, -1):
        if kinds[index] == "decoder_image_to_token":
            break
        if kinds[index] == "decoder_token_to_image":
            kinds[index] = "decoder_final"
            break
    return kinds
