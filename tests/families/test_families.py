# SPDX-License-Identifier: Apache-2.0
"""Families are asked in turn, and one more is one class: everything that reads a file goes through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from samq_onnx import bench, images
from samq_onnx.data import Calibration
from samq_onnx.encoder import Embedding
from samq_onnx.errors import UserError
from samq_onnx.families import (
    EMBEDDING,
    FAMILIES,
    IOU,
    LOW_RES_MASKS,
    Family,
    Part,
    Role,
    Signature,
    Turn,
    families,
)
from samq_onnx.families.decoder import Answer, DecoderPart
from samq_onnx.families.image import ImageInput, ImagePart
from samq_onnx.families.ports import Port
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session, run_session
from tests.families.exports import BOX, POINT, RGB, part_of, quantizes
from tests.fuzz import tiny

LOW_RES = tiny.SIDE // 4


class Toy(Family):
    """Two embeddings, points and labels in one tensor, and no masks of the image's size."""

    turn = Turn.FIRST

    def part(self, signature: Signature) -> Part | None:
        if {port.name for port in signature.outputs} == {"coarse", "fine"}:
            image = ImageInput.of(signature)
            assert image is not None
            return ImagePart("toy", Role.ENCODER, signature, image, {EMBEDDING: "coarse"})
        if [port.name for port in signature.inputs] == ["fine", "clicks", "coarse"]:
            return ToyDecoder("toy", signature)
        return None


class ToyDecoder(DecoderPart):
    """fine [1, 3, 16, 16], clicks [1, n, 3] (x, y, label), coarse [1, 16, 4, 4] -> quality, logits."""

    outputs = {IOU: "quality", LOW_RES_MASKS: "logits"}  # noqa: RUF012
    frame = tiny.SIDE

    @property
    def embeddings(self) -> tuple[Port, ...]:
        fine, _, coarse = self.signature.inputs
        return coarse, fine

    def mask_side(self, embedding: Embedding) -> int:
        return LOW_RES

    def prompt(
        self,
        embedding: Embedding,
        coords: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        clicks = np.concatenate([coords, labels[..., None]], axis=-1).astype(np.float32)
        return {"coarse": embedding[0], "fine": embedding[1], "clicks": clicks}

    def answers(self, image_size: int) -> Mapping[str, str]:
        return self.outputs

    def answer(
        self,
        session: ort.InferenceSession,
        feed: Mapping[str, np.ndarray],
        outputs: Mapping[str, str],
        size: tuple[int, int],
    ) -> Answer:
        iou, low_res = run_session(session, feed, self.where, [outputs[IOU], outputs[LOW_RES_MASKS]])
        height, width = images.resized_shape(*size, self.frame)
        rows = np.arange(size[0]) * height // size[0] * LOW_RES // self.frame
        columns = np.arange(size[1]) * width // size[1] * LOW_RES // self.frame
        return low_res[:, :, rows[:, None], columns], iou, low_res


def _toy_encoder() -> onnx.ModelProto:
    model = tiny.encoder()
    pool = helper.make_node("AveragePool", ["image"], ["fine"], kernel_shape=[4, 4], strides=[4, 4])
    model.graph.node.extend([helper.make_node("Identity", ["image_embeddings"], ["coarse"]), pool])
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("fine", 1, [1, 3, LOW_RES, LOW_RES]))
    model.graph.output.append(helper.make_tensor_value_info("coarse", 1, [1, 16, 4, 4]))
    return model


def _toy_decoder() -> onnx.ModelProto:
    """The tiny decoder behind other inputs; of ``fine`` it wants nothing."""
    model = tiny.decoder()
    held = {
        "mask_input": np.zeros((1, 1, LOW_RES, LOW_RES), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([tiny.SIDE, tiny.SIDE], np.float32),
        "nothing": np.array(0, np.float32),
        **{f"at_{place}": np.array([place], np.int64) for place in (0, 2, 3)},
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    nodes = [
        helper.make_node("Slice", ["clicks", "at_0", "at_2", "at_2"], ["point_coords"]),
        helper.make_node("Slice", ["clicks", "at_2", "at_3", "at_2"], ["column"]),
        helper.make_node("Squeeze", ["column", "at_2"], ["point_labels"]),
        helper.make_node("ReduceMean", ["fine"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["no_mean"]),
        helper.make_node("Add", ["coarse", "no_mean"], ["image_embeddings"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    model.graph.node.append(helper.make_node("Identity", ["iou_predictions"], ["quality"]))
    model.graph.node.append(helper.make_node("Identity", ["low_res_masks"], ["logits"]))
    del model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
    shapes = {"fine": [1, 3, LOW_RES, LOW_RES], "clicks": [1, "n", 3], "coarse": [1, 16, 4, 4]}
    model.graph.input.extend(helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    model.graph.output.append(helper.make_tensor_value_info("logits", 1, [1, 4, LOW_RES, LOW_RES]))
    model.graph.output.append(helper.make_tensor_value_info("quality", 1, [1, 4]))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def toy(folder: Path) -> Iterator[Path]:
    """Files of the family, in the folder of the tiny SAM, while it is registered."""
    onnx.save(_toy_encoder(), folder / "toy_encoder.onnx")
    onnx.save(_toy_decoder(), folder / "toy_decoder.onnx")
    assert "toy" not in FAMILIES
    FAMILIES.add("toy")(Toy())
    yield folder
    del FAMILIES._entries["toy"]


def test_the_general_ones_are_asked_last() -> None:
    assert [type(family).__name__ for family in families()] == ["Prompted", "SegmentAnything", "Generic"]
    known = "generic, prompted, segment_anything"
    with pytest.raises(UserError, match=f"unknown family of models 'toy'; choose one of {known}"):
        FAMILIES["toy"]


def test_another_family_is_recognised(toy: Path) -> None:
    assert isinstance(families()[0], Toy)
    encoder, decoder = (part_of(toy / f"toy_{name}.onnx") for name in ("encoder", "decoder"))
    assert [(part.family, part.role) for part in (encoder, decoder)] == [("toy", Role.ENCODER), ("toy", Role.DECODER)]
    assert decoder.outputs[LOW_RES_MASKS] == "logits"
    assert part_of(toy / "decoder.onnx").family == "segment_anything"


def test_the_predictor_goes_through_it(toy: Path) -> None:
    known, other = (SamPredictor(toy / f"{name}encoder.onnx", toy / f"{name}decoder.onnx") for name in ("", "toy_"))
    for predictor in (known, other):
        predictor.set_image(RGB)
    for prompt in ({"box": BOX}, {"point_coords": POINT, "point_labels": np.ones(1)}):
        expected, found = known.predict(**prompt), other.predict(**prompt)
        assert found[0].shape == expected[0].shape and found[0].dtype == bool
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
        np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
    with pytest.raises(UserError, match=r"toy_decoder\.onnx: not a SAM encoder \(takes fine"):
        SamPredictor(toy / "toy_decoder.onnx", toy / "toy_decoder.onnx")
    with pytest.raises(UserError, match=r"encoder\.onnx: makes image_embeddings .*the decoder takes fine"):
        SamPredictor(toy / "encoder.onnx", toy / "toy_decoder.onnx")


def test_feeds_go_through_it(toy: Path, one_image: Path) -> None:
    part, session = part_of(toy / "toy_decoder.onnx"), open_session(toy / "toy_decoder.onnx")
    feeds = part.feeds(Calibration(one_image), toy / "toy_encoder.onnx", "decoder")
    assert len(feeds) == 4 and [sample.path.name for sample in feeds.samples] == ["noise.png"]
    answers = [session.run(["quality"], dict(feed))[0] for feed in feeds]
    assert not np.array_equal(answers[0], answers[1])
    for encoder in (None, toy / "toy_encoder.onnx"):
        session.run(None, part.sample_feed(encoder=encoder))
    assert sorted(bench.Entry.of_file(toy / "toy_decoder.onnx").feed) == ["clicks", "coarse", "fine"]


def test_quantizing_goes_through_it(toy: Path) -> None:
    assert quantizes(toy / "toy_encoder.onnx")
    (toy / "quantized.onnx").rename(toy / "quantized_encoder.onnx")
    assert quantizes(toy / "toy_decoder.onnx", "--encoder", toy / "toy_encoder.onnx")
    predictor = SamPredictor(toy / "quantized_encoder.onnx", toy / "quantized.onnx")
    predictor.set_image(RGB)
    assert predictor.best(box=BOX).mask.shape == RGB.shape[:2]


def test_without_it_the_files_are_others(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = FAMILIES._entries.pop("toy")
    try:
        assert part_of(toy / "toy_encoder.onnx").family == "segment_anything"
        assert part_of(toy / "toy_decoder.onnx").role is Role.GENERIC
        assert not quantizes(toy / "toy_decoder.onnx")
        assert "cannot make inputs from images" in capsys.readouterr().err
    finally:
        FAMILIES._entries["toy"] = entry
