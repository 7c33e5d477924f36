# SPDX-License-Identifier: Apache-2.0
"""The recipe that trained SAM-Nano, the bundled model: BBBC038's nuclei, two CPU cores, about 90 minutes.

    python benchmarks/train_nano.py --data bbbc038/train -o sam_nano.safetensors

Three phases, each of a given time:

1. ``dense``: foreground segmentation by a throw-away head on the encoder. Without it the decoder learns nothing from
   prompts, because the embeddings hold nothing to decode yet.
2. ``prompts``: small crops, half of the prompts boxes and half points. The loss is dice plus class-balanced
   cross-entropy; focal loss collapses to empty masks, because a nucleus is less than a hundredth of an image. A box
   trains mask 0, a point the best of masks 1 to 3, as SAM uses them; the IoU head learns the IoU each mask reached.
3. ``tune``: the same at half the rates, on crops up to the whole image.

The model was trained with ``--bf16``, for CPUs with bfloat16 instructions; others are many times slower with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from samq_onnx import data, images
from samq_onnx.export.nano import EMBEDDING, IMAGE_SIZE, build_nano
from samq_onnx.export.sam import Sam, SamOnnxModel
from samq_onnx.files import atomic_path

Groups = list[tuple[list[nn.Parameter], float]]  # parameters and their learning rate

LOSS_SIDE = 256  # masks are compared at this size
INSTANCES = 8  # of an image, at most
LEAST_PIXELS = 12  # of an instance in the crop, at LOSS_SIDE
BOX_JITTER = 0.05  # standard deviation, in sides of the box
BRIGHTNESS = 0.2
CROSS_ENTROPY = 0.3  # weight beside dice
REPORT_SECONDS = 20.0
WHOLE = 4096  # a crop as large as this is the whole image


@dataclasses.dataclass(frozen=True)
class Phase:
    """Crops from ``smallest`` to ``largest`` pixels, and learning rates at the start of a cosine to zero."""

    smallest: int
    largest: int
    encoder_rate: float
    rest_rate: float


DENSE = Phase(64, 256, 8e-4, 8e-4)
PROMPTS = Phase(64, 256, 2e-4, 5e-4)
TUNE = Phase(128, WHOLE, 1e-4, 2.5e-4)


@dataclasses.dataclass(frozen=True)
class Crop:
    """Encoder input float32 [1, 3, S, S] and instance numbers int64 [LOSS_SIDE, LOSS_SIDE], 0 outside of instances."""

    image: torch.Tensor
    numbers: torch.Tensor


class Nuclei:
    """Annotated images in memory, and random crops of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.pictures: list[tuple[np.ndarray, np.ndarray]] = []
        for sample in data.load_coco(folder):
            numbers = np.zeros((sample.height, sample.width), np.uint16)
            for number, instance in enumerate(sample.instances, 1):
                numbers[instance.mask()] = number
            self.pictures.append((images.load(sample.path), numbers))

    def crop(self, phase: Phase) -> Crop:
        rgb, numbers = self.pictures[self.random.integers(len(self.pictures))]
        height, width = numbers.shape
        largest = min(phase.largest, max(height, width))
        side = round(math.exp(self.random.uniform(math.log(min(phase.smallest, largest)), math.log(largest))))
        top, left = (int(self.random.integers(max(length - side, 0) + 1)) for length in (height, width))
        window = np.s_[top : top + side, left : left + side]
        rgb, numbers = self._turn(rgb[window], numbers[window])
        bright = rgb * (1 + BRIGHTNESS * self.random.uniform(-1, 1)) + 255 * BRIGHTNESS * self.random.uniform(-0.5, 0.5)
        image = images.preprocess(bright.clip(0, 255).astype(np.uint8), IMAGE_SIZE)
        return Crop(torch.from_numpy(image), torch.from_numpy(_padded(numbers)))

    def _turn(self, rgb: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for axis in (0, 1):
            if self.random.random() < 0.5:
                rgb, numbers = np.flip(rgb, axis), np.flip(numbers, axis)
        if self.random.random() < 0.5:
            rgb, numbers = rgb.swapaxes(0, 1), numbers.T
        return np.ascontiguousarray(rgb), numbers

    def prompt(self, mask: np.ndarray, box: bool) -> tuple[np.ndarray, list[float]]:
        """Two points [2, 2] in the encoder's frame and their labels, for a mask bool [LOSS_SIDE, LOSS_SIDE]."""
        rows, columns = np.nonzero(mask)
        scale = IMAGE_SIZE / LOSS_SIDE
        if not box:
            index = self.random.integers(len(rows))
            return np.array([[columns[index] + 0.5, rows[index] + 0.5], [0, 0]]) * scale, [1.0, -1.0]
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float64)
        noise = self.random.normal(0, BOX_JITTER, (2, 2)) * (corners[1] - corners[0])
        return (corners + noise) * scale, [2.0, 3.0]


def _padded(numbers: np.ndarray) -> np.ndarray:
    """Instance numbers scaled and padded as the encoder's input is, int64 [LOSS_SIDE, LOSS_SIDE]."""
    height, width = images.resized_shape(numbers.shape[0], numbers.shape[1], LOSS_SIDE)
    rows = (np.arange(height) * numbers.shape[0] // height)[:, None]
    columns = np.arange(width) * numbers.shape[1] // width
    canvas = np.zeros((LOSS_SIDE, LOSS_SIDE), np.int64)
    canvas[:height, :width] = numbers[rows, columns]
    return canvas


def mask_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice plus cross-entropy in which inside and outside weigh the same; [..., H, W] -> [...]."""
    chance = logits.sigmoid()
    size = truth.sum((-2, -1))
    dice = 1 - (2 * (chance * truth).sum((-2, -1)) + 1) / (chance.sum((-2, -1)) + size + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    inside = (entropy * truth).sum((-2, -1)) / size.clamp(min=1)
    outside = (entropy * (1 - truth)).sum((-2, -1)) / (1 - truth).sum((-2, -1)).clamp(min=1)
    return dice + CROSS_ENTROPY * 0.5 * (inside + outside)


def dense_step(sam: Sam, head: nn.Module, nuclei: Nuclei) -> torch.Tensor:
    """Loss of foreground against background on one crop."""
    crop = nuclei.crop(DENSE)
    logits = head(sam.image_encoder(crop.image))
    logits = functional.interpolate(logits.float(), (LOSS_SIDE, LOSS_SIDE), mode="bilinear", align_corners=False)
    return mask_loss(logits[0, 0], (crop.numbers > 0).float())


def prompt_step(sam: Sam, prompts: SamOnnxModel, nuclei: Nuclei, phase: Phase) -> torch.Tensor | None:
    """Loss of the masks that prompts on one crop give; None if no instance is in it."""
    crop = nuclei.crop(phase)
    found, sizes = crop.numbers.unique(return_counts=True)
    found = found[(found > 0) & (sizes >= LEAST_PIXELS)].numpy()
    if not len(found):
        return None
    chosen = nuclei.random.permutation(found)[:INSTANCES]
    truth = torch.stack([crop.numbers == int(number) for number in chosen])
    box = nuclei.random.random(len(chosen)) < 0.5
    points, labels = zip(*(nuclei.prompt(m.numpy(), b) for m, b in zip(truth, box, strict=True)), strict=True)
    coords = torch.tensor(np.stack(points), dtype=torch.float32)
    low_res, iou = sam.mask_decoder.predict_masks(
        image_embeddings=sam.image_encoder(crop.image),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=prompts._embed_points(coords, torch.tensor(labels)),
        dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
    )
    logits = functional.interpolate(low_res.float(), (LOSS_SIDE, LOSS_SIDE), mode="bilinear", align_corners=False)
    wanted = truth[:, None].expand_as(logits)
    losses = mask_loss(logits, wanted.float())
    of_mask = torch.where(torch.from_numpy(box), losses[:, 0], losses[:, 1:].amin(1))
    with torch.no_grad():
        both, either = (logits > 0) & wanted, (logits > 0) | wanted
        reached = both.sum((-2, -1)) / either.sum((-2, -1))
    return of_mask.mean() + functional.mse_loss(iou.float(), reached)


def train(name: str, seconds: float, batch: int, groups: Groups, step: Callable[[], torch.Tensor | None]) -> None:
    """Take AdamW steps of ``batch`` crops until the time is over; rates fall along a cosine of the time."""
    optimizer = torch.optim.AdamW([{"params": parameters, "rate": rate} for parameters, rate in groups])
    shown = time.monotonic()
    recent: list[float] = []
    for progress in _clock(seconds):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * progress))
        losses = [loss for _ in range(batch) if (loss := step()) is not None]
        if not losses:
            continue
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for parameters, _ in groups for p in parameters], 1.0)
        optimizer.step()
        recent.append(loss.item())
        if time.monotonic() - shown > REPORT_SECONDS:
            print(f"{name}: {progress:4.0%}, loss {np.mean(recent):.3f} over {len(recent)} steps", flush=True)
            shown, recent = time.monotonic(), []
    print(f"{name}: done" + (f", loss {np.mean(recent):.3f} over {len(recent)} steps" if recent else ""), flush=True)


def _clock(seconds: float) -> Iterator[float]:
    """The part of the time that is over, until all is."""
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        yield elapsed / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images/ and annotations.json (COCO)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="weights, .safetensors")
    parser.add_argument("--dense-seconds", type=float, default=12 * 60)
    parser.add_argument("--prompt-seconds", type=float, default=50 * 60)
    parser.add_argument("--tune-seconds", type=float, default=26 * 60)
    parser.add_argument("--batch", type=int, default=4, help="crops in a step")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where torch's autocast does")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    nuclei = Nuclei(arguments.data, arguments.seed)
    sam = build_nano().train()
    encoder = list(sam.image_encoder.parameters())
    rest = [*sam.prompt_encoder.parameters(), *sam.mask_decoder.parameters()]
    head = nn.Conv2d(EMBEDDING, 1, 1)
    prompts = SamOnnxModel(sam, return_single_mask=False)

    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
        groups: Groups = [([*encoder, *head.parameters()], DENSE.encoder_rate)]
        train("dense", arguments.dense_seconds, arguments.batch, groups, lambda: dense_step(sam, head, nuclei))
        for name, phase, seconds in (
            ("prompts", PROMPTS, arguments.prompt_seconds),
            ("tune", TUNE, arguments.tune_seconds),
        ):
            groups = [(encoder, phase.encoder_rate), (rest, phase.rest_rate)]
            train(name, seconds, arguments.batch, groups, partial(prompt_step, sam, prompts, nuclei, phase))
    with atomic_path(arguments.output) as path:
        save_file({name: tensor.half().contiguous() for name, tensor in sam.state_dict().items()}, path)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
