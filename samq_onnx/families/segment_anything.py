# SPDX-License-Identifier: Apache-2.0
"""Exports with the interface of segment-anything: ``samq_onnx.export``, Meta's own script, and tools that follow it.

The encoder is told by shapes: one image [N, 3, S, S] in, an embedding [N, C, S/16, S/16] out. The decoder, of one
prompt or of many, is told by the names of its inputs, as Meta's script gives them; they may be of any number type and
with a fixed number of points, which is filled with points that count as none. Its outputs may have any names and be in
any order and among others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from samq_onnx.encoder import Embedding
from samq_onnx.errors import UserError
from samq_onnx.families import EMBEDDING, FAMILIES, IOU, LOW_RES_MASKS, MASKS, Family, Part, Role, Signature
from samq_onnx.families.decoder import MASK_SCALE, DecoderPart
from samq_onnx.families.image import ImageInput, ImagePart
from samq_onnx.families.layout import PATCH
from samq_onnx.families.points import in_number
from samq_onnx.families.ports import Port, described, fit, is_features
from samq_onnx.prompts import FOREGROUND, PADDING_LABEL
from samq_onnx.runtime import run_session

__all__ = ["SegmentAnything", "SegmentAnythingDecoder"]

NAME = "segment_anything"
EMBEDDINGS = "image_embeddings"
COORDS = "point_coords"
LABELS = "point_labels"
INPUTS = (EMBEDDINGS, COORDS, LABELS, "mask_input", "has_mask_input", "orig_im_size")
WANTED = {MASKS: "masks of the image's size", IOU: "predicted IoUs", LOW_RES_MASKS: "low-resolution masks"}

Places = Mapping[str, Sequence[int]]  # role -> places of the outputs that it may be
UNTOLD: Places = dict.fromkeys(WANTED, ())


class SegmentAnything(Family):
    """See the module."""

    def part(self, signature: Signature) -> Part | None:
        if SegmentAnythingDecoder.takes(signature):
            return SegmentAnythingDecoder(signature)
        image = ImageInput.of(signature)
        if image is None:
            return None
        made = [port.name for port in signature.outputs if _may_embed(port, image.size // PATCH)]
        return ImagePart(NAME, Role.ENCODER, signature, image, {EMBEDDING: made[0]}) if made else None

    def why_no_decoder(self, signature: Signature) -> str:
        missing = set(INPUTS) - {port.name for port in signature.inputs}
        return f"has no input {', '.join(sorted(missing))}" if missing else ""


FAMILIES.add(NAME)(SegmentAnything())


def _may_embed(port: Port, grid: int) -> bool:
    """Whether an output is [N, C, grid, grid], as far as is known."""
    return port.shape is None or (len(port.shape) == 4 and all(port.side(axis) in (None, grid) for axis in (2, 3)))


class SegmentAnythingDecoder(DecoderPart):
    """The decoder of one prompt or of many."""

    @staticmethod
    def takes(signature: Signature) -> bool:
        """Whether these are its inputs, whatever else there is but maps of features."""
        names = {port.name for port in signature.inputs}
        others = [port for port in signature.inputs if port.name not in INPUTS]
        return set(INPUTS) <= names and not any(is_features(port) for port in others)

    def __init__(self, signature: Signature) -> None:
        super().__init__(NAME, signature)
        self._ports = {port.name: port for port in signature.inputs}
        self.unknown = tuple(port for port in signature.inputs if port.name not in INPUTS)

    @property
    def embeddings(self) -> tuple[Port, ...]:
        return (self._ports[EMBEDDINGS],)

    def prompt(
        self,
        embedding: Embedding,
        coords: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        wanted = self._ports[COORDS].side(1) or self._ports[LABELS].side(1)
        coords, labels = in_number(coords, labels, wanted, PADDING_LABEL)
        shown = mask is not None
        if mask is None:
            mask = np.zeros((1, 1, *(MASK_SCALE * side for side in embedding[0].shape[2:])), np.float32)
        given = (embedding[0], coords, labels, mask, np.array([shown], np.float32), np.array(size, np.float32))
        return {name: fit(self._ports[name], array) for name, array in zip(INPUTS, given, strict=True)}

    @cached_property
    def outputs(self) -> Mapping[str, str]:
        try:
            places = self._places(self._ports[EMBEDDINGS].side(-1))
        except UserError:  # it does not run, so nothing can be told by what it does
            return {}
        return {role: self.signature.outputs[found[0]].name for role, found in places.items() if len(found) == 1}

    def answers(self, image_size: int) -> Mapping[str, str]:
        ports = self.signature.outputs
        places = self._places(self._ports[EMBEDDINGS].side(-1) or image_size // PATCH)
        for role, found in places.items():
            if len(found) != 1:
                problem = "several outputs may be" if found else "no output is"
                raise UserError(
                    f"{self.where}: not a SAM decoder ({problem} the {WANTED[role]}: {described(ports)}); "
                    "see samq_onnx.export"
                )
        return {role: ports[found[0]].name for role, found in places.items()}

    def _places(self, grid: int | None) -> Places:
        """By shape and, where that leaves several, by what they do on images of two sizes.

        Args:
            grid: side of the embedding, if it is known.
        """
        if grid is None:
            return UNTOLD
        ports = self.signature.outputs
        places = _by_shape([port.shape for port in ports], MASK_SCALE * grid)
        if any(len(found) != 1 for found in places.values()):
            places = self._by_trial(grid)
        if len(places[IOU]) > 1:
            called_so = [place for place in places[IOU] if "iou" in ports[place].name.lower()]
            places = {**places, IOU: called_so or places[IOU]}
        return places

    def _by_trial(self, grid: int) -> Places:
        """What follows the size of the image, and what does not depend on it: scores of the final masks do, predicted
        IoUs do not."""
        random = np.random.default_rng(0)
        channels = self._ports[EMBEDDINGS].side(1)
        if channels is None or self.unknown:
            return UNTOLD
        embedding = random.standard_normal((1, channels, grid, grid), np.float32)
        coords = np.array([[[grid, grid], [0, 0]]], np.float32)
        labels = np.array([[FOREGROUND, PADDING_LABEL]], np.float32)
        side = MASK_SCALE * grid
        sizes = ((side + 3, side + 5), (side + 9, side + 2))
        session = self.signature.session()
        one, two = (
            run_session(session, self.prompt((embedding,), coords, labels, None, size), self.where) for size in sizes
        )
        pairs = list(zip(one, two, strict=True))
        same = [place for place, (first, second) in enumerate(pairs) if np.array_equal(first, second)]
        low_res = [place for place in same if pairs[place][0].shape[2:] == (side, side)]
        followed = [place for place, pair in enumerate(pairs) if tuple(one.shape[2:] for one in pair) == sizes]
        masks = followed or [place for place, pair in enumerate(pairs) if pair[0].ndim == 4 and place not in low_res]
        return {MASKS: masks, IOU: [place for place in same if pairs[place][0].ndim == 2], LOW_RES_MASKS: low_res}


def _by_shape(shapes: Sequence[tuple[int | str | None, ...] | None], side: int) -> Places:
    """Outputs of the right ranks; only low-resolution masks are of a side known beforehand."""
    if None in shapes:
        return UNTOLD
    low_res = [place for place, shape in enumerate(shapes) if shape and len(shape) == 4 and shape[2:] == (side, side)]
    masks = [place for place, shape in enumerate(shapes) if shape and len(shape) == 4 and place not in low_res]
    iou = [place for place, shape in enumerate(shapes) if shape and len(shape) == 2]
    return {MASKS: masks, IOU: iou, LOW_RES_MASKS: low_res}
