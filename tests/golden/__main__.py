# SPDX-License-Identifier: Apache-2.0
"""Write the golden plans."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from tests.fuzz import tiny
from tests.golden.plans import FILE, made

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder) / "tiny", Path(folder) / "one"
        model.mkdir()
        images.mkdir()
        onnx.save(tiny.encoder(), model / "encoder.onnx")
        onnx.save(tiny.decoder(), model / "decoder.onnx")
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(images / "noise.png")
        FILE.write_text(json.dumps(made(model, images), indent=1) + "\n")
