# SPDX-License-Identifier: Apache-2.0
"""Annotation files in COCO format, mutated, and evaluated with a model whose answers are known: a box is its mask.

A mutation of one annotation or of one image must not touch what the others score, and one that does not count must be
told. What is scored of the mutated one is computed here again, run lengths included.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from PIL import Image

from samq_onnx import evaluate
from samq_onnx.data import Calibration
from samq_onnx.errors import UserError
from samq_onnx.families import identify
from samq_onnx.models import read_model
from samq_onnx.predictor import SamPredictor
from tests.fuzz.target import FINE, REFUSED, Outcome, run_command

__all__ = ["SECONDS", "case", "prepare"]

SECONDS = 20.0
SIDE = 64
SIZES = [(40, 24), (33, 47), (16, 16)]  # width and height of the images
ODD = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e-9, 1e9, 1e18, -1e18, 1e308, math.nan, math.inf, -math.inf,
    10**400, -(10**30), 2**31, 2**32, 2**63, 2**64, "", "a", "1", "\0", "\ud800", "../../../etc/passwd",
    "/etc/passwd", "x" * 5000, "images/0.png", "images\\0.png", "..\\b\\1.png", "..", "/", [], [[]], [[[]]], [1],
    [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [["1", "2", "3", "4", "5", "6"]], [None],
    {}, {"size": [1, 1], "counts": "1"}, {"counts": []}, {"size": [], "counts": ""},
]  # fmt: skip

ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
tiny_encoder (float[1, 3, 64, 64] image) => (float[1, 3, 4, 4] image_embeddings)
{
    image_embeddings = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (image)
}
"""

# what lies between the least and the largest coordinate is the mask
DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
tiny_decoder (float[1, 3, 4, 4] image_embeddings, float[1, n, 2] point_coords, float[1, n] point_labels,
              float[1, 1, 16, 16] mask_input, float[1] has_mask_input, float[2] orig_im_size)
    => (float[1, 4, h, w] masks, float[1, 4] iou_predictions, float[1, 4, 16, 16] low_res_masks)
<float side = {64}, float half = {0.5}, float none = {0}, float step = {1}, int64 zero = {0}, int64 one = {1},
 int64[1] last = {1}, int64[2] outer = {1, 4}, int64[4] coarse = {1, 4, 16, 16}, float[1, 4] qualities = {0, 1, 2, 3}>
{
    low = ReduceMin <axes = [0, 1], keepdims = 0> (point_coords)
    high = ReduceMax <axes = [0, 1], keepdims = 0> (point_coords)
    longest = ReduceMax <keepdims = 0> (orig_im_size)
    scale = Div(side, longest)
    height = Gather(orig_im_size, zero)
    width = Gather(orig_im_size, one)
    row = Range(none, height, step)
    column = Range(none, width, step)
    row_centre = Add(row, half)
    column_centre = Add(column, half)
    y = Mul(row_centre, scale)
    x = Mul(column_centre, scale)
    x0 = Gather(low, zero)
    y0 = Gather(low, one)
    x1 = Gather(high, zero)
    y1 = Gather(high, one)
    left = Sub(x, x0)
    right = Sub(x1, x)
    top = Sub(y, y0)
    bottom = Sub(y1, y)
    across = Min(left, right)
    down = Min(top, bottom)
    down_column = Unsqueeze(down, last)
    inside = Min(across, down_column)
    whole = Cast <to = 7> (orig_im_size)
    shape = Concat <axis = 0> (outer, whole)
    masks = Expand(inside, shape)
    level = ReduceMean <keepdims = 0> (image_embeddings)
    iou_predictions = Add(qualities, level)
    low_res_masks = Expand(mask_input, coarse)
}
"""


@dataclasses.dataclass(frozen=True)
class State:
    """What all cases share: the models, a whole folder, and what each of its annotations scores."""

    encoder: Path
    decoder: Path
    predictor: SamPredictor
    pictures: dict[int, Image.Image]
    content: dict[str, Any]
    scores: dict[str, list[float | None]]


def prepare(folder: Path) -> State:
    """Models, pictures and annotations of every kind."""
    paths = []
    for name, text in (("encoder", ENCODER), ("decoder", DECODER)):
        paths.append(folder / f"{name}.onnx")
        onnx.save(onnx.parser.parse_model(text), paths[-1])
    random = np.random.default_rng(0)
    pictures, listed, annotations = {}, [], []
    for key, (width, height) in enumerate(SIZES, 1):
        pictures[key] = Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
        listed.append({"id": key, "file_name": f"{key}.png", "width": width, "height": height})
        for kind in ("polygon", "compressed", "runs", "polygons", "crowd"):
            x, y, w, h = (int(number) for number in (*random.integers(0, 8, 2), *random.integers(4, 9, 2)))
            mask = np.zeros((height, width), bool)
            mask[y : y + h, x : x + w - 1] = True
            counts = _runs(mask)
            segmentation: Any = [[x, y, x + w - 1, y, x + w - 1, y + h, x, y + h]]
            if kind == "polygons":
                segmentation = [[x, y, x + w - 1, y, x, y + h], [x + w - 1, y, x + w - 1, y + h, x, y + h], [1.0, 2.0]]
            elif kind != "polygon":
                text: Any = _compressed(counts) if kind == "compressed" else counts
                segmentation = {"size": [height, width], "counts": text}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": key, "category_id": 1, "bbox": [x, y, w, h],
                 "area": (w - 1) * h, "iscrowd": int(kind == "crowd"), "segmentation": segmentation}
            )  # fmt: skip
    content = {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    state = State(paths[0], paths[1], SamPredictor(*paths), pictures, content, {})
    for prompt in evaluate.PROMPTS:
        state.scores[prompt] = [_expected(state, entry, prompt) for entry in annotations]
    return state


def case(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    """One folder."""
    content = copy.deepcopy(state.content)
    touched: list[tuple[str, int]] = []
    for _ in range(int(random.integers(0, 3)) or 1):
        touched.append(_mutate(content, random))
    text = json.dumps(content).encode()
    if random.random() < 0.2:
        text, touched = _damaged(text, random), [("file", 0)]
    (folder / "images").mkdir()
    (folder / "annotations.json").write_bytes(text)
    for key, picture in state.pictures.items():
        picture.save(folder / "images" / f"{key}.png")
    if random.random() < 0.1:
        victim = int(random.integers(1, len(SIZES) + 1))
        (folder / "images" / f"{victim}.png").write_bytes(random.bytes(int(random.integers(0, 50))))
        touched.append(("images", victim - 1))
    if random.random() < 0.15:
        return _calibrate(state, folder)
    prompt = str(random.choice(evaluate.PROMPTS))
    reports = []
    for number in range(2):
        report = folder / f"report{number}.json"
        argv = ["--encoder", state.encoder, "--decoder", state.decoder, "--data", folder, "--prompt", prompt]
        outcome = run_command(evaluate.main, [*map(str, argv), "--json", str(report)])
        if outcome[0] != FINE:
            return outcome
        reports.append(json.loads(report.read_text()))
    if reports[0] != reports[1]:
        return "silent", f"two runs differ: {reports}"
    return _judge(state, content, touched, prompt, reports[0])


def _judge(
    state: State, content: dict[str, Any], touched: list[tuple[str, int]], prompt: str, report: dict[str, Any]
) -> Outcome:
    if not 0 <= report["mean_iou"] <= report["mean_dice"] <= 1:
        return "silent", f"no scores: {report}"
    kinds = {kind for kind, _ in touched}
    if kinds & {"file", "structure"}:
        return FINE, "scores"
    scores = list(state.scores[prompt])
    changed = {index for kind, index in touched if kind == "annotations"}
    lost = {index + 1 for kind, index in touched if kind == "images"}
    free = {n for n, entry in enumerate(state.content["annotations"]) if n in changed or entry["image_id"] in lost}
    certain = [score for n, score in enumerate(scores) if n not in free and score is not None]
    rest = report["mean_iou"] * report["instances"] - sum(certain)
    count = report["instances"] - len(certain)
    possible = sum(n in changed or scores[n] is not None for n in free)
    if not 0 <= count <= possible or not -1e-6 <= rest <= count + 1e-6:
        return "silent", f"others score otherwise: {count} of {possible} more score {rest}; {report}"
    due = sum(scores[n] is not None for n in free)
    if len(free) == 1 and not lost:
        (index,) = free
        expected = _expected(state, content["annotations"][index], prompt)
        if expected is not None and math.isnan(expected):
            return FINE, "not known"
        if count and (expected is None or abs(rest - expected) > 1e-6):
            return "silent", f"scores {rest}, not {expected}: {content['annotations'][index]}"
        if not count and expected is not None and not report.get("left_out"):
            return "silent", f"is not counted, and nothing tells: {content['annotations'][index]}"
    elif lost and not changed and count and abs(rest - sum(scores[n] or 0 for n in free)) > 1e-6 and count == due:
        return "silent", f"an image scores otherwise: {report}"
    return FINE, "left out" if report.get("left_out") else "scores"


def _calibrate(state: State, folder: Path) -> Outcome:
    """The annotations as prompts of a decoder's calibration."""
    decoder = identify(read_model(state.decoder), "the decoder")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            feeds = decoder.feeds(Calibration(folder), state.encoder, "decoder")
    except UserError as error:
        return (REFUSED if "\n" not in str(error) else "words"), str(error)
    for feed in feeds:
        coords = feed["point_coords"]
        if not (np.isfinite(coords).all() and (coords >= 0).all() and (coords <= SIDE).all()):
            return "silent", f"prompts at {coords.tolist()}"
        if feed["point_labels"].tolist() == [[2, 3]] and not (coords[0, 0] < coords[0, 1]).all():
            return "silent", f"an empty box {coords.tolist()}"
    return FINE, "calibrates"


# -- mutations -------------------------------------------------------------------------------------------------------


def _mutate(content: dict[str, Any], random: np.random.Generator) -> tuple[str, int]:
    """Change one place; says in which list and at which index, or that it is about the structure."""
    if random.random() < 0.1:
        return _restructure(content, random)
    kind = "images" if random.random() < 0.25 else "annotations"
    if not isinstance(content.get(kind), list) or not content[kind]:
        return "structure", 0
    index = int(random.integers(len(content[kind])))
    entry = content[kind][index]
    if not isinstance(entry, dict) or random.random() < 0.05:
        content[kind][index] = _odd(random)
        return ("structure" if kind == "images" else kind), index
    draw = random.random()
    if draw < 0.4 and kind == "annotations":
        _change_inside(entry, random)
    elif draw < 0.55 and len(entry):
        del entry[str(random.choice(list(entry)))]
    else:
        entry[str(random.choice([*entry, "extra"]))] = _odd(random)
    # another id may be that of another entry
    return (kind if entry.get("id") == index + 1 else "structure"), index


def _restructure(content: dict[str, Any], random: np.random.Generator) -> tuple[str, int]:
    kind = str(random.choice(list(content) or ["images"]))
    value = content.get(kind)
    draw = random.random()
    if draw < 0.2:
        content.pop(kind, None)
    elif draw < 0.4 or not isinstance(value, list) or not value:
        content[kind] = _odd(random)
    elif draw < 0.7:
        value.insert(int(random.integers(len(value))), copy.deepcopy(value[int(random.integers(len(value)))]))
    else:
        value.append(_odd(random))
    return "structure", 0


def _change_inside(entry: dict[str, Any], random: np.random.Generator) -> None:
    """Box, polygon or run lengths, of the right form."""
    segmentation = entry.get("segmentation")
    bbox = entry.get("bbox")
    if random.random() < 0.35 and isinstance(bbox, list) and bbox:
        bbox[int(random.integers(len(bbox)))] = _number(random)
    elif isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list):
        polygon = segmentation[int(random.integers(len(segmentation)))]
        draw = random.random()
        if draw < 0.5 and isinstance(polygon, list) and polygon:
            polygon[int(random.integers(len(polygon)))] = _number(random)
        elif draw < 0.7 and isinstance(polygon, list):
            polygon.append(_number(random))
        elif draw < 0.85:
            segmentation.append([_number(random) for _ in range(int(random.integers(9)))])
        else:
            segmentation.append(_odd(random))
    elif isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if random.random() < 0.2:
            segmentation["size"] = [int(random.integers(-1, 70)), _odd(random)]
        elif isinstance(counts, str):
            letters = list(counts)
            for _ in range(int(random.integers(1, 3))):
                place = int(random.integers(len(letters) + 1))
                letter = chr(int(random.integers(32, 128))) if random.random() < 0.9 else "\u2028"
                letters[place : place + int(random.integers(2))] = [letter] * int(random.integers(0, 3))
            segmentation["counts"] = "".join(letters)
        elif isinstance(counts, list) and counts:
            place = int(random.integers(len(counts)))
            if random.random() < 0.5:
                counts[place] = _number(random)
            else:  # still of the right sum
                shift = int(random.integers(-3, 4))
                counts[place] += shift
                counts[place - 1] -= shift


def _number(random: np.random.Generator) -> Any:
    draw = random.random()
    if draw < 0.5:
        return float(random.integers(-10, 60)) if draw < 0.25 else int(random.integers(-10, 60))
    return float(random.standard_normal()) * 10.0 ** int(random.integers(-3, 12)) if draw < 0.8 else _odd(random)


def _odd(random: np.random.Generator) -> Any:
    return copy.deepcopy(ODD[int(random.integers(len(ODD)))])


def _damaged(text: bytes, random: np.random.Generator) -> bytes:
    draw = int(random.integers(8))
    place = int(random.integers(len(text)))
    if draw == 0:
        return b"\xef\xbb\xbf" + text
    if draw == 1:
        return text[:place]
    if draw == 2:
        return text[:place] + random.bytes(int(random.integers(1, 4))) + text[place + 1 :]
    if draw == 3:
        return text[:place] + b"[" * int(random.integers(1, 200_000)) + text[place:]
    if draw == 4:
        return text.decode().encode("utf-16")
    if draw == 5:
        return text.replace(b"1", b"9" * int(random.integers(1, 6000)), 1)
    if draw == 6:
        return [b"", b"null", b"[]", b"{}", b'"a"', b"1", b"NaN", b"\0" * 9][int(random.integers(8))]
    other = int(random.integers(len(text)))
    return text[:place] + text[min(place, other) : max(place, other)] + text[place:]


# -- what is right ---------------------------------------------------------------------------------------------------


class _Unknown(Exception):
    """It may be cut or left out."""


def _expected(state: State, entry: Any, prompt: str) -> float | None:
    """IoU of an annotation, None where it does not count, not a number where that is not known here."""
    try:
        key = entry["image_id"]
        if type(key) is not int or key not in state.pictures:
            return None
        width, height = SIZES[key - 1]
        crowd, area = entry.get("iscrowd"), entry.get("area")
        x, y, w, h = (float(number) for number in entry["bbox"])
        corners = np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)])
        numbers = [*entry["bbox"], *([] if area is None else [area])]
        if any(isinstance(number, (bool, str)) for number in numbers) or not np.isfinite([x, y, w, h]).all():
            return None
        if not (area is None or (math.isfinite(area) and area >= 0)):
            return None
        if crowd not in (None, 0) or w <= 0 or h <= 0 or not (corners[:2] < corners[2:]).all():
            return None
        truth = _truth(entry.get("segmentation"), height, width)
        if truth is None or not truth.any() or (truth.sum() if area is None else area) < evaluate.MIN_AREA:
            return None
        if max(map(abs, (x, y, w, h))) > 1e6 or (corners[2:] - corners[:2]).min() < 0.2:
            return math.nan
    except _Unknown:
        return math.nan
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError):
        return None
    state.predictor.set_image(np.array(state.pictures[key]))
    if prompt == "box":
        answer = state.predictor.best(box=corners).mask
    else:
        rows, columns = np.nonzero(truth)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        point = np.array([[columns[nearest] + 0.5, rows[nearest] + 0.5]])
        answer = state.predictor.best(point, np.ones(1)).mask
    return float((answer & truth).sum() / (answer | truth).sum())


def _truth(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2:
                return None
            if any(type(number) not in (int, float) for number in polygon):
                return None
        polygons = [[float(number) for number in polygon] for polygon in segmentation if len(polygon) >= 6]
        if not np.isfinite([number for polygon in polygons for number in polygon]).all():
            return None
        if any(abs(number) > max(height, width) for polygon in polygons for number in polygon):
            raise _Unknown
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool) if polygons else None
    if segmentation["size"] != [height, width]:
        return None
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if any(type(count) not in (int, float) or count < 0 or count != int(count) for count in counts):
        return None
    if sum(counts) != height * width:
        return None
    filled = np.repeat(np.arange(len(counts)) % 2 == 1, [int(count) for count in counts])
    return filled.reshape(width, height).T


def _runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, the first of zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def _compressed(counts: list[int]) -> str:
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        while True:
            digit, number = number & 31, number >> 5
            last = number == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if last else 32))
            if last:
                break
    return text


def _decompressed(text: str) -> list[int]:
    counts: list[int] = []
    number, shift = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            raise ValueError(letter)
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            number -= (1 << shift) if code & 16 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    if shift:
        raise ValueError("ends within a number")
    return counts
