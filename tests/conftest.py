# SPDX-License-Identifier: Apache-2.0
"""SAM-Nano, real inputs for it, and the two things most tests do with a model: run it and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from samq_onnx import assets, data, images
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths, configured
from samq_onnx.pipeline import Outcome, quantize_model
from samq_onnx.runtime import open_session
from tests.fuzz import tiny

Feed = Mapping[str, np.ndarray]


def run_model(model: ir.Model | Path | str, feed: Feed, *, native: bool = True) -> list[np.ndarray]:
    """Outputs of a model on one feed."""
    source = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else str(model)
    return open_session(source, native=native).run(None, dict(feed))


def relative_error(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """Norm of the difference over the norm of the expected values, worst output."""
    return max(
        float(np.linalg.norm(one - two) / max(np.linalg.norm(one), 1e-12))
        for one, two in zip(expected, actual, strict=True)
    )


@pytest.fixture(scope="session")
def nano() -> Path:
    """Folder with SAM-Nano's float encoder.onnx and decoder.onnx."""
    return assets.nano_dir()


@pytest.fixture(scope="session")
def tiny_sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with encoder.onnx and decoder.onnx of a SAM with random weights, quantized in a second."""
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(tiny.encoder(), folder / "encoder.onnx")
    onnx.save(tiny.decoder(), folder / "decoder.onnx")
    return folder


@pytest.fixture(scope="session")
def one_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one small image."""
    folder = tmp_path_factory.mktemp("one")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return folder


@pytest.fixture(scope="session")
def encoder_feed() -> Feed:
    """A real image as SAM-Nano's encoder wants it."""
    return {"image": images.preprocess(images.load(data.image_paths(assets.demo_images())[0]), 512)}


@pytest.fixture(scope="session")
def decoder_feed(nano: Path, encoder_feed: Feed) -> Feed:
    """A real embedding with one foreground point."""
    sample = data.load_coco(assets.demo_images())[0]
    point = images.to_model_coords(np.array([sample.instances[0].point()]), sample.height, sample.width, 512)
    return {
        "image_embeddings": run_model(nano / "encoder.onnx", encoder_feed)[0],
        "point_coords": np.concatenate([point, [[0.0, 0.0]]])[None].astype(np.float32),
        "point_labels": np.array([[1.0, -1.0]], np.float32),
        "mask_input": np.zeros((1, 1, 128, 128), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([sample.height, sample.width], np.float32),
    }


def quantized_outcome(
    model: ir.Model, feeds: Sequence[Feed], method: str = "minmax", bits: str = "w8a8", target: str = "samq"
) -> Outcome:
    """What quantizing a graph in memory on given feeds gives."""
    part = identify(model, "the model")
    return quantize_model(model, part, feeds, configured(method), Scheme(Widths.parse(bits)), target=target)
