# SPDX-License-Identifier: Apache-2.0
"""The closed forms solve the equations of the paper, and take error off a decoder's attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import solve_sylvester

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.codes import LogCodes, UniformCodes
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.steps import AttentionRepairSettings, Ranges, RepairAttention, Select
from samq_onnx.models import load_model
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.reconstruct.attention_repair import logit_change, value_change
from samq_onnx.reconstruct.operand_moments import LogitMoments, ValueMoments
from tests.conftest import Feed

BITS = 4
WIDTH, HEADS, D = 24, 2, 6
CHANNELS = np.arange(HEADS * D).reshape(HEADS, D)
Array = NDArray[np.float64]


def problem() -> tuple[list[tuple[Array, Array]], dict[str, tuple[Array, Array]]]:
    """Inputs of q and of k in three feeds, and weight and bias of q, k and v."""
    random = np.random.default_rng(0)
    mix = random.normal(size=(WIDTH, WIDTH)) / 5
    feeds = [(random.normal(size=(1, 7, WIDTH)) @ mix, random.normal(size=(1, 90, WIDTH)) @ mix) for _ in range(3)]
    linears = {name: (random.normal(size=(WIDTH, HEADS * D)), random.normal(size=HEADS * D)) for name in "qkv"}
    return feeds, linears


def codes_of(values: Array) -> UniformCodes:
    """Codes that also cut a little off."""
    return UniformCodes.of_range(*np.quantile(values, [0.02, 0.98]), BITS)


def centred_logits(q: Array, k: Array) -> Array:
    """[feed, head, M, N] less what is added to a whole row."""
    q, k = (np.moveaxis(one[..., CHANNELS], -2, -3) for one in (q, k))
    logits: Array = q @ k.swapaxes(-1, -2)
    return logits - logits.mean(axis=-1, keepdims=True)


def test_the_change_solves_the_papers_sylvester_equation() -> None:
    random = np.random.default_rng(1)
    x, coded, lost = random.normal(size=(50, 9)), random.normal(size=(40, 4)), random.normal(size=(40, 4))
    weight = random.normal(size=(9, 4))
    g, b, error = x.T @ x, coded.T @ coded, lost.T @ coded
    ridge = 0.1
    added = ridge * np.trace(g) / 9 * np.trace(b) / 4
    expected = solve_sylvester(added * np.linalg.inv(g), b, weight @ error)
    np.testing.assert_allclose(logit_change(g, b, error, weight, ridge), expected, rtol=1e-8)


def test_moments_of_nothing_change_nothing() -> None:
    zero = np.zeros((3, 3))
    assert not logit_change(zero, zero, zero, np.ones((3, 3))).any()
    assert not value_change(zero, zero).any()


@pytest.mark.parametrize("changed", ["q", "k"])
def test_logits_are_nearer_with_the_partner_in_codes(changed: str) -> None:
    feeds, linears = problem()
    made = {
        name: np.stack([x[side] @ linears[name][0] + linears[name][1] for x in feeds])
        for name, side in (("q", 0), ("k", 1))
    }
    partner = "k" if changed == "q" else "q"
    codes = codes_of(made[partner])
    moments = LogitMoments("x", "other", CHANNELS, codes, keys=partner == "k")
    side = 0 if changed == "q" else 1
    for x, other in zip(feeds, made[partner], strict=True):
        moments.update(x[side].astype(np.float32), other.astype(np.float32))
    weight, bias = linears[changed]
    moved = np.concatenate([weight, bias[None]])
    for head in range(HEADS):
        part = moved[:, CHANNELS[head]]
        moved[:, CHANNELS[head]] += logit_change(moments.gram, moments.partner[head], moments.error[head], part, 1e-4)
    after = {**made, partner: codes.fake_quantize(made[partner])}
    exact = centred_logits(made["q"], made["k"])
    before = np.linalg.norm(centred_logits(after["q"], after["k"]) - exact)
    after[changed] = np.stack([x[side] @ moved[:-1] + moved[-1] for x in feeds])
    assert np.linalg.norm(centred_logits(after["q"], after["k"]) - exact) < 0.9 * before


def test_outputs_are_nearer_with_everything_in_codes() -> None:
    feeds, linears = problem()
    triples = [
        [x[side] @ linears[name][0] + linears[name][1] for name, side in (("q", 0), ("k", 1), ("v", 1))] for x in feeds
    ]
    codes = tuple(codes_of(np.stack([three[index] for three in triples])) for index in range(3))
    probabilities, scale = LogCodes(1.0, 1, BITS), 0.3
    channels = (CHANNELS, CHANNELS, CHANNELS)
    moments = ValueMoments("x", ("q", "k", "v"), channels, codes, probabilities, scale)  # type: ignore[arg-type]
    for x, three in zip(feeds, triples, strict=True):
        moments.update(x[1], *three)
    left = np.zeros(2)
    for x, three in zip(feeds, triples, strict=True):
        heads = [np.moveaxis(one[..., CHANNELS], -2, -3) for one in three]
        q, k, v = (one.fake_quantize(held) for one, held in zip(codes, heads, strict=True))

        def shares(a: Array, b: Array) -> Array:
            powers = np.exp(scale * a @ b.swapaxes(-1, -2))
            made: Array = powers / powers.sum(axis=-1, keepdims=True)
            return made

        exact, coded = shares(heads[0], heads[1]) @ heads[2], probabilities.fake_quantize(shares(q, k))
        seen = np.concatenate([x[1], np.ones((*x[1].shape[:-1], 1))], axis=-1)
        for head in range(HEADS):
            change = value_change(moments.gram[head], moments.target[head], 1e-4)
            error = exact[:, head] - coded[:, head] @ v[:, head]
            left += [np.square(error).sum(), np.square(error - coded[:, head] @ seen @ change).sum()]
    assert left[1] < 0.5 * left[0]


@pytest.mark.parametrize("kind", ["logits", "values"])
def test_moments_are_kept(kind: str) -> None:
    random = np.random.default_rng(2)
    codes = UniformCodes(0.1, 8, BITS)

    def fresh() -> Statistic:
        if kind == "logits":
            return LogitMoments("x", "k", CHANNELS, codes, keys=True)
        return ValueMoments(
            "x", ("q", "k", "v"), (CHANNELS, CHANNELS, CHANNELS), (codes, codes, codes), LogCodes(1.0, 1, BITS), 1.0
        )

    first, second = fresh(), fresh()
    widths = [WIDTH] + [HEADS * D] * (len(first.tensors) - 1)
    first.update(*(random.normal(size=(1, 5, width)).astype(np.float32) for width in widths))
    second.restore(first.state())
    for name, array in first.state().items():
        np.testing.assert_array_equal(second.state()[name], array)
    with pytest.raises((ValueError, KeyError)):
        second.restore({name: -np.abs(array) - 1 for name, array in first.state().items()})


@pytest.mark.parametrize("operand", ["q", "k", "v"])
def test_sites_of_a_decoder_are_repaired_and_an_encoder_left_alone(
    operand: str, nano: Path, decoder_feed: Feed, encoder_feed: Feed
) -> None:
    scheme = Scheme(Widths(BITS, BITS), strict=True)
    for part, feed in (("encoder", encoder_feed), ("decoder", decoder_feed)):
        model = load_model(nano / f"{part}.onnx")
        prepared = Preparation(model, BITS)
        work = begin(prepared, identify(model, part), [feed], scheme, target="samq")
        repair = RepairAttention(operand, AttentionRepairSettings())
        work.run([Select(), Ranges("omse", "mse", "uniform"), repair], work)
        report = work.reports[-1]
        assert not report.refused
        assert len(report.done) == (7 if part == "decoder" else 0)
        moved = {site.q.linear.weight.name for site in prepared.lifted.attentions if site.q}
        assert (moved <= set(prepared.moved())) == (part == "decoder" and operand == "q")
