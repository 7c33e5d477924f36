# SPDX-License-Identifier: Apache-2.0
"""All commands behind one name."""

from __future__ import annotations

import importlib

import pytest

from samq_onnx.__main__ import COMMANDS, main


def test_a_command_gets_the_words_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| method |")
    assert main(["lower", "x.onnx"]) == 2
    assert "--plan" in capsys.readouterr().err


def test_every_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, module in COMMANDS.items():
        assert name in printed
        assert callable(importlib.import_module(module).main)


def test_another_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantise"]) == 2
    assert capsys.readouterr().err == f"error: no command 'quantise'; choose one of {', '.join(COMMANDS)}\n"
