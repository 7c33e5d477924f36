# SPDX-License-Identifier: Apache-2.0
"""Model files, changed in a few places, through quantize, verify, segment and evaluate.

A quantized model is right if it has the inputs and outputs of the float model, gives numbers where that does, near to
its own, and heeds inputs that have a default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from PIL import Image

from samq_onnx import evaluate, images, open_session, quantize, segment, verify
from tests import nets
from tests.fuzz.model_changes import CHANGES, GENTLE, damaged, externalized
from tests.fuzz.target import FINE, REFUSED, Outcome, clean_run, declared, run_command

SECONDS = 60.0
SIDE = 64
SEEDS = Path(__file__).parent / "seeds"
FLOAT = (*nets.NETS, "unusual", "encoder", "decoder")
NAMES = [f"{name}{state}" for name in FLOAT for state in ("", "", "_quantized")]
LOWEST_SQNR = 5.0  # dB at W8A8, of a model whose weights nobody changed

# what exporters write beside SAM: every rank of convolution, all that Gemm can do, defaults, functions, subgraphs
UNUSUAL = """
<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
unusual (float[1, 3, 64, 64] image, float gain) => (float[1, 12] y, float[16, 8] z)
<float gain = {0.5}, float[8, 3, 8, 8] w1, float[8, 4, 3, 3] w2, float[8] b2, float[8, 8, 3] w3,
 float[4, 8, 1, 3, 3] w4,
 float[8, 12] w6, float[12] b6, float[8, 8] w7, float[1, 8] b7, float[8, 8] wq,
 float[8, 8] wk, float[8, 8] wv, float[8] g, float[8] b, int64[3] line = {1, 8, 64}, int64[5] volume = {1, 8, 1, 8, 8},
 int64[2] flat = {8, -1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] sixteen = {16}, float half = {0.5}>
{
    patches = Conv <strides = [8, 8]> (image, w1)
    grouped = Conv <group = 2, pads = [1, 1, 1, 1]> (patches, w2, b2)
    rows = Reshape (grouped, line)
    lines = Conv <pads = [1, 1]> (rows, w3)
    cube = Reshape (lines, volume)
    volumes = Conv <pads = [0, 1, 1, 0, 1, 1]> (cube, w4)
    tokens = Transpose <perm = [0, 2, 1]> (lines)
    normed = LayerNormalization <axis = -1> (tokens, g, b)
    q = MatMul (normed, wq)
    k = MatMul (normed, wk)
    v = MatMul (normed, wv)
    scaled = Mul (q, gain)
    turned = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (scaled, turned)
    weights = Softmax <axis = -1> (scores)
    seen = MatMul (weights, v)
    sum = Add (tokens, seen)
    up = MatMul (sum, w7)
    hidden = local.gelu (up)
    pooled = ReduceMean <keepdims = 0> (hidden, one)
    scaled_up = Gemm <alpha = 0.5, beta = 2.0> (pooled, w6, b6)
    warm = Greater (gain, half)
    y = If (warm) <then_branch = hot () => (float[1, 12] a) { a = Relu (scaled_up) },
                   else_branch = cold () => (float[1, 12] c) { c = Neg (scaled_up) }>
    parts = Reshape (volumes, flat)
    few = Gemm <transA = 1, transB = 1> (parts, w7, b7)
    some = Gemm (few, w7)
    z_all = Slice (some, zero, sixteen)
    z = Identity (z_all)
}
<domain: "local", opset_import: ["" : 18]>
gelu (x) => (y)
{
    root = Constant <value = float {1.4142135}> ()
    one = Constant <value = float {1.0}> ()
    half = Constant <value = float {0.5}> ()
    d = Div (x, root)
    e = Erf (d)
    p = Add (e, one)
    m = Mul (x, p)
    y = Mul (m, half)
}
"""


@dataclasses.dataclass
class State:
    """Seeds and what their commands need."""

    models: dict[str, onnx.ModelProto]
    paths: dict[str, Path]
    image: Path
    data: Path
    feeds: dict[str, dict[str, np.ndarray]]


def _unusual() -> onnx.ModelProto:
    model = onnx.parser.parse_model(UNUSUAL)
    random = np.random.default_rng(0)
    held = {tensor.name for tensor in model.graph.initializer}
    for weight in list(model.graph.value_info):
        shape = [dim.dim_value for dim in weight.type.tensor_type.shape.dim]
        if weight.name not in held:
            values = random.standard_normal(shape).astype(np.float32) / np.sqrt(np.float32(np.prod(shape[1:])))
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight.name))
    del model.graph.value_info[:]
    return model


def prepare(folder: Path) -> State:
    """Seed models, quantized ones made by the code under test, and an annotated image."""
    ort.set_default_logger_severity(4)
    models = {name: nets.build(name) for name in nets.NETS}
    models["unusual"] = _unusual()
    for name in ("encoder", "decoder"):
        models[name] = onnx.ModelProto.FromString(gzip.decompress((SEEDS / f"{name}.onnx.gz").read_bytes()))
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    image = data / "images" / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((48, 32), Image.Resampling.BILINEAR).save(image)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 24, 16], "area": 384, "iscrowd": 0}
    annotation["segmentation"] = [[8, 8, 32, 8, 32, 24, 8, 24]]
    listed = {"id": 1, "file_name": "a.png", "width": 48, "height": 32}
    (data / "annotations.json").write_text(
        json.dumps({"images": [listed], "annotations": [annotation], "categories": [{"id": 1, "name": "a"}]})
    )
    paths = {}
    for name, model in models.items():
        paths[name] = folder / f"{name}.onnx"
        onnx.save(model, paths[name])
    for name in list(models):
        made = folder / f"{name}_quantized.onnx"
        kind, detail = run_command(quantize.main, _quantize_arguments(paths, data, name, paths[name], made))
        if kind == FINE:
            paths[f"{name}_quantized"], models[f"{name}_quantized"] = made, onnx.load(made)
        elif name != "unusual":  # which code may refuse that is fuzzed
            raise RuntimeError(f"{name}: {detail}")
    pixels_in = images.preprocess(images.load(image), SIDE)
    embedding = ort.InferenceSession(paths["encoder"]).run(None, {"image": pixels_in})[0]
    decoder = {
        "image_embeddings": embedding,
        "point_coords": np.array([[[10.0, 11.0], [40.0, 32.0]]], np.float32),
        "point_labels": np.array([[2.0, 3.0]], np.float32),
        "mask_input": np.zeros((1, 1, 16, 16), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([32, 48], np.float32),
    }
    return State(models, paths, image, data, {"image": {"image": pixels_in}, "decoder": decoder})


def _quantize_arguments(paths: dict[str, Path], data: Path, name: str, model: Path, output: Path) -> list[str]:
    arguments = [str(model), "-o", str(output), "--calib", str(data), "--method", "minmax"]
    return [*arguments, "--encoder", str(paths["encoder"])] if name.startswith("decoder") else arguments


def case(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    """One changed model through one command."""
    name = str(random.choice(NAMES))
    name = name if name in state.models else name.removesuffix("_quantized")
    model = onnx.ModelProto()
    model.CopyFrom(state.models[name])
    changes = []
    for _ in range(random.choice([0, 1, 2, 3], p=[0.06, 0.6, 0.24, 0.1])):
        change = CHANGES[int(random.integers(len(CHANGES)))]
        with contextlib.suppress(Exception):  # there is nothing of that sort
            change(model, random)
            changes.append(change.__name__)
    path = folder / "model.onnx"
    if random.random() < 0.15:
        changes.append(externalized(model, random, path))
    content = model.SerializeToString()
    if random.random() < 0.06:
        content, how = damaged(content, random)
        changes.append(how)
    path.write_bytes(content)
    (folder / "changes.txt").write_text(f"{name}: {', '.join(changes)}\n")
    quantized = name.endswith("_quantized")
    part = name.removesuffix("_quantized")
    commands = ["verify"] if quantized else ["quantize", "quantize"]
    if part in ("encoder", "decoder"):
        commands += ["segment", "evaluate"] if quantized else ["segment"]
    command = str(random.choice(commands))
    kind, detail = _COMMANDS[command](state, random, folder, name, changes)
    if kind == REFUSED and not changes:
        kind = "refused a good model"
    if kind == REFUSED:
        _only_inputs(folder)
    return kind, f"{command} {name} {changes}: {detail}"


def _only_inputs(folder: Path) -> None:
    """Behind a refusal there is nothing to look at; large files go at once."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.unlink()


def _quantize(state: State, random: np.random.Generator, folder: Path, name: str, changes: list[str]) -> Outcome:
    output = folder / "out.onnx"
    arguments = _quantize_arguments(state.paths, state.data, name, folder / "model.onnx", output)
    method = "minmax" if random.random() < 0.85 else None
    if method is None:
        at = arguments.index("--method")
        del arguments[at : at + 2]
    bits = "w8a8" if random.random() < 0.8 else str(random.choice(["w4a8", "w4a4", "w6a6", "w2a3"]))
    kind, detail = clean_run(quantize.main, [*arguments, "--bits", bits], folder, ["out.onnx"])
    if kind != FINE:
        return kind, detail
    gentle = bits == "w8a8" and set(changes) <= GENTLE
    return _compare(folder / "model.onnx", output, state.feeds["decoder" if name == "decoder" else "image"], gentle)


def _unlist_all(graph: onnx.GraphProto) -> None:
    """Where all constants are listed as inputs, as old exporters do, none of them is an input any more."""
    constants = {one.name for one in graph.initializer}
    if constants <= {value.name for value in graph.input}:
        kept = [value for value in graph.input if value.name not in constants]
        del graph.input[:]
        graph.input.extend(kept)


def _compare(source: Path, output: Path, known: dict[str, np.ndarray], gentle: bool) -> Outcome:
    before = onnx.load(source, load_external_data=False).graph
    after = onnx.load(output, load_external_data=False).graph
    _unlist_all(before)
    if declared(before) != declared(after):
        return "silent", "inputs or outputs differ"
    held = {tensor.name for tensor in before.initializer}
    feed = {}
    for value in before.input:
        if value.name in known:
            feed[value.name] = known[value.name]
        elif value.name not in held:
            return FINE, "not fed"
    made = open_session(output)
    try:
        real = open_session(source)
        expected = real.run(None, feed)
    except Exception as error:  # as small weights in other files may do to ONNX Runtime
        return FINE, f"float does not run: {error}"
    found = made.run(None, feed)
    kind, detail = _near(before, expected, found, gentle)
    if kind != FINE:
        return kind, detail
    arrays = {t.name: t for t in before.initializer if t.data_location != onnx.TensorProto.EXTERNAL}
    for value in before.input:
        if value.name in arrays and value.name not in known:
            default = onnx.numpy_helper.to_array(arrays[value.name], os.fspath(source.parent))
            if default.dtype != np.float32:
                continue
            other = {**feed, value.name: 2 * default + 1}
            try:
                moved = real.run(None, other)
            except Exception:
                continue
            heeded = made.run(None, other)
            for one, two, three, four in zip(expected, moved, found, heeded, strict=True):
                if (
                    one.dtype == np.float32
                    and one.shape == two.shape
                    and _far(one, two)
                    and np.array_equal(three, four)
                ):
                    return "silent", f"the input {value.name} is frozen"
    return FINE, ""


def _far(one: np.ndarray, two: np.ndarray) -> bool:
    difference = np.abs(one - two).max(initial=0)
    return bool(np.isfinite(difference) and difference > 0.3 * np.abs(one).max(initial=0))


def _near(graph: Any, expected: list[Any], found: list[Any], gentle: bool) -> Outcome:
    for value, one, two in zip(graph.output, expected, found, strict=True):
        if not isinstance(one, np.ndarray):
            continue
        if one.shape != two.shape or one.dtype != two.dtype:
            return "silent", f"{value.name}: {one.dtype}{list(one.shape)} became {two.dtype}{list(two.shape)}"
        if one.dtype.kind != "f":
            continue
        if np.isfinite(one).all() and not np.isfinite(two).all():
            return "silent", f"{value.name}: numbers became NaN or infinite"
        if not np.isfinite(one).all() and np.isfinite(two).all():
            return "silent", f"{value.name}: NaN or infinity became numbers"
        if gentle and np.isfinite(one).all() and one.size and np.abs(one).max() < 1e10:
            ratio = verify.sqnr(one, two)
            if ratio < LOWEST_SQNR and np.abs(one - two).max() > 1e-6:
                return "silent", f"{value.name}: {ratio:.1f} dB"
    return FINE, ""


def _verify(state: State, random: np.random.Generator, folder: Path, name: str, changes: list[str]) -> Outcome:
    reference = state.paths[name.removesuffix("_quantized")]
    kind, detail = clean_run(verify.main, [str(folder / "model.onnx"), "--reference", str(reference)], folder)
    if kind == "words" and detail.startswith("status 1: error: native kernels") and detail.count("\n") == 1:
        return FINE, detail
    return kind, detail


def _models(state: State, folder: Path, name: str) -> list[str]:
    part = name.removesuffix("_quantized")
    chosen = {"encoder": state.paths["encoder"], "decoder": state.paths["decoder"], part: folder / "model.onnx"}
    return ["--encoder", str(chosen["encoder"]), "--decoder", str(chosen["decoder"])]


def _segment(state: State, random: np.random.Generator, folder: Path, name: str, changes: list[str]) -> Outcome:
    arguments = [str(state.image), *_models(state, folder, name), "--point", "20,16", "-o", str(folder / "out.png")]
    return clean_run(segment.main, arguments, folder, ["out.png"])


def _evaluate(state: State, random: np.random.Generator, folder: Path, name: str, changes: list[str]) -> Outcome:
    arguments = [*_models(state, folder, name), "--data", str(state.data), "--prompt", "box"]
    return clean_run(evaluate.main, arguments, folder)


_COMMANDS = {"quantize": _quantize, "verify": _verify, "segment": _segment, "evaluate": _evaluate}
