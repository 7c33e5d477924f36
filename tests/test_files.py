# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent, and never replace what they must not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from samq_onnx.errors import UserError
from samq_onnx.files import atomic_path, check_distinct, check_writable, write_json


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_are_made_for_what_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file"
    check_writable(target)
    assert not (tmp_path / "a").exists()
    with pytest.raises(RuntimeError), atomic_path(target):
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, float("inf")], "b": {"c": float("nan")}, "d": "Infinity"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None], "b": {"c": None}, "d": "Infinity"}


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_json(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "file").read_text()) == [1]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "no regular file"), (".", "a folder")):
        with pytest.raises(UserError, match=reason):
            check_writable(tmp_path / name)


def test_an_output_is_not_the_folder_of_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of another output"):
        check_distinct([tmp_path / "a" / "b", tmp_path / "a"], [])


def test_outputs_are_not_inputs_or_each_other(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    check_distinct([one, None], [two, None])
    for outputs, inputs in (([one], [one]), ([one, one], []), ([tmp_path / "x" / ".." / "two"], [two])):
        with pytest.raises(UserError, match="would replace"):
            check_distinct(outputs, inputs)
