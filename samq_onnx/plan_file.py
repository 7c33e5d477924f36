# SPDX-License-Identifier: Apache-2.0
"""Plans as files: numbers in JSON, moved constants in an npz beside it, named there by its hash.

A file holds the plans of the models that were quantized together: ``encoder`` and ``decoder``, or ``model`` alone.
Reading takes nothing on trust: what is not as it is written here is refused, with the place.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from samq_onnx.archives import read_arrays
from samq_onnx.codes import PROBABILITY_CODES, HybridCodes, UniformCodes, WeightCodes
from samq_onnx.digest import sha256_of
from samq_onnx.documents import brief, read_document
from samq_onnx.errors import UserError
from samq_onnx.files import atomic_path, write_json
from samq_onnx.plan import AttentionPlan, LinearPlan, QuantPlan

__all__ = ["constants_path", "plan_from_json", "plan_to_json", "read_plans", "write_plans"]

FORMAT = "samq_onnx.plan/1"
WANTED = "give what quantize --plan-out wrote"
LONGEST_NAME = 255  # bytes of the name of a file
LARGEST_CONSTANTS = 16 << 30  # bytes that the constants may unpack to

T = TypeVar("T")


def constants_path(path: Path) -> Path:
    """Where the moved constants of a plan file are written."""
    return path.with_name(f"{path.name}.npz")


def plan_to_json(plan: QuantPlan) -> dict[str, Any]:
    """A plan as plain JSON types, without what its moved constants hold."""
    return {
        "target": plan.target,
        "weight_bits": plan.weight_bits,
        "linears": {name: _linear_to_json(linear) for name, linear in plan.linears.items()},
        "attentions": {
            name: {
                **{role: dataclasses.asdict(getattr(site, role)) for role in "qkv"},
                "probabilities": {
                    "kind": site.probabilities.kind,
                    **dataclasses.asdict(typing.cast(Any, site.probabilities)),
                },
            }
            for name, site in plan.attentions.items()
        },
        "kept_float": plan.kept_float,
        "constants": list(plan.constants),
        "metadata": plan.metadata,
    }


def plan_from_json(value: Mapping[str, Any], file: str | os.PathLike[str]) -> QuantPlan:
    """The plan that `plan_to_json` gave; its moved constants are left empty.

    Args:
        file: that it was read from, for messages.

    Raises:
        UserError: it is none.
    """
    return _Reader(Path(file)).plan(value, "plan")


def _linear_to_json(linear: LinearPlan) -> dict[str, Any]:
    """Its hybrid codes only if there are any."""
    found = dataclasses.asdict(linear)
    return found if linear.hybrid is not None else {name: value for name, value in found.items() if name != "hybrid"}


def write_plans(path: str | os.PathLike[str], plans: Mapping[str, QuantPlan]) -> None:
    """Write plans, by the name of their model; the constants first, so that a plan never names what is not there."""
    file = Path(path)
    arrays = [array for plan in plans.values() for array in plan.constants.values()]
    digest = None
    if arrays:
        with atomic_path(constants_path(file)) as temporary:
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, *arrays)
            digest = sha256_of(temporary)
    constants = {"file": constants_path(file).name, "sha256": digest} if digest else None
    parts = {name: plan_to_json(plan) for name, plan in plans.items()}
    write_json(file, {"format": FORMAT, "constants": constants, "parts": parts})


def read_plans(path: str | os.PathLike[str]) -> dict[str, QuantPlan]:
    """Read plans, by the name of their model.

    Raises:
        UserError: no such file, not a plan of this version, or the constants are missing or others.
    """
    file = Path(path)
    document = read_document(file, WANTED)
    reader = _Reader(file)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{file}: format: not a plan of this version; {WANTED}")
    reader.only(document, ("format", "constants", "parts"), "")
    named = reader.get(document, "parts", dict, "")
    plans = {name: reader.plan(reader.get(named, name, dict, "parts"), name) for name in named}
    if not plans:
        raise reader.refusal("parts", "no plan")
    names = [(plan, name) for plan in plans.values() for name in plan.constants]
    if names:
        entry = reader.get(document, "constants", dict, "")
        reader.only(entry, ("file", "sha256"), "constants")
        name = reader.get(entry, "file", str, "constants")
        if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise reader.refusal("constants.file", "no name of a file")
        beside = file.with_name(Path(name).name or "-")
        arrays = _read_constants(beside, reader.get(entry, "sha256", str, "constants"), file)
        if len(arrays) != len(names):
            raise reader.refusal("constants", f"{beside.name} has {len(arrays)} arrays, the plan {len(names)} names")
        for (plan, name), array in zip(names, arrays, strict=True):
            plan.constants[name] = array
    elif document.get("constants", "") is not None:
        raise reader.refusal("constants", "wanted null, as no part names any")
    return plans


def _read_constants(path: Path, digest: str, plan: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; it goes with {plan}, keep them together")
    if sha256_of(path) != digest:
        raise UserError(f"{path}: is not the file that {plan} was written with; give both as they were")
    try:
        held = read_arrays(path, LARGEST_CONSTANTS)
        arrays = [held[f"arr_{index}"] for index in range(len(held))]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not the constants of a plan ({error}); quantize again") from error
    for array in arrays:
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise UserError(f"{path}: has constants that are no finite float32 numbers; quantize again")
    return arrays


def _shown(value: object) -> str:
    """A number or a word; of other things, what they are."""
    return repr(value)[:40] if isinstance(value, (str, float, bool)) or value is None else type(value).__name__


class _Reader:
    """Takes a document apart; messages name the file and the place in it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def refusal(self, place: str, problem: str) -> UserError:
        return UserError(f"{self._file}: {'.'.join(map(brief, place.split('.')))}: {problem}; {WANTED}")

    def only(self, parent: Mapping[str, Any], keys: Iterable[str], place: str) -> None:
        """Refuse what no plan says."""
        unknown = next((key for key in parent if key not in keys), None)
        if unknown is not None:
            raise self.refusal(f"{place}.{unknown}".lstrip("."), "unknown")

    def get(self, parent: Mapping[str, Any], key: str, kind: type[T] | tuple[type, ...], place: str) -> T:
        value = parent.get(key)
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise self.refusal(f"{place}.{key}".lstrip("."), f"wanted {wanted[-1].__name__}, got {_shown(value)}")
        return typing.cast(T, value)

    def _strings(self, parent: Mapping[str, Any], key: str, place: str) -> dict[str, str]:
        found: dict[str, Any] = self.get(parent, key, dict, place)
        return {name: self.get(found, name, str, f"{place}.{key}") for name in found}

    def plan(self, value: Mapping[str, Any], place: str) -> QuantPlan:
        linears = self.get(value, "linears", dict, place)
        attentions = self.get(value, "attentions", dict, place)
        constants = self.get(value, "constants", list, place)
        self.only(value, [field.name for field in dataclasses.fields(QuantPlan)], place)
        if not all(isinstance(name, str) for name in constants) or len(set(constants)) != len(constants):
            raise self.refusal(f"{place}.constants", "wanted different names")
        return QuantPlan(
            target=self.get(value, "target", str, place),
            weight_bits=self.get(value, "weight_bits", int, place),
            linears={n: self._linear(self.get(linears, n, dict, place), f"{place}.{n}") for n in linears},
            attentions={n: self._attention(self.get(attentions, n, dict, place), f"{place}.{n}") for n in attentions},
            kept_float=self._strings(value, "kept_float", place),
            constants=dict.fromkeys(constants, np.zeros(0, np.float32)),
            metadata=self._strings(value, "metadata", place),
        )

    def _linear(self, value: Mapping[str, Any], place: str) -> LinearPlan:
        output = value.get("output", "")
        self.only(value, ("input", "weight", "output", "hybrid"), place)
        hybrid = self.get(value, "hybrid", dict, place) if "hybrid" in value else None
        return LinearPlan(
            self._uniform(value, "input", place),
            self._weight(self.get(value, "weight", dict, place), f"{place}.weight"),
            self._uniform(value, "output", place) if output is not None else None,
            self._codes(HybridCodes, hybrid, f"{place}.hybrid") if hybrid is not None else None,
        )

    def _attention(self, value: Mapping[str, Any], place: str) -> AttentionPlan:
        self.only(value, (*"qkv", "probabilities"), place)
        q, k, v = (self._uniform(value, role, place) for role in "qkv")
        given: dict[str, Any] = self.get(value, "probabilities", dict, place)
        place = f"{place}.probabilities"
        kind = self.get(given, "kind", str, place)
        if kind not in PROBABILITY_CODES:
            raise self.refusal(f"{place}.kind", f"unknown {kind[:40]!r}")
        numbers = {name: number for name, number in given.items() if name != "kind"}
        return AttentionPlan(q, k, v, self._codes(PROBABILITY_CODES[kind], numbers, place))

    def _uniform(self, parent: Mapping[str, Any], key: str, place: str) -> UniformCodes:
        return self._codes(UniformCodes, self.get(parent, key, dict, place), f"{place}.{key}")

    def _weight(self, value: Mapping[str, Any], place: str) -> WeightCodes:
        self.only(value, ("scale", "bits"), place)
        scales = self.get(value, "scale", list, place)
        if not scales or not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in scales):
            raise self.refusal(f"{place}.scale", "wanted numbers")
        bits = self.get(value, "bits", int, place)
        return self._made(lambda: WeightCodes(tuple(map(float, scales)), bits), place)

    def _codes(self, cls: type[T], value: Mapping[str, Any], place: str) -> T:
        """Codes of the numbers that are the fields of their class."""
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
        self.only(value, names, place)
        kinds = {name: hints[name] for name in names}
        given = {
            name: self.get(value, name, (int, float) if kind is float else kind, place) for name, kind in kinds.items()
        }
        return self._made(lambda: cls(**{name: kind(given[name]) for name, kind in kinds.items()}), place)

    def _made(self, make: Callable[[], T], place: str) -> T:
        try:
            return make()
        except (ValueError, OverflowError) as error:
            raise self.refusal(place, str(error)) from error
