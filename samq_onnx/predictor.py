# SPDX-License-Identifier: Apache-2.0
"""`SamPredictor` on ONNX files: the semantics of ``segment_anything.SamPredictor``."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from samq_onnx.encoder import Embedding, Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import IOU, LOW_RES_MASKS, MASKS, NOTHING, Hints, Role
from samq_onnx.families.decoder import Answer, decoder_of
from samq_onnx.opened import Model, Opened
from samq_onnx.pair import check_made_together
from samq_onnx.prompts import Prompt

__all__ = ["Best", "Choices", "Model", "SamPredictor"]

MASK_THRESHOLD = 0.0


class Best(NamedTuple):
    """The one mask that answers a prompt, bool [H, W], and its predicted IoU."""

    mask: np.ndarray
    iou: float


class Choices(NamedTuple):
    """The one mask that answers a prompt, and those for an ambiguous one, bool [M, H, W]."""

    best: Best
    masks: np.ndarray


class _Embedded(NamedTuple):
    """The image that was set: its embedding, its height and width."""

    embedding: Embedding
    shape: tuple[int, int]


class SamPredictor:
    """An encoder and a decoder of segment-anything's ONNX form, float or quantized.

    Each input is fed in the type and of the size that the file has; the outputs of the decoder may be in any order and
    among others. A call that is refused changes nothing. Threads may call `predict` and `best` at the same time; one
    that calls `set_image` meanwhile changes the image of the calls that start after it, so threads with an image each
    need a predictor each (they may share open sessions).

    Args:
        encoder: file or open session; an image [N, 3, S, S] -> its embedding. If it normalises the image
            itself, as its graph tells, it is fed pixels as they are, and a line on stderr says so.
        decoder: file or open session; embedding and prompts -> masks, IoU predictions, low-resolution masks, in a form
            that `samq_onnx.families` knows.
        hints: size and pixels of the image, where the encoder's graph does not tell.

    Attributes:
        image_size: side S of the square image that the encoder takes.

    Raises:
        UserError: a file that does not open, or a model that is not a SAM encoder or decoder, or two that do not
            belong together.
    """

    def __init__(self, encoder: Model, decoder: Model, hints: Hints = NOTHING) -> None:
        self._encoder = Encoder(encoder, hints)
        self.image_size = self._encoder.image.size
        self._session, part = Opened.of(decoder, Role.DECODER)
        opened = ((encoder, self._encoder.session), (decoder, self._session))
        check_made_together(
            {
                model: session.get_modelmeta().custom_metadata_map
                for model, session in opened
                if not isinstance(model, ort.InferenceSession)
            }
        )
        self._decoder = decoder_of(part)
        self._encoder.pair(self._decoder)
        self._outputs = self._decoder.answers(self.image_size)
        self._set: _Embedded | None = None
        for note in self._encoder.notes:
            print(f"warning: {note}", file=sys.stderr)

    def set_image(self, rgb: np.ndarray, shape: tuple[int, int] | None = None) -> None:
        """Embed an image, RGB uint8 [H, W, 3], for the `predict` calls that follow.

        ``shape`` is height and width of the original where ``rgb`` was reduced: prompts and masks are of that.

        Raises:
            UserError: not such an image, or an embedding that is not finite.
        """
        try:
            image = np.asarray(rgb)
        except Exception as error:  # whatever the object raises
            raise UserError(f"an image must be RGB uint8 [H, W, 3]; this is no array ({error})") from error
        if shape is not None and not (
            isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(side, int) and side > 0 for side in shape)
        ):
            raise UserError(f"shape must be height and width of the original image, got {shape!r}")
        self._set = _Embedded(self._encoder.embed(image, shape), shape or (image.shape[0], image.shape[1]))

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for a prompt on the image that was set. All numbers must be finite.

        Args:
            point_coords: [n, 2], (x, y) in pixels of the original image, which they may lie outside of.
            point_labels: [n], 1 foreground, 0 background; also -1 for no point, 2 and 3 for a box's corners.
            box: [4], x0, y0, x1, y1 in pixels of the original image, x0 < x1 and y0 < y1.
            mask_input: [1, S/4, S/4], low-resolution logits of an earlier prediction.
            multimask_output: three masks for an ambiguous prompt (the decoder's masks 1 to 3), else the one that
                it gives for a clear prompt (mask 0). A decoder exported with a single mask returns that one.

        Returns:
            masks bool [M, H, W]; predicted IoUs float32 [M]; low-resolution logits float32 [M, S/4, S/4].

        Raises:
            UserError: no image was set, an argument of the wrong type or shape, with a label that does not exist or
                numbers that are not finite, no prompt at all, more points than the decoder takes; or outputs that are
                not finite, or of another shape.
        """
        if not isinstance(multimask_output, (bool, int, np.bool_)):
            raise UserError(f"multimask_output must be True or False, got {type(multimask_output).__name__}")
        made = self._answer(Prompt.of(point_coords, point_labels, box, mask_input))
        return self._chosen(made, bool(multimask_output))

    def best(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
    ) -> Best:
        """One mask for a prompt: a single point is ambiguous and gets the best of three by predicted IoU.

        Raises:
            UserError: as `predict`.
        """
        prompt = Prompt.of(point_coords, point_labels, box)
        return self._best(self._answer(prompt), prompt)

    def choices(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
    ) -> Choices:
        """What `best` gives for a prompt, and the masks that `predict` gives for an ambiguous one, in one run.

        Raises:
            UserError: as `predict`.
        """
        prompt = Prompt.of(point_coords, point_labels, box)
        made = self._answer(prompt)
        return Choices(self._best(made, prompt), self._chosen(made, multimask=True)[0])

    def _best(self, made: Answer, prompt: Prompt) -> Best:
        masks, iou, _ = self._chosen(made, prompt.ambiguous)
        index = int(iou.argmax())
        return Best(masks[index], float(iou[index]))

    def _answer(self, prompt: Prompt) -> Answer:
        """All outputs for a prompt."""
        if self._set is None:
            raise UserError("no image is set; call set_image before predict")
        embedding, shape = self._set
        side = self._decoder.mask_side(embedding)
        if prompt.mask is not None and prompt.mask.shape != (1, side, side):
            raise UserError(f"mask_input must be {[1, side, side]}, got {list(prompt.mask.shape)}")
        feed = self._decoder.prompt(
            embedding,
            self._encoder.image.coords(prompt.coords, *shape)[None],
            prompt.labels[None],
            None if prompt.mask is None else prompt.mask[None],
            shape,
        )
        made = self._decoder.answer(self._session, feed, self._outputs, shape)
        self._check_shapes(made, shape, side)
        return made

    def _chosen(self, made: Answer, multimask: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks, predicted IoUs and low-resolution logits of an answer, without what was not asked for."""
        logits, iou, low_res = (output[0] for output in made)
        chosen = slice(1, None) if multimask and len(iou) > 1 else slice(0, 1)
        for name, output in zip(self._names(), (logits, iou, low_res), strict=True):
            if not np.isfinite(output[chosen]).all():
                raise UserError(
                    f"{self._decoder.where}: its output {name} is not finite for this prompt; check the model"
                )
        return logits[chosen] > MASK_THRESHOLD, _float32(iou[chosen]), _float32(low_res[chosen])

    def _names(self) -> list[str]:
        """What messages call the arrays of an answer."""
        return [self._outputs.get(role, role) for role in (MASKS, IOU, LOW_RES_MASKS)]

    def _check_shapes(self, made: Answer, shape: tuple[int, int], side: int) -> None:
        count = made[1].shape[-1] if made[1].ndim else 0
        wanted = ((count, *shape), (count,), (count, side, side))
        for name, output, sides in zip(self._names(), made, wanted, strict=True):
            if not output.size or output.shape[1:] != sides:
                raise UserError(
                    f"{self._decoder.where}: its output {name} is {list(output.shape)}, wanted {[1, *sides]} for this "
                    "image; check the model"
                )


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)
