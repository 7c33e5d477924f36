# SPDX-License-Identifier: Apache-2.0
"""Sessions: the library, exact integers without VNNI, threads, instruction sets, memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import samq_onnx
from runtime_tests.one_node import (
    build,
    code_bias,
    code_feed,
    code_tables,
    float_feed,
    narrow,
    run,
    tables,
    without_scale,
)
from runtime_tests.test_layer_norm import feed as norm_feed
from runtime_tests.test_linear import feed as linear_feed
from runtime_tests.test_linear import quantized
from samq_onnx.errors import UserError
from samq_onnx.runtime import EXACT_U8S8, has_vnni, library_path, open_session

LOG = {"scale": 0.1, "tau": 2, "bits": 8}


def test_library_path_is_absolute() -> None:
    assert os.path.isabs(library_path())
    assert samq_onnx.library_path() == library_path()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_vnni_is_what_the_kernel_says() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert has_vnni() == ("avx512_vnni" in flags or "avx_vnni" in flags)


def test_missing_and_broken_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_session(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_text("not a model")
    with pytest.raises(UserError, match=r"broken\.onnx: ONNX Runtime cannot load it"):
        open_session(broken)


def saturating(product: str) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """QDQ model of one product with large u8 x s8 operands; its input; the exact result."""
    depth, width = 64, 32
    random = np.random.default_rng(0)
    x = random.integers(220, 256, (1, 8, depth), dtype=np.uint8)
    w = random.integers(100, 128, (depth, width)).astype(np.int8)
    w[:, ::2] *= -1
    constants: dict[str, np.ndarray] = {
        "scale": np.array(1, np.float32),
        "x_zero": np.array(0, np.uint8),
        "w_zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "x_zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], ["w_float"]),
    ]
    if product == "Conv":
        x = np.ascontiguousarray(x.swapaxes(1, 2))  # [1, depth, 8]
        constants["w"] = np.ascontiguousarray(w.T)[..., None]
        expected = np.einsum("bci,cj->bji", x.astype(np.int64), w.astype(np.int64))
    elif product == "Gemm":
        x, constants["w"] = x[0], w
        expected = x.astype(np.int64) @ w
    else:
        constants["w"] = w
        expected = x.astype(np.int64) @ w
    constants |= {"y_scale": np.array(2**14, np.float32), "y_zero": np.array(128, np.uint8)}
    nodes.append(helper.make_node(product, ["x_float", "w_float"], ["y"]))
    nodes.append(helper.make_node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["codes"]))
    graph = helper.make_graph(
        nodes,
        product,
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, expected.shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, x, np.rint(expected / 2**14) + 128


@pytest.mark.parametrize("product", ["MatMul", "Gemm", "Conv"])
def test_integer_products_are_exact_on_this_cpu(product: str) -> None:
    model, x, expected = saturating(product)
    codes = open_session(model.SerializeToString(), threads=1).run(None, {"x": x})[0]
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.skipif(has_vnni() or platform.machine() != "x86_64", reason="this CPU does not saturate")
def test_without_the_setting_they_saturate() -> None:
    model, x, expected = saturating("MatMul")
    codes = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert np.any(codes != expected), f"{EXACT_U8S8} is not needed any more"


def test_two_sessions_and_one_shared_session_in_two_threads() -> None:
    feed = code_feed((3, 100), 100, 32)
    model = build("QAttention", feed, LOG).SerializeToString()
    expected = open_session(model, threads=1).run(None, feed)[0]
    shared = open_session(model, threads=2)
    wrong: list[str] = []

    def work(session: ort.InferenceSession, label: str) -> None:
        for _ in range(20):
            if not np.array_equal(session.run(None, feed)[0], expected):
                wrong.append(label)

    own = [(open_session(model, threads=2), f"own {i}") for i in range(2)]
    workers = [threading.Thread(target=work, args=pair) for pair in [*own, (shared, "shared"), (shared, "shared")]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


SAVE_OUTPUTS = """
import ctypes, sys
import numpy as np
from runtime_tests.one_node import run
from runtime_tests.test_runtime import CASES
from samq_onnx.runtime import library_path
name = ctypes.CDLL(library_path()).samq_instruction_set
name.restype = ctypes.c_char_p
outputs = {f"{i}": run(op, feed, attributes, native=True) for i, (op, feed, attributes) in enumerate(CASES)}
np.savez(sys.argv[1], name=name().decode(), **outputs)
"""
CASES = [
    ("AttentionRelPos", float_feed((2, 45), 77, 24) | tables(5, 9, 7, 11, 24), {"scale": 0.2}),
    ("QAttention", code_feed((2, 45), 77, 23), {"scale": 0.1, "tau": 4, "bits": 8}),
    ("QAttentionRelPos", code_feed((2, 45), 77, 23) | code_tables(5, 9, 7, 11, 23), LOG),
    ("UniformAttention", code_feed((2, 45), 77, 23, p_scale=0.002), {"scale": 0.1, "bits": 8}),
    (
        "UniformAttentionBias",
        code_feed((2, 45), 77, 23, p_scale=0.002) | code_bias(2, 45, 77),
        {"scale": 0.1, "bits": 8},
    ),
    ("LogRowAttention", without_scale(code_feed((2, 45), 77, 23)), {"scale": 0.1, "tau": 16, "bits": 8}),
    (
        "UniformRowAttentionRelPos",
        without_scale(narrow(code_feed((2, 45), 77, 23), 6)) | code_tables(5, 9, 7, 11, 23),
        {"scale": 0.1, "bits": 6},
    ),
    (
        "UniformAttentionRelPos",
        code_feed((1, 6), 4095, 80, p_scale=0.002) | code_tables(2, 3, 63, 65, 80),
        {"scale": 0.1, "bits": 8},
    ),
    (
        "UniformAttentionRelPos",
        narrow(code_feed((2, 45), 77, 23, p_scale=0.02), 6) | code_tables(5, 9, 7, 11, 23),
        {"scale": 0.1, "bits": 6},
    ),
    (
        "LogRowAttentionQuantize",
        without_scale(code_feed((2, 45), 77, 23))
        | {"y_scale": np.array(0.01, np.float32), "y_zero_point": np.array(99, np.uint8)},
        {"scale": 0.1, "tau": 16, "bits": 8},
    ),
    ("QLinear", linear_feed((5, 21), 770, 50), {}),
    ("QLinearResidual", linear_feed((5,), 770, 50) | {"residual": np.ones((5, 50), np.float32)}, {}),
    (
        "QLinearLut",
        quantized(linear_feed((101,), 66, 50, (63, 32)), 8) | {"table": np.arange(256).astype(np.uint8)},
        {},
    ),
    ("LayerNormQuantize", norm_feed((5, 21, 770), 1.0, 3.0), {"epsilon": 1e-6, "bits": 8}),
]


def child(script: str, *arguments: str, **variables: str) -> str:
    """What a Python process of its own prints."""
    # behind the installed package, which the folder of the sources would hide
    code = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})\n{script}"
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.mark.parametrize("name", ["baseline", "avx2", "avxvnni", "avx512", "avx512vnni", "neondot"])
def test_every_instruction_set_gives_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "outputs.npz"
    child(SAVE_OUTPUTS, str(path), SAMQ_ISA=name)
    made = np.load(path)
    if made["name"] != name and name != "baseline":
        pytest.skip(f"this CPU has no {name}")
    assert made["name"] == name
    for index, (op, feed, attributes) in enumerate(CASES):
        expected = run(op, feed, attributes, native=True)
        np.testing.assert_allclose(made[str(index)], expected, rtol=0, atol=2e-6 if op == "AttentionRelPos" else 0)


GROWTH = """
import sys
from runtime_tests.one_node import build, code_feed, float_feed
from samq_onnx.runtime import open_session

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

feed = float_feed((8, 2048), 2048, 32) if sys.argv[1] == "Attention" else code_feed((8, 2048), 2048, 32)
attributes = {"scale": 0.1} if sys.argv[1] == "Attention" else {"scale": 0.1, "tau": 2, "bits": 8}
session = open_session(build(sys.argv[1], feed, attributes).SerializeToString(), threads=1)
before = peak()
session.run(None, feed)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("op", ["Attention", "QAttention"])
def test_the_map_is_never_held(op: str) -> None:
    assert float(child(GROWTH, op)) < 30, "MB; the map of 8 x 2048 x 2048 would be 128 MB"
