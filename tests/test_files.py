# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent, alone and in company."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from samq_onnx import files
from samq_onnx.errors import UserError
from samq_onnx.files import atomic_folder, atomic_path, check_writable, write_json, write_report


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


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def _write_pair(folder: Path, text: str) -> None:
    with atomic_folder(folder) as made:
        for name in ("a", "b"):
            (made / name).write_text(text)


def test_a_folder_is_made(tmp_path: Path) -> None:
    _write_pair(tmp_path / "x" / "pair", "new")
    assert _contents(tmp_path / "x" / "pair") == {"a": "new", "b": "new"}
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["pair"]


@pytest.fixture(params=["exchanged", "one by one"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two files and a third, on systems that can exchange folders and on others."""
    if request.param == "one by one":
        monkeypatch.setattr(files.sys, "platform", "other")
    folder = tmp_path / "pair"
    folder.mkdir(mode=0o750)
    for name, text in (("a", "old"), ("b", "old"), ("notes", "mine")):
        (folder / name).write_text(text)
    (folder / "link").symlink_to("notes")
    return folder


def test_files_of_a_folder_are_replaced_and_others_stay(pair: Path) -> None:
    notes = (pair / "notes").stat()
    _write_pair(pair, "new")
    assert _contents(pair) == {"a": "new", "b": "new", "notes": "mine", "link": "mine"}
    assert os.path.samestat((pair / "notes").stat(), notes) and (pair / "link").is_symlink()
    assert pair.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in pair.parent.iterdir()] == ["pair"]


def test_a_folder_that_fails_stays_as_it_was(pair: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(pair) as made:
        (made / "a").write_text("new")
        raise RuntimeError
    assert _contents(pair) == {"a": "old", "b": "old", "notes": "mine", "link": "mine"}
    assert [path.name for path in pair.parent.iterdir()] == ["pair"]


def test_a_second_rename_that_fails_takes_the_first_back(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, replaced = os.replace, []

    def failing(source: Path, target: Path) -> None:
        if len(replaced) == 1:
            replaced.append(target)
            raise OSError(28, "No space left on device")
        replaced.append(target)
        replace(source, target)

    monkeypatch.setattr(files.sys, "platform", "other")
    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(UserError, match="No space"):
        _write_pair(pair, "new")
    assert [target.name for target in replaced] == ["a", "b", "b", "a"]
    assert _contents(pair) == {"a": "old", "b": "old", "notes": "mine", "link": "mine"}


def test_a_folder_with_folders_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "pair" / "inner").mkdir(parents=True)
    before = (tmp_path / "pair").stat()
    _write_pair(tmp_path / "pair", "new")
    assert os.path.samestat((tmp_path / "pair").stat(), before)
    assert sorted(path.name for path in (tmp_path / "pair").iterdir()) == ["a", "b", "inner"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "pair").write_text("mine")
    with pytest.raises(UserError, match="no folder"):
        _write_pair(tmp_path / "pair", "new")
    assert (tmp_path / "pair").read_text() == "mine"


def test_links_that_go_round_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for path in (tmp_path / "one", tmp_path / "one" / "file"):
        with pytest.raises(UserError, match="circle"):
            check_writable(path)
    with pytest.raises(UserError, match="circle"):
        _write_pair(tmp_path / "one", "new")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_path(tmp_path / "file") as temporary:
        assert [path.name for path in tmp_path.iterdir()] == [temporary.parent.name]
        with atomic_path(tmp_path / "other") as one_more:  # those of a process that lives stay
            one_more.write_text("whole")
        temporary.write_text("whole")
    assert _contents(tmp_path) == {"file": "whole", "other": "whole"}


def test_a_report_that_fails_says_what_was_done(tmp_path: Path) -> None:
    write_report(None, {}, "the model is there")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: the report could not be written .*; the model is there$"):
        write_report(tmp_path / "folder", {}, "the model is there")


def test_of_two_processes_one_wins_whole(tmp_path: Path) -> None:
    target = tmp_path / "pair"
    _write_pair(target, "first")
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            for turn in range(25):
                _write_pair(target, f"{number} {turn}")
            os._exit(0)
        children.append(child)
    seen = set()
    while children:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            assert status == 0
            children.remove(ended)
        folder = os.open(target, os.O_RDONLY)
        try:
            found = [_read(folder, name) for name in ("a", "b")]
        except FileNotFoundError:  # it was replaced by now
            continue
        finally:
            os.close(folder)
        assert found[0] == found[1]
        seen.add(found[0])
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


def _read(folder: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", [b"\xff.onnx", b"/dev/stdout", b"/proc/self/fd/1"])
def test_names_that_cannot_be_written_are_told_before_the_work(name: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / os.fsdecode(name))


def test_a_full_disk_is_told_with_the_output(tmp_path: Path) -> None:
    for write in (atomic_path, atomic_folder):
        told = pytest.raises(UserError, match=r"cannot write .*out: No space left on device.*make room")
        with told, write(tmp_path / "out"):
            raise OSError(28, "No space left on device")
        assert not list(tmp_path.iterdir())
