# SPDX-License-Identifier: Apache-2.0
"""Integer nodes for large linears against the QDQ form of the same plan, and quantizing before views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from scipy.special import erf

from samq_onnx import assets, data, images, ops
from samq_onnx.codes import UniformCodes
from samq_onnx.evaluate import overlap
from samq_onnx.models import load_model
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.qdq_propagation import propagate_qdq
from samq_onnx.passes.lower.qlinear import IntegerLinears, _gelu_table
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from samq_onnx.verify import sqnr
from tests.conftest import Feed, run_model
from tests.passes.plans import quantized

# Both forms round each activation to codes, at ties and after GELU to other ones: noise far below quantization's own.
EMBEDDING_BOUND = 30.0  # dB
MASK_BOUND = 0.85  # mean IoU of masks that quantization itself moves as much
LOSS_BOUND = 0.04  # of mean IoU with the masks of the float model


@pytest.fixture(scope="module")
def both(
    nano: Path, encoder_feed: Feed, decoder_feed: Feed, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The quantized SAM-Nano with and without integer nodes for large linears."""
    made = {}
    for name in ("nodes", "qdq"):
        made[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            if name == "qdq":
                patch.setattr(IntegerLinears, "takes", lambda *_: False)
            for part, feed in (("encoder", encoder_feed), ("decoder", decoder_feed)):
                ir.save(quantized(nano / f"{part}.onnx", [feed]).model, made[name] / f"{part}.onnx")
    return made


def masks(folder: Path) -> list[np.ndarray]:
    """Masks of the first boxes of some bundled images."""
    predictor = SamPredictor(*(open_session(folder / f"{part}.onnx") for part in ("encoder", "decoder")))
    found = []
    for sample in data.load_coco(assets.demo_images())[:3]:
        predictor.set_image(images.load(sample.path))
        found += [predictor.predict(box=np.array(i.box), multimask_output=False)[0] for i in sample.instances[:6]]
    return found


def mean_iou(one: list[np.ndarray], two: list[np.ndarray]) -> float:
    return float(np.mean([overlap(a, b)[0] for a, b in zip(one, two, strict=True)]))


def test_masks_are_near_those_of_qdq(both: dict[str, Path], nano: Path) -> None:
    nodes, qdq, exact = masks(both["nodes"]), masks(both["qdq"]), masks(nano)
    assert mean_iou(nodes, qdq) > MASK_BOUND
    assert mean_iou(nodes, exact) > mean_iou(qdq, exact) - LOSS_BOUND


def test_embeddings_are_near_those_of_qdq(both: dict[str, Path], encoder_feed: Feed) -> None:
    nodes, qdq = (run_model(both[name] / "encoder.onnx", encoder_feed)[0] for name in ("nodes", "qdq"))
    assert sqnr(qdq, nodes) > EMBEDDING_BOUND


def test_large_linears_become_nodes(both: dict[str, Path]) -> None:
    types = {name: {node.op_type for node in onnx.load(both[name] / "encoder.onnx").graph.node} for name in both}
    assert {"QLinearResidual", "QLinearQuantize", "QLinearLut"} <= types["nodes"]
    assert not any(kind.startswith("QLinear") and kind != "QLinearConv" for kind in types["qdq"])
    assert not {"MatMul", "Gemm", "Gelu", "Erf"} & types["nodes"]


def test_rows_move_before_the_output_projection_of_windows(both: dict[str, Path]) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(both["nodes"] / "encoder.onnx")).graph
    made = {output: node for node in graph.node for output in node.output}
    read = [made[node.input[0]] for node in graph.node if node.op_type == "QLinearResidual"]
    merged = [made[node.input[0]] for node in read if node.op_type == "Reshape"]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    assert [node.op_type for node in merged].count("Gather") == 4  # of 6 blocks, of which 2 are global
    assert all(types[node.output[0]] == onnx.TensorProto.UINT8 for node in merged)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_inputs_and_outputs_stay(both: dict[str, Path], nano: Path, part: str) -> None:
    before, after = (onnx.load(folder / f"{part}.onnx").graph for folder in (nano, both["nodes"]))
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)


@pytest.mark.parametrize(
    "codes", [UniformCodes(0.04, 5, 8), UniformCodes(0.5, 1, 4), UniformCodes(0.001, 170, 8), UniformCodes(1.5, 0, 6)]
)
def test_gelu_table_reaches_every_code(codes: UniformCodes) -> None:
    table, low, step = _gelu_table(codes)
    y = np.linspace(-20, 60, 100_001)
    gelu = 0.5 * y * (1 + erf(y / 2**0.5))
    exact = np.clip(gelu / codes.scale + codes.zero_point, 0, 2**codes.bits - 1)
    found = table[np.clip(np.rint((y - low) / step), 0, len(table) - 1).astype(np.int64)]
    assert np.abs(found - exact).max() < 0.5 + 1.2 * step / codes.scale


def views_model(pad_value: float, lowest: int) -> ir.Model:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3, 4] x) => (uint8[3, 3, 5] y) <float scale = {0.1}, uint8 zero = {7}, float fill = {FILL},
       int64[6] pads = {0, 0, 0, 1, 0, 1}, uint8 low = {LOW}, uint8 high = {15}> {
      padded = Pad (x, pads, fill)
      moved = Transpose <perm = [0, 1, 2]> (padded)
      codes = QuantizeLinear (moved, scale, zero)
      y = Clip (codes, low, high)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text.replace("FILL", str(pad_value)).replace("LOW", str(lowest))))
    model.graph[2].outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    return model


@pytest.mark.parametrize(("pad_value", "lowest", "order"), [
    (0.0, 0, ["QuantizeLinear", "Clip", "Pad", "Transpose"]),
    (0.0, 9, ["QuantizeLinear", "Pad", "Clip", "Transpose"]),  # would not clip what the zero point pads with
    (1.0, 0, ["Pad", "QuantizeLinear", "Clip", "Transpose"]),
])  # fmt: skip
def test_views_sink(pad_value: float, lowest: int, order: list[str]) -> None:
    before, after = views_model(pad_value, lowest), views_model(pad_value, lowest)
    propagate_qdq(Builder(after.graph))
    assert [node.op_type for node in after.graph] == order
    assert [value.name for value in after.graph.outputs] == ["y"]
    x = np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32)
    one, two = (open_session(ir.to_proto(m).SerializeToString()).run(None, {"x": x})[0] for m in (before, after))
    np.testing.assert_array_equal(one, two)


def test_fused_codes_are_those_of_quantizing_afterwards(both: dict[str, Path], encoder_feed: Feed) -> None:
    """q, k and v of the first attention: the same but for roundings of what comes before."""
    codes = {}
    for name, folder in both.items():
        model = load_model(folder / "encoder.onnx")
        site = next(node for node in model.graph if node.domain == ops.DOMAIN and "Attention" in node.op_type)
        model.graph.outputs.clear()
        for index in (0, 3, 6):
            value = site.inputs[index]
            assert value is not None
            value.type = ir.TensorType(ir.DataType.UINT8)
            model.graph.outputs.append(value)
        codes[name] = run_model(model, encoder_feed)
    for one, two in zip(codes["nodes"], codes["qdq"], strict=True):
        difference = one.astype(int) - two
        assert np.abs(difference).max() <= 1
        assert np.abs(difference).mean() < 0.05
