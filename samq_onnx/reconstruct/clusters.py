# SPDX-License-Identifier: Apache-2.0
"""Groups of channels whose codes are alike (CAG, AHCPTQ, ICCV 2025)."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2, whiten

__all__ = ["COUNTS", "FEATURES", "clustered"]

COUNTS = (32, 16, 8, 4)  # of groups, one clustering after the other
FEATURES = ("log", "plain")


def clustered(scale: np.ndarray, point: np.ndarray, count: int, features: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the mean of each channel's group, float64 [channels] each.

    Args:
        scale, point: of each channel, float64 [channels]. count: of groups; channels that are fewer stay as they are.
        features: what k-means sees: ``log``, logarithms of scales and products of both, each in units of its deviation;
            ``plain``, scales and zero points as they are (the paper), of which zero points decide.
    """
    log = features == "log"
    seen = np.stack([np.log(scale), scale * point] if log else [scale, point], axis=1)
    if len(np.unique(seen, axis=0)) <= count:
        return scale, point
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of groups that stay empty, and of features that are all the same
        _, labels = kmeans2(whiten(seen) if log else seen, count, minit="++", seed=0)
    scale, point = scale.copy(), point.copy()
    for label in np.unique(labels):
        mean = seen[labels == label].mean(axis=0)
        scale[labels == label], point[labels == label] = (np.exp(mean[0]), mean[1] / np.exp(mean[0])) if log else mean
    return scale, point
