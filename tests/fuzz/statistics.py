# SPDX-License-Identifier: Apache-2.0
"""Statistics files, changed in a few places, through quantize --stats, on the tiny SAM.

Statistics that are taken give a model that runs and is finite; those that are gone are collected again, to the same
model. A file that is refused, or of which nothing is missing, stays as it is.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from samq_onnx import quantize
from tests.fuzz.archives import Arrays, archive_of, changed_arrays, damaged_archive
from tests.fuzz.documents import changed_document
from tests.fuzz.target import FINE, REFUSED, Outcome, clean_run
from tests.fuzz.tiny_files import TinyFiles, unsound, write_tiny

__all__ = ["SECONDS", "case", "prepare"]

SECONDS = 30.0
HEADER = "header"
RECIPES = (
    *(("encoder", "minmax", "w8a8"), ("encoder", "ptq4sam-s", "w4a4"), ("encoder", "samq", "w8a8")),
    *(("encoder", "samq", "w6a6"), ("encoder", "omse", "w4a4"), ("encoder", "percentile", "w8a8")),
    *(("decoder", "ptq4sam-s", "w4a4"), ("decoder", "samq", "w6a6")),
)
SHARES = (0.15, 0.17, 0.17, 0.16, 0.17, 0.12, 0.03, 0.03)
LONGEST = 1000  # characters of a refusal


class Seed(NamedTuple):
    """A file of one run, its arrays, and the model that was made."""

    part: str
    words: tuple[str, ...]
    content: bytes
    arrays: Arrays
    model: bytes


class State(NamedTuple):
    """What all cases share."""

    files: TinyFiles
    seeds: list[Seed]


def _arrays(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content)) as held:
        return {name: held[name] for name in held.files}


def _arguments(files: TinyFiles, part: str, folder: Path, words: tuple[str, ...]) -> list[str]:
    encoder = ["--encoder", str(files.source("encoder"))] if part == "decoder" else []
    output, stats = folder / "made.onnx", folder / "stats.npz"
    return [
        *(str(files.source(part)), "-o", str(output), "--calib", str(files.data), "--stats", str(stats)),
        *(*encoder, *words),
    ]


def prepare(folder: Path) -> State:
    """Statistics of the tiny SAM, as several methods collect them."""
    ort.set_default_logger_severity(4)
    files = write_tiny(folder)
    seeds = []
    for number, (part, method, bits) in enumerate(RECIPES):
        place = folder / f"{part}{number}"
        place.mkdir()
        words = ("--method", method, "--bits", bits)
        kind, detail = clean_run(
            quantize.main, _arguments(files, part, place, words), place, ["made.onnx", "stats.npz"]
        )
        if kind != FINE:
            raise RuntimeError(f"{part} {method}: {detail}")
        content = (place / "stats.npz").read_bytes()
        seeds.append(Seed(part, words, content, _arrays(content), (place / "made.onnx").read_bytes()))
    return State(files, seeds)


def _header(arrays: Arrays, random: np.random.Generator) -> tuple[Arrays, list[str]]:
    document, changes = changed_document(json.loads(str(arrays[HEADER])), random)
    text = json.dumps(document)
    form: Any = np.array(text)
    if random.random() < 0.15:
        form = [text.encode(), text[:-1], [text], 3.0, np.array(list(text[:9]))][int(random.integers(5))]
        changes.append("another form")
    return {**arrays, HEADER: np.asarray(form)}, changes


def case(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    """One file of statistics."""
    seed = state.seeds[int(random.choice(len(state.seeds), p=SHARES))]
    content, changes = seed.content, ["nothing"]
    kind = str(random.choice(["arrays", "header", "bytes", "swap", "nothing"], p=[0.6, 0.15, 0.2, 0.03, 0.02]))
    if kind == "arrays":
        arrays, changes = seed.arrays, []
        for _ in range(int(random.choice([1, 2, 8], p=[0.7, 0.2, 0.1]))):
            arrays, how = changed_arrays(random, arrays, (HEADER,))
            changes.append(how)
        content = archive_of(arrays)
    elif kind == "header":
        arrays, changes = _header(seed.arrays, random)
        content = archive_of(arrays)
    elif kind == "bytes":
        content, how = damaged_archive(random, content)
        changes = [how]
    elif kind == "swap":
        other = state.seeds[int(random.integers(len(state.seeds)))]
        content, changes = other.content, [f"of {other.part} {other.words}"]
    stats = folder / "stats.npz"
    stats.write_bytes(content)
    what = f"{seed.part} {seed.words} {kind} {changes}"
    (folder / "changes.txt").write_text(what.encode(errors="backslashreplace").decode() + "\n")
    result, detail = clean_run(
        quantize.main, _arguments(state.files, seed.part, folder, seed.words), folder, ["made.onnx", "stats.npz"]
    )
    if len(detail) > LONGEST:
        result, detail = "words", f"{len(detail)} characters: {detail[:200]}"
    if result == FINE and (wrong := _wrong(state, seed, kind, content, folder)):
        result, detail = "silent", wrong
    if result == REFUSED and kind == "nothing":
        result = "refused a good file"
    return result, f"{what}: {detail}"


def _wrong(state: State, seed: Seed, kind: str, content: bytes, folder: Path) -> str:
    """What is wrong with a model that was made, or with the statistics behind it."""
    made = folder / "made.onnx"
    if wrong := unsound(state.files, seed.part, made):
        return wrong
    after = (folder / "stats.npz").read_bytes()
    arrays = _arrays(after)
    if any(not np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
        return "statistics that are not finite"
    if made.read_bytes() == seed.model:
        return ""
    if kind in ("nothing", "header", "bytes", "swap"):
        return "damage that gives another model"
    return ""
