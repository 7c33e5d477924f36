# SPDX-License-Identifier: Apache-2.0
"""Layer norms that give codes: kernel, function body and numpy reference to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import build, plain, run, scalar
from samq_onnx import reference
from samq_onnx.errors import UserError
from samq_onnx.runtime import open_session

EPSILON = 1e-6


def feed(shape: tuple[int, ...], spread: float = 1.0, offset: float = 0.0) -> dict[str, Any]:
    """Rows of shape [..., C], and weights with which many codes occur and some are clipped."""
    random = np.random.default_rng(0)
    width = shape[-1]
    return {
        "x": (spread * random.standard_normal(shape) + offset).astype(np.float32),
        "weight": random.uniform(-1.5, 1.5, width).astype(np.float32),
        "bias": random.standard_normal(width, dtype=np.float32),
        "y_scale": scalar(0.017),
        "y_zero_point": scalar(117, np.uint8),
    }


def narrow(given: dict[str, Any]) -> dict[str, Any]:
    """The feed for codes of 4 bits."""
    return given | {"y_scale": scalar(0.23), "y_zero_point": scalar(7, np.uint8)}


def check(given: dict[str, Any], epsilon: float = EPSILON) -> None:
    for changed, bits in ((given, 8), (narrow(given), 4)):
        attributes = {"epsilon": epsilon, "bits": bits}
        expected = reference.layer_norm_quantize(**plain(changed), **attributes)
        held = [name for name in changed if name != "x"]
        for native, constants in ((True, []), (False, []), (False, held)):
            made = run("LayerNormQuantize", changed, attributes, native=native, constants=constants)
            assert made.dtype == np.uint8
            np.testing.assert_array_equal(made, expected, err_msg=f"native={native}, constants={constants}")


@pytest.mark.parametrize("width", [*range(1, 68), 768, 1280])
def test_every_width(width: int) -> None:
    check(feed((3, 7, width)))


@pytest.mark.parametrize("width", [1, 17, 64, 767])
@pytest.mark.parametrize(("spread", "offset"), [(1e-2, 1e4), (1e-4, -3.0), (1e4, 0.0), (1e-12, 0.0)])
def test_rows_far_from_zero_and_near_each_other(width: int, spread: float, offset: float) -> None:
    check(feed((2, 19, width), spread, offset))


@pytest.mark.parametrize("width", [5, 48, 770])
def test_constant_rows_give_the_bias(width: int) -> None:
    given = feed((33, width))
    given["x"] = np.repeat(given["x"][:, :1], width, axis=1)
    check(given)
    codes = run("LayerNormQuantize", given, {"epsilon": EPSILON, "bits": 8}, native=True)
    assert np.all(codes == reference.quantize(given["bias"], 0.017, 117))


def test_codes_are_those_of_the_norm_in_double() -> None:
    given = feed((50, 192), 3.0, 1.0)
    x = given["x"].astype(np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    steps = (normed * given["weight"] + given["bias"]) / given["y_scale"].item() + 117
    codes = run("LayerNormQuantize", given, {"epsilon": EPSILON, "bits": 8}, native=True)
    assert np.abs(np.clip(steps, 0, 255) - codes).max() < 0.5 + 1e-4
    assert 0 in codes and 255 in codes and len(np.unique(codes)) > 200


def test_epsilon_counts() -> None:
    check(feed((9, 33)), epsilon=0.5)


@pytest.mark.parametrize("shape", [(12,), (1, 1), (2, 3, 4, 5), (0, 7), (1000, 6)])
def test_any_rank_and_any_number_of_rows(shape: tuple[int, ...]) -> None:
    check(feed(shape))


def test_threads_give_the_same() -> None:
    given = feed((1, 31, 33, 96))
    model = build("LayerNormQuantize", given, {"epsilon": EPSILON, "bits": 8}).SerializeToString()
    one, two = (open_session(model, threads=threads).run(None, given)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


GIVEN = feed((4, 6))
ONES = np.ones(5, np.float32)


@pytest.mark.parametrize(("changes", "message"), [
    ({"weight": ONES}, r"x must be \[.., C\], weight and bias \[C\], got x \[4, 6\], weight \[5\], bias \[6\]"),
    ({"bias": ONES}, r"weight and bias \[C\], got x \[4, 6\], weight \[6\], bias \[5\]"),
    ({"weight": np.ones((1, 6), np.float32)}, r"weight and bias \[C\]"),
    ({"x": scalar(1)}, r"x must be \[.., C\]"),
    ({"y_scale": np.ones(6, np.float32)}, "y_scale must hold one number"),
    ({"y_zero_point": np.zeros(6, np.uint8)}, "y_zero_point must hold one number"),
    ({"y_scale": scalar(0)}, "y_scale must be above 0"),
    ({"y_scale": scalar(np.nan)}, "y_scale must be above 0"),
])  # fmt: skip
def test_inputs_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run("LayerNormQuantize", GIVEN | changes, {"epsilon": EPSILON, "bits": 8}, native=True)


@pytest.mark.parametrize(("attributes", "message"), [
    ({"epsilon": EPSILON, "bits": 9}, "bits must be from 1 to 8"),
    ({"bits": 8}, "epsilon"),
])  # fmt: skip
def test_attributes_out_of_range(attributes: dict[str, Any], message: str) -> None:
    model = build("LayerNormQuantize", GIVEN, attributes).SerializeToString()
    with pytest.raises(UserError, match=message):
        open_session(model)


def test_numbers_that_are_none_do_not_crash() -> None:
    given = feed((3, 20))
    given["x"][0, 3], given["x"][1, 5] = np.nan, np.inf
    assert run("LayerNormQuantize", given, {"epsilon": EPSILON, "bits": 8}, native=True).shape == (3, 20)
