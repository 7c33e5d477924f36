# SPDX-License-Identifier: Apache-2.0
"""Folds leave what random attention networks give as it is, and folding twice is folding once."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samq_onnx import ops
from samq_onnx.models import tap
from tests.conftest import Feed, relative_error, run_model
from tests.properties import subjects
from tests.properties.chains import ROW_VIEWS, VIEWS, Chain
from tests.properties.networks import feed_of, networks

ROUNDING = 1e-5  # relative; of floats alone


def _lifted(proto: onnx.ModelProto) -> tuple[ir.Model, subjects.Lifted]:
    model = ir.from_proto(proto)
    subjects.simplify(model)
    structure = subjects.lift(model)
    ops.add_functions(model)
    return model, structure


def _state(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _key_means(model: ir.Model, structure: subjects.Lifted, feed: Feed) -> dict[str, np.ndarray]:
    """Site name -> mean of its keys [heads, head_dim]."""
    names = {site.name: site.k.linear.output.name for site in structure.attentions if site.k is not None}
    tapped = model.clone()
    tapped.graph.outputs.clear()
    wanted = [name for name in dict.fromkeys(names.values()) if name is not None]
    tap(tapped, wanted)
    found = dict(zip(wanted, run_model(tapped, feed), strict=True))
    means = {}
    for site in structure.attentions:
        assert site.k is not None
        keys = found[names[site.name] or ""]
        means[site.name] = keys.reshape(-1, keys.shape[-1]).mean(axis=0, dtype=np.float64)[site.k.channels]
    return means


def test_folding_the_scale() -> None:
    folded = 0

    @subjects.examples(15)
    @given(networks())
    def holds(proto: onnx.ModelProto) -> None:
        nonlocal folded
        model, structure = _lifted(proto)
        feed = feed_of(model)
        expected = run_model(model, feed)
        report = subjects.fold_attention_scale(structure)
        assert len(report.done) == len(structure.attentions) and not report.refused
        folded += len(report.done)
        assert relative_error(expected, run_model(model, feed)) < ROUNDING
        once = _state(model)
        subjects.fold_attention_scale(structure)
        assert _state(model) == once

    holds()
    assert folded >= 15


def test_flipping_signs() -> None:
    flipped = 0

    @subjects.examples(15)
    @given(networks(), st.integers(0, 99))
    def holds(proto: onnx.ModelProto, seed: int) -> None:
        nonlocal flipped
        model, structure = _lifted(proto)
        feed, random = feed_of(model), np.random.default_rng(seed)
        expected = run_model(model, feed)
        means = {site.name: random.normal(size=(site.heads, site.head_dim)) for site in structure.attentions}
        bimodal = {name: not place or bool(random.random() < 0.5) for place, name in enumerate(means)}
        before = _state(model)
        report = subjects.fold_sign(structure, means, bimodal)
        assert set(report.done) == {name for name in means if bimodal[name]} and not report.refused
        once = _state(model)
        flipped += once != before
        assert relative_error(expected, run_model(model, feed)) < ROUNDING
        subjects.fold_sign(structure, means, bimodal)  # means that the first folding has flipped, too
        assert _state(model) == once

    holds()
    assert flipped >= 12


def test_centring_keys() -> None:
    centred = 0

    @subjects.examples(15)
    @given(networks())
    def holds(proto: onnx.ModelProto) -> None:
        nonlocal centred
        model, structure = _lifted(proto)
        feed = feed_of(model)
        expected = run_model(model, feed)
        means = _key_means(model, structure, feed)
        biased = {s.name for s in structure.attentions if s.k is not None and s.k.linear.bias is not None}
        report = subjects.fold_key_centre(structure, means)
        assert set(report.done) == biased and len(report.refused) == len(means) - len(biased)
        assert relative_error(expected, run_model(model, feed)) < ROUNDING
        again = _key_means(model, structure, feed)
        for name in report.done:
            centred += 1
            assert np.abs(again[name]).max() < ROUNDING * max(1.0, np.abs(means[name]).max())

    holds()
    assert centred >= 8


@pytest.mark.parametrize("operand", ["keys", "values"])
def test_scaling_operands(operand: str) -> None:
    scaled = 0

    @subjects.examples(15)
    @given(networks(), st.integers(0, 99))
    def holds(proto: onnx.ModelProto, seed: int) -> None:
        nonlocal scaled
        model, structure = _lifted(proto)
        feed, random = feed_of(model), np.random.default_rng(seed)
        expected = run_model(model, feed)
        scales = {}
        for site in structure.attentions:
            drawn = np.exp(2 * random.normal(size=(site.heads, site.head_dim)))
            alike = operand == "keys" and site.tables
            scales[site.name] = np.broadcast_to(drawn[:1], drawn.shape) if alike else drawn
        fold = subjects.fold_key_scale if operand == "keys" else subjects.fold_value_scale
        report = fold(structure, scales)
        assert report.done == list(scales) and not report.refused
        scaled += len(report.done)
        assert relative_error(expected, run_model(model, feed)) < ROUNDING
        once = _state(model)
        fold(structure, {name: np.ones_like(scale) for name, scale in scales.items()})
        assert _state(model) == once

    holds()
    assert scaled >= 15


def test_rotating_heads() -> None:
    rotated = 0

    @subjects.examples(15)
    @given(networks(), st.sampled_from(["qk", "v", "qkv"]), st.integers(0, 99))
    def holds(proto: onnx.ModelProto, operands: str, seed: int) -> None:
        nonlocal rotated
        model, structure = _lifted(proto)
        feed = feed_of(model)
        expected = run_model(model, feed)
        report = subjects.rotate_heads(structure, operands, seed)
        assert len(report.done) == len(structure.attentions) * (1 + (operands == "qkv")) and not report.refused
        rotated += len(report.done)
        assert relative_error(expected, run_model(model, feed)) < ROUNDING

    holds()
    assert rotated >= 15


def test_rotating_streams() -> None:
    counts = {True: 0, False: 0}

    @subjects.examples(25)
    @given(networks(ends=True))
    def holds(proto: onnx.ModelProto) -> None:
        model, structure = _lifted(proto)
        feed = feed_of(model)
        expected, before = run_model(model, feed), _state(model)
        report = subjects.rotate_stream(structure)
        counts[bool(report.done)] += 1
        assert len(report.refused) == (not report.done)
        assert relative_error(expected, run_model(model, feed)) < ROUNDING
        assert report.done or _state(model) == before

    holds()
    assert min(counts.values()) >= 3


@st.composite
def _normed_chains(draw: st.DrawFn) -> tuple[ir.Model, subjects.Lifted]:
    """A norm, views, and a linear layer along the last axis of what they give."""
    shape = [*draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), draw(st.sampled_from([4, 6]))]
    chain, random = Chain(draw, shape, keep_rows=(rows := draw(st.booleans()))), np.random.default_rng(0)
    drawn = lambda *size: random.normal(size=size).astype(np.float32)  # noqa: E731
    chain.add("LayerNormalization", drawn(shape[-1]), drawn(shape[-1]), axis=-1)
    chain.views(ROW_VIEWS if rows else VIEWS, 5)
    chain.add("MatMul", drawn(chain.shape[-1], 3), shape=[*chain.shape[:-1], 3])
    chain.add("Add", drawn(3))
    model = chain.model()
    return model, subjects.lift(model)


def test_scaling_and_shifting_norms() -> None:
    counts = dict.fromkeys(("shifted", "scaled", "refused"), 0)

    @subjects.examples(120)
    @given(_normed_chains(), st.integers(0, 99))
    def holds(made: tuple[ir.Model, subjects.Lifted], seed: int) -> None:
        (model, structure), random = made, np.random.default_rng(seed)
        feed, (norm,) = feed_of(model), structure.norms
        expected = run_model(model, feed)
        scale = np.exp(random.normal(size=norm.scale.const_value.size))  # type: ignore[union-attr]
        shift = random.normal(size=scale.shape)
        for kind, affine in {"shifted": (scale, shift), "scaled": (scale, 0 * shift)}.items():
            if subjects.fold_norm_affine(structure, {norm.name: affine}).done:
                counts[kind] += 1
                break
        else:
            counts["refused"] += 1
        assert relative_error(expected, run_model(model, feed)) < 10 * ROUNDING
        once = _state(model)
        subjects.fold_norm_affine(structure, {norm.name: (np.ones_like(scale), 0 * shift)})
        assert _state(model) == once

    holds()
    assert min(counts.values()) >= 8
