# SPDX-License-Identifier: Apache-2.0
"""How time and memory of attention grow with its keys: one head, as many queries as keys.

    python benchmarks/growth.py -o FOLDER

FOLDER gets growth.json and growth.png. ONNX Runtime's own float attention (MatMul, Softmax, MatMul) holds the map,
whose memory grows with the square of the keys; the fused nodes never do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from line_chart import Line, line_chart

from samq_onnx import ops
from samq_onnx.bench import Entry, measure
from samq_onnx.command import main_guard
from samq_onnx.files import atomic_path, check_writable, write_json

DEPTH = 64
KEYS = (256, 512, 1024, 2048, 4096, 8192, 16384)
LOGIT_SCALE = DEPTH**-0.5
CODE_SCALE, ZERO_POINT = 0.03, 128
RUNS = 3


def _attention(op: str, keys: int, **attributes: int | float) -> ir.Model:
    """x float [1, keys, DEPTH] -> attention of x to constant keys and values; ``op`` is empty for plain ONNX."""
    random = np.random.default_rng(0)
    nodes: list[ir.Node] = []
    held: list[ir.Value] = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        held.append(value)
        return value

    def node(kind: str, inputs: Sequence[ir.Value], domain: str = "", **chosen: Any) -> ir.Value:
        nodes.append(ir.node(kind, inputs, chosen, domain=domain))
        return nodes[-1].outputs[0]

    shape = (1, keys, DEPTH)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    if op in ("", "Attention"):
        k, v = (constant(name, random.standard_normal(shape, np.float32)) for name in "kv")
        if op:
            out = node(op, [x, k, v], ops.DOMAIN, scale=LOGIT_SCALE)
        else:
            k.const_value = ir.tensor(k.const_value.numpy().transpose(0, 2, 1) * np.float32(LOGIT_SCALE))
            out = node("MatMul", [node("Softmax", [node("MatMul", [x, k])], axis=-1), v])
    else:
        scale, zero = constant("s", np.float32(CODE_SCALE)), constant("z", np.uint8(ZERO_POINT))
        operands = [node("QuantizeLinear", [x, scale, zero]), scale, zero]
        for name in "kv":
            operands += [constant(name, random.integers(0, 256, shape, np.uint8)), scale, zero]
        out = node(op, operands, ops.DOMAIN, scale=LOGIT_SCALE, bits=8, **attributes)
    out.name, out.shape, out.type = "out", ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    model = ir.Model(ir.Graph([x], [out], nodes=nodes, initializers=held, opset_imports={"": 17}), ir_version=10)
    ops.add_functions(model)
    return model


ROWS: dict[str, tuple[str, dict[str, int | float]]] = {
    "ONNX Runtime float": ("", {}),
    "samq float": ("Attention", {}),
    "samq 8-bit, uniform codes": ("UniformRowAttention", {}),
    "samq 8-bit, log codes": ("LogRowAttention", {"tau": 16}),
}


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args(argv)
    ort.set_default_logger_severity(3)
    check_writable(arguments.output / "growth.json")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="samq-growth-") as scratch:
        for keys in KEYS:
            entries = []
            for number, (name, (op, attributes)) in enumerate(ROWS.items()):
                path = Path(scratch) / f"{number}.onnx"
                ir.save(_attention(op, keys, **attributes), path)
                entries.append(Entry.of_file(path, name))
            for entry, measured in zip(entries, measure(entries, arguments.runs, arguments.threads), strict=True):
                seconds, grown = min(measured.seconds), measured.memory.inference or 0
                rows.append({"name": entry.name, "keys": keys, "seconds": seconds, "bytes": grown})
                print(f"{keys:6d} keys  {entry.name:<26}{seconds:10.4f} s{grown / 1e6:10.1f} MB", flush=True)
    write_json(arguments.output / "growth.json", rows)
    lines = {
        title: [Line(name, [(row["keys"], row[key] / unit) for row in rows if row["name"] == name]) for name in ROWS]
        for title, key, unit in (("seconds", "seconds", 1), ("MB that a run adds", "bytes", 1e6))
    }
    with atomic_path(arguments.output / "growth.png") as temporary:
        line_chart("attention of one head, as many queries as keys", "keys", lines).save(temporary)
    print(f"wrote {arguments.output}/growth.json, growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
