# SPDX-License-Identifier: Apache-2.0
"""SAM-Nano, exported once by the command with all its files, beside the PyTorch model it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
import torch

from samq_onnx import assets
from samq_onnx.export.__main__ import main
from samq_onnx.export.checkpoint import read_state_dict
from samq_onnx.export.families import build
from samq_onnx.export.sam import Sam
from tests.conftest import made_once

SIDE, TOKENS, CHANNELS = 512, 32, 128


class Exported(NamedTuple):
    folder: Path
    report: dict[str, Any]

    def session(self, name: str) -> ort.InferenceSession:
        return ort.InferenceSession(self.folder / f"{name}.onnx")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    def make(folder: Path) -> None:
        arguments = ["--model-type", "nano", "--batched", "-o", str(folder / "new"), "--json", str(folder / "new.json")]
        assert main(arguments) == 0

    folder = made_once(tmp_path_factory, "exported", make)
    return Exported(folder / "new", json.loads((folder / "new.json").read_text()))


@pytest.fixture(scope="session")
def sam() -> Sam:
    return build("nano", read_state_dict(assets.nano_checkpoint()), "bundled")


def decoder_feed(
    points: int = 2, prompts: int = 1, size: tuple[int, int] = (300, 400), seed: int = 0
) -> dict[str, Any]:
    """Random inputs of the decoder, arrays by name; each prompt has points of its own and no mask."""
    random = np.random.default_rng(0)
    return {
        "image_embeddings": random.standard_normal((1, CHANNELS, TOKENS, TOKENS), np.float32),
        "point_coords": random.uniform(0, SIDE, (prompts, points, 2)).astype(np.float32),
        "point_labels": random.integers(0, 4, (prompts, points)).astype(np.float32),
        "mask_input": np.zeros((prompts, 1, 4 * TOKENS, 4 * TOKENS), np.float32),
        "has_mask_input": np.zeros(prompts, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


def tensors(feed: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}
