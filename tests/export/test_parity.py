# SPDX-License-Identifier: Apache-2.0
"""The exported files compute what segment_anything computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from samq_onnx import assets, images
from samq_onnx.data import image_paths
from samq_onnx.errors import UserError
from samq_onnx.export.parity import Difference
from samq_onnx.export.reference import reference_decoder
from samq_onnx.export.sam import ResizeLongestSide, Sam
from tests.export.conftest import SIDE, Exported, decoder_feed, tensors

pytestmark = pytest.mark.slow

RELATIVE = 1e-4  # of the largest value; float32 sums in another order


def assert_close(found: np.ndarray, wanted: torch.Tensor) -> None:
    reference = wanted.numpy()
    assert found.shape == reference.shape
    assert np.abs(found - reference).max() <= RELATIVE * np.abs(reference).max()


def test_encoder_on_an_image(exported: Exported, sam: Sam) -> None:
    image = images.preprocess(images.load(image_paths(assets.demo_images())[0]), SIDE)
    with torch.no_grad():
        wanted = sam.image_encoder(torch.from_numpy(image))
    assert_close(exported.session("encoder").run(None, {"image": image})[0], wanted)


@pytest.mark.parametrize("points", [1, 2, 5])
def test_decoder_with_any_number_of_points(exported: Exported, sam: Sam, points: int) -> None:
    feed = decoder_feed(points)
    with torch.no_grad():
        wanted = reference_decoder(sam, tensors(feed))
    for one, other in zip(exported.session("decoder").run(None, feed), wanted, strict=True):
        assert_close(one, other)


def test_decoder_uses_the_mask_input(exported: Exported, sam: Sam) -> None:
    feed = decoder_feed()
    without = exported.session("decoder").run(None, feed)[2]
    feed["mask_input"] = np.random.default_rng(1).standard_normal(feed["mask_input"].shape, np.float32)
    feed["has_mask_input"] = np.ones(1, np.float32)
    found = exported.session("decoder").run(None, feed)[2]
    with torch.no_grad():
        assert_close(found, reference_decoder(sam, tensors(feed))[2])
    assert np.abs(found - without).max() > 0.1


@pytest.mark.parametrize("size", [(512, 512), (256, 256), (700, 700), (200, 640), (640, 200), (333, 500), (97, 61)])
def test_masks_have_the_size_and_place_of_the_original(exported: Exported, sam: Sam, size: tuple[int, int]) -> None:
    masks, _, low_res = exported.session("decoder").run(None, decoder_feed(size=size))
    unpadded = ResizeLongestSide.get_preprocess_shape(*size, SIDE)
    assert_close(masks, sam.postprocess_masks(torch.from_numpy(low_res), unpadded, size))


@pytest.fixture(scope="module")
def predictor(sam: Sam) -> SamPredictor:
    """segment_anything's predictor with a real image set."""
    made = SamPredictor(sam)
    made.set_image(images.load(image_paths(assets.demo_images())[0]))
    return made


@pytest.mark.parametrize("labels", [[2, 3], [1, -1], [0, -1]], ids=["box", "foreground", "background"])
def test_as_the_predictor_of_segment_anything(exported: Exported, predictor: SamPredictor, labels: list[int]) -> None:
    """A prompt on a real image, from pixels to masks; a box is two points, no box a point of padding."""
    size = predictor.original_size
    coords = np.array([[60.0, 50.0], [110.0, 120.0]])
    prompt = (
        {"box": coords.ravel()}
        if labels[0] == 2
        else {"point_coords": coords[:1], "point_labels": np.array(labels[:1])}
    )
    wanted, iou, low_res = predictor.predict(**prompt, multimask_output=True, return_logits=True)
    if labels[0] != 2:
        coords[1] = 0.0
    feed = decoder_feed(size=size)
    feed["image_embeddings"] = predictor.get_image_embedding().numpy()
    feed["point_coords"] = images.to_model_coords(coords, *size, SIDE)[None].astype(np.float32)
    feed["point_labels"] = np.array([labels], np.float32)
    found = exported.session("decoder").run(None, feed)
    for one, other in zip(found, (wanted, iou, low_res), strict=True):
        assert_close(one[0, 1:], torch.from_numpy(other))


@pytest.mark.parametrize("points", [1, 4])
def test_batched_decoder_is_the_decoder_prompt_by_prompt(exported: Exported, points: int) -> None:
    feed = decoder_feed(points, prompts=3, size=(200, 300))
    feed["mask_input"] = np.random.default_rng(2).standard_normal(feed["mask_input"].shape, np.float32)
    feed["has_mask_input"] = np.array([0.0, 1.0, 1.0], np.float32)
    single = exported.session("decoder")
    together = exported.session("decoder_batched").run(None, feed)
    per_prompt = ("point_coords", "point_labels", "mask_input", "has_mask_input")
    for index in range(3):
        alone = single.run(None, feed | {name: feed[name][index : index + 1] for name in per_prompt})
        for batch, one in zip(together, alone, strict=True):
            assert_close(batch[index : index + 1], torch.from_numpy(one))


@pytest.mark.parametrize("prompts", [1, 2, 7])
def test_batched_decoder_shares_one_mask_input(exported: Exported, prompts: int) -> None:
    session = exported.session("decoder_batched")
    each = decoder_feed(prompts=prompts)
    shared = each | {"mask_input": each["mask_input"][:1], "has_mask_input": each["has_mask_input"][:1]}
    for one, other in zip(session.run(None, shared), session.run(None, each), strict=True):
        assert one.shape[0] == prompts
        assert_close(one, torch.from_numpy(other))


def test_parity_check_refuses_a_difference_and_not_a_number() -> None:
    close, far, invalid = Difference(), Difference(), Difference()
    close.update(np.array([1.0, 1.0005], np.float32), torch.ones(2))
    close.check("close")
    far.update(np.array([1.0, 1.01], np.float32), torch.ones(2))
    invalid.update(np.array([1.0, np.nan], np.float32), torch.ones(2))
    invalid.update(np.ones(2, np.float32), torch.ones(2))
    for difference in (far, invalid):
        with pytest.raises(UserError, match="differs from PyTorch"):
            difference.check("far")
