# SPDX-License-Identifier: Apache-2.0
"""Archives of arrays (npz) that are not what they were: other arrays, other members, other bytes."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np

__all__ = ["archive_of", "changed_arrays", "damaged_archive"]

DTYPES = ("f2", ">f4", "f8", "i1", "i8", "u8", "?", "c8", "U3", "S4", "M8[s]", "O", "V3")
NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-45, 1e-30, 1e30, 3e38, 1e300, -1e300, 2.0**63)
LARGE = 1 << 27  # bytes of zeros, which pack to nearly nothing

Arrays = dict[str, np.ndarray]


def archive_of(arrays: Arrays, packed: bool = False) -> bytes:
    """The bytes of an npz; objects are pickled."""
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _pick(random: np.random.Generator, names: list[str]) -> str:
    return names[int(random.integers(len(names)))]


def changed_arrays(random: np.random.Generator, arrays: Arrays, kept: tuple[str, ...] = ()) -> tuple[Arrays, str]:
    """Other arrays, and how they are other; those named ``kept`` stay."""
    arrays = dict(arrays)
    names = [name for name in arrays if name not in kept]
    name = _pick(random, names)
    array = arrays[name]
    kind = int(random.integers(10))
    with np.errstate(all="ignore"):
        if kind <= 2 and array.size and array.dtype.kind in "fi":
            array = array.copy()
            value = NUMBERS[int(random.integers(len(NUMBERS)))]
            if array.dtype.kind == "i":
                value = float(random.choice([-(2**62), -1, 0, 1, 5, 2**40, 2**62]))
            array.reshape(-1)[random.integers(array.size)] = value
        elif kind == 3 and array.dtype.kind == "f":
            array = array * array.dtype.type(random.choice([-1.0, 0.0, 1e-30, 1e3, 1e30]))
        elif kind == 4:
            try:
                array = array.astype(str(random.choice(DTYPES)))
            except (TypeError, ValueError, OverflowError):
                array = array.astype(object)
        elif kind in (5, 6):
            forms = [
                lambda: array[None],
                lambda: array.reshape(-1),
                lambda: array.reshape(-1)[:0],
                lambda: array.reshape(-1)[:-1],
                lambda: np.concatenate([array.reshape(-1)] * 2),
                lambda: array.T,
                lambda: np.asfortranarray(array),
                lambda: np.array(array.reshape(-1)[0]) if array.size else array,
                lambda: array[..., :-1] if array.ndim else array,
                lambda: array[:1] if array.ndim else array,
            ]
            array = forms[int(random.integers(len(forms)))]()
        elif kind == 7:
            del arrays[name]
            if random.random() < 0.5:
                arrays[str(random.choice(["arr_00", "header", "x", "../x", "arr_7", f"{name}_", "é"]))] = array
            return arrays, f"{name} gone"
        elif kind == 8:
            other = _pick(random, names)
            arrays[name], arrays[other] = arrays[other], arrays[name]
            return arrays, f"{name} and {other} exchanged"
        elif random.random() < 0.2:
            array = np.zeros(LARGE // 4, np.float32)
        else:
            arrays[f"{name}/more"] = array
            return arrays, "one more"
    arrays[name] = array
    return arrays, f"{name} {array.dtype} {array.shape}"


def _header(content: bytearray, random: np.random.Generator) -> str:
    """Change what the header of an array says; checksums are not right then, or they are, where zip has none."""
    at = content.find(b"'shape'", int(random.integers(len(content))))
    at = at if at >= 0 else content.find(b"'shape'")
    if at < 0:
        return "no header"
    end = content.find(b"\n", at)
    text = [
        b"'shape': (999999999999, 9),",
        b"'shape': (-1,), ",
        b"'shape': ((((((((",
        b"'shape': None,",
        b"'shape': (1.5,), ",
    ]
    chosen = text[int(random.integers(len(text)))][: end - at]
    content[at : at + len(chosen)] = chosen
    return f"header {chosen!r}"


def _written_again(content: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """The same archive by the means of zip: other checksums that are right, other methods, members twice."""
    stream = io.BytesIO()
    how = str(random.choice(["header", "bzip2", "lzma", "twice", "folder", "empty", "text", "bomb", "version"]))
    try:
        old = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile:
        return content, "none"
    method = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA, "bomb": zipfile.ZIP_DEFLATED}.get(how, 0)
    chosen = int(random.integers(len(old.namelist())))
    with zipfile.ZipFile(stream, "w", method) as new:
        for number, name in enumerate(old.namelist()):
            data = bytearray(old.read(name))
            if number == chosen and how == "header":
                how = _header(data, random)
            elif number == chosen and how == "version":
                data[6] = int(random.integers(256))
            elif number == chosen and how in ("empty", "text"):
                data = bytearray(b"" if how == "empty" else b"text")
            elif number == chosen and how == "bomb":
                data += bytes(LARGE)
            elif number == chosen and how == "folder":
                name = f"{name}/"
            new.writestr(name, bytes(data))
            if number == chosen and how == "twice":
                new.writestr(name, bytes(data[:-4] + b"\0\0\0\0"))
    return stream.getvalue(), how


def damaged_archive(random: np.random.Generator, content: bytes) -> tuple[bytes, str]:
    """Other bytes, and how they are other."""
    changed = bytearray(content)
    kind = int(random.integers(8))
    if kind == 0:
        return content[: int(random.integers(len(content)))], "truncated"
    if kind == 1:
        for _ in range(int(random.integers(1, 4))):
            changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
        return bytes(changed), "bits"
    if kind == 2:
        how = _header(changed, random)
        return bytes(changed), how
    if kind in (3, 4):
        return _written_again(content, random)
    if kind == 5:  # flags or method of a member: encrypted, unknown
        at = content.rfind(b"PK\x01\x02")
        place, value = [(8, 1), (10, 99), (10, 9), (24, 0xFFFFFFF0), (20, 0), (42, 0x7FFFFFFF), (28, 0xFFFF)][
            int(random.integers(7))
        ]
        struct.pack_into("<I" if place in (20, 24, 42) else "<H", changed, at + place, value)
        return bytes(changed), f"directory at {place}"
    if kind == 6:  # the end of the directory
        place = len(changed) - 22 + int(random.integers(4, 22))
        changed[place] ^= 1 << int(random.integers(8))
        return bytes(changed), "end"
    others = (b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", content * 2, b"\x80\x04N.", b"{}" * 50, b"x" + content)
    return others[int(random.integers(len(others)))], "another file"
