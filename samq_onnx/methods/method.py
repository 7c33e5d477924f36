# SPDX-License-Identifier: Apache-2.0
"""What a method is: a name, its paper, its parameters as a frozen dataclass, and the steps that follow from them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from samq_onnx.errors import UserError
from samq_onnx.families import Part
from samq_onnx.methods.scheme import Scheme, Widths
from samq_onnx.methods.step import Step
from samq_onnx.registry import Registry

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "Parameter", "configured", "method", "parameter", "parameters"]

DEFAULT_METHOD = "auto"


class Method(ABC):
    """A frozen dataclass whose fields are its parameters.

    Attributes:
        name: on the command line. paper: where it comes from. summary: what it does, a line.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]

    def widths(self, part: Part, widths: Widths) -> Widths:
        """The widths that the method gives a model where the user asks for ``widths`` and nothing else."""
        return widths

    @abstractmethod
    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        """What it does with a model, in order."""


METHODS: Registry[type[Method]] = Registry("method", "samq_onnx.methods")
Chosen = TypeVar("Chosen", bound=type[Method])


def method(name: str, *, paper: str) -> Callable[[Chosen], Chosen]:
    """Register a method; the first line of its docstring is its summary."""

    def register(cls: Chosen) -> Chosen:
        cls.name, cls.paper = name, paper
        cls.summary = (cls.__doc__ or "").strip().splitlines()[0]
        METHODS.add(name)(cls)
        return cls

    return register


def parameter(
    default: Any, help: str, choices: Callable[[], typing.Iterable[str]] | None = None, most: float = math.inf
) -> Any:
    """A field of a method: its default, what it does, what it may be where that is a name, and a number's largest."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "most": most})


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter as the command line has it; its name is dotted, a number is from 0 to ``most``."""

    name: str
    type: type
    default: Any
    help: str
    choices: Callable[[], typing.Iterable[str]] | None
    most: float = math.inf


def parameters(cls: type) -> Iterator[Parameter]:
    """The parameters of a method, those of its parts with a dot in their name."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            for inner in parameters(type(field.default)):
                yield dataclasses.replace(inner, name=f"{field.name}.{inner.name}")
        else:
            told = field.metadata
            yield Parameter(field.name, hints[field.name], field.default, told["help"], told["choices"], told["most"])


def _parsed(known: Parameter, text: str) -> Any:
    """The value that a word stands for."""
    if known.type is bool:
        words = {"true": True, "false": False}
        if text.lower() not in words:
            raise UserError(f"{known.name}: wanted true or false, got {text!r}")
        return words[text.lower()]
    try:
        value = known.type(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}.get(known.type, known.type.__name__)
        raise UserError(f"{known.name}: wanted {kind}, got {text!r}") from None
    if isinstance(value, (int, float)) and not (0 <= value <= known.most and math.isfinite(value)):
        raise UserError(f"{known.name}: wanted a number from 0 to {known.most:g}, got {text!r}")
    if known.choices is not None and value not in (names := sorted(known.choices())):
        raise UserError(f"{known.name}: no {text!r}; choose one of {', '.join(names)}")
    return value


def _replaced(instance: Any, path: list[str], value: Any) -> Any:
    if len(path) > 1:
        value = _replaced(getattr(instance, path[0]), path[1:], value)
    return dataclasses.replace(instance, **{path[0]: value})


def configured(name: str, settings: Mapping[str, str] | None = None) -> Method:
    """A method with its parameters.

    Args:
        name: of the method. settings: dotted name of a parameter -> its value, in words.

    Raises:
        UserError: there is no such method, parameter or value.
    """
    chosen = METHODS[name]()
    known = {found.name: found for found in parameters(type(chosen))}
    for key, text in (settings or {}).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            others = f"did you mean {near[0]}" if near else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"method {name} has no parameter {key!r}; {others}")
        chosen = _replaced(chosen, key.split("."), _parsed(known[key], str(text)))
    return chosen
