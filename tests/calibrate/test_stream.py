# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from samq_onnx import ops
from samq_onnx.calibrate import stream
from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.calibrate.stream import run
from samq_onnx.errors import UserError
from samq_onnx.models import tap
from samq_onnx.passes.lift import lift, simplify
from tests.conftest import run_model

Feed = Mapping[str, np.ndarray]


class Keep:
    """A collector that keeps what it is shown."""

    inputs = None

    def __init__(self, *tensors: str) -> None:
        self.tensors = tensors
        self.seen: list[tuple[np.ndarray, ...]] = []

    def update(self, *arrays: np.ndarray) -> None:
        self.seen.append(arrays)


class Counted(Sequence[Feed]):
    """Feeds made on access; counts how often."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds, self.fetched = feeds, 0

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.fetched += 1
        return self.feeds[index]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; nothing may be left there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


def _lifted(path: Path) -> tuple[ir.Model, list[str]]:
    """A lifted model and the names of all linear inputs and attention operands."""
    model = ir.load(path)
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    values = [linear.x for linear in structure.linears]
    values += [value for site in structure.attentions for value in site.node.inputs[:3] if value is not None]
    return model, list(dict.fromkeys(value.name or "" for value in values))


def _whole(model: ir.Model, names: Sequence[str], feed: Feed) -> dict[str, np.ndarray]:
    tapped = model.clone()
    values = {value.name for node in tapped.graph for value in node.outputs}
    tapped.graph.outputs.clear()
    made = [name for name in names if name in values]
    tap(tapped, made)
    return {**feed, **dict(zip(made, run_model(tapped, feed), strict=True))}


def test_blocks_see_what_the_whole_encoder_computes(nano: Path, encoder_feed: Feed, scratch: Path) -> None:
    model, names = _lifted(nano / "encoder.onnx")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    feeds = [encoder_feed, {"image": encoder_feed["image"][..., ::-1].copy()}]
    collectors = [Keep(name) for name in names]
    triples = [Keep(*names[-3:])]
    counted = Counted(feeds)
    run(model, counted, [*collectors, *triples], label="encoder")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert counted.fetched == len(feeds)  # images are read once, not once for each block
    for index, feed in enumerate(feeds):
        expected = _whole(model, names, feed)
        for collector in collectors:
            (seen,) = collector.seen[index]
            reference = expected[collector.tensors[0]]
            np.testing.assert_allclose(seen, reference, atol=1e-4 * np.abs(reference).max())
        for one, two in zip(triples[0].seen[index], collectors[-3:], strict=True):
            np.testing.assert_array_equal(one, two.seen[index][0])


def test_blocks_see_what_the_whole_decoder_computes(nano: Path, decoder_feed: Feed, scratch: Path) -> None:
    model, names = _lifted(nano / "decoder.onnx")
    collectors = [Keep(name) for name in names]
    run(model, [decoder_feed], collectors, label="decoder")
    expected = _whole(model, names, decoder_feed)
    for collector in collectors:
        reference = expected[collector.tensors[0]]
        np.testing.assert_allclose(collector.seen[0][0], reference, atol=1e-4 * max(1e-3, np.abs(reference).max()))


def _logarithm() -> ir.Model:
    text = """<ir_version: 9, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { logarithm = Log(x) y = Relu(logarithm) }"""
    return ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(text)))


@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_a_tensor_that_is_not_finite_is_named(bad: float, scratch: Path) -> None:
    feeds = [{"x": np.ones(2, np.float32)}, {"x": np.array([1.0, bad], np.float32)}]
    with pytest.raises(UserError, match="tensor logarithm is not finite on calibration input 2"):
        run(_logarithm(), feeds, [Keep("logarithm")], label="x")


def test_no_input_and_nothing_wanted(scratch: Path) -> None:
    with pytest.raises(UserError, match="no calibration inputs"):
        run(_logarithm(), [], [Keep("y")], label="x")
    run(_logarithm(), [{"x": np.ones(2, np.float32)}], [], label="x")


def test_a_model_whose_weights_cannot_be_split(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGEST_BLOCK", -1)
    with pytest.raises(UserError, match="cannot be cut"):
        run(_logarithm(), [{"x": np.ones(2, np.float32)}], [Keep("y")], label="x")


def test_an_input_of_the_graph_as_a_tensor(scratch: Path) -> None:
    stats, both = TensorStats("x"), Keep("x", "y")
    run(_logarithm(), [{"x": np.array([1.0, 3.0], np.float32)}], [stats, both], label="x")
    assert (stats.lows, stats.highs) == ([1.0], [3.0])
    assert both.seen[0][0].tolist() == [1.0, 3.0] and both.seen[0][1] == pytest.approx([0.0, np.log(3)])
