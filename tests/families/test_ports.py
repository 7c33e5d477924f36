# SPDX-License-Identifier: Apache-2.0
"""Arrays in the type and shape that an input has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samq_onnx.errors import UserError
from samq_onnx.families.ports import (
    Port,
    described,
    fit,
    graph_inputs,
    graph_outputs,
    random_input,
    session_inputs,
    session_outputs,
)
from samq_onnx.models import read_model
from samq_onnx.runtime import open_session


def test_a_graph_and_its_session_say_the_same(nano: Path) -> None:
    for name in ("encoder", "decoder"):
        model, session = read_model(nano / f"{name}.onnx"), open_session(nano / f"{name}.onnx")
        assert graph_inputs(model) == session_inputs(session)
        assert [port.name for port in graph_outputs(model)] == [port.name for port in session_outputs(session)]


def test_in_words() -> None:
    ports = [Port("x", "float32", (1, "n", None)), Port("y", "int64", None)]
    assert described(ports) == "x float32 [1, n, ?], y int64 of unknown shape"
    assert described([]) == "nothing"
    assert [ports[0].side(axis) for axis in (0, 1, 2, 3, -3, -4)] == [1, None, None, None, 1, None]
    assert ports[1].side(0) is None


def test_numbers_are_rounded_to_integers_and_batches_filled() -> None:
    fitted = fit(Port("x", "int32", (3, "n")), np.array([[0.6, -1.4]]))
    assert fitted.dtype == np.int32 and fitted.tolist() == [[1, -1]] * 3
    assert fit(Port("x", "bool", None), np.array([0.0, 1.0])).tolist() == [False, True]
    unchanged = np.zeros((2, 2), np.float32)
    assert fit(Port("x", "float32", ("n", 2)), unchanged) is unchanged


@pytest.mark.parametrize(
    ("port", "array", "said"),
    [
        (Port("x", "bfloat16", (1,)), np.zeros(1), "input x is of type bfloat16"),
        (Port("x", "uint8", (1,)), np.array([256.0]), "numbers beyond 255 do not fit into uint8"),
        (Port("x", "float16", (1,)), np.array([1e5]), "numbers beyond 65504 do not fit into float16"),
        (Port("x", "float32", (1, 2)), np.zeros(2), r"takes x float32 \[1, 2\], got \[2\]"),
        (Port("x", "float32", (3, 2)), np.zeros((2, 2)), r"takes x float32 \[3, 2\], got \[2, 2\]"),
        (Port("x", "float32", ("n", 2)), np.zeros((1, 3)), r"takes x float32 \[n, 2\], got \[1, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(port: Port, array: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(port, array)


def test_random_numbers() -> None:
    random = np.random.default_rng(0)
    assert random_input(Port("x", "float16", ("n", 3)), random).shape == (1, 3)
    assert set(random_input(Port("x", "int64", (99,)), random).tolist()) == {0, 1}
    for port in (Port("x", "float32", None), Port("x", "string", (1,))):
        with pytest.raises(UserError, match="has no shape or no number type"):
            random_input(port, random)
