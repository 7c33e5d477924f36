# SPDX-License-Identifier: Apache-2.0
"""What every statistic is: a sight of tensors, once for each calibration input, that can be saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

__all__ = ["State", "Statistic", "taken"]

State: TypeAlias = Mapping[str, np.ndarray]


class Statistic(ABC):
    """Knows no bits and no method, so that all methods and widths can share it.

    Attributes:
        tensors: names of the tensors that it sees, all at once.
        inputs: it sees so many inputs, evenly spread; all if None.
    """

    tensors: tuple[str, ...]
    inputs: int | None = None

    @property
    def key(self) -> str:
        """Equal for statistics that hold the same after the same inputs."""
        return " ".join((type(self).__name__, *self.tensors, *([f"of {self.inputs}"] if self.inputs else [])))

    @abstractmethod
    def update(self, *arrays: np.ndarray) -> None:
        """See the tensors of one more input."""

    @abstractmethod
    def state(self) -> State:
        """All that `restore` needs, as arrays that are no objects."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Hold what was held when ``state`` was taken.

        Raises:
            KeyError, ValueError, TypeError: it is the state of something else.
        """


def taken(state: State, name: str, *shape: int | None, dtype: type = np.float64) -> np.ndarray:
    """An array of a state.

    Args:
        shape: that it has to have; None is any number. dtype: of it.

    Raises:
        KeyError, ValueError: there is none, or it is another one, or not finite.
    """
    array = state[name]
    fits = array.ndim == len(shape) and all(b is None or a == b for a, b in zip(array.shape, shape, strict=True))
    if array.dtype != dtype or not fits or not np.isfinite(array).all():
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, or not finite")
    return array
