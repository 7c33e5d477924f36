# SPDX-License-Identifier: Apache-2.0
"""`SamPredictor` on ONNX files: the semantics of ``segment_anything.SamPredictor``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnxruntime as ort

from samq_onnx import images
from samq_onnx.errors import UserError
from samq_onnx.models import DECODER_INPUTS
from samq_onnx.runtime import open_session

__all__ = ["BOX_LABELS", "PADDING_LABEL", "Best", "Model", "SamPredictor", "check_pair"]

Model: TypeAlias = str | os.PathLike[str] | ort.InferenceSession
BOX_LABELS = (2.0, 3.0)
PADDING_LABEL = -1.0
MASK_THRESHOLD = 0.0
MASK_INPUT_SCALE = 4  # mask inputs and low-resolution masks are four times the embedding's side


class Best(NamedTuple):
    """The one mask that answers a prompt, bool [H, W], and its predicted IoU."""

    mask: np.ndarray
    iou: float


class SamPredictor:
    """An encoder and a decoder of segment-anything's ONNX form, float or quantized.

    Args:
        encoder: file or open session; float32 [1, 3, S, S] -> image embeddings [1, C, S/16, S/16].
        decoder: file or open session with segment-anything's inputs, and its outputs in order: masks,
            IoU predictions, low-resolution masks.

    Raises:
        UserError: a file that does not open, or a model that is not a SAM encoder or decoder, or two that do not
            belong together.
    """

    def __init__(self, encoder: Model, decoder: Model) -> None:
        self._encoder = _session(encoder)
        self._decoder = _session(decoder)
        taken = {value.name: value.shape for value in self._decoder.get_inputs()}
        self.image_size = check_pair(self._encoder, _name(encoder, "encoder"), taken.get("image_embeddings"))
        _check_decoder(self._decoder, _name(decoder, "decoder"))
        self._embedding: np.ndarray | None = None
        self._shape = (0, 0)

    def set_image(self, rgb: np.ndarray, shape: tuple[int, int] | None = None) -> None:
        """Embed an image, RGB uint8 [H, W, 3], for the `predict` calls that follow.

        ``shape`` is height and width of the original where ``rgb`` was reduced: prompts and masks are of that.

        Raises:
            UserError: not such an image.
        """
        feed = {self._encoder.get_inputs()[0].name: images.preprocess(rgb, self.image_size, shape)}
        self._embedding = self._encoder.run(None, feed)[0]
        self._shape = shape or (rgb.shape[0], rgb.shape[1])

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for a prompt on the image that was set.

        Args:
            point_coords: [n, 2], (x, y) in pixels of the original image.
            point_labels: [n], 1 foreground, 0 background.
            box: [4], x0, y0, x1, y1 in pixels of the original image.
            mask_input: [1, S/4, S/4], low-resolution logits of an earlier prediction.
            multimask_output: three masks for an ambiguous prompt (the decoder's masks 1 to 3), else the one that
                it gives for a clear prompt (mask 0). A decoder exported with a single mask returns that one.

        Returns:
            masks bool [M, H, W]; predicted IoUs float32 [M]; low-resolution logits float32 [M, S/4, S/4].

        Raises:
            UserError: no image was set, or an argument of the wrong shape.
        """
        if self._embedding is None:
            raise UserError("no image is set; call set_image before predict")
        coords, labels = _prompt(point_coords, point_labels, box)
        mask = np.zeros((1, 1, *(MASK_INPUT_SCALE * side for side in self._embedding.shape[2:])), np.float32)
        if mask_input is not None:
            if np.shape(mask_input) != mask.shape[1:]:
                raise UserError(f"mask_input must be {list(mask.shape[1:])}, got {list(np.shape(mask_input))}")
            mask[0] = mask_input
        feed = {
            "image_embeddings": self._embedding,
            "point_coords": images.to_model_coords(coords, *self._shape, self.image_size).astype(np.float32)[None],
            "point_labels": labels[None],
            "mask_input": mask,
            "has_mask_input": np.array([mask_input is not None], np.float32),
            "orig_im_size": np.array(self._shape, np.float32),
        }
        logits, iou, low_res = (output[0] for output in self._decoder.run(None, feed)[:3])
        chosen = slice(1, None) if multimask_output and len(iou) > 1 else slice(0, 1)
        return logits[chosen] > MASK_THRESHOLD, iou[chosen], low_res[chosen]

    def best(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
    ) -> Best:
        """One mask for a prompt: a single point is ambiguous and gets the best of three by predicted IoU."""
        ambiguous = box is None and point_coords is not None and len(point_coords) == 1
        masks, iou, _ = self.predict(point_coords, point_labels, box, multimask_output=ambiguous)
        index = int(iou.argmax())
        return Best(masks[index], float(iou[index]))


def _prompt(
    point_coords: np.ndarray | None, point_labels: np.ndarray | None, box: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Points float64 [n, 2] and labels float32 [n]: a box is two labelled points, no box is one point of padding."""
    if (point_coords is None) != (point_labels is None):
        raise UserError("point_coords and point_labels belong together; give both or none")
    coords = np.zeros((0, 2)) if point_coords is None else np.asarray(point_coords, np.float64)
    labels = np.zeros(0, np.float32) if point_labels is None else np.asarray(point_labels, np.float32)
    if coords.ndim != 2 or coords.shape[1] != 2 or labels.shape != coords.shape[:1]:
        raise UserError(f"points must be [n, 2] with labels [n], got {list(coords.shape)} and {list(labels.shape)}")
    if box is None:
        corners, kinds = np.zeros((1, 2)), [PADDING_LABEL]
    elif np.shape(box) == (4,):
        corners, kinds = np.asarray(box, np.float64).reshape(2, 2), list(BOX_LABELS)
    else:
        raise UserError(f"a box must be x0, y0, x1, y1, got an array of shape {list(np.shape(box))}")
    return np.concatenate([coords, corners]), np.concatenate([labels, np.array(kinds, np.float32)])


def _session(model: Model) -> ort.InferenceSession:
    return model if isinstance(model, ort.InferenceSession) else open_session(model)


def _name(model: Model, role: str) -> str:
    return f"the {role}" if isinstance(model, ort.InferenceSession) else os.fspath(model)


def check_pair(session: ort.InferenceSession, name: str, embeddings: Iterable[Any] | None) -> int:
    """Side of the square image that an encoder takes.

    Args:
        session: of the encoder. name: of its file, for messages.
        embeddings: shape that a decoder takes, if it is one.

    Raises:
        UserError: it is no encoder of SAM, or makes embeddings of another shape.
    """
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or shape[2] != shape[3]:
        found = ", ".join(f"{value.name} {value.shape}" for value in inputs)
        raise UserError(f"{name}: not a SAM encoder (takes {found}); wanted one image [1, 3, S, S]")
    if embeddings is None:
        return shape[2]
    made, wanted = session.get_outputs()[0].shape, list(embeddings)
    known = [(a, b) for a, b in zip(made, wanted, strict=False) if isinstance(a, int) and isinstance(b, int)]
    if len(made) != len(wanted) or any(a != b for a, b in known):
        raise UserError(f"{name}: makes embeddings {made}, the decoder takes {wanted}; use two of one model")
    return shape[2]


def _check_decoder(session: ort.InferenceSession, name: str) -> None:
    missing = set(DECODER_INPUTS) - {value.name for value in session.get_inputs()}
    if missing:
        raise UserError(f"{name}: not a SAM decoder (has no input {', '.join(sorted(missing))}); see samq_onnx.export")
    if len(session.get_outputs()) < 3:
        raise UserError(f"{name}: not a SAM decoder (has {len(session.get_outputs())} outputs, wanted 3)")
