# SPDX-License-Identifier: Apache-2.0
"""The kernels that ONNX Runtime executes for a model, read from its profiler."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from samq_onnx.runtime import open_session, run_session
from samq_onnx.scratch import Scratch

__all__ = ["Kernel", "Tensor", "by_operator", "profiled"]

Tensor = tuple[str, list[int]]  # element type, shape
KERNEL_SUFFIX = "_kernel_time"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One executed kernel.

    Attributes:
        operator, provider: as ONNX Runtime names them.
        seconds: wall time.
        inputs: those that the profiler shows, which leaves out prepacked weights.
        output: shape of the first output.
        node: of the optimized graph; None where that has none of the name.
        constants: shapes of the node's constant inputs.
    """

    operator: str
    provider: str
    seconds: float
    inputs: list[Tensor]
    output: list[int]
    node: onnx.NodeProto | None
    constants: list[list[int]]


def profiled(
    model: str | os.PathLike[str],
    feed: Mapping[str, np.ndarray],
    *,
    native: bool = True,
    threads: int | None = None,
    runs: int = 1,
    without: str = "",
) -> list[Kernel]:
    """Kernels of the last of ``runs`` runs, in the order of execution.

    Args:
        model: path of an ONNX file.
        feed: graph input name -> array.
        native, threads: as for `samq_onnx.open_session`.
        without: names of graph optimizers to leave out, separated by semicolons.

    Raises:
        UserError: the model cannot be loaded or does not run.
    """
    with Scratch() as scratch:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "run")
        options.optimized_model_filepath = str(scratch / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.add_session_config_entry("optimization.disable_specified_optimizers", without)
        options.log_severity_level = 3
        session = open_session(os.fspath(model), native=native, threads=threads, options=options)
        for _ in range(runs):
            run_session(session, feed, os.fspath(model))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimized = onnx.load(str(scratch / "optimized.onnx"), load_external_data=False)
    nodes = {node.name: node for node in optimized.graph.node}
    dims = {tensor.name: list(tensor.dims) for tensor in optimized.graph.initializer}
    return [_kernel(event, nodes, dims) for event in _last_run(events)]


def _last_run(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels' events between the last two ends of a run."""
    ends = [-1] + [index for index, event in enumerate(events) if event["name"] == "model_run"]
    return [event for event in events[ends[-2] + 1 : ends[-1]] if event["name"].endswith(KERNEL_SUFFIX)]


def _kernel(event: dict[str, Any], nodes: dict[str, onnx.NodeProto], dims: dict[str, list[int]]) -> Kernel:
    arguments = event["args"]
    node = nodes.get(event["name"].removesuffix(KERNEL_SUFFIX))
    outputs = _tensors(arguments["output_type_shape"])
    return Kernel(
        operator=arguments["op_name"],
        provider=arguments["provider"],
        seconds=event["dur"] / 1e6,
        inputs=_tensors(arguments["input_type_shape"]),
        output=outputs[0][1] if outputs else [],
        node=node,
        constants=[dims[name] for name in node.input if name in dims] if node is not None else [],
    )


def _tensors(entries: list[dict[str, list[int]]]) -> list[Tensor]:
    return [(kind, shape) for entry in entries for kind, shape in entry.items()]


def by_operator(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """Time by operator, type of its first input and provider, longest first: seconds, share of all, calls."""
    groups: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
    for kernel in kernels:
        kind = kernel.inputs[0][0] if kernel.inputs else ""
        groups[kernel.operator, kind, kernel.provider].append(kernel.seconds)
    total = sum(sum(times) for times in groups.values())
    return [
        {
            "operator": operator,
            "input": kind,
            "provider": provider,
            "seconds": sum(times),
            "share": sum(times) / max(total, 1e-9),
            "calls": len(times),
        }
        for (operator, kind, provider), times in sorted(groups.items(), key=lambda item: -sum(item[1]))
    ]
