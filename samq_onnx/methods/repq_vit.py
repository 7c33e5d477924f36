# SPDX-License-Identifier: Apache-2.0
"""RepQ-ViT: codes of each channel, reparametrised into codes of the whole tensor.

Z. Li et al., "RepQ-ViT: scale reparameterization for post-training quantization of vision transformers", ICCV 2023.
Behind a norm each channel gets a scale d and a zero point z of its own (section 3.2). With their means d~ and z~,
r = d / d~ and b = d~ (z~ - z), the norm's weight is divided by r and its bias becomes b / r - b, so that all channels
share d~ and z~: channels are shifted by r b and scaled by r. Post-softmax maps get log codes of base 2^(1/2) (section
3.3), which are AGQ's with tau = 2. Ranges of activations and weights are the central shares 0.999, 0.9999 or 0.99999
of their values, whichever has the least squared error, as in the authors' code.

Other than there: codes of the tensor are observed again behind the fold, codes of weights are symmetric, activations
are observed in float, and no log code is spent on zero (the clamp of the paper's formula).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows, RowSamples, Statistic, TensorStats
from samq_onnx.codes import LogCodes, UniformCodes
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import CentreKeys, Ranges, ScaleNorms
from samq_onnx.observers import SITE_OBSERVERS, TENSOR_OBSERVERS, WEIGHT_OBSERVERS, SiteObserver, TensorObserver
from samq_onnx.observers.minmax import SMALLEST_SCALE, widest_scales
from samq_onnx.observers.percentile import best_share
from samq_onnx.passes.fold import NormReaders

__all__ = [
    "RepQVit",
    "Reparametrise",
    "central_range",
    "central_scales",
    "channel_codes",
    "log_of_base",
    "reparametrised",
]

SHARES = (0.999, 0.9999, 0.99999)
NARROWEST = 1e-4  # scale of a channel, as a share of the largest: what is divided by it stays exact in float32


@TENSOR_OBSERVERS.add("repq-vit")
def central_range(stats: TensorStats, bits: int) -> UniformCodes:
    """The central share of the values, 99.8 % to 99.998 %, whose range has the least squared error."""
    return best_share(stats, bits, SHARES)


@WEIGHT_OBSERVERS.add("repq-vit")
def central_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """Of each output channel the range of central values, 99.8 % to 99.998 %, with the least squared error."""
    top = 2 ** (bits - 1)
    least, best = np.full(len(rows), np.inf), np.zeros(len(rows))
    for share in SHARES:
        low, high = np.quantile(rows, [1 - share, share], axis=1)
        scales = widest_scales(np.stack([low, high], axis=1), bits)
        codes = np.clip(np.rint(rows / scales[:, None]), -top, top - 1)
        error = np.square(codes * scales[:, None] - rows, dtype=np.float64).sum(axis=1)
        better = error < least
        least, best = np.where(better, error, least), np.where(better, scales, best)
    return best


def log_of_base(tau: int, rows: AttentionRows, bits: int, observe: TensorObserver) -> LogCodes:
    """Log codes of that tau whose scale is the quantile of the map, of three, with the least squared error."""
    values = np.concatenate([probabilities.ravel() for probabilities, _ in rows.samples])
    candidates = [LogCodes(max(float(scale), 1e-8), tau, bits) for scale in np.quantile(values, SHARES)]
    return min(
        candidates, key=lambda codes: float(np.square(codes.fake_quantize(values) - values).sum(dtype=np.float64))
    )


SITE_OBSERVERS.add("log-sqrt2")(SiteObserver("log", functools.partial(log_of_base, 2)))
SITE_OBSERVERS.add("log2")(SiteObserver("log", functools.partial(log_of_base, 1)))


def channel_codes(rows: np.ndarray, bits: int, *, zero: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each channel, float64 [channels] each, of the central share with the least squared error.

    Args:
        rows: float32 [rows, channels].
        zero: every range holds zero; otherwise zero points may lie outside of the codes.
    """
    top = 2**bits - 1
    least = np.full(rows.shape[1], np.inf)
    scale, point = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for share in SHARES:
        low, high = np.quantile(rows, [1 - share, share], axis=0)
        if zero:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        delta = np.maximum((high - low) / top, SMALLEST_SCALE)
        origin = np.rint(-low / delta)
        codes = np.clip(np.rint(rows / delta) + origin, 0, top)
        error = np.square((codes - origin) * delta - rows).sum(axis=0)
        better = error < least
        least = np.where(better, error, least)
        scale, point = np.where(better, delta, scale), np.where(better, origin, point)
    return scale, point


def reparametrised(scale: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale r and the shift r b at which channels of these codes share their means, float64 [channels] each."""
    r = scale / scale.mean()
    b = scale.mean() * (point.mean() - point)
    return r, r * b


class Reparametrise(ScaleNorms):
    """Scales and shifts of `reparametrised`; where a norm takes no shift, scales of ranges that hold zero."""

    name = "scale reparametrisation"
    shifts = True

    def settled(self, scale: np.ndarray, point: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """The codes that channels get, of those that suit each alone, float64 [channels] each."""
        return scale, point

    def statistics(self, tensor: str, readers: NormReaders) -> list[Statistic]:
        return [RowSamples(tensor, channels=readers.channels)]

    def affine(self, work: Work, tensor: str, readers: NormReaders) -> tuple[np.ndarray, np.ndarray]:
        rows = work.found(RowSamples(tensor)).rows
        bits = min(work.scheme.bits(linear.name, "input") for linear in readers.linears)
        scale, point = channel_codes(rows, bits, zero=readers.no_shift is not None)
        least = NARROWEST * scale.max()
        point = np.where(scale < least, point * scale / least, point)
        r, shift = reparametrised(*self.settled(np.maximum(scale, least), point, bits))
        return r, shift if readers.no_shift is None else np.zeros_like(shift)


@method("repq-vit", paper="Li et al. 2023, RepQ-ViT, sections 3.2 and 3.3")
@dataclasses.dataclass(frozen=True)
class RepQVit(Method):
    """Codes of channels behind an encoder's norms become those of the tensor; log post-softmax codes; percentiles."""

    probabilities: str = parameter("log-sqrt2", "post-softmax codes", lambda: SITE_OBSERVERS)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Reparametrise(), Ranges("repq-vit", "repq-vit", self.probabilities)]
