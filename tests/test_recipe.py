# SPDX-License-Identifier: Apache-2.0
"""Recipes: what each width and each half of SAM gets."""

from __future__ import annotations

import pytest

from samq_onnx.errors import UserError
from samq_onnx.recipe import METHODS, recipe


@pytest.mark.parametrize(
    ("bits", "encoder", "decoder"), [("w8a8", False, False), ("w6a6", False, True), ("w4a4", True, True)]
)
def test_the_default_learns_what_loses_most(bits: str, encoder: bool, decoder: bool) -> None:
    chosen = recipe(bits=bits)
    assert (chosen.learn, chosen.for_decoder().learn) == (encoder, decoder)
    assert chosen.activation_bits == int(bits[1])
    assert chosen.for_decoder().activation_bits == 8


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"samq"}))
def test_other_methods_are_narrow_everywhere_and_learn_nothing(method: str) -> None:
    chosen = recipe(method, "w4a4")
    for part in (chosen, chosen.for_decoder()):
        assert (part.weight_bits, part.activation_bits, part.learn) == (4, 4, False)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_default_cuts_less_off_in_the_decoder(method: str) -> None:
    chosen = recipe(method)
    assert chosen.for_decoder().observer == ("l4" if method == "samq" else chosen.observer)


@pytest.mark.parametrize(("method", "bits"), [("magic", "w8a8"), ("samq", "w3a3")])
def test_unknown_names_are_refused(method: str, bits: str) -> None:
    with pytest.raises(UserError, match="choose one of"):
        recipe(method, bits)
