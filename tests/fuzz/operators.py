# SPDX-License-Identifier: Apache-2.0
"""Single nodes of domain samq: kernel and function body must give the same, or both refuse.

A valid node is drawn, then changed in up to three places: a dimension, a rank, a type, values that are none or
infinite, an attribute, an input left out. Where an input has no element, its other dimensions may be huge. Bits must
be equal but for what the operators' documentation excepts: floats of Attention, and single codes of QAttention,
LogQuantize and LayerNormQuantize, which take logarithms or sums of floats.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from samq_onnx import ops, reference
from samq_onnx.errors import UserError
from samq_onnx.runtime import open_session
from tests.fuzz.target import FINE, REFUSED, Outcome

__all__ = ["SECONDS", "case", "prepare"]

SECONDS = 20.0
DOMAIN = "samq"
HUGE = (2**20 + 1, 2**31, 2**33 + 5, 2**36, 2**62)
LARGE = 1 << 16  # elements; ONNX Runtime's own operators take as long as the dimensions say, even of nothing
MOST = 1 << 26  # elements of an output
LONGEST = 2**59  # elements that numpy counts, those of dimensions 0 left out
EXTREMES = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, 1e19, 1e-19)
OPSETS = (13, 14, 17, 18, 21)
ATTENTIONS = ("Attention", "QAttention", "UniformAttention", "LogRowAttention", "UniformRowAttention")
OPERATORS = (
    *(f"{name}{terms}" for name in ATTENTIONS for terms in ops.TERMS),
    *(f"{name}{terms}Quantize" for name in ATTENTIONS[1:] for terms in ops.TERMS),
    *("QLinear", "QLinearResidual", "QLinearQuantize", "QLinearLut", "LayerNormQuantize", "LogQuantize"),
    "ShiftLutMatMul",
)
GIVE_CODES = ("Quantize", "Lut")

Random = np.random.Generator


@dataclasses.dataclass
class _Case:
    """A node, what it is fed, and what was changed."""

    op: str
    feed: dict[str, Any]
    attributes: dict[str, Any]
    names: list[str] = dataclasses.field(default_factory=list)  # of the node's inputs; empty: left blank
    opset: int = 17
    types_fit: bool = True
    constants: set[str] = dataclasses.field(default_factory=set)


def _size(random: Random) -> int:
    return int(random.choice([0, 1, 1, 2, 3, 5, 7, 8, 16, 17, 31, 33, 64, 70], p=[0.06, *[0.94 / 13] * 13]))


def _floats(random: Random, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def _codes(random: Random, *shape: int) -> np.ndarray:
    low, high = sorted(random.integers(0, 256, 2))
    return random.integers(low, high + 1, shape).astype(np.uint8)


def _scale(random: Random) -> np.ndarray:
    return np.array(np.exp(random.uniform(-6, 0)), np.float32)


def _zero(random: Random) -> np.ndarray:
    return np.array(random.integers(0, 256), np.uint8)


def _attention(op: str, random: Random) -> dict[str, Any]:
    leading = tuple(_size(random) % 4 for _ in range(random.integers(1, 3)))
    hq, wq, hk, wk = (_size(random) % 9 for _ in range(4))
    rows, keys, depth, width = hq * wq, hk * wk, _size(random), _size(random)
    if "RelPos" not in op:
        rows, keys = _size(random), int(random.choice([_size(random), 300]))
    shapes = {"q": (*leading, rows, depth), "k": (*leading, keys, depth), "v": (*leading, keys, width)}
    if op.startswith("Attention"):
        feed: dict[str, Any] = {name: _floats(random, *shape) for name, shape in shapes.items()}
        if "RelPos" in op:
            feed |= {"table_h": _floats(random, hq, hk, depth), "table_w": _floats(random, wq, wk, depth)}
        if "Bias" in op:
            feed["bias"] = _floats(random, _groups(random, leading), rows, keys)
        return feed
    feed = {}
    for name, shape in shapes.items():
        feed |= {name: _codes(random, *shape), f"{name}_scale": _scale(random), f"{name}_zero_point": _zero(random)}
    if "Row" not in op:
        feed["p_scale"] = np.float32(0.01) * _scale(random) if "Uniform" in op else _scale(random)
    if "RelPos" in op:
        for name, shape in (("table_h", (hq, hk, depth)), ("table_w", (wq, wk, depth))):
            feed[name] = random.integers(-32768, 32768, shape).astype(np.int16)
            feed[f"{name}_scale"] = np.float32(1e-4) * _scale(random)
    if "Bias" in op:
        shape = (_groups(random, leading), rows, keys)
        feed |= {"bias": random.integers(-32768, 32768, shape).astype(np.int16), "bias_scale": _scale(random)}
    if op.endswith("Quantize"):
        feed |= {"y_scale": _scale(random), "y_zero_point": _zero(random)}
    return feed


def _groups(random: Random, leading: tuple[int, ...]) -> int:
    """How many entries of a batch have a bias of their own."""
    batch = math.prod(leading)
    return int(random.choice([count for count in range(1, batch + 1) if batch % count == 0] or [0]))


def _linear(op: str, random: Random) -> dict[str, Any]:
    leading = tuple(_size(random) for _ in range(random.integers(0, 3)))
    depth, columns = _size(random), _size(random)
    feed: dict[str, Any] = {
        "x": _codes(random, *leading, depth),
        "w": random.integers(-128, 128, (depth, columns)).astype(np.int8),
        "bias": random.integers(-5000, 5000, columns).astype(np.int32),
        "scale": random.uniform(1e-3, 1e-2, columns if random.random() < 0.7 else ()).astype(np.float32),
    }
    if op == "QLinearResidual":
        feed["residual"] = _floats(random, *leading, columns)
    elif op != "QLinear":
        feed["y_zero"] = random.uniform(0, 200, columns if random.random() < 0.7 else ()).astype(np.float32)
    if op == "QLinearLut":
        feed["table"] = random.integers(0, 256, int(random.choice([1, 2, 256, 4096]))).astype(np.uint8)
    return feed


def _valid(random: Random) -> _Case:
    op = str(random.choice(OPERATORS))
    bits, tau = int(random.integers(1, 9)), int(2 ** random.integers(0, 5))
    if "Attention" in op:
        attributes: dict[str, Any] = {"scale": float(random.uniform(0.01, 0.5))}
        if not op.startswith("Attention"):
            attributes["bits"] = bits
            if not op.startswith("Uniform"):
                attributes["tau"] = tau
        return _Case(op, _attention(op, random), attributes)
    if op.startswith("QLinear"):
        return _Case(op, _linear(op, random), {"bits": bits} if op == "QLinearQuantize" else {})
    if op == "LayerNormQuantize":
        width = _size(random)
        leading = tuple(_size(random) for _ in range(random.integers(0, 3)))
        feed: dict[str, Any] = {"x": _floats(random, *leading, width)}
        feed |= {"weight": _floats(random, width), "bias": _floats(random, width)}
        feed |= {"y_scale": _scale(random), "y_zero_point": _zero(random)}
        return _Case(op, feed, {"epsilon": float(random.choice([1e-6, 1e-5, 0.1, 0.0])), "bits": bits})
    if op == "LogQuantize":
        p = random.random([_size(random) for _ in range(random.integers(0, 4))]).astype(np.float32)
        return _Case(op, {"p": p, "p_scale": _scale(random)}, {"tau": tau, "bits": bits})
    leading = tuple(_size(random) % 4 for _ in range(random.integers(0, 3)))
    rows, keys, width = _size(random), _size(random), _size(random)
    feed = {"codes": _codes(random, *leading, rows, keys), "v": _codes(random, *leading, keys, width)}
    feed |= {"p_scale": _scale(random), "v_scale": _scale(random), "v_zero_point": _zero(random)}
    return _Case(op, feed, {"tau": tau, "bits": bits})


def _filled(like: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in another shape, its values repeated."""
    if math.prod(shape) > LARGE or math.prod(max(1, dim) for dim in shape) > LONGEST:
        return like
    if 0 in shape:
        return np.empty(shape, like.dtype)
    return np.resize(like, shape) if like.size else np.ones(shape, like.dtype)


def _dimension(case: _Case, random: Random) -> None:
    name = str(random.choice(list(case.feed)))
    shape = list(case.feed[name].shape)
    if shape:
        axis = int(random.integers(len(shape)))
        shape[axis] = int(
            random.choice([0, 1, shape[axis] + 1, max(0, shape[axis] - 1), 2 * shape[axis], _size(random)])
        )
    case.feed[name] = _filled(case.feed[name], tuple(shape))


def _size_of_all(case: _Case, random: Random) -> None:
    """A dimension that several inputs have in common becomes 0, 1 or huge in all of them."""
    sizes = sorted({dim for x in case.feed.values() for dim in x.shape})
    if sizes:
        old, new = random.choice(sizes), int(random.choice([0, 0, 1, 2, *HUGE]))
        for name, x in case.feed.items():
            shape = tuple(new if dim == old else dim for dim in x.shape)
            case.feed[name] = _filled(x, shape)


def _rank(case: _Case, random: Random) -> None:
    name = str(random.choice(list(case.feed)))
    shape = list(case.feed[name].shape)
    how = random.integers(4)
    if how == 0:
        shape.insert(int(random.integers(len(shape) + 1)), 1)
    elif how == 1 and shape:
        shape.pop(int(random.integers(len(shape))))
    elif how == 2:
        shape = [int(random.choice([1, 2, 0]))] * int(random.integers(0, 5))
    else:
        shape = [math.prod(shape)]
    case.feed[name] = _filled(case.feed[name], tuple(shape))


def _permuted(case: _Case, random: Random) -> None:
    name = str(random.choice(list(case.feed)))
    x = case.feed[name]
    case.feed[name] = np.ascontiguousarray(np.transpose(x, random.permutation(x.ndim)))


def _type(case: _Case, random: Random) -> None:
    name = str(random.choice(list(case.feed)))
    dtype = random.choice([np.float32, np.uint8, np.int8, np.int16, np.int32, np.int64, np.float64, np.float16])
    case.types_fit = case.types_fit and case.feed[name].dtype == dtype
    with np.errstate(all="ignore"):
        case.feed[name] = case.feed[name].astype(dtype)


def _values(case: _Case, random: Random) -> None:
    """Some floats become special, or some codes the same."""
    name = str(random.choice(list(case.feed)))
    x = case.feed[name]
    if not x.size:
        return
    changed = x.copy().reshape(-1)
    where = random.integers(0, x.size, int(random.choice([1, 2, x.size])))
    if x.dtype.kind == "f":
        with np.errstate(all="ignore"):
            changed[where] = random.choice(EXTREMES)
    else:
        bounds = np.iinfo(x.dtype)
        changed[where] = random.choice([bounds.min, bounds.max, 0])
    case.feed[name] = changed.reshape(x.shape)


def _attribute(case: _Case, random: Random) -> None:
    if not case.attributes:
        case.attributes["bits"] = 8
        return
    name = str(random.choice(list(case.attributes)))
    how = random.integers(4)
    if how == 0:
        del case.attributes[name]
    elif how == 1:
        case.attributes["unheard"] = 1
    elif name in ("scale", "epsilon"):
        case.attributes[name] = random.choice([*EXTREMES, 1]) if how == 2 else int(random.integers(-2, 3))
    else:
        wrong = [0, -1, 3, 5, 9, 16, 17, 32, 63, 64, 2**31, 2**62, -(2**62)]
        case.attributes[name] = int(random.choice(wrong)) if how == 2 else 2.0


def _input(case: _Case, random: Random) -> None:
    index = int(random.integers(max(1, len(case.names))))
    how = random.integers(3) if case.names else 3
    if how == 0:
        case.names[index] = ""
    elif how == 1:
        del case.names[index:]
    elif how == 2:
        case.names.append(case.names[index])


CHANGES = (_dimension, _size_of_all, _rank, _permuted, _type, _values, _values, _values, _attribute, _input)


@functools.cache
def _functions(op: str, opset: int) -> onnx.ModelProto:
    """A model of the operator's functions alone."""
    value = ir.Value(name="x")
    node = ir.node(op, [value], domain=DOMAIN)
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": opset}, name="functions")
    model = ir.Model(graph, ir_version=10)
    ops.add_functions(model)
    made = onnx.ModelProto()
    made.functions.extend(ir.to_proto(function) for function in model.functions.values())
    made.opset_import.extend([helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)])
    made.ir_version = 10
    return made


def _model(case: _Case) -> bytes:
    code = TensorProto.UINT8 if case.op.endswith(GIVE_CODES) else TensorProto.FLOAT
    node = helper.make_node(case.op, case.names, ["out"], domain=DOMAIN, **case.attributes)
    inputs, constants = [], []
    for name, x in case.feed.items():
        if name in case.constants:
            constants.append(onnx.numpy_helper.from_array(x, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(x.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, [None] * x.ndim))
    output = helper.make_tensor_value_info("out", code, None)
    model = onnx.ModelProto()
    model.CopyFrom(_functions(case.op, case.opset))
    model.graph.CopyFrom(helper.make_graph([node], case.op, inputs, [output], constants))
    return model.SerializeToString()


def _output_size(case: _Case) -> int:
    """Elements of the output, if the inputs fit."""
    rows = next(iter(case.feed.values()))
    last = next((x for name, x in case.feed.items() if name in ("v", "w")), rows)
    return math.prod(rows.shape[:-1]) * (last.shape[-1] if last.ndim else 1)


def _run(case: _Case, model: bytes, native: bool) -> np.ndarray | str:
    """The output, or why there is none."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = open_session(model, native=native, threads=1, options=options)
    except UserError as error:
        return str(error)
    given = {value.name: case.feed[value.name] for value in session.get_inputs()}
    try:
        return session.run(None, given)[0]
    except Exception as error:  # ONNX Runtime raises its own kinds
        return str(error)


def _difference(case: _Case, native: np.ndarray, body: np.ndarray) -> str | None:
    """How the outputs differ more than they may."""
    if native.shape != body.shape or native.dtype != body.dtype:
        return f"{native.shape} {native.dtype} against {body.shape} {body.dtype}"
    if np.array_equal(native, body, equal_nan=native.dtype.kind == "f"):
        return None
    if native.dtype == np.uint8:
        far = np.abs(native.astype(np.int64) - body)
        rounds = case.op in ("LogQuantize", "LayerNormQuantize") or case.op.startswith("QAttention")
        if rounds and far.max() <= 1 and np.count_nonzero(far.reshape(-1, far.shape[-1]).max(axis=-1)) <= 1:
            return None
        return f"codes {far.max()} apart, {np.count_nonzero(far)} of them"
    if case.op.startswith("Attention"):
        with np.errstate(over="ignore"):  # the kernel divides after it has added up
            sums = np.abs(case.feed["v"]).sum(axis=-2, keepdims=True, dtype=np.float64)
        held = np.broadcast_to(~(np.isfinite(sums) & (sums > np.finfo(np.float32).max)), body.shape)
        finite = np.isfinite(body)
        if np.array_equal(finite[held], np.isfinite(native)[held]):
            bound, finite = _bound(case), finite & held
            if bound is None or np.all(
                np.abs(native[finite] - body[finite]) <= np.broadcast_to(bound, body.shape)[finite]
            ):
                return None
    elif case.op.startswith("QAttention") and native.ndim:
        apart = (native != body) & ~(np.isnan(native) & np.isnan(body))
        if np.count_nonzero(apart.any(axis=-1)) <= 1:
            return None
    return f"{native.reshape(-1)[:4]} against {body.reshape(-1)[:4]}"


def _bound(case: _Case) -> np.ndarray | None:
    """The largest admissible difference of float attention; None where nothing can be said."""
    feed, scale = {name: x.astype(np.float64) for name, x in case.feed.items()}, float(case.attributes["scale"])
    with np.errstate(all="ignore"):
        size = abs(scale) * (np.abs(feed["q"]) @ np.abs(feed["k"]).swapaxes(-1, -2))
        logits = scale * (feed["q"] @ feed["k"].swapaxes(-1, -2))
        if "table_h" in feed:
            size = size + reference.rel_pos(np.abs(feed["q"]), *(np.abs(feed[f"table_{x}"]) for x in "hw"))
            logits = logits + reference.rel_pos(feed["q"], feed["table_h"], feed["table_w"])
        if "bias" in feed and logits.size:
            size = reference.add_bias(size, np.abs(feed["bias"]))
            logits = reference.add_bias(logits, feed["bias"])
        wrong = 4e-6 * (2 + size.max(initial=0.0))
        if not np.isfinite(wrong) or wrong > 0.1:
            return None
        return wrong * (reference.softmax(logits) @ np.abs(feed["v"])) + 1e-30


def prepare(folder: Path) -> None:
    """Nothing is shared."""


def case(state: None, random: Random, folder: Path) -> Outcome:
    """One node, by kernel and by body."""
    made = _valid(random)
    made.names, made.opset = list(made.feed), int(random.choice(OPSETS))
    for change in random.choice(np.array(CHANGES, object), int(random.integers(0, 4))):
        change(made, random)
    if random.random() < 0.3:
        made.constants = {name for name in made.feed if random.random() < 0.6 and made.feed[name].size < LARGE}
    if _output_size(made) > MOST:
        return FINE, "no memory has room for the output"  # sanitizers end the process where others refuse
    try:
        model = _model(made)
    except (TypeError, ValueError, OverflowError):  # no such attribute can be written down
        return FINE, "cannot be written"
    (folder / "model.onnx").write_bytes(model)
    tensors: Any = {name: x for name, x in made.feed.items() if x.size}
    np.savez(folder / "feed.npz", **tensors)
    native = _run(made, model, native=True)
    if any(math.prod(max(1, dim) for dim in x.shape) > LARGE for x in made.feed.values()):
        return FINE, "huge and empty"
    body = _run(made, model, native=False)
    what = f"{made.op} {made.attributes} {[(n, x.dtype.name, x.shape) for n, x in made.feed.items()]} {made.names}"
    if isinstance(native, str) and isinstance(body, str):
        return REFUSED, native
    if isinstance(native, str) or isinstance(body, str):
        said = native if isinstance(native, str) else body
        if isinstance(native, str) and not made.types_fit:
            return REFUSED, "types are the kernel's to check"
        if isinstance(body, str) and made.opset < 14 and not all(x.size for x in made.feed.values()):
            return REFUSED, "Reshape of that opset takes no empty tensors"
        by = "kernel" if isinstance(native, str) else "body"
        return "disagree", f"{what} opset {made.opset}: only the {by} refuses: {said}"
    apart = _difference(made, native, body)
    return ("silent", f"{what} opset {made.opset}: {apart}") if apart else (FINE, "")
