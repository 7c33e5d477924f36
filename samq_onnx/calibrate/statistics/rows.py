# SPDX-License-Identifier: Apache-2.0
"""Rows of a tensor, spread over all inputs, for those who need whole distributions of channels."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken

__all__ = ["RowSamples"]

KEPT = 4 << 20  # bytes of rows
GOLDEN = 0.6180339887498949  # multiples of it are spread evenly modulo one, and follow no row or column of an image
PLASTIC = 0.7548776662466927  # shifts them from input to input, as evenly


class RowSamples(Statistic):
    """Evenly spread rows, along the last axis, of all inputs alike, as many as fit into a bound.

    Of each input the rows are put into an order in which the first few lie as evenly as all; the more inputs there are,
    the fewer of these first ones stay.

    Args:
        channels: how many there are, if that is known.
    """

    def __init__(self, tensor: str, *, channels: int | None = None) -> None:
        self.tensors = (tensor,)
        self.channels = channels
        self._rows: list[np.ndarray] = []
        self._inputs_seen = 0
        self._every = 1  # input is kept

    @property
    def rows(self) -> np.ndarray:
        """Float32 [rows, channels]."""
        return np.concatenate(self._rows)

    def update(self, *arrays: np.ndarray) -> None:
        rows = arrays[0].reshape(-1, arrays[0].shape[-1])
        if self._inputs_seen % self._every == 0:
            places = (np.arange(len(rows)) * GOLDEN + self._inputs_seen * PLASTIC) % 1
            first = np.argsort(places, kind="stable")[: self._bound(rows)]
            self._rows.append(rows[first].astype(np.float32))
        self._inputs_seen += 1
        while len(self._rows) > self._bound(rows):  # more inputs than rows that fit
            self._rows = self._rows[::2]
            self._every *= 2
        each = self._bound(rows) // len(self._rows)
        self._rows = [kept[:each] if len(kept) > each else kept for kept in self._rows]

    @staticmethod
    def _bound(rows: np.ndarray) -> int:
        return max(1, KEPT // (4 * rows.shape[1]))

    def state(self) -> State:
        """Of what it has looked at; a statistic that goes on after `restore` would thin its rows otherwise."""
        return {"rows": self.rows}

    def restore(self, state: State) -> None:
        rows = taken(state, "rows", None, self.channels, dtype=np.float32)
        if not rows.size:
            raise ValueError("no rows")
        self._rows = [rows]
