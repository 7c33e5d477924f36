# SPDX-License-Identifier: Apache-2.0
"""Folders of transformers, ``config.json`` and weights in safetensors: SamModel, SamHQModel and Sam2Model.

They are read from the disk alone, and hold no code. Their files have the interface of the package that the model comes
from (segment_anything, segment_anything_hq, SAM 2 of samexporter), so whoever takes those takes these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samq_onnx.documents import brief, read_document
from samq_onnx.errors import UserError, shortened
from samq_onnx.export.decoder import at_original_size
from samq_onnx.export.family import package
from samq_onnx.export.part import Feed, Part
from samq_onnx.export.parts import SAM_OUTPUTS, Tensors, decoder_of, encoder_of
from samq_onnx.export.reference import image_of
from samq_onnx.export.sam2 import sam2_parts
from samq_onnx.export.sam_hq import HQ_EMBEDDINGS
from samq_onnx.families.hints import LARGEST

__all__ = ["CLASSES", "Folder", "read_folder"]

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CLASSES = {"sam": "SamModel", "sam_hq": "SamHQModel", "sam2": "Sam2Model", "sam2_video": "Sam2Model"}
SHAPES = ((1.0, 1.0), (0.5, 0.75))  # original height and width over the model's side
BACKGROUND, FOREGROUND, PADDING, CORNERS = 0.0, 1.0, -1.0, (2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A model out of a folder.

    Attributes:
        where: names it in messages.
        model_type: as its configuration names it.
        model: in evaluation mode, without gradients, float32.
    """

    where: str
    model_type: str
    model: Any

    @property
    def image_size(self) -> int:
        """Side of the square image."""
        return int(self.model.config.prompt_encoder_config.image_size)

    def parts(self) -> list[Part]:
        """The files that it becomes.

        Raises:
            UserError: the sizes of its configuration do not go together.
        """
        if not 1 <= self.image_size <= LARGEST:
            raise UserError(f"{self.where}: its image_size is {self.image_size}; wanted is 1 to {LARGEST}")
        try:
            return self._sam2_parts() if CLASSES[self.model_type] == "Sam2Model" else self._sam_parts()
        except (IndexError, RuntimeError, TypeError, ValueError) as error:  # of torch, as the model runs
            raise UserError(
                f"{self.where}: the model does not run at its image_size {self.image_size} ({shortened(error)}); "
                "save it again"
            ) from error

    def _sam_parts(self) -> list[Part]:
        high_quality = self.model_type == "sam_hq"
        names = HQ_EMBEDDINGS if high_quality else HQ_EMBEDDINGS[:1]
        encoder, side = Encoder(self.model, high_quality), self.image_size
        with torch.no_grad():
            embeddings = dict(zip(names, encoder(image_of(side)), strict=True))
        mask_side = 4 * embeddings[names[0]].shape[-1]
        feeds = [embeddings | feed for feed in prompts(side, mask_side)]
        return [
            encoder_of(encoder, side, names, encoder),
            decoder_of(Decoder(self.model, side), feeds, SAM_OUTPUTS, self._full_size, repeats=True),
        ]

    def _full_size(self, feed: Feed) -> tuple[torch.Tensor, ...]:
        """What the model's own decoder gives."""
        more: dict[str, Any] = {"image_embeddings": feed[HQ_EMBEDDINGS[0]]}
        if self.model_type == "sam_hq":
            more["intermediate_embeddings"] = list(feed[HQ_EMBEDDINGS[1]])
        low_res, iou = asked(self.model, feed, more)
        return at_original_size(low_res, feed["orig_im_size"], self.image_size), iou, low_res

    def _sam2_parts(self) -> list[Part]:
        self.model.mask_decoder.dynamic_multimask_via_stability = False  # see `samq_onnx.export.sam2`
        side, encoder = self.image_size, Sam2Encoder(self.model)

        def reference(feed: Feed) -> tuple[torch.Tensor, ...]:
            maps = [feed[name] for name in ("high_res_feats_0", "high_res_feats_1", "image_embed")]
            return asked(self.model, feed, {"image_embeddings": maps})

        feeds = prompts(side, self.model.prompt_encoder.mask_input_size[0], padded_boxes=True)
        return sam2_parts(encoder, Sam2Decoder(self.model), side, reference, feeds, repeats=True)


def read_folder(folder: Path) -> Folder:
    """The model of a folder.

    Raises:
        UserError: no configuration, one of another model, no weights in safetensors, not all of them or more, values
            that are not finite, or the package is not installed.
    """
    config = read_document(folder / CONFIG, "give a folder as transformers saves a model")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str) or model_type not in CLASSES:
        raise UserError(f"{folder / CONFIG}: its model_type is {brief(model_type)}; wanted is {', '.join(CLASSES)}")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{folder}: no {WEIGHTS[0]}; save the model with safe_serialization=True")
    transformers = package("transformers", "transformers")
    if not hasattr(transformers, CLASSES[model_type]):
        raise UserError(f"this transformers has no {CLASSES[model_type]}; run: pip install -U transformers")
    try:
        with _quiet(transformers):
            model, found = getattr(transformers, CLASSES[model_type]).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation="eager",
                ignore_mismatched_sizes=True,  # they are told, and refused below
                output_loading_info=True,
            )
    except Exception as error:  # whatever transformers raises of a configuration or of weights
        raise UserError(f"{folder}: transformers does not load it ({shortened(error)}); save it again") from error
    absent = sorted({*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])})
    if absent:
        raise UserError(
            f"{folder}: its weights lack {len(absent)} tensors or have them in another shape, the first is "
            f"{brief(absent[0])}; save it again"
        )
    known = {_of_any_layer(name) for name in model.state_dict()}
    if further := sorted(name for name in found["unexpected_keys"] if _of_any_layer(name) in known):
        raise UserError(
            f"{folder}: its weights have more layers than its configuration, {len(further)} tensors, the first is "
            f"{brief(further[0])}; save it again"
        )
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{folder}: its {brief(name)} holds values that are not finite; use undamaged weights")
    return Folder(str(folder), model_type, model.requires_grad_(False).eval())


def _of_any_layer(name: str) -> str:
    """The name of a tensor without the number of its layer; buffers of other versions stay unlike all others."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and remarks on keys."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(level)


def prompts(side: int, mask_side: int, padded_boxes: bool = False) -> list[Feed]:
    """Points, a box, and both, each without and with a mask: prompts that the model's own interface has, too.

    Args:
        padded_boxes: whether a point that counts as none follows a box, too, as in SAM 2.
    """
    generator = torch.Generator().manual_seed(0)
    feeds = []
    for labels in ((FOREGROUND,), CORNERS, (FOREGROUND, BACKGROUND, *CORNERS)):
        labels = (*labels, *[PADDING] * (padded_boxes or labels[-1] not in CORNERS))
        for has_mask, (height, width) in zip((0.0, 1.0), SHAPES, strict=True):
            feeds.append(
                {
                    "point_coords": torch.rand(1, len(labels), 2, generator=generator) * side,
                    "point_labels": torch.tensor([labels]),
                    "mask_input": torch.randn(1, 1, mask_side, mask_side, generator=generator),
                    "has_mask_input": torch.tensor([has_mask]),
                    "orig_im_size": torch.tensor([int(height * side) - 3, int(width * side) + 1]).float(),
                }
            )
    return feeds


def asked(model: Any, feed: Feed, more: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and predicted IoUs of the model's own interface, for a clear prompt and for an ambiguous one."""
    coords, labels = feed["point_coords"], feed["point_labels"][0]
    points, corners = (labels == FOREGROUND) | (labels == BACKGROUND), (labels == CORNERS[0]) | (labels == CORNERS[1])
    given = {
        "input_points": coords[:, points][None] if points.any() else None,
        "input_labels": labels[points][None, None].to(torch.int64) if points.any() else None,
        "input_boxes": coords[:, corners].reshape(1, 1, 4) if corners.any() else None,
        "input_masks": feed["mask_input"] if feed["has_mask_input"].all() else None,
    }
    made = [model(**given, **more, multimask_output=multimask) for multimask in (False, True)]
    return torch.cat([one.pred_masks for one in made], 2)[0], torch.cat([one.iou_scores for one in made], 2)[0]


def decoded(model: Any, embedding: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor, **more: Any) -> Tensors:
    """The mask for a clear prompt and those for an ambiguous one, [1, M, L, L], and predicted IoUs, [1, M]."""
    made = [
        model.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            **more,
        )[:2]
        for multimask in (False, True)
    ]
    return torch.cat([masks for masks, _ in made], 2)[:, 0], torch.cat([iou for _, iou in made], 2)[:, 0]


def embedded_mask(prompt: Any, mask: torch.Tensor, has_mask: torch.Tensor) -> torch.Tensor:
    """The mask of a prompt, embedded, or what stands for none."""
    return has_mask * prompt.mask_embed(mask) + (1 - has_mask) * prompt.no_mask_embed.weight.reshape(1, -1, 1, 1)


class Encoder(nn.Module):
    """Image -> embedding, and of SAM-HQ what the first global block makes, [1, 1, G, G, C]."""

    def __init__(self, model: Any, intermediate: bool) -> None:
        super().__init__()
        self.encoder, self._intermediate = model.vision_encoder, intermediate

    def forward(self, image: torch.Tensor) -> Tensors:
        made = self.encoder(image)
        return (made[0], made[1][0].unsqueeze(0)) if self._intermediate else (made[0],)


class Decoder(nn.Module):
    """All four masks of one prompt; of SAM-HQ the three for an ambiguous one in the order of predicted IoU.

    Its inputs are those of segment_anything's decoder, with the intermediate embedding of SAM-HQ behind the first.
    """

    def __init__(self, model: Any, side: int) -> None:
        super().__init__()
        self.model, self._side = model, side

    def forward(self, embedding: torch.Tensor, *others: torch.Tensor) -> Tensors:
        *early, coords, labels, mask, has_mask, orig_im_size = others
        prompt = self.model.prompt_encoder
        sparse = prompt._embed_points(coords[None], labels[None], pad=False)
        for corner in map(int, CORNERS):
            sparse = sparse + (labels == corner)[None, :, :, None] * prompt.point_embed[corner].weight
        more = {"hq_token_only": False, "intermediate_embeddings": list(early[0])} if early else {}
        low_res, iou = decoded(self.model, embedding, sparse, embedded_mask(prompt, mask, has_mask), **more)
        return at_original_size(low_res, orig_im_size, self._side), iou, low_res


class Sam2Encoder(nn.Module):
    """Image -> features of a quarter and an eighth of its sides, and the embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Tensors:
        return tuple(self.model.get_image_embeddings(image))


class Sam2Decoder(nn.Module):
    """Four low-resolution masks of one prompt."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        embedding: torch.Tensor,
        fine: torch.Tensor,
        finer: torch.Tensor,
        coords: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
        has_mask: torch.Tensor,
    ) -> Tensors:
        prompt = self.model.prompt_encoder
        sparse = prompt._embed_points(coords[None], labels[None].to(torch.int64), pad=False)
        dense = embedded_mask(prompt, mask, has_mask)
        return decoded(self.model, embedding, sparse, dense, high_resolution_features=[fine, finer])
