# SPDX-License-Identifier: Apache-2.0
"""Attention of a decoder is told by who reads whom, without running anything, whatever sides are free."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from samq_onnx.passes.lift import lift, simplify

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\nagraph (float[1, {tokens}, 8] p, float[1, {image}, 8] i) => '
KINDS = [
    "decoder_self", "decoder_token_to_image", "decoder_image_to_token",
    "decoder_self", "decoder_token_to_image", "decoder_image_to_token", "decoder_final",
]  # fmt: skip


def _attention(name: str, queries: str, keys: str, made: str) -> str:
    return (
        f"{name}_t = Transpose <perm = [0, 2, 1]> ({keys})\n {name}_s = MatMul ({queries}, {name}_t)\n"
        f" {name}_p = Softmax ({name}_s)\n {name}_o = MatMul ({name}_p, {keys})\n"
        f" {name}_1 = Constant <value = float {{1}}> ()\n {made} = Add ({name}_o, {name}_1)\n"
    )


def _kinds(body: str, tokens: object, image: object, outputs: str) -> list[str]:
    model = onnx.parser.parse_model(HEADER.format(tokens=tokens, image=image) + f"({outputs}) {{\n{body}}}")
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = ir.from_proto(model)
    simplify(found)
    return [site.kind for site in lift(found).attentions]


def _decoder(own: bool = True) -> str:
    """Two blocks and a last reading; prompts attend to themselves if ``own``."""
    body = ""
    for block in range(2):
        one, two = (("p", "i") if block == 0 else ("p0", "i0")) if own else (("p", "i") if block == 0 else ("r0", "i0"))
        if own:
            body += _attention(f"s{block}", one, one, f"o{block}")
            one = f"o{block}"
        body += _attention(f"r_{block}", one, two, f"r{block}")
        body += _attention(f"w_{block}", two, f"r{block}", f"i{block}")
        body += f"p{block} = Identity (r{block})\n" if own else ""
    return body + _attention("last", "p1" if own else "r1", "i1", "y")


@pytest.mark.parametrize(
    ("tokens", "image"),
    [
        (7, 64),  # all is known
        ("t", 64),
        ("t", 4),  # few tokens, of which a run would have as many
        ("t", "cells"),  # nothing is known but who attends to themselves
    ],
)
def test_sites_of_a_decoder(tokens: object, image: object) -> None:
    assert _kinds(_decoder(), tokens, image, "float y") == KINDS


def test_without_attention_of_its_own_a_prompt_reads_more_often() -> None:
    expected = [kind for kind in KINDS if kind != "decoder_self"]
    assert _kinds(_decoder(own=False), "t", "cells", "float y") == expected
    assert _kinds(_decoder(own=False), "t", 4, "float y") == expected


def test_attention_that_updates_nothing_is_generic() -> None:
    assert _kinds(_attention("a", "p", "i", "y"), "t", 64, "float y") == ["generic"]
    assert _kinds(_attention("a", "p", "p", "y"), "t", 64, "float y") == ["generic"]
