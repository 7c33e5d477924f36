# SPDX-License-Identifier: Apache-2.0
"""Set aside what a model shows outside while passes work that would not keep it to the letter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["defaults_aside", "outputs_aside"]


@contextlib.contextmanager
def defaults_aside(model: ir.Model) -> Iterator[None]:
    """Let inputs that have a default be plain inputs, so that nothing takes what a feed may replace for a constant."""
    graph = model.graph
    held = [(value, value.const_value) for value in graph.inputs if value.is_initializer()]
    for value, _ in held:
        assert value.name
        del graph.initializers[value.name]
        value.const_value = None
    yield
    for value, tensor in held:
        value.const_value = tensor
        graph.register_initializer(value)


@contextlib.contextmanager
def outputs_aside(model: ir.Model) -> Iterator[None]:
    """Let outputs be values that nodes made or initializers, once each: none that is an input too or given twice.

    Inputs and outputs are declared afterwards as they were before, in types, shapes and words.
    """
    inputs, outputs = list(model.graph.inputs), model.graph.outputs
    given = list(outputs)
    kept = list(dict.fromkeys(value for value in given if not value.is_graph_input()))
    declared = [_declaration(value) for value in (*inputs, *given)]
    outputs[:] = kept
    yield
    made = dict(zip(kept, list(outputs), strict=True))
    outputs[:] = [made.get(value, value) for value in given]
    for value, (dtype, shape, words, metadata) in zip((*inputs, *outputs), declared, strict=True):
        value.type, value.shape, value.doc_string = dtype, shape, words
        value.metadata_props.clear()
        value.metadata_props.update(metadata)


def _declaration(value: ir.Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None, str | None, dict[str, str]]:
    shape = value.shape.copy() if value.shape is not None else None
    return value.type, shape, value.doc_string, dict(value.metadata_props)
