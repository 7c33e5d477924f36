# SPDX-License-Identifier: Apache-2.0
"""Both readings of PTQ4SAM-S: where signs are folded, and which ranges go with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths, configured
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Select
from samq_onnx.models import load_model
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.passes.fold.edit import shift_outputs
from samq_onnx.passes.lift.kinds import DECODER_KINDS, TOKEN_TO_IMAGE_KINDS
from samq_onnx.pipeline import Preparation, begin
from tests.conftest import Feed

BITS = 6
SIGN = "sign (BIG)"


def worked(nano: Path, part: str, feeds: Sequence[Feed], **settings: str) -> Work:
    """A model whose keys have two peaks everywhere, through the method."""
    model = load_model(nano / f"{part}.onnx")
    prepared = Preparation(model, BITS)
    random = np.random.default_rng(0)
    for site in prepared.lifted.attentions:
        assert site.k is not None
        # one sign for all heads, which an encoder's tables share
        sign = np.broadcast_to(random.random(site.k.channels.shape[1]) < 0.46, site.k.channels.shape)
        shift_outputs(site.k.linear, site.k.channels, np.where(sign, 8.0, -8.0))
    role = identify(model, part)
    scheme = Scheme(Widths(BITS, BITS), strict=True)
    work = begin(prepared, role, feeds, scheme, target="samq")
    work.run([Select(), *configured("ptq4sam-s", settings).steps(role, scheme)], work)
    return work


@pytest.mark.parametrize("where", ["decoder", "everywhere"])
def test_signs_are_folded_where_they_shall_be(where: str, nano: Path, decoder_feed: Feed, encoder_feed: Feed) -> None:
    decoder = worked(nano, "decoder", [decoder_feed], big=where)
    folded = {site.kind for site in decoder.lifted.attentions if site.name in decoder.done(SIGN)}
    assert folded == TOKEN_TO_IMAGE_KINDS if where == "decoder" else folded > TOKEN_TO_IMAGE_KINDS
    encoder = worked(nano, "encoder", [encoder_feed], big=where)
    assert bool(encoder.done(SIGN)) == (where == "everywhere")


def test_neither_signs_nor_log_codes_where_they_are_not_wanted(nano: Path, decoder_feed: Feed) -> None:
    decoder = worked(nano, "decoder", [decoder_feed], big="never", probabilities="log2")
    assert not decoder.done(SIGN)
    codes = [decoder.plan.attentions[site.name].probabilities for site in decoder.lifted.attentions]
    assert {one.kind for one in codes} == {"log"} and {one.tau for one in codes} == {1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("activation", ["omse", "avg_minmax"])
def test_only_keys_of_the_decoder_have_least_error_beside_mean_extremes(
    activation: str, nano: Path, decoder_feed: Feed
) -> None:
    work = worked(nano, "decoder", [decoder_feed], activation=activation)
    for site in work.lifted.attentions:
        assert site.kind in DECODER_KINDS
        codes = work.plan.attentions[site.name]
        for name, found in zip(site.operand_names, (codes.q, codes.k, codes.v), strict=True):
            observer = "omse" if found is codes.k else activation
            assert found == TENSOR_OBSERVERS[observer](work.found(TensorStats(name)), BITS)
