# SPDX-License-Identifier: Apache-2.0
"""Models and images at the ends of what numbers can be: dead, constant, tiny, huge. Warnings of NumPy are errors."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from samq_onnx.calibrate.statistics import AttentionRows, TensorStats
from samq_onnx.errors import UserError
from samq_onnx.methods import METHODS
from samq_onnx.methods.steps.reconstruct import WORSE
from samq_onnx.observers import SITE_OBSERVERS, TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.observers.row import row_errors
from samq_onnx.observers.weight import weight_scales
from samq_onnx.passes.fold import is_bimodal
from samq_onnx.pipeline import Outcome
from samq_onnx.reconstruct import objectives, trainer
from samq_onnx.runtime import open_session
from tests.conftest import quantized_outcome, relative_error

Weights = dict[str, np.ndarray]
Change = Callable[[Weights], None]

CHANNELS, HEADS = 16, 2
BLOCK = """
<ir_version: 8, opset_import: ["" : 17]>
block (float[1, TOKENS, 16] x) => (float[1, TOKENS, 16] y)
<float[16] gain, float[16] offset, float[16, 16] wq, float[16] bq, float[16, 16] wk, float[16] bk, float[16, 16] wv,
 float[16] bv, float[16, 16] wo, float[16] bo, float[16, 32] up, float[32] bup, float[32, 16] down, float[16] bdown,
 int64[4] heads = {1, TOKENS, 2, 8}, int64[3] rows = {1, TOKENS, 16}, float scale = {0.3535534}>
{
    normed = LayerNormalization <axis = -1> (x, gain, offset)
    q0 = MatMul (normed, wq) q1 = Add (q0, bq) q2 = Reshape (q1, heads) q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul (normed, wk) k1 = Add (k0, bk) k2 = Reshape (k1, heads) k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v0 = MatMul (normed, wv) v1 = Add (v0, bv) v2 = Reshape (v1, heads) v = Transpose <perm = [0, 2, 1, 3]> (v2)
    logits = MatMul (q, k) scaled = Mul (logits, scale) p = Softmax <axis = -1> (scaled) mixed = MatMul (p, v)
    turned = Transpose <perm = [0, 2, 1, 3]> (mixed) flat = Reshape (turned, rows)
    o0 = MatMul (flat, wo) o = Add (o0, bo) r = Add (x, o)
    u0 = MatMul (r, up) u = Add (u0, bup) h = Relu (u) d0 = MatMul (h, down) d = Add (d0, bdown) y = Add (r, d)
}
"""
LIMIT = {"w8a8": 0.05, "w6a6": 0.2, "w4a4": 0.6}


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Warnings are errors, and what is learned is learned quickly."""
    objective_of = objectives.objective_of
    monkeypatch.setattr(
        trainer, "objective_of", lambda part, model: dataclasses.replace(objective_of(part, model), epochs=4)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def _block(change: Change | None = None, tokens: int = 6, seed: int = 0) -> onnx.ModelProto:
    """A transformer block on rows [1, tokens, 16] with random weights, which ``change`` may edit."""
    model = onnx.parser.parse_model(BLOCK.replace("TOKENS", str(tokens)))
    random = np.random.default_rng(seed)
    given = {constant.name for constant in model.graph.initializer}
    weights: Weights = {}
    for value in model.graph.value_info:
        if value.name not in given:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            size = np.sqrt(shape[0]) if len(shape) > 1 else 5
            weights[value.name] = (random.standard_normal(shape) / size).astype(np.float32)
    weights["gain"] += 1
    if change is not None:
        change(weights)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return onnx.shape_inference.infer_shapes(model)


def _quantized(model: onnx.ModelProto, images: list[np.ndarray], method: str, bits: str) -> tuple[float, Outcome]:
    """Relative error of the quantized model's outputs, which are finite and the same with and without the kernels."""
    feeds = [{"x": image} for image in images]
    outcome = quantized_outcome(ir.from_proto(model), feeds, method, bits)
    made = ir.to_proto(outcome.model).SerializeToString()
    native, body, wanted = (
        [session.run(None, feed)[0] for feed in feeds]
        for session in (
            open_session(made),
            open_session(made, native=False),
            open_session(model.SerializeToString()),
        )
    )
    assert all(np.isfinite(array).all() for array in native)
    for one, two in zip(native, body, strict=True):
        np.testing.assert_array_equal(one, two)
    return relative_error(*([array.astype(np.float64) for array in made] for made in (wanted, native))), outcome


def _refused(outcome: Outcome) -> list[str]:
    """What steps and passes did not do, but for learning where there was nothing to win."""
    return [line for report in outcome.reports for line in report.refused if not line.endswith(WORSE)]


def _reconstructed(outcome: Outcome) -> bool:
    """Whether it was learned to the end, kept or not."""
    return any(report.name == "reconstruction" and report.facts for report in outcome.reports)


def _images(tokens: int = 6, seed: int = 1, count: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((1, tokens, CHANNELS), np.float32) for _ in range(count)]


def _times(factor: float, *names: str) -> Change:
    def change(weights: Weights) -> None:
        for name in names or weights:
            weights[name] *= np.float32(factor)

    return change


def _filled(value: float, *names: str) -> Change:
    def change(weights: Weights) -> None:
        for name in names:
            weights[name][:] = value

    return change


def _channel(value: float, *names: str) -> Change:
    def change(weights: Weights) -> None:
        for name in names:
            weights[name][..., 3] = value

    return change


CHANGES = {
    "all zero": _times(0),
    "dead values": _times(0, "wv"),
    "dead output": _times(0, "wo"),
    "dead mlp": _times(0, "up", "down"),
    "tiny": _times(1e-30, "wv", "wo", "up"),
    "denormal": _times(1e-41, "wk", "up"),
    "constant below zero": _filled(-0.7, "wv", "up"),
    "constant norm": lambda weights: (_filled(0, "gain")(weights), _filled(-0.7, "offset")(weights)),  # type: ignore
    "zero channel": _channel(0, "wq", "wk", "wv", "wo", "up"),
    "never active": _channel(0, "gain", "offset"),
    "large bias of a zero channel": lambda weights: (_channel(0, "wo")(weights), _channel(3, "bo")(weights)),  # type: ignore
    "biases of millions": _filled(1e6, "bo"),
    "equal keys": _times(0, "wk", "bk"),
}


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_default_method_on_extreme_weights(change: str, bits: str) -> None:
    error, outcome = _quantized(_block(CHANGES[change]), _images(), "samq", bits)
    assert error < LIMIT[bits]
    assert not _refused(outcome)
    assert len(outcome.plan.linears) == 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["all zero", "dead output", "constant norm", "biases of millions"])
def test_every_method_on_extreme_weights(change: str, method: str) -> None:
    error, _ = _quantized(_block(CHANGES[change]), _images(), method, "w6a6")
    assert error < LIMIT["w6a6"]


IMAGES = {
    "one": _images(count=1),
    "black": [np.zeros((1, 6, CHANNELS), np.float32)] * 2,
    "equal": _images(count=1) * 3,
    "constant": [np.full((1, 6, CHANNELS), -3, np.float32)],
    "tiny": [1e-30 * image for image in _images()],
    "denormal": [np.float32(1e-41) * image for image in _images()],
    "huge": [np.float32(1e30) * image for image in _images()],
}


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("images", IMAGES)
def test_the_default_method_on_extreme_images(images: str, bits: str) -> None:
    error, outcome = _quantized(_block(), IMAGES[images], "samq", bits)
    assert error < LIMIT[bits]
    assert _reconstructed(outcome) == (bits == "w4a4" and images != "huge")
    if bits == "w4a4" and images == "huge":
        (line,) = _refused(outcome)
        assert "its loss or what it would learn is not finite on these calibration inputs" in line


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("tokens", [1, 260])
def test_one_token_and_many_rows(tokens: int, bits: str) -> None:
    """Many rows of a constant are summed with rounding that all sums share."""
    for change in (None, CHANGES["constant norm"]):
        assert _quantized(_block(change, tokens), _images(tokens), "samq", bits)[0] < LIMIT[bits]


@pytest.mark.parametrize("seed", range(6))
def test_random_extremes_end_in_a_model_or_one_line(seed: int) -> None:
    random = np.random.default_rng(seed)

    def change(weights: Weights) -> None:
        for name in random.choice(list(weights), 3, replace=False):
            weights[name][..., : random.integers(1, 16)] *= np.float32(10.0 ** random.uniform(-44, 12))

    images = [image * np.float32(10.0 ** random.uniform(-30, 12)) for image in _images(seed=seed)]
    bits = random.choice(list(LIMIT))
    method = random.choice(list(METHODS))
    try:
        _quantized(_block(change, seed=seed), images, method, bits)
    except UserError as error:
        assert "float32" in str(error) or "finite" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["wk", "bo", "gain"])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"weights {name} are not all finite"):
        _quantized(_block(_channel(value, name)), _images(), "samq", "w8a8")


@pytest.mark.parametrize(("factor", "names"), [(1e38, ("wo", "up")), (1e20, ("wq", "wk"))])
def test_activations_that_overflow_are_named(factor: float, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="is not finite on calibration input 1"):
        _quantized(_block(_times(factor, *names)), _images(), "samq", "w8a8")


GEMMS = """
<ir_version: 8, opset_import: ["" : 17]>
gemms (float[16, 6] x) => (float[6, 5] y) <float[16, 8] w1, float[8] b1, float[8, 5] w2, float[5] b2>
{
    h = Gemm <transA = 1> (x, w1, b1)
    r = Relu (h)
    y = Gemm <ALPHA> (r, w2, b2)
}
"""


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_products_of_transposed_inputs_and_with_factors(alpha: float, bits: str) -> None:
    model = onnx.parser.parse_model(GEMMS.replace("ALPHA", f"alpha = {alpha}"))
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal(shape, np.float32), value.name)
        )
    images = [random.standard_normal((16, 6), np.float32) for _ in range(2)]
    error, outcome = _quantized(onnx.shape_inference.infer_shapes(model), images, "samq", bits)
    assert error < LIMIT[bits]
    assert not outcome.plan.kept_float
    assert _reconstructed(outcome) == (bits == "w4a4")


@pytest.mark.parametrize("method", sorted(set(TENSOR_OBSERVERS) - {"lsq"}))  # LSQ only starts there
@pytest.mark.parametrize("scale", [0, 1e-45, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("sign", [-1, 1])
def test_ranges_of_constants_and_of_any_size(method: str, scale: float, sign: int) -> None:
    stats, spread = TensorStats("x"), TensorStats("x")
    stats.update(np.full(50, sign * scale, np.float32))
    for feed in range(3):
        values = np.random.default_rng(feed).uniform(0, 1, 50).astype(np.float32)
        spread.update(np.float32(sign * scale) * values)
    for found in (stats, spread):
        codes = TENSOR_OBSERVERS[method](found, 4)
        least, most = min(min(found.lows), 0), max(max(found.highs), 0)
        low, high = -codes.zero_point * codes.scale, (15 - codes.zero_point) * codes.scale
        room = found.width + 16e-8 + codes.scale  # 1e-8 is the least scale
        assert least - room <= low <= high <= most + room


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_of_weights_of_any_size_follow_them(bits: int) -> None:
    mse = WEIGHT_OBSERVERS["mse"]
    rows = np.random.default_rng(0).standard_normal((3, 40), np.float32)
    wanted = weight_scales(rows, 0, bits, mse)
    for factor in (2.0**-10, 2.0**100, 2.0**124):
        made = weight_scales(rows * np.float32(factor), 0, bits, mse)
        np.testing.assert_array_equal(made, wanted * factor)
    assert weight_scales(np.zeros((2, 5), np.float32), 0, bits, mse) == pytest.approx([1e-8, 1e-8], rel=0.9)


def _rows(probabilities: np.ndarray, v: np.ndarray) -> AttentionRows:
    """A statistic that has seen these probabilities and values."""
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    rows.samples = [(probabilities, v)]
    rows.probabilities.update(probabilities)
    return rows


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("name", SITE_OBSERVERS)
def test_codes_of_maps_do_not_depend_on_the_size_of_values(name: str, size: float) -> None:
    hot = np.eye(4, dtype=np.float32)[None]
    flat = np.full((1, 4, 4), 0.25, np.float32)
    v = np.random.default_rng(0).uniform(-1, 1, (1, 4, 8)).astype(np.float32)
    for probabilities in (hot, flat, np.ones((1, 4, 1), np.float32)):
        values = v[:, : probabilities.shape[-1]]
        one, other = (
            SITE_OBSERVERS[name].observe(_rows(probabilities, factor * values), 4, TENSOR_OBSERVERS["omse"])
            for factor in (np.float32(1), np.float32(size))
        )
        assert getattr(one, "tau", 0) == getattr(other, "tau", 0)


def test_attention_of_one_key() -> None:
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    one = np.ones((1, 2, 1, 4), np.float32)
    rows.update(one, one, one)
    assert row_errors(rows, 8).max() == 0


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30, 1e-45])
def test_keys_of_one_value_have_one_peak(value: float) -> None:
    keys = np.full(1000, value, np.float32)
    assert not is_bimodal(keys)
    keys[::2] = np.nextafter(np.float32(value), np.float32(3e38))
    is_bimodal(keys)  # two values next to each other: either verdict, but one
    keys[5:] = keys[4]
    assert not is_bimodal(keys)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_a_norm_that_a_feed_may_replace(bits: str) -> None:
    model = _block()
    model.graph.input.append(onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, [CHANNELS]))
    error, _ = _quantized(model, _images(), "samq", bits)
    assert error < LIMIT[bits]
