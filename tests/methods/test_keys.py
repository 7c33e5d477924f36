# SPDX-License-Identifier: Apache-2.0
"""Keys on either side of zero are centred or else flipped, and the float function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.steps import CentreKeys, FlipBimodalKeys
from samq_onnx.models import load_model
from samq_onnx.passes.fold.edit import shift_outputs
from samq_onnx.pipeline import Preparation, begin
from tests.conftest import relative_error, run_model

EXACT = 1e-5  # relative; float rounding only
STEPS = {"key centring": (CentreKeys, FlipBimodalKeys), "sign (BIG)": (FlipBimodalKeys,)}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_keys_on_either_side_of_zero_are_centred_or_else_flipped(
    part: str, name: str, nano: Path, request: pytest.FixtureRequest
) -> None:
    feed = request.getfixturevalue(f"{part}_feed")
    model = load_model(nano / f"{part}.onnx")
    role = identify(model, part)
    prepared = Preparation(model, 8)
    sites = prepared.lifted.attentions
    random = np.random.default_rng(0)
    for site in sites:
        assert site.k is not None
        shift_outputs(site.k.linear, site.k.channels, np.where(random.random(site.k.channels.shape) < 0.46, 8.0, -8.0))
    expected = run_model(model, feed)
    work = begin(prepared, role, [feed], Scheme(Widths(8, 8)), target="samq")
    work.run([step() for step in STEPS[name]], work)
    done = {report.name: report.done for report in work.reports}
    assert set(done[name]) >= {site.name for site in sites if site.tables}
    assert all(set(done[other]).isdisjoint(done[name]) for other in done if other not in (name, "attention scale"))
    assert relative_error(expected, run_model(model, feed)) < EXACT
