# SPDX-License-Identifier: Apache-2.0
"""Inputs for models: calibration feeds made from images one at a time, and a sample that fits any model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import onnx_ir as ir

from samq_onnx import assets, data, images
from samq_onnx.data import Calibration
from samq_onnx.encoder import Encoder
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake
from samq_onnx.interface import (
    BOX_LABELS,
    FOREGROUND,
    NUMBERS,
    PADDING_LABEL,
    PATCH,
    DecoderInputs,
    ImageInput,
    Port,
    graph_inputs,
    image_port,
    is_decoder,
)
from samq_onnx.progress import progress_bar
from samq_onnx.samples import Sample, fitting
from samq_onnx.scratch import Scratch

__all__ = ["DecoderFeeds", "EncoderFeeds", "Part", "sample_feed"]

PROMPTS_PER_IMAGE = 8  # instances; each gives one box prompt and one point prompt

Feed = Mapping[str, np.ndarray]


class _Feeds(Sequence[Feed]):
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
            return Part(self, range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(index % len(self))

    def __iter__(self) -> Iterator[Feed]:
        return (self._make(index) for index in range(len(self)))


class Part(_Feeds):
    """The feeds of another sequence at the given indices."""

    def __init__(self, whole: Sequence[Feed], indices: Sequence[int]) -> None:
        self._whole, self._indices = whole, indices

    def __len__(self) -> int:
        return len(self._indices)

    def _make(self, index: int) -> Feed:
        return self._whole[self._indices[index]]


class EncoderFeeds(_Feeds):
    """Images of a folder as an encoder takes them, one in each feed.

    Attributes:
        samples: the images; those that cannot be used are left out.
    """

    def __init__(self, folder: str | os.PathLike[str] | Calibration, image: ImageInput) -> None:
        calibration = Calibration.of(folder)
        self.samples = fitting(calibration.images, image.size, calibration.intake)
        self.image, self._intake = image, calibration.intake

    def __len__(self) -> int:
        return len(self.samples)

    def _make(self, index: int) -> Feed:
        return self.image.feed(self.samples[index].load(self._intake))


class DecoderFeeds(_Feeds):
    """Prompts on the images of a folder as decoder inputs, their embeddings kept on disk.

    Each image gives box and point prompts from up to eight annotated instances (evenly spread over its
    list), or from a grid of points when the folder has no annotations.

    Attributes:
        samples: the images; those that cannot be used are left out.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | Calibration,
        encoder: Encoder,
        decoder: DecoderInputs,
        label: str = "embeddings",
    ) -> None:
        encoder.pair(decoder.embeddings)
        self._scratch = Scratch()
        self._decoder = decoder
        self._prompts: list[tuple[Path, np.ndarray, np.ndarray, tuple[int, int]]] = []
        calibration = Calibration.of(folder)
        self.samples = fitting(calibration.samples, encoder.image.size, calibration.intake)
        for number, sample in enumerate(progress_bar(self.samples, label, "image")):
            rgb = sample.load(calibration.intake)
            height, width = rgb.shape[:2]
            embedding = encoder.embed(rgb)
            file = self._scratch.path / f"{number}.npy"
            np.save(file, embedding, allow_pickle=False)
            for coords, labels in _prompts(sample, calibration.intake):
                scaled = images.to_model_coords(coords, sample.height, sample.width, encoder.image.size)
                self._prompts.append((file, scaled, labels, (height, width)))

    def __len__(self) -> int:
        return len(self._prompts)

    def _make(self, index: int) -> Feed:
        file, coords, labels, shape = self._prompts[index]
        return self._decoder.feed(np.load(file, allow_pickle=False), coords[None], labels[None], None, shape)


def _prompts(sample: Sample, intake: Intake) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points [n, 2] in image pixels and their labels [n], float32, a padding point included where SAM wants one."""
    whole = [instance for instance in sample.instances if not instance.crowd]
    chosen = whole[:: max(1, len(whole) // PROMPTS_PER_IMAGE)][:PROMPTS_PER_IMAGE]
    points: list[tuple[float, float]] = []
    for instance in chosen:
        with intake.leaving_out():
            points.append(instance.point())
            yield np.array(instance.box, np.float32).reshape(2, 2), np.array(BOX_LABELS, np.float32)
            yield _single_point(points[-1])
    if not points:
        for x in (0.25, 0.75):
            for y in (0.25, 0.75):
                yield _single_point((x * sample.width, y * sample.height))


def _single_point(point: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([point, (0.0, 0.0)], np.float32), np.array([FOREGROUND, PADDING_LABEL], np.float32)


def sample_feed(
    model: ir.Model, prompts: int = 1, encoder: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """One input of the shapes that the model wants, always the same: a bundled image for an image encoder, one
    foreground point a prompt for a SAM decoder, random numbers for any other model.

    Args:
        model: what is to be fed. Its dynamic dimensions become 1.
        prompts: for a decoder that takes many at once.
        encoder: file that embeds the bundled image for a decoder, whose embedding is random otherwise.

    Raises:
        UserError: an input without a shape or of a type that has no numbers.
    """
    inputs = graph_inputs(model)
    if image_port(inputs) is not None:
        return ImageInput.of(inputs, model, "the model").feed(_sample_image())
    random = np.random.default_rng(0)
    if not is_decoder(model):
        return {port.name: _random_input(port, random) for port in inputs}
    return _sample_prompts(DecoderInputs(inputs, "the model"), random, prompts, encoder)


def _sample_image() -> np.ndarray:
    return images.load(data.image_paths(assets.demo_images())[0])


def _sample_prompts(
    decoder: DecoderInputs, random: np.random.Generator, prompts: int, encoder: str | os.PathLike[str] | None
) -> dict[str, np.ndarray]:
    shape = [side if isinstance(side, int) else 1 for side in decoder.embeddings.shape or ()]
    side = PATCH * shape[-1]
    points = random.uniform(0, side, (prompts, 1, 2))
    embedding = (0.2 * random.standard_normal(shape)).astype(np.float32)
    if encoder is not None:
        chosen = Encoder(encoder)
        chosen.pair(decoder.embeddings)
        embedding = chosen.embed(_sample_image())
    coords = np.concatenate([points, np.zeros_like(points)], axis=1)
    labels = np.tile(np.array([FOREGROUND, PADDING_LABEL], np.float32), (prompts, 1))
    return decoder.feed(embedding, coords, labels, None, (side, side))


def _random_input(port: Port, random: np.random.Generator) -> np.ndarray:
    if port.shape is None or port.dtype not in NUMBERS | {"bool"}:
        raise UserError(f"input {port} has no shape or no number type; export the model with typed inputs")
    shape = [side if isinstance(side, int) else 1 for side in port.shape]
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)  # 0 and 1 are valid indices almost everywhere
