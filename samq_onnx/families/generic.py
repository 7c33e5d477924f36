# SPDX-License-Identifier: Apache-2.0
"""Any other network; one that takes an image is fed images."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from samq_onnx.data import Calibration
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import FAMILIES, OUTPUT, Family, Part, Role, Signature, Turn
from samq_onnx.families.image import ImageInput, ImagePart
from samq_onnx.families.layout import refuse_free_sides
from samq_onnx.families.ports import described, random_input
from samq_onnx.feeds import Feeds

__all__ = ["Generic"]

NAME = "generic"
WANTED = "wanted is one square image [1, 3, S, S], or the inputs of SAM's decoder; give arrays by --feeds FOLDER"


class Generic(Family):
    """See the module."""

    turn = Turn.LAST

    def part(self, signature: Signature) -> Part:
        image = ImageInput.of(signature)
        if image is not None:
            return ImagePart(NAME, Role.GENERIC, signature, image, _outputs(signature))
        return _Unfed(NAME, signature)


FAMILIES.add(NAME)(Generic())


def _outputs(signature: Signature) -> dict[str, str]:
    names = [port.name for port in signature.outputs]
    return {OUTPUT: names[0]} if len(names) == 1 else {}


class _Unfed(Part):
    """A network whose inputs cannot be made from images."""

    role = Role.GENERIC

    @property
    def outputs(self) -> Mapping[str, str]:
        return _outputs(self.signature)

    def feeds(self, calibration: Calibration, encoder: Encoder | str | os.PathLike[str] | None, label: str) -> Feeds:
        self.refuse_encoder(encoder)
        inputs = self.signature.inputs
        refuse_free_sides(inputs, self.where)
        if (half := next((port for port in inputs if port.dtype == "bfloat16"), None)) is not None:
            raise UserError(
                f"{self.where}: its input {half} is of a type that ONNX Runtime takes from no array; export it with "
                "float32 inputs, the inside may be bfloat16"
            )
        raise UserError(f"{self.where}: cannot make inputs from images; it takes {described(inputs)}, {WANTED}")

    def sample_feed(
        self, prompts: int = 1, encoder: Encoder | str | os.PathLike[str] | None = None
    ) -> dict[str, np.ndarray]:
        self.refuse_encoder(encoder)
        refuse_free_sides(self.signature.inputs, self.where)
        random = np.random.default_rng(0)
        return {port.name: random_input(port, random) for port in self.signature.inputs}
