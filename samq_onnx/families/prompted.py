# SPDX-License-Identifier: Apache-2.0
"""Decoders of the relatives of SAM, whose inputs and outputs have other names, ranks and numbers.

What an input is, is told by its name and its shape together:

    points        *point* or *coord*, [B, n, 2] or, of Hugging Face, [B, prompts, n, 2]
    labels        *label*, the same without the last axis
    boxes         *box*, [B, n, 4]; left empty, since points say the same, or filled where points cannot
    mask          *mask*, [B, 1, L, L], with a flag *has*mask* [1]
    image size    *size*, [2]; with prompts of a rank more, as of EfficientSAM, points are in pixels of that image
    embeddings    all other maps of numbers: the embedding itself, its positions, features of higher resolution (SAM 2),
                  intermediate ones (SAM-HQ)

An output is masks of a fixed side, masks of the image's size, predicted IoUs (*iou* or *score*), or something else. A
decoder that only gives low-resolution masks leaves it to us to bring them to the size of the image, and one that gives
no low-resolution ones to make these. One that gives only the three masks of an ambiguous prompt gets the best of these
in front of them. A file that takes an image in the place of embeddings is both encoder and decoder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnxruntime as ort

from samq_onnx.data import Calibration
from samq_onnx.encoder import Embedding, Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import FAMILIES, IOU, LOW_RES_MASKS, MASKS, Family, Part, Role, Signature
from samq_onnx.families.decoder import MASK_SCALE, Answer, DecoderPart, random_embedding
from samq_onnx.families.image import ImageInput, sample_image
from samq_onnx.families.layout import PATCH
from samq_onnx.families.points import in_number
from samq_onnx.families.ports import NUMBERS, Port, described, fit, is_features, random_input
from samq_onnx.families.resize import bilinear, to_image
from samq_onnx.families.segment_anything import SegmentAnythingDecoder
from samq_onnx.feeds import WholeFeeds
from samq_onnx.prompts import BOX_LABELS, FOREGROUND, PADDING_LABEL
from samq_onnx.runtime import run_session

__all__ = ["Prompted", "PromptedDecoder", "WholePart"]

NAME = "prompted"
POINTS, LABELS, BOXES, MASK, HAS_MASK, SIZE, FEATURES = (
    "points",
    "labels",
    "boxes",
    "mask",
    "has mask",
    "size",
    "features",
)
AMBIGUOUS_MASKS = 3
NO_POINT = -10.0  # Hugging Face's label of what counts as nothing at all


class Prompted(Family):
    """See the module."""

    def part(self, signature: Signature) -> Part | None:
        if SegmentAnythingDecoder.takes(signature):
            return None
        roles = _roles(signature.inputs)
        if not {POINTS, LABELS, FEATURES} <= set(roles):
            return None
        first, *more = roles[FEATURES]
        image = ImageInput.at(signature, first) if not more else None
        return PromptedDecoder(signature, roles) if image is None else WholePart(signature, roles, image)


FAMILIES.add(NAME)(Prompted())


def _roles(ports: Sequence[Port]) -> dict[str, tuple[Port, ...]]:
    """Role -> the inputs that have it."""
    roles: dict[str, tuple[Port, ...]] = {}
    for port in ports:
        role = _role(port)
        if role is not None:
            roles[role] = (*roles.get(role, ()), port)
    return roles if all(len(found) == 1 for role, found in roles.items() if role != FEATURES) else {}


def _role(port: Port) -> str | None:
    name, shape = port.name.lower(), port.shape
    rank = len(shape) if shape is not None else None
    if port.dtype not in NUMBERS:
        return None
    if ("point" in name or "coord" in name) and "label" not in name and rank in (3, 4) and port.side(-1) in (2, None):
        return POINTS
    if "label" in name and rank in (2, 3):
        return LABELS
    if "box" in name and rank == 3 and port.side(-1) in (4, None):
        return BOXES
    if "mask" in name and rank == 1:
        return HAS_MASK
    if "mask" in name and rank == 4 and port.side(1) in (1, None):
        return MASK
    if "size" in name and rank == 1:
        return SIZE
    return FEATURES if is_features(port) else None


class PromptedDecoder(DecoderPart):
    """A decoder whose inputs have roles."""

    def __init__(self, signature: Signature, roles: Mapping[str, tuple[Port, ...]]) -> None:
        super().__init__(NAME, signature)
        self._roles = roles
        known = {port.name for found in roles.values() for port in found}
        self.unknown = tuple(port for port in signature.inputs if port.name not in known)
        self._nested = len(roles[POINTS][0].shape or ()) == 4  # prompts have an axis of their own
        self._embeddings = tuple(sorted(roles.get(FEATURES, ()), key=_precedence))
        self._in_image = self._nested and SIZE in roles  # as in EfficientSAM, which is told the size to know places
        pyramid = len({port.shape[-2:] for port in self._embeddings if port.shape is not None}) > 2
        self.stretched = pyramid or self._in_image
        self._corners_are_points = not self._nested or (self.stretched and BOXES not in roles)  # as in SAM 2
        self.takes_boxes = self._corners_are_points or BOXES in roles

    @property
    def embeddings(self) -> tuple[Port, ...]:
        return self._embeddings

    def prompt(
        self,
        embedding: Embedding,
        coords: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        pairs = zip(self._embeddings, embedding, strict=True)
        feed = {
            port.name: fit(port, made[: port.side(0)]) for port, made in pairs
        }  # the first layers, where it takes less
        boxes = np.zeros((1, 0, 4), np.float32)
        if self._nested:
            coords, labels, boxes = self._without_boxes(coords, labels)
        elif self.stretched and not (labels == PADDING_LABEL).any():  # SAM 2 lets padding follow a box, too
            coords, labels = np.pad(coords, ((0, 0), (0, 1), (0, 0))), _padded(labels)
        if self._in_image:
            coords = coords * np.divide(size[::-1], self.frame)
        points, kinds = self._roles[POINTS][0], self._roles[LABELS][0]
        wanted = points.side(-2) or kinds.side(-1)
        coords, labels = in_number(
            coords, labels, wanted, PADDING_LABEL if self._in_image or not self._nested else NO_POINT
        )
        side = self.mask_side(embedding) if MASK in self._roles else 0
        given = {
            POINTS: coords[None] if self._nested else coords,
            LABELS: labels[None] if len(kinds.shape or ()) == 3 else labels,
            BOXES: boxes,
            MASK: np.zeros((1, 1, side, side), np.float32) if mask is None else mask,
            HAS_MASK: np.array([mask is not None], np.float32),
            SIZE: np.array(size, np.float32),
        }
        if mask is not None and HAS_MASK not in self._roles:
            raise UserError(f"{self.where}: takes no mask as a prompt; give points or a box")
        return feed | {
            found[0].name: fit(found[0], given[role]) for role, found in self._roles.items() if role in given
        }

    def _without_boxes(self, coords: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points without the corners of boxes and without padding, which such a model adds itself; boxes [1, B, 4].

        Raises:
            UserError: a box, and the model takes none.
        """
        corner = np.isin(labels, BOX_LABELS) & (not self._corners_are_points)
        boxes = np.zeros((1, 0, 4), np.float32)
        if corner.any():
            if not self.takes_boxes:
                raise UserError(f"{self.where}: takes points and no boxes; prompt with points")
            boxes = coords[corner].reshape(1, len(coords), 4).astype(np.float32)
        kept = ~corner & (labels != PADDING_LABEL)
        kept[:, 0] |= ~kept.any(axis=1)  # one point that counts as none, so that there is one
        count = int(kept.sum(axis=1).max())
        moved = np.where(corner, NO_POINT, labels)
        order = np.argsort(~kept, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(coords, order[..., None], axis=1), np.take_along_axis(moved, order, axis=1), boxes

    @cached_property
    def outputs(self) -> Mapping[str, str]:
        grid = self._embeddings[0].side(-1)
        return self.told(MASK_SCALE * grid) if grid is not None else {}

    def told(self, side: int) -> dict[str, str]:
        """Role -> the output that has it; roles that several outputs may have are left out."""
        found: dict[str, list[str]] = {}
        for port, shape in zip(self.signature.outputs, self._shapes(side), strict=True):
            name = port.name.lower()
            if shape is None:
                continue
            if len(shape) in (4, 5):
                found.setdefault(LOW_RES_MASKS if shape[-2:] == (side, side) else MASKS, []).append(port.name)
            elif len(shape) in (2, 3) and ("iou" in name or "score" in name) and "object" not in name:
                found.setdefault(IOU, []).append(port.name)
        if LOW_RES_MASKS not in found and SIZE not in self._roles and MASKS in found:
            found[LOW_RES_MASKS] = found.pop(MASKS)  # nothing tells it the size of the image
        return {role: names[0] for role, names in found.items() if len(names) == 1}

    def _shapes(self, side: int) -> list[tuple[int | str | None, ...] | None]:
        """Of the outputs; where sides of maps are not known, those of a run on an image of other sides than masks."""
        ports = self.signature.outputs
        maps = [port for port in ports if port.shape is None or len(port.shape) > 3]
        if SIZE not in self._roles or all(port.shape is not None and port.side(-1) is not None for port in maps):
            return [port.shape for port in ports]
        random = np.random.default_rng(0)
        coords, labels = np.full((1, 1, 2), side, np.float32), np.full((1, 1), FOREGROUND, np.float32)
        embedding = tuple(random_embedding(port, random) for port in self._embeddings)
        try:
            feed = self.prompt(embedding, coords, labels, None, (side + 3, side + 5))
            return [made.shape for made in run_session(self.signature.session(), feed, self.where)]
        except UserError:  # it does not run, so nothing can be told by what it does
            return [port.shape for port in ports]

    def answers(self, image_size: int) -> Mapping[str, str]:
        told = self.told(MASK_SCALE * (self._embeddings[0].side(-1) or image_size // PATCH))
        held = {*told, *([LOW_RES_MASKS] if MASKS in told else [])}  # which masks of the image's size can be made
        if missing := [role for role in (IOU, LOW_RES_MASKS) if role not in held]:
            raise UserError(
                f"{self.where}: which output is {' and which is '.join(missing)} cannot be told "
                f"({described(self.signature.outputs)}); name and shape them as samq_onnx.export does"
            )
        return told

    def answer(
        self,
        session: ort.InferenceSession,
        feed: Mapping[str, np.ndarray],
        outputs: Mapping[str, str],
        size: tuple[int, int],
    ) -> Answer:
        roles = [role for role in (IOU, LOW_RES_MASKS, MASKS) if role in outputs]
        iou, low_res, *masks = run_session(session, feed, self.where, [outputs[role] for role in roles])
        if LOW_RES_MASKS not in roles:
            side = MASK_SCALE * feed[self._embeddings[0].name].shape[-1]
            low_res, masks = bilinear(low_res, side, side), [low_res]
        iou = iou.reshape(-1, iou.shape[-1])
        low_res, *masks = (made.reshape(-1, *made.shape[-3:]) for made in (low_res, *masks))
        if iou.shape[1] == AMBIGUOUS_MASKS:
            best = iou.argmax(axis=1)[:, None]
            iou, low_res, *masks = (
                np.concatenate([np.take_along_axis(made, best.reshape(-1, *[1] * (made.ndim - 1)), 1), made], axis=1)
                for made in (iou, low_res, *masks)
            )
        full = masks[0] if masks else to_image(low_res, MASK_SCALE * low_res.shape[-1], size, self.stretched)
        return full, iou, low_res


class WholePart(Part):
    """Image encoder and decoder in one file: an image and a prompt in, masks out."""

    role = Role.WHOLE

    def __init__(self, signature: Signature, roles: Mapping[str, tuple[Port, ...]], image: ImageInput) -> None:
        super().__init__(NAME, signature)
        self._image, self.notes = image, (image.note,) if image.note else ()
        self._prompts = PromptedDecoder(signature, {role: found for role, found in roles.items() if role != FEATURES})
        known = {port.name for found in roles.values() for port in found}
        self._unknown = [port for port in signature.inputs if port.name not in known]

    @property
    def outputs(self) -> Mapping[str, str]:
        return self._prompts.told(self._image.size // PATCH * MASK_SCALE)

    def feeds(
        self, calibration: Calibration, encoder: Encoder | str | os.PathLike[str] | None, label: str
    ) -> WholeFeeds:
        self.refuse_encoder(encoder)
        if self._unknown:
            raise UserError(f"{self.where}: also takes {described(self._unknown)}, which cannot be made from images")
        return WholeFeeds(calibration, self._image, self._prompts)

    def sample_feed(
        self, prompts: int = 1, encoder: Encoder | str | os.PathLike[str] | None = None
    ) -> dict[str, np.ndarray]:
        self.refuse_encoder(encoder)
        side, random = self._image.size, np.random.default_rng(0)
        coords = np.full((prompts, 1, 2), side / 2)
        feed = self._prompts.prompt((), coords, np.full((prompts, 1), FOREGROUND, np.float32), None, (side, side))
        feed |= {port.name: random_input(port, random) for port in self._unknown}
        return feed | self._image.feed(sample_image())


def _padded(labels: np.ndarray) -> np.ndarray:
    """Labels with that of a point that counts as none behind."""
    return np.pad(labels, ((0, 0), (0, 1)), constant_values=PADDING_LABEL)


def _precedence(port: Port) -> tuple[bool, int, str]:
    """The embedding first: the smallest map, and of those the one that is no position."""
    return "pos" in port.name.lower(), port.side(-1) or 0, port.name
