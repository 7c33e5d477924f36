# SPDX-License-Identifier: Apache-2.0
"""NNCF's post-training quantization of an ONNX file: nncf_worker.py MODEL FEEDS OUTPUT.

FEEDS is a folder of ``.npz`` files, one array for each input of the model. Nothing of ours is imported, so that an
environment with NNCF alone can run it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def quantize(model: Path, feeds: Path, output: Path) -> None:
    """Write the model in 8 bits, QDQ, by the settings that NNCF has for transformers."""
    import nncf
    import numpy as np
    import onnx

    files = sorted(feeds.glob("*.npz"))
    dataset = nncf.Dataset(files, lambda file: dict(np.load(file)))
    made = nncf.quantize(onnx.load(model), dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(files))
    onnx.save(made, output)


def main(argv: Sequence[str]) -> int:
    try:
        quantize(*map(Path, argv))
    except ImportError as error:
        print(f"{error.name or error} is not installed; pip install nncf onnx, in any environment", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
