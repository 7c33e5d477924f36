# SPDX-License-Identifier: Apache-2.0
"""Changes of a model, each in one place that chance chooses; some leave it valid."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

__all__ = ["CHANGES", "GENTLE", "damaged", "externalized"]

Random: TypeAlias = np.random.Generator
Change: TypeAlias = Callable[[onnx.ModelProto, Random], None]

# fmt: off
OPERATORS = (
    "Identity", "Relu", "Neg", "Sigmoid", "Tanh", "Erf", "Sqrt", "Exp", "Log", "Abs", "Cast", "Dropout", "Add",
    "Mul", "Sub", "Div", "MatMul", "Gemm", "Conv", "Softmax", "LogSoftmax", "Transpose", "Reshape", "Squeeze",
    "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Split", "Einsum", "LayerNormalization", "ReduceMean",
    "ReduceMax", "Pad", "Resize", "Where", "Expand", "Shape", "Size", "ConstantOfShape", "NonZero", "Gelu",
    "ConvTranspose", "QuantizeLinear", "DequantizeLinear", "Clip", "Loop", "Scan", "If", "RandomNormal", "TopK",
    "Range", "Tile", "Mod", "Pow", "Attention", "Nothing",
)
# fmt: on
NUMBERS = (0, 1, -1, 2, 3, 7, -2, 64, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1)
FLOATS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 1e-45)
EQUATIONS = (
    "ij,jk->ik",
    "bhwc,hkc->bhwk",
    "...ij,jk",
    "i->",
    "",
    "a,b,c->abc",
    "bhwc,wkc->bhwk",
    "ii->i",
    "A b,bc->Ac",
)


def _pick(random: Random, entries: Any) -> Any:
    return entries[int(random.integers(len(entries)))]


def _values(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    names = [name for node in graph.node for name in node.output if name]
    return [*names, *(v.name for v in graph.input), *(t.name for t in graph.initializer)]


def _scope(model: onnx.ModelProto, random: Random) -> Any:
    """The graph, mostly; or a function, or a graph in a node."""
    inner = [a.g for n in model.graph.node for a in n.attribute if a.HasField("g")]
    places = [*model.functions, *inner]
    return _pick(random, places) if places and random.random() < 0.25 else model.graph


def _node(model: onnx.ModelProto, random: Random) -> onnx.NodeProto:
    return _pick(random, _scope(model, random).node)


def _float(model: onnx.ModelProto, random: Random) -> TensorProto:
    """An initializer of floats that has data here."""
    return _pick(random, [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims])


def _set(tensor: TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _insert(model: onnx.ModelProto, node: onnx.NodeProto, before: int) -> None:
    nodes = list(model.graph.node)
    nodes.insert(before, node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def nothing(model: onnx.ModelProto, random: Random) -> None:
    """Serialized and read again."""


def drop_node(model: onnx.ModelProto, random: Random) -> None:
    nodes = _scope(model, random).node
    del nodes[int(random.integers(len(nodes)))]


def repeat_node(model: onnx.ModelProto, random: Random) -> None:
    nodes = _scope(model, random).node
    made = nodes.add()
    made.CopyFrom(_pick(random, list(nodes)[:-1]))
    if random.random() < 0.8:
        for index, name in enumerate(made.output):
            made.output[index] = f"{name}_again" if name else name


def swap_nodes(model: onnx.ModelProto, random: Random) -> None:
    nodes = list(model.graph.node)
    a, b = (int(i) for i in random.integers(len(nodes), size=2))
    nodes[a], nodes[b] = nodes[b], nodes[a]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def rewire(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    node.input[int(random.integers(len(node.input)))] = _pick(random, [*_values(model), "nobody"])


def twist(model: onnx.ModelProto, random: Random) -> None:
    """Exchange the inputs of a node."""
    node = _node(model, random)
    given = list(node.input)
    random.shuffle(given)
    node.input[:] = given


def blank_input(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    node.input[int(random.integers(len(node.input)))] = ""


def fewer_inputs(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    del node.input[int(random.integers(len(node.input))) :]


def more_inputs(model: onnx.ModelProto, random: Random) -> None:
    _node(model, random).input.extend([_pick(random, ["", *_values(model)]) for _ in range(int(random.integers(1, 4)))])


def blank_output(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    node.output[int(random.integers(len(node.output)))] = ""


def more_outputs(model: onnx.ModelProto, random: Random) -> None:
    _node(model, random).output.append(_pick(random, ["", "further", *_values(model)]))


def other_operator(model: onnx.ModelProto, random: Random) -> None:
    _node(model, random).op_type = _pick(random, OPERATORS)


def other_domain(model: onnx.ModelProto, random: Random) -> None:
    _node(model, random).domain = _pick(random, ["", "samq", "ai.onnx", "com.microsoft", "local", "ai.onnx.ml", "x"])


def node_name(model: onnx.ModelProto, random: Random) -> None:
    """None, or that of another."""
    if random.random() < 0.3:
        for node in model.graph.node:
            node.name = ""
    _node(model, random).name = _pick(random, ["", "same", _node(model, random).name, "a/b\n"])


def same_names(model: onnx.ModelProto, random: Random) -> None:
    for node in model.graph.node:
        node.name = "same"


def on_edge(model: onnx.ModelProto, random: Random) -> None:
    """An operator of one input between two nodes."""
    index = int(random.integers(len(model.graph.node)))
    node = model.graph.node[index]
    at = int(random.integers(len(node.input)))
    op = _pick(
        random, ["Identity", "Dropout", "Cast", "Relu", "Neg", "Sigmoid", "Clip", "Squeeze", "Transpose", "Double"]
    )
    attributes = {"to": _pick(random, [1, 10, 11, 7, 6])} if op == "Cast" else {}
    made = f"edge_{len(model.graph.node)}"
    nodes = [helper.make_node(op, [node.input[at]], [made], **attributes)]
    if op == "Double":
        nodes = [
            helper.make_node("Cast", [node.input[at]], [f"{made}_wide"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", [f"{made}_wide"], [made], to=TensorProto.FLOAT),
        ]
    node.input[at] = made
    for one in reversed(nodes):
        _insert(model, one, index)


def _attribute(model: onnx.ModelProto, random: Random) -> AttributeProto:
    nodes = [node for node in _scope(model, random).node if node.attribute]
    return _pick(random, _pick(random, nodes).attribute)


def drop_attribute(model: onnx.ModelProto, random: Random) -> None:
    nodes = [node for node in _scope(model, random).node if node.attribute]
    attributes = _pick(random, nodes).attribute
    del attributes[int(random.integers(len(attributes)))]


def change_attribute(model: onnx.ModelProto, random: Random) -> None:
    attribute = _attribute(model, random)
    if attribute.type == AttributeProto.INT:
        attribute.i = _pick(random, NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = _pick(random, FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = _pick(
            random, [b"", b"constant", b"SAME_UPPER", b"VALID", b"\xff\xfe", *map(str.encode, EQUATIONS)]
        )
    elif attribute.type == AttributeProto.INTS:
        how = int(random.integers(4))
        if how == 0:
            attribute.ints[int(random.integers(len(attribute.ints)))] = _pick(random, NUMBERS)
        elif how == 1:
            attribute.ints.append(_pick(random, NUMBERS))
        elif how == 2:
            attribute.ints.pop()
        else:
            mixed = list(attribute.ints)
            random.shuffle(mixed)
            attribute.ints[:] = mixed
    else:
        attribute.type = int(random.integers(0, 15))


def attribute_type(model: onnx.ModelProto, random: Random) -> None:
    _attribute(model, random).type = int(random.integers(0, 17))


def attribute_name(model: onnx.ModelProto, random: Random) -> None:
    _attribute(model, random).name = _pick(random, ["", "axis", "axes", "alpha", "beta", "transA", "group", "x"])


def further_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    name = _pick(
        random, ["axis", "alpha", "beta", "transA", "transB", "group", "epsilon", "keepdims", "auto_pad", "perm"]
    )
    value = {"alpha": 0.5, "beta": 3.0, "epsilon": 1e-3, "auto_pad": "SAME_UPPER", "perm": [0, 2, 1]}.get(name)
    made = helper.make_attribute(name, value if value is not None else _pick(random, [-2, -1, 0, 1, 2]))
    if all(attribute.name != name for attribute in node.attribute) or random.random() < 0.2:
        node.attribute.append(made)


def reference_attribute(model: onnx.ModelProto, random: Random) -> None:
    _attribute(model, random).ref_attr_name = "outer"


def wild_weight(model: onnx.ModelProto, random: Random) -> None:
    """Values that no training gives."""
    tensor = _float(model, random)
    array = numpy_helper.to_array(tensor).copy()
    value = np.float32(_pick(random, FLOATS))
    if random.random() < 0.5:
        array[...] = value
    else:
        array.flat[int(random.integers(array.size))] = value
    _set(tensor, array)


def scaled_weight(model: onnx.ModelProto, random: Random) -> None:
    tensor = _float(model, random)
    _set(tensor, numpy_helper.to_array(tensor) * np.float32(_pick(random, [0, 1e-20, 1e-6, 10, 1e4, 1e20])))


def other_dims(model: onnx.ModelProto, random: Random) -> None:
    tensor = _pick(random, model.graph.initializer)
    how = int(random.integers(5))
    if how == 0:
        tensor.dims.append(1)
    elif how == 1:
        tensor.dims.reverse()
    elif how == 2 and tensor.dims:
        tensor.dims.pop()
    elif tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = _pick(random, NUMBERS)


def empty_weight(model: onnx.ModelProto, random: Random) -> None:
    tensor = _float(model, random)
    shape = list(tensor.dims)
    shape[int(random.integers(len(shape)))] = 0
    _set(tensor, np.zeros(shape, np.float32))


def reshaped_weight(model: onnx.ModelProto, random: Random) -> None:
    """Another shape of as many elements, or one that broadcasts to it."""
    tensor = _float(model, random)
    array = numpy_helper.to_array(tensor)
    made = [
        array[None],
        array.reshape(-1),
        array.T,
        array.reshape(-1, 1),
        array.reshape(1, -1),
        array.flat[0],
        array[:1],
    ]
    _set(tensor, np.asarray(_pick(random, made)))


def other_type(model: onnx.ModelProto, random: Random) -> None:
    """Its number alone, or its values too."""
    tensor = _pick(random, model.graph.initializer)
    if random.random() < 0.5:
        tensor.data_type = int(random.integers(0, 30))
    else:
        kinds = [np.float16, np.float64, np.int32, np.int64, np.uint8, np.int8, np.bool_]
        _set(tensor, numpy_helper.to_array(tensor).astype(_pick(random, kinds)))


def cut_weight(model: onnx.ModelProto, random: Random) -> None:
    tensor = _pick(random, model.graph.initializer)
    data = tensor.raw_data
    tensor.raw_data = _pick(random, [data[:-1], data[: len(data) // 2], data + b"\0", b"", data + data])


def typed_weight(model: onnx.ModelProto, random: Random) -> None:
    """The same values in the field of their type."""
    tensor = _float(model, random)
    array = numpy_helper.to_array(tensor)
    tensor.ClearField("raw_data")
    tensor.float_data.extend(array.ravel().tolist())


def drop_weight(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.initializer[int(random.integers(len(model.graph.initializer)))]


def repeated_weight(model: onnx.ModelProto, random: Random) -> None:
    model.graph.initializer.append(_pick(random, model.graph.initializer))


def shared_weight(model: onnx.ModelProto, random: Random) -> None:
    """A node reads the weight of another, of the same shape."""
    one = _float(model, random)
    fitting = [t.name for t in model.graph.initializer if list(t.dims) == list(one.dims) and t.name != one.name]
    other = _pick(random, fitting)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == one.name:
                node.input[index] = other


def default_input(model: onnx.ModelProto, random: Random) -> None:
    """An initializer that a feed may replace."""
    tensor = _pick(random, model.graph.initializer)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def default_inputs(model: onnx.ModelProto, random: Random) -> None:
    """Every initializer, as IR version 3 had it, or every small one."""
    most = _pick(random, [1, 100, 10**9])
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims) <= most:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def constant_nodes(model: onnx.ModelProto, random: Random) -> None:
    """Initializers as nodes."""
    every = random.random() < 0.5
    for tensor in list(model.graph.initializer):
        if every or random.random() < 0.2:
            _insert(model, helper.make_node("Constant", [], [tensor.name], value=tensor), 0)
            model.graph.initializer.remove(tensor)


def weight_output(model: onnx.ModelProto, random: Random) -> None:
    tensor = _pick(random, model.graph.initializer)
    model.graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def input_output(model: onnx.ModelProto, random: Random) -> None:
    model.graph.output.append(_pick(random, model.graph.input))


def inner_output(model: onnx.ModelProto, random: Random) -> None:
    """A value of the middle given out too."""
    model = onnx.shape_inference.infer_shapes(model) if random.random() < 0 else model
    node = _pick(random, model.graph.node)
    name = _pick(random, list(node.output))
    known = [value for value in model.graph.value_info if value.name == name]
    made = known[0] if known else helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    _pick(random, [lambda: model.graph.output.append(made), lambda: model.graph.output.insert(0, made)])()


def drop_output(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.output[int(random.integers(len(model.graph.output)))]


def repeated_output(model: onnx.ModelProto, random: Random) -> None:
    model.graph.output.append(_pick(random, model.graph.output))


def other_output(model: onnx.ModelProto, random: Random) -> None:
    output = _pick(random, model.graph.output)
    how = int(random.integers(5))
    if how == 0:
        output.name = _pick(random, [*_values(model), "nobody", ""])
    elif how == 1:
        output.type.tensor_type.elem_type = int(random.integers(0, 18))
    elif how == 2:
        output.type.tensor_type.ClearField("shape")
    elif how == 3:
        output.ClearField("type")
    else:
        _other_dim(output, random)


def _other_dim(value: onnx.ValueInfoProto, random: Random) -> None:
    dims = value.type.tensor_type.shape.dim
    dim = _pick(random, dims)
    if random.random() < 0.5:
        dim.dim_param = _pick(random, ["N", "", "n+1", "batch"])
    else:
        dim.dim_value = _pick(random, NUMBERS)


def other_input(model: onnx.ModelProto, random: Random) -> None:
    value = _pick(random, model.graph.input)
    how = int(random.integers(6))
    if how == 0:
        value.name = _pick(random, ["pixels", "", *_values(model)])
    elif how == 1:
        value.type.tensor_type.elem_type = int(random.integers(0, 18))
    elif how == 2:
        value.type.tensor_type.ClearField("shape")
    else:
        _other_dim(value, random)


def further_input(model: onnx.ModelProto, random: Random) -> None:
    model.graph.input.append(helper.make_tensor_value_info("further", TensorProto.FLOAT, [1]))


def drop_input(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.input[int(random.integers(len(model.graph.input)))]


def renamed(model: onnx.ModelProto, random: Random) -> None:
    """A value under another name, everywhere."""
    old = _pick(random, [name for node in model.graph.node for name in node.output if name])
    new = _pick(random, ["a b", "0", f"{old}_codes", f"{old}_scale", f"{old}_int8", "x" * 300, "ä"])
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = new if value.name == old else value.name


def no_shapes(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.value_info[:]


def wrong_shape(model: onnx.ModelProto, random: Random) -> None:
    value = _pick(random, model.graph.value_info)
    if random.random() < 0.3:
        value.type.tensor_type.elem_type = int(random.integers(0, 18))
    else:
        _other_dim(value, random)


def opset(model: onnx.ModelProto, random: Random) -> None:
    how = int(random.integers(4))
    if how == 0:
        model.opset_import[0].version = int(random.integers(7, 26))
    elif how == 1:
        model.opset_import[0].version = _pick(random, NUMBERS)
    elif how == 2:
        model.opset_import.append(
            helper.make_opsetid(_pick(random, ["", "samq", "x", "ai.onnx"]), int(random.integers(30)))
        )
    else:
        del model.opset_import[int(random.integers(len(model.opset_import)))]


def ir_version(model: onnx.ModelProto, random: Random) -> None:
    model.ir_version = _pick(random, [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 99, -1])


def metadata(model: onnx.ModelProto, random: Random) -> None:
    keys = ["samq_onnx.comparable", "samq_onnx.recipe", "samq_onnx.float_model.sha256", "", "x"]
    values = ["", "[]", "{}", '["a"]', "[1]", "null", "not json", '{"a": 1}', "[" * 5000, '"text"', "[[]]"]
    if model.metadata_props and random.random() < 0.5:
        _pick(random, model.metadata_props).value = _pick(random, values)
    else:
        model.metadata_props.add(key=_pick(random, keys), value=_pick(random, values))


def node_metadata(model: onnx.ModelProto, random: Random) -> None:
    node = _pick(random, [n for n in model.graph.node if n.metadata_props] or list(model.graph.node))
    values = ["", "x", "image", _pick(random, _values(model))]
    if node.metadata_props:
        _pick(random, node.metadata_props).value = _pick(random, values)
    else:
        node.metadata_props.add(key="samq_onnx.float_output", value=_pick(random, values))


def as_function(model: onnx.ModelProto, random: Random) -> None:
    """A node becomes the call of a function, which may call itself."""
    node = _pick(random, model.graph.node)
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inputs = [f"i{index}" for index in range(len(node.input))]
    inner.input[:] = [name if given else "" for name, given in zip(inputs, node.input, strict=True)]
    inner.output[:] = [f"o{index}" for index in range(len(node.output))]
    nodes = [inner]
    if random.random() < 0.15:
        nodes = [helper.make_node("wrapped", inputs, list(inner.output), domain="wrap")]
    function = helper.make_function("wrap", "wrapped", inputs, list(inner.output), nodes, list(model.opset_import), [])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("wrap", 1))
    node.domain, node.op_type = "wrap", "wrapped"
    del node.attribute[:]


def as_branch(model: onnx.ModelProto, random: Random) -> None:
    """A node moves into both branches of an If."""
    index = int(random.integers(len(model.graph.node)))
    node = model.graph.node[index]
    branches = {}
    for branch in ("then", "else"):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[:] = [f"{name}_{branch}" for name in node.output]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner.output]
        branches[f"{branch}_branch"] = helper.make_graph([inner], branch, [], outputs)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), f"choice{index}"))
    made = helper.make_node("If", [f"choice{index}"], list(node.output), **branches)
    if random.random() < 0.5:  # not a constant
        _insert(model, helper.make_node("Not", [f"choice{index}"], [f"chosen{index}"]), 0)
        made.input[0] = f"chosen{index}"
        index += 1
    del model.graph.node[index]
    _insert(model, made, index)


def nested(model: onnx.ModelProto, random: Random) -> None:
    """Graphs in graphs in graphs."""
    depth = _pick(random, [3, 20, 40])
    value = helper.make_tensor_value_info("deep", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Constant", [], ["deep"], value_floats=[1.0])], "deep", [], [value])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "deep_choice"))
    for level in range(depth):
        name = f"deep{level}"
        node = helper.make_node("If", ["deep_choice"], [name], then_branch=graph, else_branch=graph)
        if level > 8:
            node = helper.make_node("Loop", ["", "deep_choice"], [name], body=graph)
        graph = helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])])
        if graph.ByteSize() > 1_000_000:
            break
    _insert(model, helper.make_node("If", ["deep_choice"], ["deepest"], then_branch=graph, else_branch=graph), 0)


def alpha_beta(model: onnx.ModelProto, random: Random) -> None:
    """MatMul and Add as Gemm with factors; or factors on a Gemm."""
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    node = _pick(random, gemms)
    for name in ("alpha", "beta"):
        if random.random() < 0.7 and all(attribute.name != name for attribute in node.attribute):
            node.attribute.append(helper.make_attribute(name, float(_pick(random, [0.5, 2.0, 0.0, -1.0]))))


def other_equation(model: onnx.ModelProto, random: Random) -> None:
    einsums = [node for node in model.graph.node if node.op_type == "Einsum"]
    for attribute in _pick(random, einsums).attribute:
        attribute.s = _pick(random, EQUATIONS).encode()


def sparse_weight(model: onnx.ModelProto, random: Random) -> None:
    tensor = _float(model, random)
    array = numpy_helper.to_array(tensor)
    sparse = onnx.SparseTensorProto()
    places = np.arange(array.size, dtype=np.int64)
    sparse.values.CopyFrom(numpy_helper.from_array(array.ravel(), tensor.name))
    sparse.indices.CopyFrom(numpy_helper.from_array(places, f"{tensor.name}_places"))
    sparse.dims.extend(array.shape)
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(sparse)


def graph_name(model: onnx.ModelProto, random: Random) -> None:
    model.graph.name = _pick(random, ["", "x" * 1000])


def unused_parts(model: onnx.ModelProto, random: Random) -> None:
    """A dead node, a weight that nobody reads."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "idle"))
    model.graph.node.append(helper.make_node("Relu", ["idle"], ["idle_too"]))


CHANGES: list[Change] = [
    *(nothing, drop_node, repeat_node, swap_nodes, rewire, twist, blank_input, fewer_inputs, more_inputs, blank_output),
    *(more_outputs, other_operator, other_domain, node_name, same_names, on_edge, drop_attribute, change_attribute),
    *(attribute_type, attribute_name, further_attribute, reference_attribute, wild_weight, scaled_weight, other_dims),
    *(empty_weight, reshaped_weight, other_type, cut_weight, typed_weight, drop_weight, repeated_weight, shared_weight),
    *(default_input, default_inputs, constant_nodes, weight_output, input_output, inner_output, drop_output),
    *(repeated_output, other_output, other_input, further_input, drop_input, renamed, no_shapes, wrong_shape, opset),
    *(ir_version, metadata, node_metadata, as_function, as_branch, nested, alpha_beta, other_equation, sparse_weight),
    *(graph_name, unused_parts),
]
GENTLE = {
    change.__name__
    for change in (
        *(nothing, repeat_node, swap_nodes, node_name, same_names, typed_weight, repeated_weight, default_input),
        *(default_inputs, constant_nodes, weight_output, input_output, inner_output, drop_output, repeated_output),
        *(
            other_output,
            further_input,
            renamed,
            no_shapes,
            opset,
            ir_version,
            metadata,
            as_function,
            as_branch,
            alpha_beta,
        ),
        *(graph_name, unused_parts, shared_weight, further_attribute, drop_attribute, reshaped_weight, sparse_weight),
    )
} | {"external data", "linked data", "hard linked data"}


def externalized(model: onnx.ModelProto, random: Random, path: Path) -> str:
    """Move weights to a file beside ``path``, rightly or not; says how."""
    data = bytearray()
    moved = []
    for tensor in model.graph.initializer:
        if not tensor.raw_data:
            continue
        data += b"\0" * (-len(data) % 64)
        held = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": len(data), "length": len(held)}.items():
            tensor.external_data.add(key=key, value=str(value))
        data += held
        moved.append(tensor)
    file = path.with_name("weights.bin")
    how = int(random.integers(10))
    if how < 3 or not moved:
        file.write_bytes(data)
        return "external data"
    elsewhere = path.parent.parent / "shared" / f"blob{os.getpid()}"
    elsewhere.write_bytes(data)
    if how == 3:
        file.symlink_to(elsewhere)
        return "linked data"
    if how == 4:
        os.link(elsewhere, file)
        return "hard linked data"
    if how == 5:
        made = _pick(random, ["loop", "pipe", "device", "folder", "nothing"])
        if made == "loop":
            file.symlink_to(file.name)
        elif made == "pipe":
            os.mkfifo(file)
        elif made == "device":
            file.symlink_to(_pick(random, ["/dev/zero", "/dev/stdin", "/dev/tty"]))
        elif made == "folder":
            file.mkdir()
        return f"external data: {made}"
    file.write_bytes(data if how != 6 else data[: int(random.integers(len(data)))])
    if how == 6:
        return "external data: cut"
    tensor = _pick(random, moved)
    entry = _pick(random, tensor.external_data)
    wrong: list[Any] = ["", "x", "-1", "1e3", "99999999999999999999", *NUMBERS, " 0", "0x10", "٣"]
    if entry.key == "location":
        wrong = [
            "",
            "/etc/passwd",
            "../shared/x",
            "a/../weights.bin",
            "./weights.bin",
            "nobody",
            "model.onnx",
            "\0",
            "x" * 5000,
        ]
        wrong += [str(elsewhere), "*/_ORT_MEM_ADDR_/*", "folder/", "."]
    if how == 7:
        entry.value = str(_pick(random, wrong))
    elif how == 8:
        tensor.external_data.remove(entry)
    else:
        tensor.external_data.add(key=entry.key, value=str(_pick(random, wrong)))
    return f"external data: {entry.key}"


def damaged(content: bytes, random: Random) -> tuple[bytes, str]:
    """A file as a bad disk or a broken download gives it."""
    how = int(random.integers(4))
    at = int(random.integers(len(content)))
    if how == 0:
        return content[:at], "truncated"
    if how == 1:
        return content[:at] + random.bytes(int(random.integers(1, 9))) + content[at:], "inserted bytes"
    changed = bytearray(content)
    for place in random.integers(len(content), size=int(random.integers(1, 6))):
        changed[int(place)] ^= 1 << int(random.integers(8))
    return bytes(changed), "flipped bits"
