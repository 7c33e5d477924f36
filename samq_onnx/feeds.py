# SPDX-License-Identifier: Apache-2.0
"""Inputs for models: calibration feeds made from images one at a time, and a sample that fits any model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import assets, data, images
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake
from samq_onnx.models import is_decoder, square_image_input
from samq_onnx.predictor import BOX_LABELS, PADDING_LABEL, check_pair
from samq_onnx.progress import progress_bar
from samq_onnx.runtime import open_session
from samq_onnx.samples import Sample, fitting

__all__ = ["DecoderFeeds", "EncoderFeeds", "Part", "sample_feed"]

PATCH = 16  # pixels of the image a side of an embedding's cell stands for
PROMPTS_PER_IMAGE = 8  # instances; each gives one box prompt and one point prompt
FOREGROUND = 1.0

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
    """Images of a folder as encoder inputs, float32 [1, 3, size, size] each.

    Attributes:
        samples: the images; those that cannot be used are left out.
    """

    def __init__(self, folder: str | os.PathLike[str] | Calibration, name: str, size: int) -> None:
        calibration = Calibration.of(folder)
        self.samples = fitting(calibration.images, size, calibration.intake)
        self.name, self.size, self._intake = name, size, calibration.intake

    def __len__(self) -> int:
        return len(self.samples)

    def _make(self, index: int) -> Feed:
        return {self.name: images.preprocess(self.samples[index].load(self._intake), self.size)}


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
        encoder: ort.InferenceSession,
        decoder_inputs: Mapping[str, Sequence[int | str]],
        label: str = "embeddings",
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="samq-embeddings-")
        size = int(encoder.get_inputs()[0].shape[2])
        self._mask_shape = [int(side) for side in decoder_inputs["mask_input"][-2:]]
        self._prompts: list[tuple[Path, np.ndarray, np.ndarray, tuple[int, int]]] = []
        calibration = Calibration.of(folder)
        self.samples = fitting(calibration.samples, size, calibration.intake)
        for number, sample in enumerate(progress_bar(self.samples, label, "image")):
            rgb = sample.load(calibration.intake)
            height, width = rgb.shape[:2]
            embedding = encoder.run(None, {encoder.get_inputs()[0].name: images.preprocess(rgb, size)})[0]
            file = Path(self._scratch.name) / f"{number}.npy"
            np.save(file, embedding, allow_pickle=False)
            for coords, labels in _prompts(sample, calibration.intake):
                scaled = images.to_model_coords(coords, sample.height, sample.width, size)
                self._prompts.append((file, scaled.astype(np.float32), labels, (height, width)))

    def __len__(self) -> int:
        return len(self._prompts)

    def _make(self, index: int) -> Feed:
        file, coords, labels, shape = self._prompts[index]
        return {
            "image_embeddings": np.load(file, allow_pickle=False),
            "point_coords": coords[None],
            "point_labels": labels[None],
            "mask_input": np.zeros((1, 1, *self._mask_shape), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(shape, np.float32),
        }


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
    image = square_image_input(model)
    if image is not None:
        name, size = image
        return {name: _sample_image(size)}
    random = np.random.default_rng(0)
    if is_decoder(model):
        feed = _sample_prompts(model, random, prompts)
        if encoder is not None:
            session = open_session(encoder)
            size = check_pair(session, os.fspath(encoder), feed["image_embeddings"].shape)
            (feed["image_embeddings"],) = session.run(None, {session.get_inputs()[0].name: _sample_image(size)})
        return feed
    return {value.name or "": _random_input(value, random) for value in model.graph.inputs}


def _sample_image(size: int) -> np.ndarray:
    return images.preprocess(images.load(data.image_paths(assets.demo_images())[0]), size)


def _sample_prompts(model: ir.Model, random: np.random.Generator, prompts: int) -> dict[str, np.ndarray]:
    shapes = {
        value.name: [size if isinstance(size, int) else 1 for size in value.shape or ()] for value in model.graph.inputs
    }
    embeddings = shapes["image_embeddings"]
    side = PATCH * embeddings[-1]
    points = random.uniform(0, side, (prompts, 1, 2))
    return {
        "image_embeddings": (0.2 * random.standard_normal(embeddings)).astype(np.float32),
        "point_coords": np.concatenate([points, np.zeros_like(points)], axis=1).astype(np.float32),
        "point_labels": np.tile(np.array([FOREGROUND, PADDING_LABEL], np.float32), (prompts, 1)),
        "mask_input": np.zeros(shapes["mask_input"], np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([side, side], np.float32),
    }


def _random_input(value: ir.Value, random: np.random.Generator) -> np.ndarray:
    if value.shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        raise UserError(f"input {value.name} has no shape or no number type; export the model with typed inputs")
    shape = [size if isinstance(size, int) else 1 for size in value.shape]
    if value.dtype.is_floating_point():
        return random.standard_normal(shape).astype(value.dtype.numpy())
    return random.integers(0, 2, shape).astype(value.dtype.numpy())  # 0 and 1 are valid indices almost everywhere
