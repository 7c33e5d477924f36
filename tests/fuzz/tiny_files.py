# SPDX-License-Identifier: Apache-2.0
"""The tiny SAM as files with an image to calibrate on, and whether a quantized model that was made of it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

from samq_onnx import open_session
from tests.fuzz import tiny
from tests.fuzz.target import declared

__all__ = ["PARTS", "TinyFiles", "unsound", "write_tiny"]

PARTS = ("encoder", "decoder")


class TinyFiles(NamedTuple):
    """``folder``: of encoder.onnx and decoder.onnx. ``data``: of one image. ``feeds``: of each part."""

    folder: Path
    data: Path
    feeds: dict[str, dict[str, np.ndarray]]

    def source(self, part: str) -> Path:
        """The float file of a part, or the folder if it is ``both``."""
        return self.folder / f"{part}.onnx" if part in PARTS else self.folder


def write_tiny(folder: Path) -> TinyFiles:
    """Write all of it into a folder."""
    models, data = folder / "float", folder / "data"
    models.mkdir()
    data.mkdir()
    onnx.save(tiny.encoder(), models / "encoder.onnx")
    onnx.save(tiny.decoder(), models / "decoder.onnx")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(data / "a.png")
    image = {"image": random.standard_normal((1, 3, tiny.SIDE, tiny.SIDE)).astype(np.float32)}
    decoder = {
        "image_embeddings": ort.InferenceSession(models / "encoder.onnx").run(None, image)[0],
        "point_coords": np.array([[[10.0, 11.0], [40.0, 32.0]]], np.float32),
        "point_labels": np.array([[2.0, 3.0]], np.float32),
        "mask_input": np.zeros((1, 1, 16, 16), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([32, 48], np.float32),
    }
    return TinyFiles(models, data, {"encoder": image, "decoder": decoder})


def unsound(files: TinyFiles, part: str, made: Path) -> str:
    """What is wrong with a quantized file, or with both of a folder; empty if nothing is."""
    for name in PARTS if part == "both" else (part,):
        path = made / f"{name}.onnx" if part == "both" else made
        before, after = (onnx.load(file).graph for file in (files.source(name), path))
        if declared(before) != declared(after):
            return f"{name}: inputs or outputs differ"
        try:
            found = open_session(path).run(None, files.feeds[name])
        except Exception as error:
            return f"{name} does not run: {error}"
        for value, array in zip(after.output, found, strict=True):
            if not np.isfinite(array).all():
                return f"{name}: {value.name} is not finite"
    return ""
