# SPDX-License-Identifier: Apache-2.0
"""Raise a model to the lowest opset that can hold what lowering writes.

QDQ with per-channel weights needs opset 13, int4 tensors opset 21. Raising changes no value: each operator is
rewritten to its newer form. Between opset 7 and 18 most changes are attributes that became inputs; those steps are
here. onnxscript's converter knows the later ones. What neither knows is found by comparing each operator with its
definition, and refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import version_converter

from samq_onnx.errors import UserError
from samq_onnx.passes.graph import array_of

__all__ = ["INT4_OPSET", "QDQ_OPSET", "one_domain", "raise_opset"]

QDQ_OPSET = 13
INT4_OPSET = 21
ALIAS = "ai.onnx"  # another name of the default domain
OWN_STEPS_UP_TO = 18  # the opset where onnxscript's converter takes over
INITIALIZERS_ARE_NO_INPUTS = 4  # IR version; before it, every initializer had to be listed as an input

REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

KEEP_RANK = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Where", "Transpose", "Cast", "Identity", "Dropout", "Sqrt"}
)  # that of the widest input


class _Raising:
    """A graph whose operators are rewritten, one after the other."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        nodes = list(model.graph.all_nodes())
        graphs = {node.graph for node in nodes if isinstance(node.graph, ir.Graph)} | {model.graph}
        values = [*(v for node in nodes for v in node.outputs)]
        values += [v for graph in graphs for v in [*graph.inputs, *graph.initializers.values()]]
        self._names = {value.name for value in values}

    def name(self, base: str) -> str:
        """One that no value has, of any graph."""
        name = next(n for number in itertools.count() if (n := f"{base}_{number}") not in self._names)
        self._names.add(name)
        return name

    def constant(self, array: np.ndarray, base: str) -> ir.Value:
        """A new initializer of the outermost graph, which all others see."""
        name = self.name(base)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def attribute_to_input(self, node: ir.Node, attribute: str, index: int, *, like: ir.Value | None = None) -> None:
        """Make an attribute an input: a number one of the type of ``like``, or int64 [1]; a list int64 [n]."""
        found = node.attributes.pop(attribute, None)
        if found is None:
            return
        if like is not None:
            dtype = like.dtype.numpy() if like.dtype is not None else np.dtype(np.float32)
            array = np.array(found.as_float(), dtype)
        elif found.type == ir.AttributeType.FLOATS:
            array = np.array(found.as_floats(), np.float32)
        else:
            array = np.array([found.as_int()] if found.type == ir.AttributeType.INT else found.as_ints(), np.int64)
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, self.constant(array, attribute))


Step = Callable[[_Raising, ir.Node], None]


def _to_inputs(**places: int) -> Step:
    """Integer attributes become the inputs at these places."""

    def step(raising: _Raising, node: ir.Node) -> None:
        for attribute, index in places.items():
            raising.attribute_to_input(node, attribute, index)

    return step


def _clip(raising: _Raising, node: ir.Node) -> None:
    raising.attribute_to_input(node, "min", 1, like=node.inputs[0])
    raising.attribute_to_input(node, "max", 2, like=node.inputs[0])


def _pad(raising: _Raising, node: ir.Node) -> None:
    raising.attribute_to_input(node, "pads", 1)
    raising.attribute_to_input(node, "value", 2, like=node.inputs[0])


def _dropout(_: _Raising, node: ir.Node) -> None:
    node.attributes.pop("ratio", None)  # it counts in training alone


def _mask_of_dropout(_: _Raising, node: ir.Node) -> None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise UserError("the mask of Dropout is used")


def _norm_of_planes(_: _Raising, node: ir.Node) -> None:
    spatial = node.attributes.pop("spatial", None)
    if spatial is not None and spatial.as_int() != 1:
        raise UserError("BatchNormalization with spatial = 0")


def _norm_of_training(_: _Raising, node: ir.Node) -> None:
    if any(value.name and (value.uses() or value.is_graph_output()) for value in node.outputs[1:]):
        raise UserError("BatchNormalization that is trained")
    node.resize_outputs(1)


def _rank(value: ir.Value | None) -> int | None:
    """Number of axes, where shapes were inferred or the next operators above tell it."""
    if value is None or value.shape is not None:
        return len(value.shape) if value is not None and value.shape is not None else None
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Reshape":
        dims = node.inputs[1].shape if node.inputs[1] is not None else None
        return dims[0] if dims is not None and isinstance(dims[0], int) else None
    if node.op_type in KEEP_RANK:
        ranks = [_rank(one) for one in node.inputs]
        return max(rank for rank in ranks if rank is not None) if None not in ranks else None
    return None


def _last_axis(raising: _Raising, node: ir.Node) -> None:
    """Softmax and its kin worked on all axes from ``axis`` on, and work on that axis alone now."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and node.graph is not None
    axis, rank = node.attributes.get_int("axis", 1), _rank(x)
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    if axis == -1 or (rank is not None and axis == rank - 1):
        return
    flat = ir.node("Flatten", [x], {"axis": axis})
    dims = ir.node("Shape", [x])
    back = ir.node("Reshape", [y, dims.outputs[0]])
    for new in (flat, dims, back):
        new.outputs[0].name = raising.name(f"{y.name}_{new.op_type.lower()}")
    y.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, y)
    if back.outputs[0].is_graph_output():  # outputs of the graph keep their names
        y.name, back.outputs[0].name = back.outputs[0].name, y.name
    back.outputs[0].type, back.outputs[0].shape, y.shape = y.type, y.shape, None
    node.replace_input_with(0, flat.outputs[0])
    node.graph.insert_before(node, [flat, dims])
    node.graph.insert_after(node, [back])


def _upsample(_: _Raising, node: ir.Node) -> None:
    node.op_type = "Resize"


def _resize(_: _Raising, node: ir.Node) -> None:
    """Resize was Upsample: pixels lie at their corner, and the nearest is the one before, or behind if it shrinks."""
    if node.attributes.get_string("mode", "nearest") == "nearest":
        scales = array_of(node.inputs[1])
        if scales is None:
            raise UserError("Resize to the nearest pixel by a scale that is no constant")
        grows, shrinks = bool((scales > 1).any()), bool((scales < 1).any())
        if grows and shrinks:
            raise UserError("Resize to the nearest pixel that grows one side and shrinks another")
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil" if shrinks else "floor")
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    node.resize_inputs(3)
    node.replace_input_with(2, node.inputs[1])
    node.replace_input_with(1, None)


def _resize_for_networks(_: _Raising, node: ir.Node) -> None:
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_half_pixel_for_nn":
        raise UserError("Resize by tf_half_pixel_for_nn")


def _scatter(_: _Raising, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _half_pixel(_: _Raising, node: ir.Node) -> None:
    name = "coordinate_transformation_mode"
    node.attributes.setdefault(name, ir.AttrString(name, "output_half_pixel"))


def _count_outputs(_: _Raising, node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _no_scan(_: _Raising, node: ir.Node) -> None:
    raise UserError("Scan of batches")


# Opset that brought a new form, and operators that need a step from the form before it.
STEPS: dict[int, dict[str, Step]] = {
    9: {"BatchNormalization": _norm_of_planes, "Upsample": _to_inputs(scales=1), "Scan": _no_scan},
    10: {
        "Slice": _to_inputs(starts=1, ends=2, axes=3),
        "TopK": _to_inputs(k=1),
        "Upsample": _upsample,
        "Dropout": _mask_of_dropout,
    },
    11: {"Clip": _clip, "Pad": _pad, "Resize": _resize, "Scatter": _scatter},
    12: {"Dropout": _dropout},
    13: {
        **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), _to_inputs(axes=1)),
        **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _last_axis),
        "Split": _to_inputs(split=1),
        "Resize": _resize_for_networks,
    },
    14: {"BatchNormalization": _norm_of_training},
    16: {"RoiAlign": _half_pixel},
    18: {**{f"Reduce{kind}": _to_inputs(axes=1) for kind in REDUCTIONS}, "Split": _count_outputs},
}


def _raise_by_own_steps(model: ir.Model, current: int, needed: int) -> None:
    raising = _Raising(model)
    for opset in range(current + 1, needed + 1):
        steps = STEPS.get(opset, {})
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type in steps:
                steps[node.op_type](raising, node)
    model.opset_imports[""] = needed
    for node in model.graph.all_nodes():
        node.version = None


def _unknown(model: ir.Model, opset: int) -> Iterator[str]:
    """Operators that are not as the opset defines them."""
    for node in model.graph.all_nodes():
        if node.domain != "":
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            yield f"{node.op_type} does not exist"
            continue
        if schema.deprecated:
            yield f"{node.op_type} does not exist"
        elif strange := set(node.attributes) - set(schema.attributes):
            yield f"{node.op_type} has no {', '.join(sorted(strange))}"
        elif not schema.min_input <= len(node.inputs) <= schema.max_input or len(node.outputs) > schema.max_output:
            yield f"{node.op_type} has other inputs or outputs"


def one_domain(model: ir.Model) -> None:
    """Call the default domain by one name, in place."""
    if ALIAS in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop(ALIAS))


def raise_opset(model: ir.Model, weight_bits: int) -> None:
    """Raise the default-domain opset of ``model``, in place, if weights of ``weight_bits`` need a newer one.

    Weights are neither read nor copied. Local functions are inlined.

    Raises:
        UserError: the model holds an operator whose newer form would give other values, or has none.
    """
    needed = INT4_OPSET if weight_bits <= 4 else QDQ_OPSET
    one_domain(model)
    current = model.opset_imports.get("", 0)
    if (model.ir_version or 0) < INITIALIZERS_ARE_NO_INPUTS:
        inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
        model.ir_version = INITIALIZERS_ARE_NO_INPUTS
    if current >= needed:
        return
    if model.functions:
        common.InlinePass()(model)
    try:
        if current < OWN_STEPS_UP_TO:
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.ShapeInferencePass()(model)  # Softmax needs to know ranks
            _raise_by_own_steps(model, current, min(needed, OWN_STEPS_UP_TO))
        if needed > OWN_STEPS_UP_TO:
            version_converter.convert_version(model, needed)
        reason = next(_unknown(model, needed), None)
    except UserError as error:
        reason = str(error)
    except Exception as error:  # the converter raises errors of any kind
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        raise UserError(f"opset {current} cannot be raised to {needed} ({reason}); export the model with opset 17")
    model.ir_version = max(model.ir_version or 0, 10 if needed == INT4_OPSET else 8)
