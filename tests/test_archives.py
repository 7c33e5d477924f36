# SPDX-License-Identifier: Apache-2.0
"""Archives of arrays: what is none is refused with one line, of whatever kind the libraries' error is."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samq_onnx.archives import read_arrays

PLENTY = 1 << 20


def _written(path: Path) -> bytes:
    np.savez_compressed(path, a=np.arange(6, dtype=np.float32), b=np.zeros((2, 3)))
    return path.read_bytes()


def test_arrays_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    _written(path)
    found = read_arrays(path, PLENTY)
    assert list(found) == ["a", "b"] and found["a"].tolist() == list(range(6)) and found["b"].shape == (2, 3)
    with pytest.raises(ValueError, match="unpacks to"):
        read_arrays(path, 100)


def _method(content: bytearray) -> None:
    content[content.rfind(b"PK\x01\x02") + 10] = 99


def _encrypted(content: bytearray) -> None:
    content[content.rfind(b"PK\x01\x02") + 8] |= 1


def _stream(content: bytearray) -> None:
    content[60] ^= 255


def _end(content: bytearray) -> None:
    del content[len(content) // 2 :]


@pytest.mark.parametrize("damage", [_method, _encrypted, _stream, _end])
def test_damage_is_one_kind_of_error(damage: Callable[[bytearray], None], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    content = bytearray(_written(path))
    damage(content)
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_arrays(path, PLENTY)
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header", ["{'shape': (-1,", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "{'descr': '<f4', "
    "'fortran_order': False, 'shape': (999999999999, 9), }"]
)  # fmt: skip
def test_headers_that_are_none(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8))
    with pytest.raises(ValueError):
        read_arrays(path, PLENTY)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_there_twice_or_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for names, message in ((("a.npy", "a.npy"), "twice"), (("a.txt",), "no arrays")):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"text")
        with pytest.raises(ValueError, match=message):
            read_arrays(path, PLENTY)
