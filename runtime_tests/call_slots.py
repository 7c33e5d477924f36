# SPDX-License-Identifier: Apache-2.0
"""Every operator, run by the ONNX Runtime that Python finds, with its calls counted.

``python -m runtime_tests.call_slots COUNTER [LIBRARY]``, COUNTER being count_slots.cc's library. Right answers show
that functions are in the slots where ort_abi.h looks for them, and take what it says they take.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from runtime_tests.one_node import (
    build,
    code_bias,
    code_feed,
    code_tables,
    float_bias,
    float_feed,
    plain,
    scalar,
    tables,
    without_scale,
)
from runtime_tests.test_layer_norm import feed as norm_feed
from runtime_tests.test_linear import feed as linear_feed
from runtime_tests.test_linear import quantized
from samq_onnx import reference
from samq_onnx.runtime import library_path

__all__ = ["main"]

Case = tuple[str, dict[str, Any], dict[str, Any], np.ndarray]
OUTPUT = {"y_scale": scalar(0.01), "y_zero_point": scalar(99, np.uint8)}
NEAR = 1e-5  # of Attention, which is float


def attention_cases() -> list[Case]:
    """All attentions of 2 x 45 queries and 77 keys."""
    floats, float_tables = float_feed((2, 45), 77, 24), tables(5, 9, 7, 11, 24)
    cases: list[Case] = [
        ("Attention", floats, {"scale": 0.2}, reference.attention(**floats, scale=0.2)),
        ("AttentionRelPos", floats | float_tables, {"scale": 0.2},
         reference.attention(**floats, **float_tables, scale=0.2)),
        ("AttentionBias", floats | float_bias(2, 45, 77), {"scale": 0.2},
         reference.attention(**floats, **float_bias(2, 45, 77), scale=0.2)),
    ]  # fmt: skip
    log, uniform = {"scale": 0.1, "tau": 4, "bits": 8}, {"scale": 0.1, "bits": 6}
    for op, compute, attributes, p_scale in (
        ("QAttention", reference.q_attention, log, 0.9),
        ("UniformAttention", reference.uniform_attention, uniform, 0.02),
        ("LogRowAttention", reference.log_row_attention, log, None),
        ("UniformRowAttention", reference.uniform_row_attention, uniform, None),
    ):
        for suffix, more in (("", {}), ("RelPos", code_tables(5, 9, 7, 11, 23)), ("Bias", code_bias(1, 45, 77))):
            feed = code_feed((2, 45), 77, 23, p_scale=p_scale or 1.0)
            feed = (feed if p_scale else without_scale(feed)) | more
            expected = compute(**plain(feed), **attributes)  # type: ignore[operator]
            codes = reference.quantize(expected, **plain(OUTPUT))
            cases += [
                (op + suffix, feed, attributes, expected),
                (f"{op}{suffix}Quantize", feed | OUTPUT, attributes, codes),
            ]
    return cases


def other_cases() -> list[Case]:
    """Linear layers, layer norms and post-softmax codes."""
    given = linear_feed((5, 21), 70, 50)
    y = reference.linear(**plain(given))
    codes = quantized(given, 8)
    looked_up = codes | {"table": np.arange(256).astype(np.uint8)[::-1].copy()}
    norm, eight = norm_feed((5, 21, 77)), {"epsilon": 1e-6, "bits": 8}
    p = np.random.default_rng(0).random((2, 3, 40), dtype=np.float32) ** 9
    product = {
        "codes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "v": np.arange(40, dtype=np.uint8).reshape(2, 4, 5),
    }
    product |= {"p_scale": scalar(0.3), "v_scale": scalar(0.02), "v_zero_point": scalar(11, np.uint8)}
    log = {"tau": 2, "bits": 6}
    return [
        ("QLinear", given, {}, y),
        ("QLinearResidual", given | {"residual": np.ones_like(y)}, {}, y + np.float32(1)),
        ("QLinearQuantize", codes, {"bits": 8}, reference.linear_quantize(**plain(codes), bits=8)),
        ("QLinearLut", looked_up, {}, reference.linear_lut(**plain(looked_up))),
        ("LayerNormQuantize", norm, eight, reference.layer_norm_quantize(**plain(norm), **eight)),
        ("LogQuantize", {"p": p, "p_scale": scalar(0.7)}, log, reference.log_quantize(p, 0.7, **log)),
        ("ShiftLutMatMul", product, log, reference.shift_lut_matmul(**plain(product), **log)),
    ]  # fmt: skip


def session(library: str, model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def said(library: str, model: onnx.ModelProto, feed: dict[str, Any]) -> str:
    """What is said of a model that does not run."""
    try:
        session(library, model).run(None, feed)
    except Exception as error:  # ONNX Runtime raises a dozen kinds without a common base
        return str(error)
    return "it runs"


def check(library: str, case: Case) -> None:
    """Both with shapes that are known when the session is made, and without."""
    op, feed, attributes, expected = case
    for known in (True, False):
        model = build(op, feed, attributes)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        if known:
            for value, x in zip(model.graph.input, feed.values(), strict=True):
                for dim, size in zip(value.type.tensor_type.shape.dim, x.shape, strict=True):
                    dim.dim_value = size
        made = session(library, model)
        shape = made.get_outputs()[0].shape
        assert not known or shape == list(expected.shape), f"{op}: inferred {shape}, not {expected.shape}"
        out = made.run(None, feed)[0]
        assert out.dtype == (np.float32 if op.startswith("Attention") else expected.dtype), op
        np.testing.assert_allclose(out, expected, rtol=0, atol=NEAR if op.startswith("Attention") else 0, err_msg=op)


def main(counter: str, library: str) -> None:
    """Print the runtime's version, how many operators ran, and the calls of each function used, as JSON."""
    counting = ctypes.CDLL(counter)
    counting.slot_count.restype = ctypes.c_size_t
    counting.slot_name.restype, counting.slot_name.argtypes = ctypes.c_char_p, [ctypes.c_size_t]
    counting.slot_calls.restype, counting.slot_calls.argtypes = ctypes.c_int64, [ctypes.c_size_t]
    assert counting.stand_before(library.encode()), f"{library} cannot be loaded"
    cases = attention_cases() + other_cases()
    for case in cases:
        check(counter, case)
    _, feed, attributes, _ = next(case for case in cases if case[0] == "QAttention")
    wrong_shape = feed | {"v": feed["v"][:, :5]}
    for told, model, given in (
        ("k and v must have equally many rows", build("QAttention", wrong_shape, attributes), wrong_shape),
        ("tau", build("QAttention", feed, {"scale": 0.1, "bits": 8}), feed),  # ONNX Runtime's own error, handed on
        ("scale", build("QAttention", feed, {"tau": 1, "bits": 8}), feed),
        ("bits must be from 1 to 8", build("QAttention", feed, attributes | {"bits": 9}), feed),
    ):
        assert told in (error := said(counter, model, given)), f"{told!r} is not in {error!r}"
    named = {slot: counting.slot_name(slot) for slot in range(counting.slot_count())}
    calls = {name.decode(): counting.slot_calls(slot) for slot, name in named.items() if name is not None}
    print(json.dumps({"version": ort.__version__, "operators": len({case[0] for case in cases}), "calls": calls}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else library_path())
