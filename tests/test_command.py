# SPDX-License-Identifier: Apache-2.0
"""How commands end: one line, and an exit status that says whose fault it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from samq_onnx.command import command_parser, main_guard, output_path
from samq_onnx.errors import UserError
from samq_onnx.files import atomic_path


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background and a shell has turned it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_scratch_files(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @main_guard
    def command(argv: Sequence[str] | None = None) -> int:
        with atomic_path(tmp_path / "model.onnx") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
        return 0

    assert command() == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def _fails_with(error: BaseException) -> Sequence[str]:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a.onnx: is\nbad"), 2, "error: a.onnx: is bad\n"),
        (FileNotFoundError(2, "No such file or directory", "a"), 2, "error: a: No such file or directory\n"),
        (MemoryError("of arrays"), 2, "error: out of memory (of arrays); free some or use smaller inputs\n"),
    ],
)
def test_a_mistake_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_guard(lambda argv: len(_fails_with(error)))([]) == status
    assert capsys.readouterr().err == line


def test_a_defect_is_one_line_that_asks_to_be_reported(capsys: pytest.CaptureFixture[str]) -> None:
    command = main_guard(lambda argv: len(_fails_with(KeyError("a\nb"))))
    assert command([]) == 70
    line = capsys.readouterr().err
    assert line.startswith("error: unexpected KeyError in samq_onnx.command, line ") and line.count("\n") == 1
    assert "report it" in line and "--debug" in line
    assert command(["--debug"]) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith(line) and "_fails_with" in shown


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @main_guard
    def command(argv: Sequence[str] | None = None) -> int:
        command_parser("quantize", "").parse_args(argv)
        return 0

    assert command(["--bit", "w8a8"]) == 2
    assert capsys.readouterr().err == (
        "error: unrecognized arguments: --bit w8a8; see python -m samq_onnx.quantize --help\n"
    )


def test_an_empty_output_path_is_no_folder() -> None:
    with pytest.raises(UserError, match="output path is empty"):
        output_path("")


def test_closed_streams_are_no_defect() -> None:
    program = "import sys; from samq_onnx import segment; sys.exit(segment.main(['x']))"
    ended = subprocess.run(["sh", "-c", f'exec "$0" -c "{program}" >&- 2>&-', sys.executable], check=False)
    assert ended.returncode == 2


def test_a_reader_that_goes_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert main_guard(lambda argv: len(_fails_with(BrokenPipeError(32, "Broken pipe"))))([]) == 2
    assert capsys.readouterr().err == "error: who read the output closed it; the command ended there\n"


def test_options_are_not_shortened() -> None:
    parser = command_parser("analyze", None)
    parser.add_argument("--strict-data", action="store_true")
    with pytest.raises(UserError, match="--strict"):
        parser.parse_args(["--strict"])
