# SPDX-License-Identifier: Apache-2.0
"""A row of the accuracy benchmark: a method with parameters at a width, in one word."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from samq_onnx.errors import UserError
from samq_onnx.methods import METHODS, Widths, configured, parameters

__all__ = ["FLOAT", "Row"]

STRICT = "-strict"
WORD = re.compile(r"(?P<method>[^:@]+)(:(?P<settings>[^@]+))?@(?P<bits>w\da\d)(?P<strict>-strict)?")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
        method: of ours, or a peer's name. bits: ``wXaY``, nothing of a float model. settings: parameters.
        strict: the same width everywhere.
    """

    method: str
    bits: str
    settings: tuple[tuple[str, str], ...] = ()
    strict: bool = False

    @classmethod
    def parse(cls, text: str) -> Row:
        """The row of a word, METHOD[:NAME=VALUE,...]@wXaY[-strict].

        Raises:
            UserError: it is none.
        """
        if text == FLOAT.method:
            return FLOAT
        found = WORD.fullmatch(text)
        settings = [tuple(word.split("=", 1)) for word in (found["settings"] or "").split(",") if word] if found else []
        if found is None or any(len(pair) != 2 for pair in settings):
            raise UserError(
                f"row {text!r}: wanted METHOD@wXaY, METHOD:NAME=VALUE,NAME=VALUE@wXaY, or either with {STRICT}"
            )
        return cls(found["method"], found["bits"], tuple(settings), found["strict"] is not None)

    def check(self) -> None:
        """Refuse a method, parameter, value or width of ours that there is not.

        Raises:
            UserError: there is not.
        """
        configured(self.method, dict(self.settings))
        Widths.parse(self.bits)

    def with_settings(self, settings: Mapping[str, str]) -> Row:
        """The row with those parameters that its method has, where it has no own value of them."""
        known = {found.name for found in parameters(METHODS[self.method])} if self.method in METHODS else set()
        mine = {name: value for name, value in settings.items() if name in known} | dict(self.settings)
        return dataclasses.replace(self, settings=tuple(mine.items()))

    @property
    def widths(self) -> list[int]:
        """Bits of weights and activations, nothing of a float model."""
        return [int(bits) for bits in self.bits if bits.isdigit()]

    @property
    def name(self) -> str:
        """Method and parameters."""
        return self.method + (
            ":" + ",".join(f"{name}={value}" for name, value in self.settings) if self.settings else ""
        )

    @property
    def width(self) -> str:
        """Bits, and whether they are strict."""
        return self.bits + (STRICT if self.strict else "")

    def __str__(self) -> str:
        return f"{self.name}@{self.width}" if self.bits else self.name


FLOAT = Row("float", "")
