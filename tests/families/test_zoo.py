# SPDX-License-Identifier: Apache-2.0
"""Tiny models of the families' own packages, exported, quantized and prompted: all that is there is found."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import samq_onnx
from samq_onnx.models import load_model
from samq_onnx.passes.lift import lift
from samq_onnx.passes.normal import normalise
from samq_onnx.verify import verify
from tests.families.exports import BOX, POINT, RGB

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = {
    # family: package, attentions of encoder and decoder, projections that are not views of a linear
    "SAM": ("segment_anything", 3, 7, 0),
    "SAM, Hugging Face, sdpa": ("transformers", 3, 7, 0),
    "SAM-HQ, Hugging Face, eager": ("transformers", 3, 7, 0),
    "SAM 2, Hugging Face, sdpa": ("transformers", 6, 7, 0),
    "EdgeTAM, Hugging Face, sdpa": ("timm", 0, 7, 0),
    "SAM 3, Hugging Face, sdpa": ("transformers", 3, 0, 6),  # queries and keys are rotated by their place
    "EdgeSAM": ("timm", 0, 7, 0),
    "Swin, timm": ("timm", 4, 0, 0),
}


@pytest.fixture(scope="module")
def zoo() -> Iterator[ModuleType]:
    """benchmarks/zoo, which finds its neighbours as a script does."""
    torch = pytest.importorskip("torch")
    importlib.import_module("samq_onnx.export.torchvision_ops").import_torchvision()  # which packages import
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        with torch.random.fork_rng():
            yield importlib.import_module("zoo")


@pytest.mark.slow
@pytest.mark.parametrize("family", list(CASES))
def test_a_family_is_quantized(family: str, zoo: ModuleType, folder: Path, calibration: Path) -> None:
    package, encoder, decoder, untraced = CASES[family]
    pytest.importorskip(package)
    made = folder / "made"
    made.mkdir()
    importlib.import_module("torch").manual_seed(0)  # of what the zoo leaves as packages initialise it
    found = traced = 0
    for file in zoo.FAMILIES[family]():
        if file.role in ("encoder", "decoder"):
            zoo.export(file, "torchscript", made / f"{file.role}.onnx")
            model = load_model(made / f"{file.role}.onnx")
            normalise(model, 8)
            sites = lift(model).attentions
            found += len(sites)
            traced += sum(part is not None for site in sites for part in (site.q, site.k, site.v, site.out))
    assert found == encoder + decoder and traced == 4 * found - untraced
    result = samq_onnx.quantize(made if decoder else made / "encoder.onnx", calibration, method="minmax")
    assert sum(len(part.plan.attentions) for part in result.parts.values()) == found
    for name, part in result.parts.items():
        part.save(folder / f"{name}_quantized.onnx")
        source = made / f"{name}.onnx" if decoder else made / "encoder.onnx"
        report = verify(folder / f"{name}_quantized.onnx", source, made / "encoder.onnx" if name == "decoder" else None)
        ratios = {name: value for name, value in report["output_sqnr_db"].items() if "object" not in name}
        assert report["same"] and min(ratios.values()) > 12, ratios  # one score of objects near 0 says nothing
    if decoder:
        predictor = samq_onnx.SamPredictor(folder / "encoder_quantized.onnx", folder / "decoder_quantized.onnx")
        predictor.set_image(RGB)
        assert predictor.predict(POINT, np.ones(1))[0].shape[1:] == RGB.shape[:2]
        if predictor._decoder.takes_boxes:
            assert predictor.predict(box=BOX)[0].shape[1:] == RGB.shape[:2]
