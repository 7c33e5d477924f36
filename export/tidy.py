# SPDX-License-Identifier: Apache-2.0
"""Graph clean-up by onnx-graphsurgeon: shape arithmetic becomes constants, dead nodes go."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from samq_onnx.export.part import Part

__all__ = ["tidy"]

WEIGHTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})  # their second input is a weight
LARGE = 1 << 16  # bytes
ERRORS_ONLY, WARNINGS = 3, 2  # severities of onnxruntime; warnings are its default


def tidy(model: onnx.ModelProto, part: Part) -> onnx.ModelProto:
    """Fold and clean the traced graph of a part. Inputs and outputs keep names and order and get the part's shapes.

    Folding one node lets shapes be inferred that let the next one fold, so both go on in turn until nothing changes.
    """
    ir_version = model.ir_version
    if part.repeats:
        model = _merged(model)
    _declare(model, part)
    with _without_large_weights(model) as weights:
        nodes = -1
        while len(model.graph.node) != nodes:
            nodes = len(model.graph.node)
            graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))
            with _quiet():
                graph.fold_constants().cleanup().toposort()
            model = gs.export_onnx(graph)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(weights.pop(tensor.name))
    model.ir_version = ir_version
    _declare(model, part)
    return model


def _merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each value computed once. It is a decoder, which protobuf holds as a whole."""
    graph = ir.from_proto(model)
    common.CommonSubexpressionEliminationPass()(graph)
    common.RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph)


def _declare(model: onnx.ModelProto, part: Part) -> None:
    """Write the part's shapes to the graph's inputs and outputs."""
    for values, shapes in ((model.graph.input, part.inputs), (model.graph.output, part.outputs)):
        if [value.name for value in values] != list(shapes):
            raise AssertionError(f"interface changed: {[value.name for value in values]}, wanted {list(shapes)}")
        for value in values:
            made = onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shapes[value.name])
            value.CopyFrom(made)


@contextlib.contextmanager
def _without_large_weights(model: onnx.ModelProto) -> Iterator[dict[str, onnx.TensorProto]]:
    """Take the data of large weights out of the graph, leaving their shapes; yields them by name.

    They are never folded, and without them a model of more than 2 GB passes through protobuf.
    """
    names = {node.input[1] for node in model.graph.node if node.op_type in WEIGHTED}
    weights: dict[str, onnx.TensorProto] = {}
    for tensor in model.graph.initializer:
        if tensor.name in names and len(tensor.raw_data) >= LARGE:
            weights[tensor.name] = onnx.TensorProto()
            weights[tensor.name].CopyFrom(tensor)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="elsewhere")
    yield weights


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of onnx-graphsurgeon and of the onnxruntime it folds with."""
    ort.set_default_logger_severity(ERRORS_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(WARNINGS)
