# SPDX-License-Identifier: Apache-2.0
"""What makes SAM hard to quantize, each planted into a float model by a rewrite that leaves its function as it is.

A planting edits constants of a lifted model in place. It draws its strengths from a generator, and gives a dictionary:
the name of what it changed -> the name of the tensor that shows it best. Strengths are those published of SAM-B, or the
nearest that keeps the function.

Sharp softmaxes cannot be planted: a softmax whose logits are scaled is another function of its values, and nothing
behind it can undo that. Which heads are sharp stays as the model was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.fold.edit import private_to_attention, scale_outputs
from samq_onnx.passes.graph import array_of, constant, input_of, is_shared, only_reader, replace_constant
from samq_onnx.passes.lift import AttentionSite, Lifted, Linear, Norm, Projection
from samq_onnx.passes.lift.trace import nodes_between

__all__ = ["MEASURING", "PLANTINGS", "Measured", "Planting", "tensors_to_measure"]

Measured = Mapping[str, np.ndarray]
"""Name of a tensor -> its rows [tokens, channels] on a few images, for those of `tensors_to_measure`."""

Planting = Callable[[Lifted, Measured, np.random.Generator], dict[str, str]]

KEY_KINDS = frozenset({"decoder_token_to_image", "decoder_final"})
KEY_PEAK, KEY_POSITIVE, KEY_SPREAD = 8.0, 0.46, (1.0, 3.0)
SCALED_KINDS = frozenset({"decoder_self", "decoder_image_to_token"})
SCALED_CHANNELS, SCALED_FACTOR, SCALED_EXTREME = (1, 3), (50.0, 200.0), 177.0
NORM_OUTLIERS, NORM_FACTOR, NORM_SIGMA = 0.015, (30.0, 100.0), 0.8
TAIL_UNITS, TAIL_GAIN, TAIL_STEP = 0.01, (4.0, 10.0), 8


def _between(random: np.random.Generator, ends: tuple[float, float], size: int | None = None) -> np.ndarray:
    """Drawn so that the logarithm is uniform."""
    return np.exp(random.uniform(math.log(ends[0]), math.log(ends[1]), size))


def _sites(lifted: Lifted, kinds: frozenset[str]) -> list[tuple[AttentionSite, Projection, Projection]]:
    """Sites of these kinds whose q and k can be edited, with both projections."""
    found = []
    for site in lifted.attentions:
        if site.kind in kinds and private_to_attention(lifted, site, "q", "k") is None:
            assert site.q is not None and site.k is not None
            found.append((site, site.q, site.k))
    return found


def _name(projection: Projection) -> str:
    return projection.linear.output.name or ""


def tensors_to_measure(lifted: Lifted) -> list[str]:
    """The tensors whose values decide how much is planted: q and k of attention in the decoder."""
    sites = _sites(lifted, KEY_KINDS | SCALED_KINDS)
    return list(dict.fromkeys(_name(projection) for _, q, k in sites for projection in (q, k)))


def plant_keys(lifted: Lifted, measured: Measured, random: np.random.Generator) -> dict[str, str]:
    """Keys of token-to-image attention at +8 and -8, 46 % of the channels positive, with a spread of 1 to 3.

    For each head, with g in {-1, 1}^d, u a direction of length 1 and numbers a and c:

        k' = k A + c g,    q' = q A^-T,    A = I + a u g^T,    A^-1 = I - a u g^T / (1 + a g.u)

    q'.k' = q.k + c q'.g, and the last term is the same for all keys of a query, which softmax does not see. Of a key,
    channel j is k_j + g_j (a k.u + c): u is where the keys of the head vary most, a makes this part vary by the
    spread, c makes it 8 in the mean. So a sign is the same for all tokens and images, as reported, yet what is added
    differs from token to token: centring the keys or turning their signs leaves the spread, in all channels at once,
    where no scale of channels reaches it either. u points so that g.u >= 0, hence A is never singular.
    """
    done = {}
    for site, q, k in _sites(lifted, KEY_KINDS):
        rows = measured[_name(k)].astype(np.float64)
        heads, depth = k.channels.shape
        signs = np.where(random.random((heads, depth)) < KEY_POSITIVE, 1.0, -1.0)
        spreads = _between(random, KEY_SPREAD, heads)
        matrices, offsets = np.empty((heads, depth, depth)), np.empty((heads, depth))
        for head, (sign, spread) in enumerate(zip(signs, spreads, strict=True)):
            keys = rows[:, k.channels[head]]
            variances, directions = np.linalg.eigh(np.cov(keys.T))
            direction = directions[:, -1] * (1.0 if directions[:, -1] @ sign >= 0 else -1.0)
            shear = spread / math.sqrt(variances[-1])
            matrices[head] = np.eye(depth) + shear * np.outer(direction, sign)
            offsets[head] = (KEY_PEAK - shear * float(direction @ keys.mean(axis=0))) * sign
        if k.linear.bias is None:
            offsets[:] = 0
        _mix_outputs(k, matrices, offsets)
        _mix_outputs(q, np.linalg.inv(matrices).transpose(0, 2, 1), np.zeros((heads, depth)))
        done[site.name] = _name(k)
    return done


def _mix_outputs(projection: Projection, matrices: np.ndarray, offsets: np.ndarray) -> None:
    """Give the projection's heads y A + c for y, A [heads, d, d] and c [heads, d]; only a bias can take c."""
    linear, channels = projection.linear, projection.channels
    weight = np.moveaxis(constant(linear.weight).astype(np.float64), linear.out_axis, -1).copy()
    weight[..., channels] = np.einsum("...hd,hde->...he", weight[..., channels], matrices)
    replace_constant(linear.weight, np.moveaxis(weight, -1, linear.out_axis))
    if linear.bias is not None:
        bias = constant(linear.bias).astype(np.float64)
        bias[channels] = np.einsum("hd,hde->he", bias[channels], matrices) + offsets
        replace_constant(linear.bias, bias)


def plant_scales(lifted: Lifted, measured: Measured, random: np.random.Generator) -> dict[str, str]:
    """One to three channels of q and k 50 to 200 times as large, in self-attention and image-to-token attention.

        (f q_j) (k_j / f) = q_j k_j

    Either q or k grows. The channels are drawn from the quarter of those that reach least far, and the factor is cut
    where the channel would reach farther than the 177 that is reported, where others are of the order of 1.
    """
    done = {}
    for site, q, k in _sites(lifted, SCALED_KINDS):
        larger, smaller = (q, k) if random.random() < 0.5 else (k, q)
        reach = np.abs(measured[_name(larger)]).max(axis=0)[larger.channels].ravel()
        count = int(random.integers(SCALED_CHANNELS[0], SCALED_CHANNELS[1] + 1))
        chosen = random.choice(np.argsort(reach)[: max(count, reach.size // 4)], count, replace=False)
        factor = np.ones(reach.size)
        factor[chosen] = np.minimum(_between(random, SCALED_FACTOR, count), SCALED_EXTREME / reach[chosen])
        scale_outputs(larger.linear, larger.channels, factor.reshape(larger.channels.shape))
        scale_outputs(smaller.linear, smaller.channels, 1 / factor.reshape(larger.channels.shape))
        done[site.name] = _name(larger)
    return done


def plant_norms(lifted: Lifted, measured: Measured, random: np.random.Generator) -> dict[str, str]:
    """Channels of norms 30 to 100 times the others (1.5 %), the others log-normal, with shifts of the same size.

        W (y / s) with y' = s y + t:    W' = W / s,    b' = b - W' t

    Planted in norms that linears alone read, through views. Where a zero padding lies between, as in the windows of
    the encoder, padded tokens stay zero and would see a shift, so only scales are planted. A shift that is the same in
    all channels would be exact there if the padding were filled with it; a zero point absorbs that one, so it is left.
    """
    linears = {linear.x: [] for linear in lifted.linears}
    for linear in lifted.linears:
        linears[linear.x].append(linear)
    done = {}
    for norm in lifted.norms:
        gain = array_of(norm.scale)
        found = _readers(norm, linears)
        if gain is None or found is None or gain.ndim != 1 or is_shared(norm.scale):
            continue
        readers, padded = found
        channels = gain.size
        scale = np.exp(random.normal(0, NORM_SIGMA, channels))
        outliers = random.choice(channels, max(1, round(NORM_OUTLIERS * channels)), replace=False)
        scale[outliers] = _between(random, NORM_FACTOR, len(outliers))
        shift = random.normal(0, 1, channels) * scale * np.abs(gain)
        offset = array_of(norm.bias)
        biased = [linear.bias is not None and not is_shared(linear.bias) for linear in readers]
        if padded or offset is None or norm.bias is None or is_shared(norm.bias) or not all(biased):
            shift[:] = 0
        replace_constant(norm.scale, gain * scale)
        if offset is not None and norm.bias is not None:
            replace_constant(norm.bias, offset * scale + shift)
        for linear in readers:
            weight = constant(linear.weight).astype(np.float64)
            weight = weight / (scale[:, None] if linear.out_axis else scale)
            replace_constant(linear.weight, weight)
            if linear.bias is not None and shift.any():
                columns = weight if linear.out_axis else weight.T
                replace_constant(linear.bias, constant(linear.bias) - shift @ columns)
        done[norm.name] = norm.output.name or ""
    return done


def _readers(norm: Norm, linears: Mapping[ir.Value, list[Linear]]) -> tuple[list[Linear], bool] | None:
    """The linears that alone read a norm over the last axis, and whether a zero padding lies between; None if others
    read it, or a linear's weight is not its own."""
    rank = len(norm.output.shape) if norm.output.shape is not None else 0
    if not rank or norm.axis not in (-1, rank - 1):
        return None
    width = constant(norm.scale).size
    readers: list[Linear] = []
    padded, pending = False, [norm.output]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return None
        mine = [linear for linear in linears.get(value, []) if constant(linear.weight).ndim == 2]
        readers += mine
        padded |= any(linear.fill is not None for linear in mine)  # exported before the linear, lifted behind it
        for node, index in value.uses():
            if any(linear.node is node for linear in mine):
                continue
            if index or not _keeps_channels(node, width):
                return None
            padded |= node.op_type == "Pad"
            pending += node.outputs
    alone = readers and not any(is_shared(linear.weight) for linear in readers)
    return (readers, padded) if alone else None


def _keeps_channels(node: ir.Node, width: int) -> bool:
    """Whether the node moves or zero-pads tokens and leaves their channels, of the last axis, as they are."""
    shape = node.outputs[0].shape
    if node.domain or shape is None or not len(shape) or shape[-1] != width:
        return False
    if node.op_type == "Transpose":
        return list(node.attributes["perm"].as_ints())[-1] == len(shape) - 1
    if node.op_type == "Pad":
        fill = array_of(input_of(node, 2))
        constant_mode = "mode" not in node.attributes or node.attributes["mode"].as_string() == "constant"
        return constant_mode and (input_of(node, 2) is None or (fill is not None and not fill.any()))
    return node.op_type in ("Reshape", "Identity", "Squeeze", "Unsqueeze")


def plant_tails(lifted: Lifted, measured: Measured, random: np.random.Generator) -> dict[str, str]:
    """Hidden units behind GELU that reach 4 to 10 times as far as others; about 2 % more units than before.

    GELU(x) - GELU(-x) = x, so for a unit with preactivation x and outgoing row r, and any f > 0,

        GELU(x) r = GELU(-x) r + GELU(f x) r / f - GELU(-f x) r / f

    A hundredth of the units is turned to -x, and each gets two more beside it, of which one is f |x| and the other
    near zero. Nothing is approximated, nothing new cancels a third, and what the large units carry is needed. GELU
    is not homogeneous, so no scale undoes it. Exact only with more units, as no unit of a trained model is idle: the
    hidden width grows by two for each unit that is turned, which are a multiple of 8.
    """
    outgoing = {linear.x: linear for linear in lifted.linears}
    incoming = {linear.output: linear for linear in lifted.linears}
    done = {}
    for gelu in lifted.gelus:
        first, second = incoming.get(gelu.x), outgoing.get(gelu.output)
        if first is None or second is None or only_reader(gelu.output) is None or not _is_private_matrix(first, second):
            continue
        nodes = nodes_between(first.node.outputs[0], gelu.output)
        if nodes is None:
            continue
        width = first.out_features
        count = min(width, TAIL_STEP * max(1, round(TAIL_UNITS * width / TAIL_STEP)))
        turned = random.choice(width, count, replace=False)
        gain = _between(random, TAIL_GAIN, count)

        def widened(array: np.ndarray, axis: int, f: np.ndarray, minus_f: np.ndarray, own: float) -> np.ndarray:
            rows = np.moveaxis(array.astype(np.float64), axis, -1)
            more = [rows[..., turned] * f, rows[..., turned] * minus_f]  # noqa: B023 - called in this turn
            rows = rows.copy()
            rows[..., turned] *= own  # noqa: B023
            return np.moveaxis(np.concatenate([rows, *more], axis=-1), -1, axis)

        replace_constant(first.weight, widened(constant(first.weight), first.out_axis, gain, -gain, -1))
        if first.bias is not None:
            replace_constant(first.bias, widened(constant(first.bias), 0, gain, -gain, -1))
        replace_constant(second.weight, widened(constant(second.weight), 1 - second.out_axis, 1 / gain, -1 / gain, 1))
        for value in (first.node.outputs[0], *(output for node in nodes for output in node.outputs)):
            if value.shape is not None and len(value.shape) and value.shape[-1] == width:
                value.shape = ir.Shape([*value.shape[:-1], width + 2 * count])
        done[gelu.output.name or ""] = gelu.output.name or ""
    return done


def _is_private_matrix(first: Linear, second: Linear) -> bool:
    """Whether both are matrices, of constants that nothing else reads."""
    held = [first.weight, second.weight, *([first.bias] if first.bias is not None else [])]
    matrices = all(constant(linear.weight).ndim == 2 for linear in (first, second))
    return matrices and not any(map(is_shared, held))


PLANTINGS: dict[str, Planting] = {
    "keys": plant_keys,
    "scales": plant_scales,
    "norms": plant_norms,
    "tails": plant_tails,
}

MEASURING = frozenset({"keys", "scales"})
"""Those that use what was measured."""
