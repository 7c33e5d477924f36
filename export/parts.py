# SPDX-License-Identifier: Apache-2.0
"""The parts of SAM that become a file each, by the classes of segment_anything and of packages like it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import nn

from samq_onnx.export.decoder import BatchedDecoder, Decoder
from samq_onnx.export.part import Check, Feed, Part, Shape
from samq_onnx.export.reference import decoder_checks, image_of
from samq_onnx.export.sam import Sam

__all__ = [
    "SAM_OUTPUTS",
    "Tensors",
    "batched_decoder_part",
    "decoder_of",
    "decoder_part",
    "encoder_of",
    "encoder_part",
    "sam_parts",
]

Tensors: TypeAlias = tuple[torch.Tensor, ...]

SAM_OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
POINTS = 5  # in the sample
PROMPTS = 3


def sam_parts(sam: Sam, batched: bool) -> list[Part]:
    """Encoder, decoder, and where it is wanted a decoder of many prompts."""
    return [encoder_part(sam), decoder_part(sam), *([batched_decoder_part(sam)] if batched else [])]


def encoder_part(sam: Sam) -> Part:
    """`image`, normalised and padded -> `image_embeddings`."""
    side = sam.image_encoder.img_size
    outputs: dict[str, Shape] = {"image_embeddings": _embeddings_shape(sam)}
    sample = torch.randn(1, 3, side, side)
    return Part(
        "encoder",
        sam.image_encoder,
        (sample,),
        {"image": (1, 3, side, side)},
        outputs,
        lambda: [({"image": image_of(side)}, (sam.image_encoder(image_of(side)),))],
    )


def decoder_part(sam: Sam) -> Part:
    """segment_anything's own decoder interface; the number of points is dynamic."""
    checks = functools.partial(decoder_checks, sam, 1)
    return Part("decoder", Decoder(sam), _sample(sam, 1), *_interface(sam, 1, 1), checks)


def batched_decoder_part(sam: Sam) -> Part:
    """The same names for many prompts on one image, see `BatchedDecoder`."""
    interface = _interface(sam, "num_prompts", "num_mask_inputs")
    checks = functools.partial(decoder_checks, sam, PROMPTS)
    return Part("decoder_batched", BatchedDecoder(sam), _sample(sam, PROMPTS), *interface, checks)


def _embeddings_shape(sam: Sam) -> tuple[int, ...]:
    return (1, sam.prompt_encoder.embed_dim, *sam.prompt_encoder.image_embedding_size)


def _interface(sam: Sam, prompts: int | str, masks_in: int | str) -> tuple[dict[str, Shape], dict[str, Shape]]:
    low_res = sam.prompt_encoder.mask_input_size
    count = sam.mask_decoder.num_mask_tokens
    inputs: dict[str, Shape] = {
        "image_embeddings": _embeddings_shape(sam),
        "point_coords": (prompts, "num_points", 2),
        "point_labels": (prompts, "num_points"),
        "mask_input": (masks_in, 1, *low_res),
        "has_mask_input": (masks_in,),
        "orig_im_size": (2,),
    }
    outputs: dict[str, Shape] = {
        "masks": (prompts, count, "height", "width"),
        "iou_predictions": (prompts, count),
        "low_res_masks": (prompts, count, *low_res),
    }
    return inputs, outputs


def _sample(sam: Sam, prompts: int) -> tuple[torch.Tensor, ...]:
    """Random decoder inputs, in order, each prompt with its own mask."""
    side = sam.image_encoder.img_size
    return (
        torch.randn(_embeddings_shape(sam)),
        torch.rand(prompts, POINTS, 2) * side,
        torch.randint(0, 4, (prompts, POINTS)).float(),
        torch.randn(prompts, 1, *sam.prompt_encoder.mask_input_size),
        torch.ones(prompts),
        torch.tensor([0.75 * side, 1.25 * side]).floor(),
    )


def encoder_of(module: nn.Module, side: int, outputs: Sequence[str], reference: Callable[..., Tensors]) -> Part:
    """An encoder of another package.

    Args:
        module: normalised image [1, 3, S, S] -> as many tensors as ``outputs`` has names.
        reference: the same by the package's own methods.
    """
    image, module = image_of(side), module.eval()  # the exporter restores the mode that it finds, of all inside
    with torch.no_grad():
        made = module(image)
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(outputs, made, strict=True)}
    return Part(
        "encoder",
        module,
        (image,),
        {"image": tuple(image.shape)},
        shapes,
        lambda: [({"image": image}, reference(image))],
    )


def decoder_of(
    module: nn.Module,
    feeds: Sequence[Feed],
    outputs: Sequence[str],
    reference: Callable[[Feed], Tensors],
    repeats: bool = False,
) -> Part:
    """A decoder of another package, of one prompt; the number of points is dynamic, and the size of masks where it
    follows that of the image.

    Args:
        module: the tensors of a feed -> as many as ``outputs`` has names.
        feeds: inputs to compare on, of several numbers of points; the last one is traced.
        reference: what a feed gives by the package's own methods. repeats: as of `Part`.
    """
    sample, module = tuple(feeds[-1].values()), module.eval()
    with torch.no_grad():
        made = module(*sample)
    inputs: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in feeds[-1].items()}
    inputs |= {"point_coords": (1, "num_points", 2), "point_labels": (1, "num_points")}
    shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in zip(outputs, made, strict=True)}
    if "orig_im_size" in inputs:
        shapes["masks"] = (*shapes["masks"][:2], "height", "width")
    checks = functools.partial(_checks, feeds, reference)
    return Part("decoder", module, sample, inputs, shapes, checks, repeats)


def _checks(feeds: Sequence[Feed], reference: Callable[[Feed], Tensors]) -> Iterator[Check]:
    for feed in feeds:
        yield feed, reference(feed)
