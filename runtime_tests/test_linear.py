# SPDX-License-Identifier: Apache-2.0
"""Linear layers on codes: kernels, function bodies and numpy reference to the last bit."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import build, plain, run, scalar
from samq_onnx import reference
from samq_onnx.runtime import open_session

SHAPES = [((1,), 1, 1), ((2, 3), 5, 7), ((49,), 3, 16), ((3, 7, 5), 34, 33), ((97,), 770, 50), ((256,), 64, 96)]
# largest x, largest |w|: every form that the products can take, and how many of them fit into 16 bits
WIDTHS = [(255, 128), (255, 8), (63, 32), (15, 8), (127, 64), (1, 1)]


def feed(shape: tuple[int, ...], depth: int, columns: int, largest: tuple[int, int] = (255, 128)) -> dict[str, Any]:
    """Codes over their whole ranges, scales that do not round evenly."""
    random = np.random.default_rng(0)
    top, most = largest
    return {
        "x": random.integers(0, top + 1, (*shape, depth), dtype=np.uint8),
        "w": random.integers(-most, most, (depth, columns)).astype(np.int8),
        "bias": random.integers(-1000, 1000, columns).astype(np.int32),
        "scale": random.uniform(1e-4, 1e-3, columns).astype(np.float32),
    }


def quantized(given: dict[str, Any], bits: int) -> dict[str, Any]:
    """The feed with zero points of codes, such that many codes occur and some are clipped."""
    spread = np.abs(reference.linear(**plain(given))).max(axis=tuple(range(given["x"].ndim - 1)), initial=1e-3)
    columns = np.arange(given["w"].shape[1])
    return given | {
        "scale": (given["scale"] * 2.0**bits / spread / 1.6).astype(np.float32),
        "y_zero": (2.0 ** (bits - 1) + columns % 3).astype(np.float32),
    }


def check(op: str, given: dict[str, Any], expected: np.ndarray, attributes: dict[str, int | float]) -> None:
    for native, constants in ((True, []), (False, []), (False, [name for name in given if name != "x"])):
        actual = run(op, given, attributes, native=native, constants=constants)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected, err_msg=f"{op}, native={native}, constants={constants}")


def check_all(given: dict[str, Any]) -> None:
    expected = reference.linear(**plain(given))
    check("QLinear", given, expected, {})
    residual = np.random.default_rng(2).standard_normal(expected.shape, dtype=np.float32)
    check("QLinearResidual", given | {"residual": residual}, expected + residual, {})
    for bits in (4, 8):
        narrow = quantized(given, bits)
        check("QLinearQuantize", narrow, reference.linear_quantize(**plain(narrow), bits=bits), {"bits": bits})
    fine = quantized(given, 12)
    fine["table"] = np.random.default_rng(1).integers(0, 256, 2**12, dtype=np.uint8)
    check("QLinearLut", fine, reference.linear_lut(**plain(fine)), {})


@pytest.mark.parametrize("largest", WIDTHS)
@pytest.mark.parametrize(("shape", "depth", "columns"), SHAPES)
def test_linear(shape: tuple[int, ...], depth: int, columns: int, largest: tuple[int, int]) -> None:
    check_all(feed(shape, depth, columns, largest))


@pytest.mark.parametrize("depth", range(1, 40))
def test_every_depth(depth: int) -> None:
    """Groups of two, four and more end inside a row."""
    for largest in WIDTHS:
        given = feed((depth % 8 + 1,), depth, 17, largest)
        check("QLinear", given, reference.linear(**plain(given)), {})


EXTREMES = [(255, -128), (255, 127), (255, -8), (63, 32)]


@pytest.mark.parametrize(("x", "w"), EXTREMES)
def test_saturated_operands_stay_exact(x: int, w: int) -> None:
    given = feed((50,), 3072, 40)
    given["x"][:], given["w"][:] = x, w
    check_all(given)


def test_one_scale_for_all_columns() -> None:
    given = feed((5,), 6, 7) | {"scale": scalar(0.01)}
    check("QLinear", given, reference.linear(**plain(given)), {})


def test_no_rows() -> None:
    assert run("QLinear", feed((0,), 6, 7), {}, native=True).shape == (0, 7)


def test_two_sessions_and_one_shared_session_in_two_threads() -> None:
    given = feed((300,), 96, 64)
    model = build("QLinear", given, {}).SerializeToString()
    expected = reference.linear(**plain(given))
    sessions = [open_session(model, threads=2) for _ in range(2)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(sessions[index // 2].run(None, given)[0], expected):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


GIVEN = feed((4,), 6, 7)


@pytest.mark.parametrize(("op", "changes", "message"), [
    ("QLinear", {"w": np.zeros((5, 7), np.int8)}, r"x must be \[.., K\] and w \[K, N\]"),
    ("QLinear", {"bias": np.zeros(6, np.int32)}, r"bias must be \[N\]"),
    ("QLinear", {"scale": np.zeros(6, np.float32)}, "scale must hold one number or one for each of 7 columns"),
    ("QLinearResidual", {"residual": np.zeros((1, 7), np.float32)}, "residual must have the shape of the output"),
    ("QLinear", {"x": np.zeros((1, 32769), np.uint8), "w": np.zeros((32769, 7), np.int8)}, "at most 32768"),
    ("QLinearLut", {"y_zero": scalar(0), "table": np.zeros(0, np.uint8)}, "table must have from 1 to 65536 entries"),
])  # fmt: skip
def test_inputs_that_do_not_fit(op: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(op, GIVEN | changes, {}, native=True)
