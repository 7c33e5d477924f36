# SPDX-License-Identifier: Apache-2.0
"""The quantize command from end to end on SAM-Nano, and what it does with wrong input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx import api, assets, data, images, ops, quantize, verify
from samq_onnx.errors import UserError
from samq_onnx.evaluate import overlap
from samq_onnx.methods import DEFAULT_METHOD
from samq_onnx.models import load_model
from samq_onnx.predictor import SamPredictor
from samq_onnx.runtime import open_session
from tests.conftest import Feed, Quantized, relative_error, run_model

# what is measured, less a margin: dB of the encoder, share of pixels where masks disagree, dB of the decoder
LIMITS = {
    ("w8a8", DEFAULT_METHOD): (24, 0.005, 40),
    ("w4a4", "samq"): (6, 0.02, 20),
    ("w4a4", "ptq4sam-s"): (12, 0.02, 20),
}


@pytest.fixture(
    scope="module",
    params=[
        ("w8a8", DEFAULT_METHOD),
        pytest.param(("w4a4", "samq"), marks=pytest.mark.slow),
        ("w4a4", "ptq4sam-s"),
    ],
    ids="-".join,
)
def quantized(request: pytest.FixtureRequest, quantized_nano: Callable[[str, str], Quantized]) -> Quantized:
    """A quantized SAM-Nano, its folder and report."""
    bits, method = request.param
    return quantized_nano(method, bits)


def _limits(report: dict[str, Any]) -> tuple[float, float, float]:
    recipe = report["encoder"]["recipe"]
    return LIMITS[f"w{recipe['weight_bits']}a{recipe['activation_bits']}", recipe["method"]]


def test_inputs_and_outputs_stay_to_the_letter(quantized, nano: Path) -> None:  # type: ignore[no-untyped-def]
    folder, _ = quantized
    for name in ("encoder.onnx", "decoder.onnx"):
        before, after = onnx.load(nano / name).graph, onnx.load(folder / name).graph
        assert list(before.input) == list(after.input)
        assert list(before.output) == list(after.output)


def test_quantized_decoder_stays_near_float(quantized, nano: Path, decoder_feed: Feed) -> None:  # type: ignore[no-untyped-def]
    folder, report = quantized
    expected = run_model(nano / "decoder.onnx", decoder_feed)
    actual = run_model(folder / "decoder.onnx", decoder_feed)
    assert (expected[0].shape, expected[1].shape) == (actual[0].shape, actual[1].shape)
    disagree = np.mean((expected[0] > 0) != (actual[0] > 0))
    assert disagree < _limits(report)[1]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_each_attention_is_the_same_without_the_library(  # type: ignore[no-untyped-def]
    quantized, part: str, request: pytest.FixtureRequest
) -> None:
    """Site by site on the codes it really gets."""
    folder, _ = quantized
    model = load_model(folder / f"{part}.onnx")
    sites = [node for node in model.graph if node.domain == ops.DOMAIN]
    codes = {site.name: [value for value in site.inputs if value and value.producer()] for site in sites}
    tapped = model.clone()
    made = {value.name: value for node in tapped.graph for value in node.outputs}
    names = [value.name for values in codes.values() for value in values]
    tapped.graph.outputs[:] = [made[name] for name in dict.fromkeys(names)]
    found = dict(zip(dict.fromkeys(names), run_model(tapped, request.getfixturevalue(f"{part}_feed")), strict=True))
    for site in sites:
        graph = ir.convenience.extract(model.graph, codes[site.name], site.outputs)
        graph.opset_imports.update(model.graph.opset_imports)
        alone = ir.Model(graph, ir_version=model.ir_version)
        ops.add_functions(alone)
        feed = {value.name: found[value.name] for value in codes[site.name]}
        native, body = (run_model(alone, feed, native=native)[0] for native in (True, False))
        if site.op_type in verify.FLOAT_ATTENTION:
            np.testing.assert_allclose(body, native, atol=1e-5 * np.abs(body).max(), err_msg=site.name)
        else:
            np.testing.assert_array_equal(body, native, err_msg=site.name)


def _found(folder: Path, *, native: bool) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mask, predicted IoU and low-resolution logits of the first boxes of each bundled image."""
    encoder, decoder = (open_session(folder / f"{part}.onnx", native=native) for part in ("encoder", "decoder"))
    predictor = SamPredictor(encoder, decoder)
    found = []
    for sample in data.load_coco(assets.demo_images()):
        predictor.set_image(images.load(sample.path))
        found += [predictor.predict(box=np.array(i.box), multimask_output=False) for i in sample.instances[:2]]
    return found


def test_masks_are_the_same_without_the_library(quantized) -> None:  # type: ignore[no-untyped-def]
    """Encoder and decoder both with kernels, and both with bodies: the same masks, and the same bits behind them.

    An attention that stayed in float may round, and a code behind it change.
    """
    folder, _ = quantized
    in_float = any(node.op_type in verify.FLOAT_ATTENTION for node in onnx.load(folder / "decoder.onnx").graph.node)
    native, bodies = (_found(folder, native=native) for native in (True, False))
    assert np.mean([overlap(one[0], two[0])[0] for one, two in zip(native, bodies, strict=True)]) >= 0.999
    for one, two in zip(native, bodies, strict=True):
        for here, there in zip(one, two, strict=True):
            if in_float:  # masks of yes and no are compared above
                assert here.dtype == bool or relative_error([here], [there]) < 0.01
            else:
                np.testing.assert_array_equal(here, there)


def test_verify_sees_small_differences_only(quantized, nano: Path) -> None:  # type: ignore[no-untyped-def]
    folder, report = quantized
    found = verify.verify(folder / "encoder.onnx", nano / "encoder.onnx")
    assert found["same"]
    assert len(found["site_sqnr_db"]) >= 14
    assert found["output_sqnr_db"]["image_embeddings"] > _limits(report)[0]


def test_verify_of_a_decoder_takes_an_encoder(quantized, nano: Path) -> None:  # type: ignore[no-untyped-def]
    folder, report = quantized
    decoder, original = folder / "decoder.onnx", nano / "decoder.onnx"
    image, noise = (verify.verify(decoder, original, encoder) for encoder in (nano / "encoder.onnx", None))
    assert image["agree"] and noise["agree"]
    assert image["output_sqnr_db"] != noise["output_sqnr_db"]
    assert image["output_sqnr_db"]["low_res_masks"] > _limits(report)[2]
    with pytest.raises(UserError, match="is no SAM decoder"):
        verify.verify(folder / "encoder.onnx", nano / "encoder.onnx", nano / "encoder.onnx")


def test_verify_refuses_another_float_model(quantized, nano: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    folder, _ = quantized
    assert verify.main([str(folder / "encoder.onnx"), "--reference", str(nano / "decoder.onnx")]) == 2
    assert "the float model it came from" in capsys.readouterr().err


def test_most_of_the_encoder_runs_in_integers(quantized) -> None:  # type: ignore[no-untyped-def]
    _, report = quantized
    least = 0.9 if report["encoder"]["recipe"]["method"] == DEFAULT_METHOD else 0.95  # which leaves convolutions
    assert report["encoder"]["fusion"]["integer_share"] > least
    attention = [macs for name, macs in report["encoder"]["fusion"]["operators"].items() if "Attention" in name]
    assert attention and all(whole > 0 and real == 0 for whole, real in attention)


def test_four_bit_weights_are_packed(quantized) -> None:  # type: ignore[no-untyped-def]
    folder, report = quantized
    types = {tensor.data_type for tensor in onnx.load(folder / "encoder.onnx").graph.initializer}
    narrow = report["encoder"]["recipe"]["weight_bits"] == 4
    assert (onnx.TensorProto.INT4 in types) == narrow
    assert report["encoder"]["bytes_after"] < report["encoder"]["bytes_before"] / (3.5 if narrow else 2.4)


def test_metadata_says_how_the_file_was_made(quantized) -> None:  # type: ignore[no-untyped-def]
    folder, report = quantized
    found = open_session(folder / "encoder.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(found["samq_onnx.recipe"]) == report["encoder"]["recipe"]
    for key in ("samq_onnx.version", "samq_onnx.float_model.sha256", "samq_onnx.calibration.sha256"):
        assert found[key]


@pytest.mark.parametrize("method", ["minmax", "percentile", "omse", "ptq4sam-s"])
def test_every_method_makes_a_model_that_runs(
    method: str, nano: Path, calibration: Path, tmp_path: Path, encoder_feed: Feed
) -> None:
    output = tmp_path / "encoder.onnx"
    arguments = [str(nano / "encoder.onnx"), "-o", str(output), "--calib", str(calibration)]
    assert quantize.main([*arguments, "--method", method]) == 0
    assert relative_error(run_model(nano / "encoder.onnx", encoder_feed), run_model(output, encoder_feed)) < 0.17


def test_a_quantized_decoder_is_refused_before_its_encoder_is_quantized(
    tiny_sam: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_sam, tmp_path / "mixed")
    decoder = onnx.load(tmp_path / "mixed" / "decoder.onnx")
    decoder.metadata_props.add(key="samq_onnx.recipe", value="{}")
    onnx.save(decoder, tmp_path / "mixed" / "decoder.onnx")
    words = [str(tmp_path / "mixed"), "-o", str(tmp_path / "out"), "--calib", str(calibration), "--method", "minmax"]
    assert quantize.main(words) == 2
    told = capsys.readouterr()
    assert "decoder.onnx: is already quantized" in told.err and not told.out


def test_a_quantized_model_is_refused(
    quantized, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    folder, _ = quantized
    output = tmp_path / "again.onnx"
    assert quantize.main([str(folder / "encoder.onnx"), "-o", str(output), "--calib", str(calibration)]) == 2
    assert "is already quantized" in capsys.readouterr().err
    assert not output.exists()


class TestWrongInput:
    def refuse(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object) -> str:
        """Run the command; it must exit with 2, print one line and write nothing."""
        output = tmp_path / "out" / "model.onnx"
        status = quantize.main([*map(str, arguments), *([] if "-o" in arguments else ["-o", str(output)])])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(lines) == 1
        assert not output.parent.exists()
        return lines[0]

    def refuse_to_replace(
        self, target: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object
    ) -> None:
        """As `refuse`, for an output that is an input: ``target`` must stay as it is."""
        before = target.read_bytes()
        assert "would replace an input" in self.refuse(capsys, tmp_path, *arguments)
        assert target.read_bytes() == before

    def test_missing_model(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, calibration: Path) -> None:
        assert "no such file" in self.refuse(capsys, tmp_path, tmp_path / "none.onnx", "--calib", calibration)

    def test_text_named_onnx(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, calibration: Path) -> None:
        fake = tmp_path / "fake.onnx"
        fake.write_text("this is not a model")
        assert "not an ONNX model" in self.refuse(capsys, tmp_path, fake, "--calib", calibration)

    def test_empty_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, calibration: Path) -> None:
        fake = tmp_path / "empty.onnx"
        fake.touch()
        assert "not an ONNX model" in self.refuse(capsys, tmp_path, fake, "--calib", calibration)

    def test_no_images(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        assert "no images" in self.refuse(capsys, tmp_path, nano / "encoder.onnx", "--calib", empty)

    def test_image_that_does_not_decode(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path) -> None:
        folder = tmp_path / "broken"
        folder.mkdir()
        (folder / "a.png").write_text("no picture")
        assert "a.png" in self.refuse(capsys, tmp_path, nano / "encoder.onnx", "--calib", folder)

    def test_decoder_without_encoder(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        assert "--encoder" in self.refuse(capsys, tmp_path, nano / "decoder.onnx", "--calib", calibration)

    def test_unwritable_output(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        blocked = tmp_path / "file"
        blocked.touch()
        line = self.refuse(
            capsys, tmp_path, nano / "encoder.onnx", "--calib", calibration, "-o", blocked / "model.onnx"
        )
        assert "cannot write" in line

    def test_output_over_the_float_model(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        copy = tmp_path / "encoder.onnx"
        shutil.copy(nano / "encoder.onnx", copy)
        self.refuse_to_replace(copy, capsys, tmp_path, copy, "--calib", calibration, "-o", copy)

    def test_a_wrong_encoder(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        decoder = nano / "decoder.onnx"
        line = self.refuse(capsys, tmp_path, decoder, "--encoder", decoder, "--calib", calibration)
        assert "decoder.onnx: not a SAM encoder" in line

    def test_broken_annotations_leave_no_half_folder(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path
    ) -> None:
        folder = tmp_path / "calib"
        shutil.copytree(assets.calibration_images() / "images", folder / "images")
        (folder / "annotations.json").write_text("{")
        output = tmp_path / "out"
        line = self.refuse(capsys, tmp_path, nano, "--calib", folder, "--method", "minmax", "-o", output)
        assert "annotations.json" in line
        assert not output.exists()

    def test_json_over_what_is_read(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path) -> None:
        folder = tmp_path / "calib"
        shutil.copytree(assets.calibration_images(), folder)
        for json_file in (folder / "annotations.json", next((folder / "images").iterdir())):
            arguments = (nano / "encoder.onnx", "--calib", folder, "--json", json_file)
            self.refuse_to_replace(json_file, capsys, tmp_path, *arguments)

    def test_an_encoder_for_what_is_no_decoder(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        encoder = nano / "encoder.onnx"
        for model in (encoder, nano):
            assert "leave out --encoder" in self.refuse(
                capsys, tmp_path, model, "--encoder", encoder, "--calib", calibration, "-o", tmp_path / "new"
            )

    def test_json_over_a_model_of_the_folder(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        folder = tmp_path / "sam"
        shutil.copytree(nano, folder)
        decoder = folder / "decoder.onnx"
        self.refuse_to_replace(decoder, capsys, tmp_path, folder, "--calib", calibration, "--json", decoder)

    def test_a_decoder_that_fails_takes_the_encoder_with_it(
        self, tmp_path: Path, nano: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = api.quantize(nano, calibration, method="minmax")

        def save(*_: object) -> None:
            raise UserError("no")

        monkeypatch.setattr(result.parts["decoder"], "save", save)
        with pytest.raises(UserError, match="no"):
            result.save(tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_output_that_is_an_input(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        encoder = tmp_path / "encoder.onnx"
        shutil.copy(nano / "encoder.onnx", encoder)
        arguments = (nano / "decoder.onnx", "--encoder", encoder, "--calib", calibration, "-o", encoder)
        self.refuse_to_replace(encoder, capsys, tmp_path, *arguments)

    def test_a_folder_as_output_file(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        (tmp_path / "here").mkdir()
        line = self.refuse(capsys, tmp_path, nano / "encoder.onnx", "--calib", calibration, "-o", tmp_path / "here")
        assert "it is a folder" in line

    def test_weights_cut_short(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, nano: Path, calibration: Path
    ) -> None:
        source = tmp_path / "encoder.onnx"
        ir.save(load_model(nano / "encoder.onnx"), source, external_data="weights.bin")
        weights = tmp_path / "weights.bin"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "weights.bin is cut short" in self.refuse(capsys, tmp_path, source, "--calib", calibration)
