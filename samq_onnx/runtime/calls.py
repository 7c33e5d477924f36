# SPDX-License-Identifier: Apache-2.0
"""Whether a model calls the functions of domain samq as they are declared.

ONNX Runtime checks that of a node that has a kernel. It takes a function for a kernel's place with any inputs, and an
input that lacks can crash it inside the body.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import onnx
from google.protobuf.message import DecodeError

from samq_onnx.errors import UserError

__all__ = ["check_calls"]

DOMAIN = "samq"
FLOAT, INT = onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT
KINDS = {FLOAT: "a float", INT: "an integer"}
ATTRIBUTES = {"scale": FLOAT, "epsilon": FLOAT, "unit": FLOAT, "tau": INT, "bits": INT}
VALUES = {"tau": (1, 2, 4, 8, 16), "bits": tuple(range(1, 9))}

Key = tuple[str, str]


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _strict(functions: dict[Key, onnx.FunctionProto]) -> dict[Key, onnx.FunctionProto]:
    """The functions of domain samq, and those that call one and may hand on what they were not given."""
    strict = {key: function for key, function in functions.items() if key[0] == DOMAIN}
    calls = {
        key: {(node.domain, node.op_type) for node in _nodes(function.node)} for key, function in functions.items()
    }
    while found := {key: functions[key] for key in functions.keys() - strict.keys() if calls[key] & strict.keys()}:
        strict |= found
    return strict


def _fault(node: onnx.NodeProto, function: onnx.FunctionProto) -> str | None:
    """What is wrong with a call."""
    if len(node.input) > len(function.input) or len(node.output) > len(function.output):
        return "has more inputs or outputs than its function"
    for index, name in enumerate(function.input):
        if index >= len(node.input) or not node.input[index]:
            return f"lacks its input {name}"
    if node.domain != DOMAIN:
        return None
    given = {attribute.name: attribute for attribute in node.attribute}
    for name in function.attribute:
        if name not in given:
            return f"lacks its attribute {name}"
        attribute = given[name]
        if name in ATTRIBUTES and attribute.type != ATTRIBUTES[name]:
            return f"has an attribute {name} that is not {KINDS[ATTRIBUTES[name]]}"
        if name in VALUES and not attribute.ref_attr_name and attribute.i not in VALUES[name]:
            return f"has {name} {attribute.i}, which must be one of {', '.join(map(str, VALUES[name]))}"
    return None


def check_calls(model: str | os.PathLike[str] | bytes, where: str) -> None:
    """Check all calls of samq functions, in subgraphs and functions too, without reading external data.

    Args:
        model: path, or the bytes of a ModelProto; what is neither is left to ONNX Runtime to refuse.
        where: what to call the model.

    Raises:
        UserError: a call that lacks an input or an attribute, or has one that does not fit.
    """
    try:
        if isinstance(model, bytes):
            read = onnx.load_from_string(model)
        else:
            read = onnx.load(model, format="protobuf", load_external_data=False)
    except DecodeError:
        return
    strict = _strict({(function.domain, function.name): function for function in read.functions})
    for nodes in (read.graph.node, *(function.node for function in read.functions)):
        for node in _nodes(nodes):
            function = strict.get((node.domain, node.op_type))
            fault = _fault(node, function) if function is not None else None
            if fault:
                raise UserError(f"{where}: node {node.name or node.op_type} {fault}; quantize the model again")
