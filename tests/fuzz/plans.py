# SPDX-License-Identifier: Apache-2.0
"""Plan files and widths of sites, changed in a few places, through lower and quantize, on the tiny SAM.

A plan that is taken gives a model that runs and is finite, and what differs in it differs in the model. One that says
what no plan says, names what the model does not have, or is not together with its own constants and model is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from samq_onnx import lower, quantize
from samq_onnx.plan_file import constants_path, read_plans
from tests.fuzz.archives import archive_of, changed_arrays, damaged_archive
from tests.fuzz.documents import changed_document, damaged_text
from tests.fuzz.target import FINE, REFUSED, Outcome, clean_run, run_command
from tests.fuzz.tiny_files import PARTS, TinyFiles, unsound, write_tiny

__all__ = ["SECONDS", "case", "prepare"]

SECONDS = 30.0
RECIPES = (
    *(("minmax", "w8a8", "samq"), ("ptq4sam-s", "w4a4", "samq"), ("samq", "w6a6", "samq")),
    *(("minmax", "w3a5", "qdq"), ("samq", "w8a8", "qdq")),
)
SHARES = {"encoder": 0.8, "decoder": 0.14, "both": 0.06}
LARGEST_SCALE = 1e15  # products of larger ones may leave float32, as the plan says
LONGEST = 1000  # characters of a refusal
FIELDS = {
    **{role: {"scale", "zero_point", "bits"} for role in ("q", "k", "v", "input", "output")},
    "weight": {"scale", "bits"},
    "probabilities": {"kind", "scale", "zero_point", "bits", "tau"},
}
PLAN = {"target", "weight_bits", "linears", "attentions", "kept_float", "constants", "metadata"}


class Seed(NamedTuple):
    """A plan and its constants, as they were written, and the models that they give."""

    part: str
    target: str
    document: dict[str, Any]
    archive: bytes
    arrays: dict[str, np.ndarray]
    models: list[bytes]


class State(NamedTuple):
    """What all cases share."""

    files: TinyFiles
    seeds: dict[str, list[Seed]]
    stats: Path


def _arrays(archive: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(archive)) as held:
        return {name: held[name] for name in held.files}


def _models(made: Path) -> list[bytes]:
    return [path.read_bytes() for path in ([made / f"{name}.onnx" for name in PARTS] if made.is_dir() else [made])]


def _quantize(files: TinyFiles, part: str, output: Path, *more: object) -> list[str]:
    encoder = ["--encoder", files.source("encoder")] if part == "decoder" else []
    return [str(word) for word in (files.source(part), "-o", output, "--calib", files.data, *encoder, *more)]


def prepare(folder: Path) -> State:
    """The tiny SAM, and plans of its parts."""
    ort.set_default_logger_severity(4)
    files = write_tiny(folder)
    seeds: dict[str, list[Seed]] = {part: [] for part in SHARES}
    stats = folder / "stats.npz"
    for number, (method, bits, target) in enumerate(RECIPES):
        for part in SHARES:
            place = folder / f"{part}{number}"
            place.mkdir()
            plan, made = place / "plan.json", place / "made"
            words = ("--method", method, "--bits", bits, "--target", target, "--plan-out", plan)
            kept = ("--stats", stats) if part == "encoder" else ()
            kind, detail = run_command(quantize.main, _quantize(files, part, made, *words, *kept))
            if kind != FINE:
                raise RuntimeError(f"{part} {method}: {detail}")
            archive, arrays = b"", {}
            if constants_path(plan).exists():
                archive = constants_path(plan).read_bytes()
                arrays = _arrays(archive)
            seeds[part].append(Seed(part, target, json.loads(plan.read_text()), archive, arrays, _models(made)))
    return State(files, seeds, stats)


def _draw(state: State, random: np.random.Generator) -> Seed:
    seeds = state.seeds[str(random.choice(list(SHARES), p=list(SHARES.values())))]
    return seeds[int(random.integers(len(seeds)))]


def case(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    """One plan, or one file of widths."""
    return (_site_bits if random.random() < 0.1 else _plan)(state, random, folder)


def _checked(kind: str, detail: str) -> Outcome:
    return ("words", f"{len(detail)} characters: {detail[:200]}") if len(detail) > LONGEST else (kind, detail)


def _plan(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    seed = _draw(state, random)
    document: Any = seed.document
    archive, arrays = seed.archive, seed.arrays
    changes: list[str] = []
    source = seed.part
    text = None
    kind = str(random.choice(["document", "text", "archive", "swap", "nothing"], p=[0.68, 0.1, 0.16, 0.05, 0.01]))
    if kind == "document":
        document, changes = changed_document(document, random)
    elif kind == "archive" and arrays:
        if random.random() < 0.6:
            arrays, how = changed_arrays(random, arrays)
            archive = archive_of(arrays, packed=True)
        else:
            archive, how = damaged_archive(random, archive)
        changes = [how]
        if random.random() < 0.8:
            digest = hashlib.sha256(archive).hexdigest()
            document = {**document, "constants": {**document["constants"], "sha256": digest}}
    elif kind == "swap":
        other = _draw(state, random)
        how = str(random.choice(["archive", "part", "constants", "model"]))
        changes = [f"{how} of {other.part} {other.target}"]
        if how == "archive":
            archive = other.archive
        elif how == "model":
            source = other.part
        else:
            mine, theirs = (dict(one["parts"]) for one in (document, other.document))
            name, given = next(iter(mine)), next(iter(theirs.values()))
            mine[name] = given if how == "part" else {**mine[name], "constants": given["constants"]}
            document = {**document, "parts": mine}
    plan = folder / "plan.json"
    if kind == "text":
        text, how = damaged_text(document, random)
        changes = [how]
    plan.write_bytes(json.dumps(document).encode() if text is None else text)
    if archive:
        constants_path(plan).write_bytes(archive)
    target = str(random.choice(["", "samq", "qdq"], p=[0.7, 0.15, 0.15]))
    output = folder / "made"
    words = [state.files.source(source), "--plan", plan, "-o", output, *(["--target", target] if target else [])]
    what = f"{seed.part} {seed.document['parts'].keys()} {source} {target} {kind} {changes}"
    (folder / "changes.txt").write_text(what.encode(errors="backslashreplace").decode() + "\n")
    result, detail = _checked(*clean_run(lower.main, [str(word) for word in words], folder, ["made"]))
    if result == FINE and (wrong := _wrong(state, seed, source, plan, archive, target, text, output)):
        result, detail = "silent", wrong
    if result == REFUSED and kind == "nothing" and target in ("", "samq", seed.target):
        log = target == "qdq"
        result = result if log else "refused a good plan"
    return result, f"{what}: {detail}"


def _wrong(
    state: State, seed: Seed, source: str, plan: Path, archive: bytes, target: str, text: bytes | None, output: Path
) -> str:
    """Why a plan should not have been taken, or what of it is not in the model."""
    wrong = unsound(state.files, source, output)
    if wrong and not ("is not finite" in wrong and _largest(json.loads(plan.read_bytes())) > LARGEST_SCALE):
        return wrong
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        return dict(pairs)

    document = json.loads(plan.read_bytes(), object_pairs_hook=once)
    if twice:
        return f"{twice[0]!r} is there twice"
    constants = document["constants"]
    if constants is not None and hashlib.sha256(archive).hexdigest() != constants["sha256"]:
        return "the constants are others than the plan says"
    for name, part in document["parts"].items():
        before = seed.document["parts"].get(name)
        if before is None or before["metadata"]["samq_onnx.float_model.sha256"] != part["metadata"].get(
            "samq_onnx.float_model.sha256"
        ):
            return f"{name}: of another model"
        if not isinstance(json.loads(part["metadata"]["samq_onnx.recipe"]), dict):
            return f"{name}: no recipe"
        linears = {*before["linears"], *before["kept_float"]}
        if not {*part["linears"], *part["kept_float"]} <= linears or not {*part["attentions"]} <= {
            *before["attentions"]
        }:
            return f"{name}: sites that there are not"
        for codes in [*part["linears"].values(), *part["attentions"].values()]:
            if unknown := [key for key in codes if key not in FIELDS]:
                return f"{name}: {unknown}"
            if "q" not in codes and set(codes) != {"input", "weight", "output"}:
                return f"{name}: a linear of {list(codes)} alone"
            for role, numbers in codes.items():
                if numbers is not None and set(numbers) - FIELDS[role]:
                    return f"{name}: {role} has {set(numbers) - FIELDS[role]}"
        if set(part) != PLAN:
            return f"{name}: has {set(part) ^ PLAN}"
    if set(document) != {"format", "constants", "parts"} or set(constants or ("file", "sha256")) != {
        "file",
        "sha256",
    }:
        return "more keys than a plan has"
    if len({part["metadata"].get("samq_onnx.pair") for part in document["parts"].values()}) > 1:
        return "parts of different runs"
    if target not in ("", seed.target):
        return ""
    arrays = _arrays(archive) if constants is not None else seed.arrays
    same = all(array.tobytes() == arrays[name].tobytes() for name, array in seed.arrays.items())
    if same and document == seed.document:
        return "" if _models(output) == seed.models else "the same plan gives another model"
    numbers = ("linears", "attentions", "constants")
    same = same and all(
        _held(part[key]) == _held(seed.document["parts"][name][key])
        for name, part in document["parts"].items()
        for key in numbers
    )
    return "" if same or _models(output) != seed.models else "what differs in the plan is not in the model"


def _held(document: Any) -> Any:
    """Numbers as float32 holds them."""
    if isinstance(document, dict):
        return {name: _held(value) for name, value in document.items()}
    if isinstance(document, list):
        return [_held(value) for value in document]
    return float(np.float32(document)) if isinstance(document, float) else document


def _largest(document: Any) -> float:
    """The largest scale of a plan."""
    if isinstance(document, dict):
        return max([0.0, *(_largest(value) for value in document.values())])
    if isinstance(document, list):
        return max([0.0, *map(_largest, document)])
    return float(document) if isinstance(document, float) else 0.0


def _site_bits(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    seed = state.seeds["encoder"][int(random.integers(3))]
    plan = seed.document["parts"]["model"]
    sites: dict[str, Any] = {}
    for names, roles in ((list(plan["linears"]), ("input", "weight")), (list(plan["attentions"]), "qkv")):
        for name in random.choice(names, int(random.integers(1, 3))):
            sites[str(name)] = {role: int(random.integers(2, 9)) for role in roles if random.random() < 0.7}
    text, changes = json.dumps(sites).encode(), ["nothing"]
    if random.random() < 0.8:
        document, changes = changed_document(sites, random)
        text = json.dumps(document).encode()
    elif random.random() < 0.5:
        text, how = damaged_text(sites, random)
        changes = [how]
    file = folder / "sites.json"
    file.write_bytes(text)
    words = ("--site-bits", file, "--plan-out", folder / "plan.json", "--stats", state.stats, "--method", "minmax")
    arguments = _quantize(state.files, "encoder", folder / "made", *words)
    made = ["made", "plan.json", "plan.json.npz"]
    what = f"site bits {changes}"
    result, detail = _checked(*clean_run(quantize.main, arguments, folder, made))
    if result == FINE:
        wrong = unsound(state.files, "encoder", folder / "made")
        found = read_plans(folder / "plan.json")["model"]
        for site, roles in json.loads(text).items():
            codes: Any = found.linears.get(site) or found.attentions.get(site)
            for role, bits in roles.items():
                coded = getattr(codes, role, None)
                if coded is None or coded.bits != bits:
                    wrong = wrong or f"{site} {role} has {coded}, not {bits} bits"
        result, detail = ("silent", wrong) if wrong else (result, detail)
    if result == REFUSED and changes == ["nothing"]:
        result = "refused a good file"
    return result, f"{what}: {detail}"
