# SPDX-License-Identifier: Apache-2.0
"""External data never take the place of other data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from samq_onnx.external import data_name
from samq_onnx.files import atomic_folder, atomic_path
from samq_onnx.runtime import open_session


def _save(path: Path, number: float) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> add (float[64] x) => (float[64] y) { y = Add(x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(64, number, np.float32), "w"))
    onnx.save(model, path, save_as_external_data=True, location=data_name(path.name), size_threshold=0)


def _number(path: Path) -> float:
    return float(open_session(path).run(None, {"x": np.zeros(64, np.float32)})[0][0])


@pytest.mark.parametrize("alone", [True, False])
def test_other_data_stay(alone: bool, tmp_path: Path) -> None:
    target = tmp_path / "out" / "m.onnx"

    def write(number: float) -> None:
        if alone:
            with atomic_path(target) as temporary:
                _save(temporary, number)
        else:
            with atomic_folder(target.parent) as folder:
                _save(folder / target.name, number)

    def names() -> set[str]:
        return {path.name for path in target.parent.iterdir()}

    write(1)
    assert names() == {"m.onnx", "m.onnx.data"}
    write(1)
    assert names() == {"m.onnx", "m.onnx.data"}
    target.rename(target.with_name("kept.onnx"))
    write(2)
    assert len(names()) == 4
    write(2)
    assert len(names()) == 4
    assert _number(target) == 2 and _number(target.with_name("kept.onnx")) == 1
