# SPDX-License-Identifier: Apache-2.0
"""Sizes that are only known in a run: products of a number and of named dimensions, such as 2 * batch.

That is what views make of dimensions. A sum, which concatenation makes, is a dimension that is named after its parts;
remainders of a dimension that is not known have no value here.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Dim", "Product", "divided", "parsed", "product_of", "sum_of", "times"]

MOST_FACTORS = 16
MOST_BITS = 62  # of the number
LONGEST_NAME = 200  # of a sum


@dataclasses.dataclass(frozen=True)
class Product:
    """``number`` times the dimensions of these names, sorted; there is one name at least, and the number is not 0."""

    number: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return "*".join([*([str(self.number)] if self.number != 1 else []), *self.names])


Dim: TypeAlias = "int | Product | None"
"""A size, None where nothing is known of it."""


def parsed(name: str) -> Product:
    """A size by the name that it was given: a number times names."""
    parts, depth = [""], 0
    for letter in name:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "*" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    number = int(parts.pop(0)) if len(parts) > 1 and parts[0].isdecimal() else 1
    return Product(number, tuple(sorted(parts)))


def _made(number: int, names: Iterable[str]) -> Dim:
    found = tuple(sorted(names))
    if not found or number == 0:
        return number
    if len(found) > MOST_FACTORS or abs(number).bit_length() > MOST_BITS:
        return None
    return Product(number, found)


def _parts(dim: int | Product) -> tuple[int, tuple[str, ...]]:
    return (dim, ()) if isinstance(dim, int) else (dim.number, dim.names)


def times(one: Dim, two: Dim) -> Dim:
    """The product."""
    if one is None or two is None:
        return None
    (number, names), (other, others) = _parts(one), _parts(two)
    return _made(number * other, (*names, *others))


def product_of(dims: Iterable[Dim]) -> Dim:
    """The product of all."""
    total: Dim = 1
    for dim in dims:
        total = times(total, dim)
    return total


def sum_of(dims: Iterable[Dim]) -> Dim:
    """The sum of all, by a name that is the same for the same parts in whatever order."""
    known, named = 0, []
    for dim in dims:
        if dim is None:
            return None
        if isinstance(dim, int):
            known += dim
        else:
            named.append(dim)
    if not named or (len(named) == 1 and known == 0):
        return named[0] if named else known
    name = f"({'+'.join([*sorted(map(str, named)), *([str(known)] if known else [])])})"
    return Product(1, (name,)) if len(name) <= LONGEST_NAME else None


def divided(one: Dim, two: Dim) -> Dim:
    """The quotient where it is whole, whatever the named dimensions are; None elsewhere."""
    if one is None or two is None or two == 0:
        return None
    (number, names), (other, others) = _parts(one), _parts(two)
    left = Counter(names)
    left.subtract(others)
    if number % other or min(left.values(), default=0) < 0:
        return None
    return _made(number // other, left.elements())
