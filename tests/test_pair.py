# SPDX-License-Identifier: Apache-2.0
"""An encoder and a decoder of different runs are refused where they lie in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from samq_onnx import assets
from samq_onnx.errors import UserError
from samq_onnx.pair import PAIR, check_made_together, pair_hash
from samq_onnx.predictor import SamPredictor


def test_runs_are_compared_within_a_folder() -> None:
    one, other = pair_hash({"a": [1, "x"]}), pair_hash({"a": [2, "x"]})
    assert one == pair_hash({"a": [1, "x"]}) != other
    check_made_together({"x/encoder.onnx": {PAIR: one}, "x/decoder.onnx": {PAIR: one}})
    check_made_together({"x/encoder.onnx": {PAIR: one}, "x/decoder.onnx": {}})
    check_made_together({"x/encoder.onnx": {PAIR: one}, "y/decoder.onnx": {PAIR: other}})
    with pytest.raises(UserError, match=r"x/encoder.onnx and x/decoder.onnx were made in different runs"):
        check_made_together({"x/encoder.onnx": {PAIR: one}, "x/decoder.onnx": {PAIR: other}})


def test_the_predictor_refuses_two_runs(tmp_path: Path) -> None:
    for run in ("1", "2"):
        (tmp_path / run).mkdir()
        for name in ("encoder.onnx", "decoder.onnx"):
            model = onnx.load(assets.nano_dir() / name)
            onnx.helper.set_model_props(model, {PAIR: run})
            onnx.save(model, tmp_path / run / name)
    SamPredictor(tmp_path / "1" / "encoder.onnx", tmp_path / "2" / "decoder.onnx")
    shutil.copy(tmp_path / "2" / "decoder.onnx", tmp_path / "1" / "decoder.onnx")
    with pytest.raises(UserError, match="different runs"):
        SamPredictor(tmp_path / "1" / "encoder.onnx", tmp_path / "1" / "decoder.onnx")
