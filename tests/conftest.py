# SPDX-License-Identifier: Apache-2.0
"""SAM-Nano, real inputs for it, and the two things most tests do with a model: run it and compare."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from PIL import Image

from samq_onnx import assets, data, images, quantize
from samq_onnx.families import identify
from samq_onnx.methods import METHODS, Scheme, Widths, configured, parameters
from samq_onnx.pipeline import Outcome, quantize_model
from samq_onnx.runtime import open_session
from tests.fuzz import tiny

Feed = Mapping[str, np.ndarray]
SHORT = {"iterations": "3"}  # of methods that learn


def pytest_configure() -> None:
    """Where several workers share the cores, a session that leaves its number of threads open has one."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    create = ort.InferenceSession.__init__

    def init(self: Any, source: Any, sess_options: Any = None, *more: Any, **named: Any) -> None:
        options = ort.SessionOptions() if sess_options is None else sess_options
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        create(self, source, options, *more, **named)

    ort.InferenceSession.__init__ = init  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: one that begins last would keep the other workers waiting."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` has filled, by one of all workers, before any gets it. Tests leave it as it is."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            making = root / f"{name}.making"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making)
            making.rename(root / name)
    return root / name


class Quantized(NamedTuple):
    """A quantized SAM-Nano: the folder of its two files, and the command's report."""

    folder: Path
    report: dict[str, Any]


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
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two bundled images, without annotations."""
    sources = sorted((assets.calibration_images() / "images").iterdir())[:2]

    def make(folder: Path) -> None:
        for source in sources:
            shutil.copy(source, folder)

    return made_once(tmp_path_factory, "calibration", make)


@pytest.fixture(scope="session")
def quantized_nano(
    nano: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Quantized]:
    """Method and widths -> SAM-Nano, quantized by them on two images; once for all tests."""

    def quantized(method: str, bits: str) -> Quantized:
        def make(folder: Path) -> None:
            report = folder / "report.json"
            arguments = [str(nano), "-o", str(folder), "--calib", str(calibration), "--json", str(report)]
            assert quantize.main([*arguments, "--method", method, "--bits", bits]) == 0

        folder = made_once(tmp_path_factory, f"nano_{method}_{bits}", make)
        return Quantized(folder, json.loads((folder / "report.json").read_text()))

    return quantized


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
    chosen = configured(method, SHORT if any(one.name == "iterations" for one in parameters(METHODS[method])) else None)
    return quantize_model(model, part, feeds, chosen, Scheme(Widths.parse(bits)), target=target)
