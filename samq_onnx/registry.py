# SPDX-License-Identifier: Apache-2.0
"""Things of one kind by name: a file that registers its own is found without being listed anywhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from samq_onnx.errors import UserError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """What the modules of a package have registered, by name; the modules are imported when the first is asked for.

    Args:
        what: one of them, in messages. packages: whose modules register some.
    """

    def __init__(self, what: str, *packages: str) -> None:
        self._what, self._packages = what, packages
        self._entries: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str) -> Callable[[T], T]:
        """A decorator that registers what it decorates.

        Raises:
            ValueError: the name is taken.
        """

        def register(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"two of the kind {self._what} have the name {name}")
            self._entries[name] = entry
            return entry

        return register

    def _load(self) -> dict[str, T]:
        if not self._loaded:
            self._loaded = True
            for package in map(importlib.import_module, self._packages):
                for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
                    if not module.name.startswith("_"):  # no __main__
                        importlib.import_module(f"{package.__name__}.{module.name}")
        return self._entries

    def __getitem__(self, name: str) -> T:
        """The one of this name.

        Raises:
            UserError: there is none.
        """
        if name not in self._load():
            raise UserError(f"unknown {self._what} {name!r}; choose one of {', '.join(sorted(self))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())
