# SPDX-License-Identifier: Apache-2.0
"""The door that models come through: what is refused there in one line, and what is not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from samq_onnx import assets, open_session, quantize, verify
from samq_onnx.door import admit
from samq_onnx.errors import UserError, shortened
from samq_onnx.isolate import isolated
from samq_onnx.models import load_model, model_sha256
from tests import nets

FEED = {"image": np.random.default_rng(0).random((1, 3, nets.SIDE, nets.SIDE), np.float32)}


def _saved(folder: Path, *, external: bool = False) -> Path:
    path = folder / "model.onnx"
    onnx.save(
        nets.build("transformer_mlp"), path, save_as_external_data=external, location="weights.bin", size_threshold=0
    )
    return path


def _changed(folder: Path, change: Callable[[onnx.ModelProto], object], *, external: bool = False) -> Path:
    path = _saved(folder, external=external)
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _weight(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "w2")


def _set_dims(*dims: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        _weight(model).dims[:] = dims

    return change


def _set_raw(data: bytes) -> Callable[[onnx.ModelProto], object]:
    return lambda model: setattr(_weight(model), "raw_data", data)


def _set_type(number: int) -> Callable[[onnx.ModelProto], object]:
    return lambda model: setattr(_weight(model), "data_type", number)


INCOMPLETE = "does not hold what its shape and type ask for"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set_dims(48, 97), INCOMPLETE),
        (_set_dims(-48, -96), INCOMPLETE),
        (_set_dims(1 << 62, 1 << 62), INCOMPLETE),
        (_set_raw(b"\0" * 7), INCOMPLETE),
        (_set_type(0), INCOMPLETE),
        (_set_type(99), INCOMPLETE),
        (_set_type(onnx.TensorProto.STRING), INCOMPLETE),
        (lambda model: setattr(model.graph.node[0], "op_type", "Nothing"), "ONNX Runtime cannot load it"),
        (lambda model: setattr(model.graph.node[0], "domain", "nobody"), "ONNX Runtime cannot load it"),
        (lambda model: model.graph.node[1].input.pop(), "ONNX Runtime cannot load it"),
        (lambda model: model.graph.node[1].ClearField("output"), "model.onnx: "),
        (lambda model: setattr(model.opset_import[0], "version", 999), "ONNX Runtime cannot load it"),
        (lambda model: setattr(model.graph.node[0].attribute[0], "ref_attr_name", "x"), "outside of functions"),
        (lambda model: model.graph.ClearField("node"), "holds no graph"),
    ],
)
def test_what_is_no_valid_model_is_one_line(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _changed(tmp_path, change)
    assert (
        quantize.main([str(path), "-o", str(tmp_path / "out.onnx"), "--calib", str(assets.calibration_images())]) == 2
    )
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and len(error) < 500
    assert os.listdir(tmp_path) == ["model.onnx"]


def _entry(key: str, value: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        next(entry for entry in _weight(model).external_data if entry.key == key).value = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_entry("location", "/etc/passwd"), "no path below the model's folder"),
        (_entry("location", "../weights.bin"), "no path below the model's folder"),
        (_entry("location", ""), "no path below the model's folder"),
        (_entry("location", "*/_ORT_MEM_ADDR_/*"), "is missing"),
        (_entry("location", "."), "no regular file"),
        (_entry("location", "a\0b"), "cannot be read"),
        (_entry("offset", "-1"), "offset '-1'"),
        (_entry("offset", str(1 << 62)), "is cut short"),
        (_entry("offset", "9" * 30), "have the offset"),
        (_entry("length", "1"), "take 18432 bytes, but 1 are given"),
        (_set_dims(1 << 40, 96), INCOMPLETE),
        (_set_type(onnx.TensorProto.STRING), INCOMPLETE),
    ],
)
def test_external_data_that_cannot_be_is_one_line(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], reason: str
) -> None:
    with pytest.raises(UserError, match=f"model.onnx: .*{reason.replace('(', '.')}"):
        admit(_changed(tmp_path, change, external=True))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (os.mkfifo, "no regular file"),
        (Path.mkdir, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.write_bytes(b"short"), "cut short"),
    ],
    ids=["missing", "loop", "pipe", "folder", "device", "short"],
)
def test_weights_that_are_no_file_are_one_line_and_block_nothing(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = _saved(tmp_path, external=True)
    (tmp_path / "weights.bin").unlink()
    make(tmp_path / "weights.bin")
    with pytest.raises(UserError, match=reason):
        load_model(path)
    with pytest.raises(UserError, match=reason):
        open_session(path)


@pytest.mark.parametrize("layout", ["cache of a model hub", "linked weights", "hard links", "linked folder"])
def test_weights_behind_links_are_read(tmp_path: Path, layout: str) -> None:
    plain, blobs, shown = (tmp_path / name for name in ("plain", "blobs", "snapshots/x"))
    for folder in (plain, blobs, shown):
        folder.mkdir(parents=True)
    _saved(plain, external=True)
    source = shown / "model.onnx"
    if layout == "cache of a model hub":
        (plain / "model.onnx").rename(blobs / "aaa")
        (plain / "weights.bin").rename(blobs / "bbb")
        source.symlink_to("../../blobs/aaa")
        (shown / "weights.bin").symlink_to("../../blobs/bbb")
    elif layout == "linked weights":
        (plain / "model.onnx").rename(source)
        (shown / "weights.bin").symlink_to("../../plain/weights.bin")
    elif layout == "hard links":
        for name in ("model.onnx", "weights.bin"):
            os.link(plain / name, shown / name)
    else:
        shown.rmdir()
        shown.symlink_to("../plain")
    expected = open_session(nets.build("transformer_mlp").SerializeToString()).run(None, FEED)[0]
    assert np.array_equal(open_session(source).run(None, FEED)[0], expected)
    output = tmp_path / "out.onnx"
    arguments = ["--calib", str(assets.calibration_images()), "--method", "minmax"]
    assert quantize.main([str(source), "-o", str(output), *arguments]) == 0
    assert verify.main([str(output), "--reference", str(source)]) == 0
    assert verify.sqnr(expected, open_session(output).run(None, FEED)[0]) > 33
    assert model_sha256(source) in {entry.value for entry in onnx.load(output).metadata_props}


FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
calls (float[1] x) => (float[1] y) {{ y = local.f0 (x) }}
{functions}
"""
FUNCTION = '<domain: "local", opset_import: ["" : 17, "local" : 1]> f{} (x) => (y) {{ {} }}\n'


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ([f"z = local.f{i + 1} (x) y = local.f{i + 1} (z)" for i in range(40)] + ["y = Relu (x)"], "functions make"),
        (["y = local.f0 (x)"], "calls itself"),
        (["y = local.f1 (x)", "y = local.f0 (x)"], "calls itself"),
        ([f"y = local.f{i + 1} (x)" for i in range(3000)] + ["y = Relu (x)"], "through too many others"),
    ],
    ids=["doubling", "recursion", "mutual recursion", "long chain"],
)
def test_functions_without_end_are_one_line(tmp_path: Path, functions: list[str], reason: str) -> None:
    path = tmp_path / "model.onnx"
    text = "".join(FUNCTION.format(number, body) for number, body in enumerate(functions))
    path.write_bytes(onnx.parser.parse_model(FUNCTIONS.format(functions=text)).SerializeToString())
    with pytest.raises(UserError, match=reason):
        admit(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.graph.ClearField("name"),
        lambda model: model.graph.output[0].type.tensor_type.ClearField("shape"),
        lambda model: model.graph.node[0].ClearField("name"),
    ],
    ids=["no graph name", "no output shape", "no node name"],
)
def test_what_runs_comes_in(tmp_path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    admit(_changed(tmp_path, change))


def _sleep() -> None:
    signal.pause()


def test_an_isolated_function_that_crashes_or_takes_too_long_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^crash: crashes what works on it \(SIGSEGV\)$"):
        isolated("crash", signal.raise_signal, signal.SIGSEGV)
    with pytest.raises(UserError, match=r"^sleep: takes longer than 1 s$"):
        isolated("sleep", _sleep, seconds=1)
    assert isolated("sum", sum, [1, 2]) == 3


def test_a_long_message_of_a_library_is_cut_in_its_middle() -> None:
    text = "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from a.onnx failed:This is an invalid model. "
    line = shortened(RuntimeError(f"{text}In Node, ({'x' * 1000}) Error\nNode (a) has input size 1"))
    assert line.startswith("In Node, (xxx") and line.endswith("Error Node (a) has input size 1")
    assert len(line) == 200 and "\n" not in line


def test_words_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"note": "0123456789"})
    path.write_bytes(model.SerializeToString().replace(b"0123456789", b"01234\xe96789"))
    with pytest.raises(UserError, match=r"model\.onnx: onnx_ir cannot read it and write it again"):
        admit(path)
