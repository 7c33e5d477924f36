# SPDX-License-Identifier: Apache-2.0
"""Inputs for models, made from images one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np

from samq_onnx.data import Calibration
from samq_onnx.intake import Intake
from samq_onnx.progress import progress_bar
from samq_onnx.prompts import BOX_LABELS, FOREGROUND, PADDING_LABEL
from samq_onnx.samples import Sample, fitting
from samq_onnx.scratch import Scratch

if TYPE_CHECKING:
    from samq_onnx.encoder import Encoder
    from samq_onnx.families.decoder import DecoderPart
    from samq_onnx.families.image import ImageInput

__all__ = ["DecoderFeeds", "EncoderFeeds", "Feed", "Feeds", "Selection", "WholeFeeds", "places_of", "prompts_of"]

PROMPTS_PER_IMAGE = 8  # instances; each gives one box prompt and one point prompt
PROMPTS_WITH_IMAGE = 2  # where each prompt takes a run of the encoder

Feed: TypeAlias = Mapping[str, np.ndarray]


class _Made(Sequence[Feed]):
    """A sequence of feeds made on access by `_make`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _make(self, index: int) -> Feed:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        if isinstance(index, slice):
            return Selection(self, range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(index % len(self))

    def __iter__(self) -> Iterator[Feed]:
        return (self._make(index) for index in range(len(self)))


class Selection(_Made):
    """The feeds of another sequence at the given indices."""

    def __init__(self, whole: Sequence[Feed], indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, indices
        places = places_of(whole)
        self.places = [places[index] for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def _make(self, index: int) -> Feed:
        return self._whole[self._indices[index]]


class Feeds(_Made):
    """Feeds made from images.

    Attributes:
        samples: the images; those that cannot be used are left out.
        notes: lines for people about another model that took part.
    """

    samples: Sequence[Sample]
    notes: tuple[str, ...] = ()


class EncoderFeeds(Feeds):
    """Images of a folder as an encoder takes them, one in each feed."""

    def __init__(self, calibration: Calibration, image: ImageInput) -> None:
        self.samples = fitting(calibration.images, image.size, calibration.intake)
        self._image, self._intake = image, calibration.intake

    def __len__(self) -> int:
        return len(self.samples)

    def _make(self, index: int) -> Feed:
        return self._image.feed(self.samples[index].load(self._intake))


class DecoderFeeds(Feeds):
    """Prompts on the images of a folder as decoder inputs, their embeddings kept on disk.

    Each image gives box and point prompts from up to eight annotated instances (evenly spread over its
    list), or from a grid of points when the folder has no annotations.

    Args:
        label: of the progress bar.
    """

    def __init__(self, calibration: Calibration, encoder: Encoder, decoder: DecoderPart, label: str) -> None:
        encoder.pair(decoder)
        self.notes = encoder.notes
        self._scratch = Scratch()
        self._decoder = decoder
        self._prompts: list[tuple[Path, np.ndarray, np.ndarray, tuple[int, int]]] = []
        places: list[int] = []
        self.samples = fitting(calibration.samples, encoder.image.size, calibration.intake)
        for number, sample in enumerate(progress_bar(self.samples, label, "image")):
            rgb = sample.load(calibration.intake)
            height, width = rgb.shape[:2]
            file = self._scratch.path / f"{number}.npz"
            np.savez(file, *encoder.embed(rgb))
            for coords, labels in prompts_of(sample, calibration.intake, decoder.takes_boxes):
                scaled = encoder.image.coords(coords, sample.height, sample.width)
                self._prompts.append((file, scaled, labels, (height, width)))
                places.append(number)
        self.places = places

    def __len__(self) -> int:
        return len(self._prompts)

    def _make(self, index: int) -> Feed:
        file, coords, labels, shape = self._prompts[index]
        with np.load(file, allow_pickle=False) as held:
            embedding = tuple(held.values())
        return self._decoder.prompt(embedding, coords[None], labels[None], None, shape)


class WholeFeeds(Feeds):
    """Images of a folder with a prompt each, for a file that is encoder and decoder.

    Each image comes with its first prompts, a box where the file takes boxes, and a point.
    """

    def __init__(self, calibration: Calibration, image: ImageInput, decoder: DecoderPart) -> None:
        self.samples = fitting(calibration.samples, image.size, calibration.intake)
        self._image, self._intake, self._decoder = image, calibration.intake, decoder
        self._prompts: list[tuple[Sample, np.ndarray, np.ndarray]] = []
        places: list[int] = []
        for number, sample in enumerate(self.samples):
            made = list(prompts_of(sample, calibration.intake, decoder.takes_boxes))[:PROMPTS_WITH_IMAGE]
            self._prompts += [(sample, coords, labels) for coords, labels in made]
            places += [number] * len(made)
        self.places = places

    def __len__(self) -> int:
        return len(self._prompts)

    def _make(self, index: int) -> Feed:
        sample, coords, labels = self._prompts[index]
        scaled = self._image.coords(coords, sample.height, sample.width)
        feed = self._decoder.prompt((), scaled[None], labels[None], None, (sample.height, sample.width))
        return feed | self._image.feed(sample.load(self._intake))


def places_of(feeds: Sequence[Feed]) -> Sequence[int]:
    """Number of the image that each of them is made of: its own, where nothing else is said."""
    found: Sequence[int] = getattr(feeds, "places", range(len(feeds)))
    return found


def prompts_of(sample: Sample, intake: Intake, boxes: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points [n, 2] in image pixels and their labels [n], float32, a padding point included where SAM wants one.

    Args:
        boxes: those of instances are among them.
    """
    whole = [instance for instance in sample.instances if not instance.crowd]
    chosen = whole[:: max(1, len(whole) // PROMPTS_PER_IMAGE)][:PROMPTS_PER_IMAGE]
    points: list[tuple[float, float]] = []
    for instance in chosen:
        with intake.leaving_out():
            points.append(instance.point())
            if boxes:
                yield np.array(instance.box, np.float32).reshape(2, 2), np.array(BOX_LABELS, np.float32)
            yield _single_point(points[-1])
    if not points:
        for x in (0.25, 0.75):
            for y in (0.25, 0.75):
                yield _single_point((x * sample.width, y * sample.height))


def _single_point(point: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([point, (0.0, 0.0)], np.float32), np.array([FOREGROUND, PADDING_LABEL], np.float32)
