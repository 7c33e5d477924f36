# SPDX-License-Identifier: Apache-2.0
"""What a model takes and gives: names, types and shapes of its inputs, and which of its outputs is which.

Inputs are fed as the file wants them: each in its own type, batches of a fixed size filled by repetition, prompts of a
fixed number of points filled with points that count as none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx import images
from samq_onnx.errors import UserError
from samq_onnx.pixels import Pixels, find_pixels
from samq_onnx.runtime import run_session

__all__ = [
    "BOX_LABELS",
    "DECODER_INPUTS",
    "FOREGROUND",
    "MASK_SCALE",
    "NUMBERS",
    "PADDING_LABEL",
    "PATCH",
    "DecoderInputs",
    "ImageInput",
    "MaskOutputs",
    "Port",
    "described",
    "fit",
    "graph_inputs",
    "image_port",
    "is_decoder",
    "session_inputs",
    "session_outputs",
]

DECODER_INPUTS = (
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
)
PATCH = 16  # pixels of the image a side of an embedding's cell stands for
MASK_SCALE = 4  # mask inputs and low-resolution masks are four times the embedding's side
FOREGROUND = 1.0
BOX_LABELS = (2.0, 3.0)
PADDING_LABEL = -1.0
NUMBERS = frozenset(
    {"float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
)
SESSION_TYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names that are not numpy's


class Port(NamedTuple):
    """An input or output.

    Attributes:
        name: of the value.
        dtype: numpy's name of its type, or ONNX Runtime's of one that numpy has not.
        shape: an int for each fixed side, a name or None for each other; None if not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        sides = "of unknown shape" if self.shape is None else f"[{', '.join(str(side or '?') for side in self.shape)}]"
        return f"{self.name} {self.dtype} {sides}"


def described(ports: Iterable[Port]) -> str:
    """Ports in words."""
    return ", ".join(map(str, ports)) or "nothing"


def graph_inputs(model: ir.Model) -> list[Port]:
    """Inputs of a graph that have no value of their own."""
    return [_graph_port(value) for value in model.graph.inputs if value.name not in model.graph.initializers]


def _graph_port(value: ir.Value) -> Port:
    shape = None if value.shape is None else tuple(s if isinstance(s, int) else s.value for s in value.shape)
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    return Port(value.name or "", {"float": "float32", "double": "float64"}.get(dtype, dtype), shape)


def session_inputs(session: ort.InferenceSession) -> list[Port]:
    """Inputs of an open session."""
    return [_session_port(value) for value in session.get_inputs()]


def session_outputs(session: ort.InferenceSession) -> list[Port]:
    """Outputs of an open session."""
    return [_session_port(value) for value in session.get_outputs()]


def _session_port(value: ort.NodeArg) -> Port:
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    return Port(value.name, SESSION_TYPES.get(dtype, dtype), tuple(value.shape) or None)


def _fixed(port: Port, axis: int) -> int | None:
    side = port.shape[axis] if port.shape is not None and -len(port.shape) <= axis < len(port.shape) else None
    return side if isinstance(side, int) else None


def fit(port: Port, array: np.ndarray) -> np.ndarray:
    """An array in the type and the batch that an input has.

    Raises:
        UserError: its type cannot hold the numbers, or its shape is another.
    """
    if port.dtype not in NUMBERS and port.dtype != "bool":
        raise UserError(f"input {port.name} is of type {port.dtype}; numbers are wanted")
    dtype = np.dtype(port.dtype)
    if array.dtype != dtype:
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype) if dtype.kind == "f" else None
        array = np.rint(array) if dtype.kind in "iu" else array
        if limits is not None and array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            raise UserError(f"{port.name}: numbers beyond {limits.max:g} do not fit into {dtype}; give smaller ones")
        array = array.astype(dtype)
    batch = _fixed(port, 0)
    if port.shape is not None and len(port.shape) != array.ndim:
        raise UserError(f"{port.name}: the model takes {port}, got {list(array.shape)}")
    if batch is not None and len(array) == 1 < batch:
        array = np.repeat(array, batch, axis=0)
    if any(_fixed(port, axis) not in (None, side) for axis, side in enumerate(array.shape)):
        raise UserError(f"{port.name}: the model takes {port}, got {list(array.shape)}")
    return array


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """The one input of an image encoder.

    Attributes:
        port: [N, 3, size, size].
        size: side of the square image. pixels: the numbers it wants.
        note: a line about ``pixels`` where they are not SAM's usual ones or in doubt, else empty.
    """

    port: Port
    size: int
    pixels: Pixels = Pixels.NORMALISED
    note: str = ""

    @classmethod
    def of(cls, inputs: Sequence[Port], model: ir.Model | None, where: str) -> ImageInput:
        """Find it among the inputs of a model.

        Args:
            model: its graph, which tells what pixels it wants; SAM's usual ones if there is none.
            where: what messages call the file.

        Raises:
            UserError: the model does not take one square image.
        """
        port = image_port(inputs)
        if port is None:
            raise UserError(f"{where}: not a SAM encoder (takes {described(inputs)}); wanted one image [1, 3, S, S]")
        size = _fixed(port, 2)
        assert size is not None
        pixels, doubt = find_pixels(model, port.name) if model is not None else (Pixels.NORMALISED, "")
        if doubt:
            return cls(port, size, pixels, f"{where}: {doubt}; it is fed pixels {pixels.value}: check that they fit")
        inside = pixels is not Pixels.NORMALISED
        return cls(
            port, size, pixels, f"{where}: normalises inside, so it is fed pixels {pixels.value}" if inside else ""
        )

    def feed(self, rgb: np.ndarray, shape: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """The feed for an image, RGB uint8 [H, W, 3]; it fills the batch. ``shape`` is as for `preprocess`.

        Raises:
            UserError: as `samq_onnx.images.preprocess`.
        """
        return {self.port.name: fit(self.port, self.pixels.of_normalised(images.preprocess(rgb, self.size, shape)))}


def image_port(inputs: Sequence[Port]) -> Port | None:
    """The only input if it is an image [N, 3, S, S] of numbers and a fixed size, else None."""
    if len(inputs) != 1 or inputs[0].dtype not in NUMBERS or inputs[0].shape is None or len(inputs[0].shape) != 4:
        return None
    batch, channels, height, width = inputs[0].shape
    square = isinstance(height, int) and height == width and height > 0
    return inputs[0] if channels == 3 and square and batch != 0 else None


def is_decoder(model: ir.Model) -> bool:
    """Whether the graph has the inputs of segment-anything's exported decoder."""
    return {port.name for port in graph_inputs(model)} == set(DECODER_INPUTS)


class DecoderInputs:
    """The inputs of a SAM decoder.

    Args:
        inputs: what it takes. where: what messages call the file.

    Raises:
        UserError: inputs are missing, or there are others.
    """

    def __init__(self, inputs: Sequence[Port], where: str) -> None:
        self.ports: Mapping[str, Port] = {port.name: port for port in inputs}
        if missing := set(DECODER_INPUTS) - set(self.ports):
            raise UserError(
                f"{where}: not a SAM decoder (has no input {', '.join(sorted(missing))}); see samq_onnx.export"
            )
        if others := [port for port in inputs if port.name not in DECODER_INPUTS]:
            raise UserError(f"{where}: also takes {described(others)}, which SAM's decoder does not; export it without")

    @property
    def embeddings(self) -> Port:
        """The image embeddings [N, C, S/16, S/16]."""
        return self.ports["image_embeddings"]

    def feed(
        self,
        embedding: np.ndarray,
        coords: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """The feed for a prompt.

        Args:
            embedding: [1, C, G, G]. coords: [B, n, 2] in the encoder's frame. labels: [B, n].
            mask: [1, 1, 4G, 4G] or None. size: height and width of the original image.

        Raises:
            UserError: more points than the model takes, or numbers that its types do not hold.
        """
        coords, labels = self._padded(coords, labels)
        shown = mask is not None
        if mask is None:
            mask = np.zeros((1, 1, *(MASK_SCALE * side for side in embedding.shape[2:])), np.float32)
        given = (embedding, coords, labels, mask, np.array([shown], np.float32), np.array(size, np.float32))
        return {name: fit(self.ports[name], array) for name, array in zip(DECODER_INPUTS, given, strict=True)}

    def _padded(self, coords: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points as many as the model takes; the last ones go if they count as none and there are too many."""
        wanted = _fixed(self.ports["point_coords"], 1) or _fixed(self.ports["point_labels"], 1)
        if wanted is None:
            return coords, labels
        while labels.shape[1] > wanted and (labels[:, -1] == PADDING_LABEL).all():
            coords, labels = coords[:, :-1], labels[:, :-1]
        missing = wanted - labels.shape[1]
        if missing < 0:
            raise UserError(
                f"the decoder takes {wanted} points, the prompt has {labels.shape[1]}, where a box counts as two; give "
                "fewer, or a decoder whose number of points is free"
            )
        return (
            np.pad(coords, ((0, 0), (0, missing), (0, 0))),
            np.pad(labels, ((0, 0), (0, missing)), constant_values=PADDING_LABEL),
        )


class MaskOutputs(NamedTuple):
    """Places of a SAM decoder's outputs: masks [B, M, H, W] of the image's size, predicted IoUs [B, M] and
    low-resolution masks [B, M, S/4, S/4]."""

    masks: int
    iou: int
    low_res: int

    @classmethod
    def of(cls, session: ort.InferenceSession, inputs: DecoderInputs, size: int, where: str) -> MaskOutputs:
        """Find them by shape and, where that leaves several, by what they do on images of two sizes.

        Args:
            session: the decoder. inputs: what it takes.
            size: side of the encoder's image. where: what messages call the file.

        Raises:
            UserError: one is missing, or cannot be told from others.
        """
        ports = session_outputs(session)
        grid = _fixed(inputs.embeddings, -1) or size // PATCH
        places = _by_shape([port.shape for port in ports], MASK_SCALE * grid)
        if any(len(found) != 1 for found in places):
            places = _by_trial(session, inputs, grid, where)
        iou = places[1]
        if len(iou) > 1:
            iou = [place for place in iou if "iou" in ports[place].name.lower()] or iou
        wanted = ("masks of the image's size", "predicted IoUs", "low-resolution masks")
        for what, found in zip(wanted, (places[0], iou, places[2]), strict=True):
            if len(found) != 1:
                problem = "several outputs may be" if found else "no output is"
                raise UserError(
                    f"{where}: not a SAM decoder ({problem} the {what}: {described(ports)}); see samq_onnx.export"
                )
        return cls(places[0][0], iou[0], places[2][0])


Places = tuple[list[int], list[int], list[int]]  # that may be masks, IoUs, low-resolution masks


def _by_shape(shapes: Sequence[tuple[int | str | None, ...] | None], side: int) -> Places:
    """Outputs of the right ranks; only low-resolution masks are of a side known beforehand."""
    if None in shapes:
        return [], [], []
    low_res = [place for place, shape in enumerate(shapes) if shape and len(shape) == 4 and shape[2:] == (side, side)]
    masks = [place for place, shape in enumerate(shapes) if shape and len(shape) == 4 and place not in low_res]
    return masks, [place for place, shape in enumerate(shapes) if shape and len(shape) == 2], low_res


def _by_trial(session: ort.InferenceSession, inputs: DecoderInputs, grid: int, where: str) -> Places:
    """What follows the size of the image, and what does not depend on it: scores of the final masks do, predicted
    IoUs do not."""
    random = np.random.default_rng(0)
    channels = _fixed(inputs.embeddings, 1)
    if channels is None:
        return [], [], []
    embedding = random.standard_normal((1, channels, grid, grid), np.float32)
    coords = np.array([[[grid, grid], [0, 0]]], np.float32)
    labels = np.array([[FOREGROUND, PADDING_LABEL]], np.float32)
    side = MASK_SCALE * grid
    sizes = ((side + 3, side + 5), (side + 9, side + 2))
    one, two = (run_session(session, inputs.feed(embedding, coords, labels, None, size), where) for size in sizes)
    pairs = list(zip(one, two, strict=True))
    same = [place for place, (first, second) in enumerate(pairs) if np.array_equal(first, second)]
    low_res = [place for place in same if pairs[place][0].shape[2:] == (side, side)]
    followed = [place for place, pair in enumerate(pairs) if tuple(one.shape[2:] for one in pair) == sizes]
    masks = followed or [place for place, pair in enumerate(pairs) if pair[0].ndim == 4 and place not in low_res]
    return masks, [place for place in same if pairs[place][0].ndim == 2], low_res
