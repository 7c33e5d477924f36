# SPDX-License-Identifier: Apache-2.0
"""Methods are found, told and set by their parameters; schemes give every site its bits."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from samq_onnx import assets
from samq_onnx.errors import UserError
from samq_onnx.families import Role, identify
from samq_onnx.methods import DEFAULT_METHOD, METHODS, Scheme, Widths, configured, parameters
from samq_onnx.methods.__main__ import main, markdown
from samq_onnx.methods.scheme import check_site_bits
from samq_onnx.methods.steps import GptqSettings
from samq_onnx.models import load_model

README = Path(__file__).parents[2] / "README.md"


def test_every_method_says_what_it_is() -> None:
    assert DEFAULT_METHOD in METHODS
    for name, method in METHODS.items():
        assert method.name == name and method.paper and method.summary.endswith(".")
        assert all(one.help for one in parameters(method))


def test_the_table_of_the_readme_is_made_from_them() -> None:
    assert markdown() in README.read_text()


def test_the_command_lists_names_papers_and_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", str(tmp_path / "methods.json")]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "methods.json").read_text())
    for name, method in METHODS.items():
        assert method.summary in printed and method.paper in printed
        for one, listed in zip(parameters(method), found[name]["parameters"], strict=True):
            assert f"--set {one.name}={one.default}" in printed and listed["default"] == one.default


def test_parameters_are_set_by_dotted_names() -> None:
    settings = {"gptq.damping": "0.02", "compensate": "false", "decoder_bits": "6", "probabilities": "uniform"}
    chosen = configured("samq", settings)
    assert dataclasses.asdict(chosen)["gptq"] == dataclasses.asdict(GptqSettings(damping=0.02, ridge=0.1))
    assert (chosen.compensate, chosen.decoder_bits, chosen.probabilities) == (False, 6, "uniform")  # type: ignore
    assert configured("samq") != chosen


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("samc", {}, "unknown method 'samc'"),
        ("samq", {"gptq.dampin": "1"}, "did you mean gptq.damping"),
        ("minmax", {"x": "1"}, "it has none"),
        ("samq", {"gptq.damping": "much"}, "wanted a number, got 'much'"),
        ("samq", {"gptq.damping": "-1"}, "wanted a number from 0 to 1e[+]06"),
        ("samq", {"gptq.damping": "nan"}, "wanted a number from 0"),
        ("samq", {"gptq.damping": "1e308"}, "wanted a number from 0"),
        ("samq", {"decoder_bits": "9"}, "wanted a number from 0 to 8"),
        ("auto", {"encoder_float": "1.1"}, "wanted a number from 0 to 1,"),
        ("auto", {"decoder_floats": "0"}, "did you mean decoder_float"),
        ("samq", {"decoder_bits": "8.5"}, "wanted a whole number"),
        ("samq", {"compensate": "1"}, "wanted true or false"),
        ("samq", {"probabilities": "sine"}, "choose one of log, log-sqrt2, log2, row, uniform"),
    ],
)
def test_what_cannot_be_set_is_named(method: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(method, settings)


@pytest.mark.parametrize("text", ["w8a8", "W2A3", "w4a4"])
def test_widths_are_read(text: str) -> None:
    assert str(Widths.parse(text)) == text.lower()


@pytest.mark.parametrize("text", ["", "8", "w8", "w1a8", "w8a9", "w16a16", "w8a8 "])
def test_other_widths_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give wXaY"):
        Widths.parse(text)


def test_bits_of_a_site() -> None:
    scheme = Scheme(Widths(4, 6), sites={"a": {"q": 3, "weight": 2}})
    assert [scheme.bits("a", role) for role in ("q", "k", "weight", "output")] == [3, 6, 2, 8]
    assert dataclasses.replace(scheme, strict=True).bits("b", "output") == 6
    assert scheme.narrowest_weight == 2


def test_widths_of_sites_that_are_not_there_are_refused() -> None:
    scheme = Scheme(Widths(8, 8), sites={"block.1": {"q": 4}})
    scheme.check_sites([], [], ["block.1"], {})
    for products, convolutions, kept, message in (
        (["block.2"], [], {}, "did you mean 'block.2'"),
        (["block.1"], [], {}, "has no 'q'; it has input, weight$"),
        ([], ["block.1"], {}, "has no 'q'; it has input, weight, output"),
        ([], [], {"block.1": "first layer"}, "stays float: first layer"),
    ):
        with pytest.raises(UserError, match=message):
            scheme.check_sites(products, convolutions, [], kept)


@pytest.mark.parametrize(
    "value", [[], {"a": 8}, {"a": {"q": 9}}, {"a": {"q": 1}}, {"a": {"q": True}}, {"a": {"width": 8}}]
)
def test_files_of_widths_are_checked(value: object) -> None:
    with pytest.raises(UserError, match="here: "):
        check_site_bits(value, "here")


def test_the_default_method_keeps_a_decoder_wide() -> None:
    decoder, encoder = (
        identify(load_model(assets.nano_dir() / f"{part}.onnx"), part) for part in ("decoder", "encoder")
    )
    assert decoder.role is Role.DECODER
    assert configured("samq").widths(decoder, Widths(4, 4)) == Widths(4, 8)
    assert configured(DEFAULT_METHOD).widths(decoder, Widths(4, 4)) == Widths(8, 8)
    assert configured(DEFAULT_METHOD, {"decoder_bits": "6"}).widths(decoder, Widths(4, 7)) == Widths(6, 7)
    for name in (DEFAULT_METHOD, "samq"):
        assert configured(name).widths(encoder, Widths(4, 4)) == Widths(4, 4)
    assert configured("minmax").widths(decoder, Widths(4, 4)) == Widths(4, 4)


def test_nothing_of_the_readme_is_left_to_fill_in() -> None:
    assert not re.search("DEMO_|_TABLE|TODO|XXX", README.read_text())
