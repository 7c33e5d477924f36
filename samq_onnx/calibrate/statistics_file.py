# SPDX-License-Identifier: Apache-2.0
"""Statistics kept in a file, so that a second method or width need not see the images again.

The file is an npz without pickled objects. It belongs to float models and images, named by their hashes; what belongs
to others is refused. An entry is named by what was fed (a decoder's embeddings come from a quantized encoder), by the
state of the graph (folds change tensors), and by the statistic's own key.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.errors import UserError
from samq_onnx.files import atomic_path

__all__ = ["StatisticsFile"]

FORMAT = "samq_onnx.statistics/1"
HEADER = "header"
LARGEST = 8 << 30  # bytes that a file may unpack to


class StatisticsFile:
    """Statistics of earlier runs, and those that this one adds.

    Args:
        path: of the file, which need not be there yet.
        owner: what they belong to, name -> hash: float models and images.

    Attributes:
        found, collected: how many statistics came from the file, and how many had to be collected.

    Raises:
        UserError: there is a file that is no statistics file, or one of another model or other images.
    """

    def __init__(self, path: Path, owner: Mapping[str, str]) -> None:
        self.path, self.owner = path, dict(owner)
        self.found = self.collected = 0
        self._states: dict[str, dict[str, np.ndarray]] = {}
        self._changed = False
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > LARGEST:
                raise UserError(f"{self.path}: unpacks to {size / 1e9:.0f} GB; give another file")
            with np.load(self.path, allow_pickle=False) as archive:
                header = json.loads(str(archive[HEADER]))
                if header["format"] != FORMAT:
                    raise ValueError(f"format {header['format']}")
                owner = dict(header["owner"])
                for entry, fields in header["entries"].items():
                    arrays = {field: archive[f"{entry}/{number}"] for number, field in enumerate(fields)}
                    if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays.values()):
                        raise ValueError("numbers that are not finite")
                    self._states[entry] = arrays
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: not statistics of this version ({error}); give another file") from error
        other = sorted(name for name in {*owner, *self.owner} if owner.get(name) != self.owner.get(name))
        if other:
            raise UserError(f"{self.path}: statistics of another {other[0]}; give another file")

    @staticmethod
    def _entry(context: str, statistic: Statistic) -> str:
        return hashlib.sha256(f"{context}\0{statistic.key}".encode()).hexdigest()

    def restore(self, context: str, statistic: Statistic) -> bool:
        """Let a statistic hold what the file has of it; whether it has.

        Args:
            context: what was fed, and the state of the graph.

        Raises:
            UserError: what it has does not fit.
        """
        state = self._states.get(self._entry(context, statistic))
        if state is None:
            return False
        try:
            statistic.restore(state)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{self.path}: damaged ({error}); give another file") from error
        self.found += 1
        return True

    def keep(self, context: str, statistic: Statistic) -> None:
        """Remember what was collected."""
        self._states[self._entry(context, statistic)] = {name: np.asarray(a) for name, a in statistic.state().items()}
        self.collected += 1
        self._changed = True

    def save(self) -> None:
        """Write the file, if there is something new."""
        if not self._changed:
            return
        entries = {entry: list(state) for entry, state in self._states.items()}
        header = json.dumps({"format": FORMAT, "owner": self.owner, "entries": entries})
        arrays: dict[str, Any] = {HEADER: np.array(header)}
        for entry, state in self._states.items():
            arrays.update({f"{entry}/{number}": array for number, array in enumerate(state.values())})
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        self._changed = False
