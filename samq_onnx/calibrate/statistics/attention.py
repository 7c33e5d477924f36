# SPDX-License-Identifier: Apache-2.0
"""Rows of post-softmax maps, sampled so that no map is ever held whole, for those who choose its codes."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken
from samq_onnx.calibrate.statistics.tensor import TensorStats
from samq_onnx.errors import UserError
from samq_onnx.products import small_products

__all__ = ["AttentionRows", "row_probabilities"]

ENTRIES = 131_072  # map entries of one feed that are looked at
KEPT = 16 << 20  # bytes of samples
LARGEST_LOGIT = 1e35  # leaves room for sums of products, and for what integer kernels multiply it with
ROUNDING = 0.01  # of sums of probabilities
GOLDEN = 0.6180339887498949  # multiples of it are spread evenly modulo one, and follow no row or column of an image


def row_probabilities(
    q: np.ndarray,
    k: np.ndarray,
    rows: np.ndarray,
    scale: float,
    tables: tuple[np.ndarray, np.ndarray] | None,
    bias: np.ndarray | None = None,
    entries: np.ndarray | None = None,
) -> np.ndarray:
    """softmax(scale q kT + rel_h + rel_w + bias) [maps, r, N] of the queries q [maps, r, d] at ``rows`` [maps, r].

    Args:
        tables: [Hq, Hk, d] and [Wq, Wk, d]. bias: [G, M, N], of which map m takes that of entry modulo G.
        entries: int [maps], places of the maps in the batch; all of it in order where None.
    """
    logits = np.float32(scale) * small_products(q, k.transpose(0, 2, 1))
    if tables is not None:
        table_h, table_w = tables
        y, x = np.divmod(rows, len(table_w))
        by_row = (table_h[y] @ q[..., None])[..., 0]
        by_column = (table_w[x] @ q[..., None])[..., 0]
        grid = logits.reshape(*rows.shape, table_h.shape[1], table_w.shape[1])  # a view
        grid += by_row[..., None]
        grid += by_column[..., None, :]
    if bias is not None:
        places = np.arange(len(q)) if entries is None else entries
        logits += bias[(places % len(bias))[:, None], rows]
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    return logits


class AttentionRows(Statistic):
    """Statistic over q [..., M, d], k [..., N, d], v [..., N, d] of one attention site.

    Looks at evenly spread query rows of every map (head, window, prompt), other rows in each map and feed.

    Args:
        tensors: names of q, k, v. scale: of the attention.
        tables: relative position tables [Hq, Hk, d] and [Wq, Wk, d], or None. bias: [G, M, N], or None.

    Attributes:
        probabilities: statistics of all rows that were looked at.
        samples: of evenly spread feeds, as many as fit into a bound, float32 probabilities [maps, rows, N] and v
            [maps, N, d].

    Raises:
        UserError: by `update`, where float32 does not hold the products of queries and keys.
    """

    def __init__(
        self,
        tensors: tuple[str, str, str],
        *,
        scale: float,
        tables: tuple[np.ndarray, np.ndarray] | None,
        bias: np.ndarray | None = None,
        inputs: int | None = None,
    ) -> None:
        self.tensors = tensors
        self.inputs = inputs
        self.scale, self.tables, self.bias = scale, tables, bias
        self.probabilities = TensorStats("probabilities")
        self.samples: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows_seen = 0
        self._feeds_seen = 0
        self._every = 1  # feed is kept

    def update(self, *arrays: np.ndarray) -> None:
        q, k, v = (array.reshape(-1, *array.shape[-2:]) for array in arrays)
        wanted = max(1, ENTRIES // k.shape[1])  # rows over all maps
        chosen = np.arange(len(q))
        if len(q) > wanted:
            chosen = np.linspace(0, len(q) - 1, wanted).astype(int)
            q, k, v = q[chosen], k[chosen], v[chosen]
        maps, queries = q.shape[:2]
        count = min(queries, max(1, wanted // maps))
        if count == queries:
            rows = np.broadcast_to(np.arange(queries), (maps, queries))
        else:
            numbers = np.arange(self._rows_seen, self._rows_seen + maps * count).reshape(maps, count)
            rows = (numbers * GOLDEN % 1 * queries).astype(int)
            self._rows_seen += maps * count
        with np.errstate(over="ignore", invalid="ignore"):
            probabilities = row_probabilities(
                np.take_along_axis(q, rows[..., None], axis=1), k, rows, self.scale, self.tables, self.bias, chosen
            )
        largest = max(1.0, self.scale) * float(np.abs(q).max()) * float(np.abs(k).max())
        if largest > LARGEST_LOGIT or not np.isfinite(probabilities).all():
            raise UserError(
                f"attention of {self.tensors[0]} and {self.tensors[1]}: their products are too large for float32; "
                "check the model"
            )
        self.probabilities.update(probabilities)
        self._keep(probabilities, v)

    def _keep(self, probabilities: np.ndarray, v: np.ndarray) -> None:
        """Keep the sample of each `_every`-th feed; where they become too many, every other goes."""
        if self._feeds_seen % self._every == 0:
            self.samples.append((probabilities, v.astype(np.float32)))
        self._feeds_seen += 1
        while len(self.samples) > 1 and sum(p.nbytes + v.nbytes for p, v in self.samples) > KEPT:
            self.samples = self.samples[::2]
            self._every *= 2

    def state(self) -> State:
        """Of what it has looked at; a statistic that goes on after `restore` would thin its samples otherwise."""
        arrays = {f"probabilities {name}": array for name, array in self.probabilities.state().items()}
        for index, (probabilities, v) in enumerate(self.samples):
            arrays[f"map {index}"], arrays[f"v {index}"] = probabilities, v
        return arrays

    def restore(self, state: State) -> None:
        prefix = "probabilities "
        self.probabilities.restore({n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)})
        count = sum(name.startswith("map ") for name in state)
        if not count:
            raise ValueError("no sample of a map")
        samples = []
        for index in range(count):
            map_ = taken(state, f"map {index}", None, None, None, dtype=np.float32)
            maps, _, keys = map_.shape
            v = taken(state, f"v {index}", maps, keys, None, dtype=np.float32)
            if not map_.size or not v.size or (map_ < 0).any() or (np.abs(map_.sum(axis=-1) - 1) > ROUNDING).any():
                raise ValueError(f"map {index} is none of probabilities")
            samples.append((map_, v))
        self.samples = samples
