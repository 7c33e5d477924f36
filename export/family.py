# SPDX-License-Identifier: Apache-2.0
"""`Family`: checkpoints of one package, in sizes that have names."""

from __future__ import annotations

import abc
import importlib
import importlib.util
import warnings
from collections.abc import Container
from typing import Any, ClassVar

from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.checkpoint import StateDict
from samq_onnx.export.part import Part
from samq_onnx.export.torchvision_ops import import_torchvision

__all__ = ["Family", "package"]


class Family(abc.ABC):
    """Checkpoints of one package.

    Attributes:
        types: names of its sizes.
    """

    types: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def takes(self, names: Container[str]) -> bool:
        """Whether a checkpoint that has tensors of these names is one of its own."""

    @abc.abstractmethod
    def make(self, model_type: str) -> nn.Module:
        """A model of that size with initial weights.

        Raises:
            UserError: its package is not installed.
        """

    def own(self, state: StateDict) -> StateDict:
        """Those tensors of a checkpoint that its models hold."""
        return state

    @abc.abstractmethod
    def parts(self, model: Any, batched: bool) -> list[Part]:
        """The files that a model becomes.

        Raises:
            UserError: a batched decoder, and there is none.
        """

    @abc.abstractmethod
    def image_size(self, model: Any) -> int:
        """Side of the square image."""


def package(name: str, install: str) -> Any:
    """A package that only some checkpoints need.

    Raises:
        UserError: it is not installed, or its import fails.
    """
    import_torchvision()
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise UserError(f"this checkpoint needs the package {install}; run: pip install {install}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on what they import in turn
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"the package {install} needs {error.name}; run: pip install {error.name}") from error
    except Exception as error:  # whatever else it raises
        raise UserError(
            f"the package {install} does not load ({type(error).__name__}: {error}); reinstall it"
        ) from error
