# SPDX-License-Identifier: Apache-2.0
"""What `attention_repair` needs to know of an attention: second moments of inputs and of coded operands, head by head.

Operands are seen where their linears make them, [..., rows, out], and ``channels`` [heads, d] tells which channels are
a head's.
"""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics import State, Statistic, taken
from samq_onnx.codes import ProbabilityCodes, UniformCodes

__all__ = ["LogitMoments", "ValueMoments"]

ROWS_PER_FEED = 512  # evenly spread


def _some(array: np.ndarray) -> np.ndarray:
    """[..., rows, channels] as [batch, rows, channels], float64, at most so many rows of each batch."""
    rows = array.reshape(-1, *array.shape[-2:])
    return rows[:, :: -(-rows.shape[1] // ROWS_PER_FEED)].astype(np.float64)


def _centred(array: np.ndarray) -> np.ndarray:
    """Less the mean of the rows of each batch: [batch, rows, ...]."""
    centred: np.ndarray = array - array.mean(axis=1, keepdims=True)
    return centred


def _with_ones(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], axis=-1)


class LogitMoments(Statistic):
    """Of the input of one projection, q or k, and of the operand of the other, float and through its codes.

    Args:
        x: the projection's input. partner: output of the linear that makes the other operand.
        channels: of the partner. codes: of the partner. keys: whether the partner is k, or else q.

    What belongs to k is centred.

    Attributes:
        gram: float64 [in + 1, in + 1], of (x, 1) or of centred x with zeros.
        partner, error: float64 [heads, d, d], B and E. mean: of x, float64 [in].
    """

    def __init__(self, x: str, partner: str, channels: np.ndarray, codes: UniformCodes, *, keys: bool) -> None:
        self.tensors = (x, partner)
        self.channels, self.codes, self.keys = channels, codes, keys
        heads, d = channels.shape
        self.gram = np.zeros((0, 0))
        self.partner, self.error = np.zeros((heads, d, d)), np.zeros((heads, d, d))
        self._sum, self._rows = np.zeros(0), 0

    @property
    def key(self) -> str:
        return f"{super().key} {self.codes} {self.keys}"

    def update(self, *arrays: np.ndarray) -> None:
        x, other = (_some(array) for array in arrays)
        if not self._rows:
            self.gram = np.zeros((x.shape[-1] + 1, x.shape[-1] + 1))
            self._sum = np.zeros(x.shape[-1])
        seen = _with_ones(x)
        if not self.keys:
            seen = _centred(seen)
        seen = seen.reshape(-1, seen.shape[-1])
        self.gram += seen.T @ seen
        self._sum += x.sum(axis=(0, 1))
        self._rows += x.shape[0] * x.shape[1]
        held = other[..., self.channels]  # [batch, rows, heads, d]
        coded = self.codes.fake_quantize(held)
        lost = held - coded
        if self.keys:
            coded, lost = _centred(coded), _centred(lost)
        self.partner += np.einsum("brhi,brhj->hij", coded, coded)
        self.error += np.einsum("brhi,brhj->hij", lost, coded)

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self._rows

    def state(self) -> State:
        return {
            "gram": self.gram,
            "partner": self.partner,
            "error": self.error,
            "sum": self._sum,
            "rows": np.array(self._rows),
        }

    def restore(self, state: State) -> None:
        total, rows = taken(state, "sum", None), int(taken(state, "rows", dtype=np.int64))
        width, (heads, d) = total.size + 1, self.channels.shape
        inputs = taken(state, "gram", width, width)
        partner, error = (taken(state, name, heads, d, d) for name in ("partner", "error"))
        if rows < 1 or (np.diag(inputs) < 0).any() or (np.diagonal(partner, axis1=1, axis2=2) < 0).any():
            raise ValueError("moments of no rows")
        self.gram, self.partner, self.error, self._sum, self._rows = inputs, partner, error, total, rows


class ValueMoments(Statistic):
    """Of the values' input, weighed by the coded map, and of the error of the attention's output.

    Args:
        x: input of the linear that makes v. operands: outputs of the linears that make q, k and v.
        channels: of each. codes: of each. probabilities: of the map. scale: of the attention.

    Attributes:
        gram: (A^ X~)^T A^ X~, float64 [heads, in + 1, in + 1].
        target: (A^ X~)^T (A V - A^ V^), float64 [heads, in + 1, d].
    """

    def __init__(
        self,
        x: str,
        operands: tuple[str, str, str],
        channels: tuple[np.ndarray, np.ndarray, np.ndarray],
        codes: tuple[UniformCodes, UniformCodes, UniformCodes],
        probabilities: ProbabilityCodes,
        scale: float,
    ) -> None:
        self.tensors = (x, *operands)
        self.channels, self.codes, self.probabilities, self.scale = channels, codes, probabilities, scale
        self.gram = self.target = np.zeros((len(channels[2]), 0, 0))

    @property
    def key(self) -> str:
        return f"{super().key} {self.codes} {self.probabilities}"

    def update(self, *arrays: np.ndarray) -> None:
        x, k, v = (array.reshape(-1, *array.shape[-2:]).astype(np.float64) for array in (arrays[0], *arrays[2:]))
        heads = [one[..., c].swapaxes(1, 2) for one, c in zip((_some(arrays[1]), k, v), self.channels, strict=True)]
        coded = [codes.fake_quantize(one) for one, codes in zip(heads, self.codes, strict=True)]
        exact = self._map(heads[0], heads[1])
        made = self.probabilities.fake_quantize(self._map(coded[0], coded[1]).astype(np.float32)).astype(np.float64)
        lost = exact @ heads[2] - made @ coded[2]
        weighed = made @ _with_ones(x)[:, None]  # [batch, heads, rows, in + 1]
        if not self.gram.size:
            count, width = weighed.shape[1], weighed.shape[-1]
            self.gram, self.target = np.zeros((count, width, width)), np.zeros((count, width, lost.shape[-1]))
        flat = weighed.swapaxes(0, 1).reshape(len(self.gram), -1, weighed.shape[-1])
        turned = flat.swapaxes(1, 2)
        self.gram += turned @ flat
        self.target += turned @ lost.swapaxes(0, 1).reshape(len(flat), -1, lost.shape[-1])

    def _map(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        logits = self.scale * (q @ k.swapaxes(-1, -2))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
        return shares

    def state(self) -> State:
        return {"gram": self.gram, "target": self.target}

    def restore(self, state: State) -> None:
        heads, d = self.channels[2].shape
        inputs = taken(state, "gram", heads, None, None)
        target = taken(state, "target", heads, inputs.shape[1], d)
        if inputs.shape[1] != inputs.shape[2] or (np.diagonal(inputs, axis1=1, axis2=2) < 0).any():
            raise ValueError("moments of no rows")
        self.gram, self.target = inputs, target
