# SPDX-License-Identifier: Apache-2.0
"""Images and prompts for `SamPredictor`, and arguments of the segment command, on a tiny SAM, float and quantized.

Right is a `UserError`, or finite results of the right shape that are the same again; numbers that are not finite never
give a result; another layout of the same numbers gives the same result; and after a call, refused or not, a valid one
gives what it gave before.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from PIL import Image

from samq_onnx import assets, quantize, segment
from samq_onnx.errors import UserError
from samq_onnx.predictor import SamPredictor
from tests.fuzz import tiny
from tests.fuzz.target import FINE, REFUSED, Outcome, run_command

__all__ = ["SECONDS", "case", "prepare"]

SECONDS = 20.0
KNOWN_LABELS = (-1, 0, 1, 2, 3)
LAYOUTS = ("list", "fortran", "strided", "swapped", "read_only", "float32")
VALUES = (np.nan, np.inf, -np.inf, 1e39, -1e300, 1e30, 1e9, -1e4, 0.0, -0.0, 5e-324, 64.0, 1e5)
TYPES = (
    *("object", "U8", "S8", "bool", "complex128", "float16", "longdouble", "int8", "uint8", "int64", "M8[s]", "m8[s]"),
)
STRANGE: tuple[Any, ...] = (
    *(None, "1,2", b"12", 7, 1.5, True, [], {}, object(), 10**400),
    *([[1, 2], [3]], [None], [["a", "b"]]),
)
NUMBERS = (
    *("1", "-3", "0", "20.5", "55", " 7", "1e30", "1_0", "٣"),
    *("nan", "inf", "-inf", "1e400", "9" * 400, "", "0x9", "four"),
)


class State(NamedTuple):
    """What all cases share."""

    predictors: list[SamPredictor]
    models: list[tuple[Path, Path]]
    image: np.ndarray
    prompts: list[dict[str, np.ndarray]]
    expected: list[list[tuple[np.ndarray, ...]]]


def prepare(folder: Path) -> State:
    """Models, float and quantized, an image, prompts, and what they give."""
    (folder / "float").mkdir()
    onnx.save(tiny.encoder(), folder / "float" / "encoder.onnx")
    onnx.save(tiny.decoder(), folder / "float" / "decoder.onnx")
    random = np.random.default_rng(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = [folder / "float", "-o", folder / "integer", "--calib", assets.calibration_images()]
        if quantize.main([*map(str, arguments), "--method", "minmax"]) != 0:
            raise RuntimeError("the tiny model does not quantize")
    models = [(folder / kind / "encoder.onnx", folder / kind / "decoder.onnx") for kind in ("float", "integer")]
    image = np.kron(random.integers(0, 256, (5, 7, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    mask = random.standard_normal((1, 16, 16))
    box, point, one = np.array([3.0, 5.0, 40.0, 31.0]), np.array([[20.0, 12.0]]), np.array([1.0])
    two = {"point_coords": np.array([[20.0, 12.0], [8.0, 33.0]]), "point_labels": np.array([1.0, 0.0])}
    prompts = [
        {"point_coords": point, "point_labels": one},
        {"box": box},
        {**two, "mask_input": mask},
        {**two, "box": box},
    ]
    predictors = [SamPredictor(*pair) for pair in models]
    expected = []
    for predictor in predictors:
        predictor.set_image(image)
        expected.append([predictor.predict(**prompt) for prompt in prompts])
    return State(predictors, models, image, prompts, expected)


def case(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    """One prompt, one image or one command."""
    kind = random.choice(["prompt", "image", "command"], p=[0.65, 0.3, 0.05])
    if kind == "command":
        return _command(state, random, folder)
    which = int(random.integers(2))
    predictor = state.predictors[which]
    try:
        kind, detail = (_prompt if kind == "prompt" else _image)(state, random, which)
        if kind == FINE:
            predictor.set_image(state.image)
        for prompt, expected in zip(state.prompts[:2], state.expected[which][:2], strict=True):
            if kind in (FINE, REFUSED) and not _equal(predictor.predict(**prompt), expected):
                return "dirty", "a valid call gives another result than before"
    finally:
        predictor.set_image(state.image)  # whatever this case has done, the next one begins alike
    return kind, detail


def _equal(one: tuple[np.ndarray, ...], two: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def _refusal(error: UserError) -> Outcome:
    said = str(error)
    return (REFUSED, said) if said and "\n" not in said and len(said) < 1000 else ("words", said)


def _pick(random: np.random.Generator, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def _layout(random: np.random.Generator, array: np.ndarray) -> Any:
    """The same numbers in another form."""
    form = _pick(random, LAYOUTS)
    if form == "list":
        return array.tolist()
    if form == "fortran":
        return np.asfortranarray(array)
    if form == "strided":
        return np.repeat(array, 2, axis=0)[::2]
    if form == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if form == "read_only":
        array = array.copy()
        array.flags.writeable = False
        return array
    return array.astype(np.float32)


def _mutated(random: np.random.Generator, array: np.ndarray) -> Any:
    """Other numbers, another type or another shape."""
    kind = random.integers(8)
    if kind <= 2 and array.size:
        array = array.astype(np.float64)
        array.reshape(-1)[random.integers(array.size)] = _pick(random, VALUES)
        return array
    if kind == 3:
        with np.errstate(all="ignore"):
            try:
                return np.rint(array).astype(_pick(random, TYPES))
            except (TypeError, ValueError):
                return array.astype(object)
    if kind == 4:
        changes: list[Callable[[], np.ndarray]] = [
            lambda: array[None],
            lambda: array.reshape(-1),
            lambda: array[:0],
            lambda: array[..., :0],
            lambda: np.concatenate([array, array]),
            lambda: array[..., :-1],
            lambda: array.reshape(-1)[0] if array.size else array,
            lambda: np.repeat(array, 50, axis=0),
        ]
        return _pick(random, changes)()
    if kind == 5:
        return np.flip(array)
    if kind == 6:
        return array.astype(np.float64) * _pick(random, (-1.0, 0.0, 1e3, 1e20, 1e308))
    return _pick(random, STRANGE)


def _has_unusable(prompt: dict[str, Any]) -> str:
    """Why a prompt must never give a result."""
    for name, value in prompt.items():
        if name == "multimask_output" or value is None:
            continue
        try:
            given = np.asarray(value)
            numbers = given.astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            return f"{name} is no array of numbers"
        if given.dtype.kind not in "iuf":
            return f"{name} is an array of {given.dtype}"
        if not np.isfinite(numbers).all():
            return f"{name} is not finite"
        if name == "point_labels" and not np.isin(numbers, KNOWN_LABELS).all():
            return "a label is unknown"
        if name == "box" and numbers.shape == (4,) and (numbers[:2] > numbers[2:]).any():
            return "the box is inside out"
    return ""


def _prompt(state: State, random: np.random.Generator, which: int) -> Outcome:
    number = int(random.integers(len(state.prompts)))
    prompt: dict[str, Any] = dict(state.prompts[number])
    harmless = bool(random.random() < 0.2)
    for _ in range(random.integers(1, 3)):
        name = _pick(random, list(prompt))
        if isinstance(prompt[name], np.ndarray):
            prompt[name] = (_layout if harmless else _mutated)(random, prompt[name])
        if not harmless and random.random() < 0.1:
            other = _pick(random, ("point_coords", "point_labels", "box", "mask_input", "multimask_output"))
            prompt[other] = _pick(random, STRANGE)
    predictor = state.predictors[which]
    try:
        made = predictor.predict(**prompt)
    except UserError as error:
        return ("silent", f"refused though it is right: {error}") if harmless else _refusal(error)
    if reason := _has_unusable(prompt):
        return "silent", f"{reason}, and IoUs are {made[1]}"
    wrong = _unsound(made, state.image.shape[:2])
    if wrong:
        return "silent", wrong
    rounded = "mask_input" in prompt and number == 2  # float32 rounds it as the model does
    if harmless and not _equal(made, state.expected[which][number]) and not rounded:
        return "silent", "the same numbers in another form give another result"
    return (FINE, "") if _equal(made, predictor.predict(**prompt)) else ("silent", "not the same again")


def _unsound(made: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> str:
    """What is wrong with a result for an image of that height and width."""
    masks, iou, low_res = made
    count = len(iou)
    if masks.shape != (count, *shape) or masks.dtype != bool or low_res.shape != (count, 16, 16) or count not in (1, 3):
        return f"shapes {masks.shape}, {iou.shape}, {low_res.shape}"
    if iou.dtype != np.float32 or low_res.dtype != np.float32:
        return f"types {iou.dtype}, {low_res.dtype}"
    return "" if np.isfinite(iou).all() and np.isfinite(low_res).all() else "a result is not finite"


def _views(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """An image that is no block of memory."""
    views = [
        *(image[::-1], image[:, ::-1], image[..., ::-1], image[::2, ::3], image[1:, 2:], np.asfortranarray(image)),
        *(image.transpose(1, 0, 2), np.broadcast_to(image[:1, :1], image.shape)),
    ]
    return _pick(random, views)


def _broken(random: np.random.Generator, image: np.ndarray) -> Any:
    """Mostly no image, or a strange one."""
    height, width = (int(_pick(random, (0, 1, 2, 3, 50, 127, 128, 129, 5000))) for _ in range(2))
    if height * width > 1_000_000:
        width = 1
    return _pick(
        random,
        [
            lambda: np.zeros((height, width, 3), np.uint8),
            lambda: np.full((height, width, 3), 255, np.uint8),
            lambda: image[..., 0],
            lambda: image[..., :2],
            lambda: np.concatenate([image, image], axis=2),
            lambda: image.transpose(2, 0, 1),
            lambda: image[None],
            lambda: image.astype(_pick(random, TYPES)),
            lambda: image.astype(np.float32) / 255,
            lambda: image.astype(np.float64) * np.nan,
            lambda: image.tolist(),
            lambda: Image.fromarray(image),
            lambda: Image.fromarray(image).convert("L"),
            lambda: Image.fromarray(image).convert("RGBA"),
            lambda: _pick(random, STRANGE),
        ],
    )()


def _image(state: State, random: np.random.Generator, which: int) -> Outcome:
    predictor = state.predictors[which]
    harmless = bool(random.random() < 0.3)
    image = _views(random, state.image) if harmless else _broken(random, state.image)
    try:
        predictor.set_image(image)
    except UserError as error:
        return ("silent", f"refused though it is right: {error}") if harmless else _refusal(error)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        return "silent", f"an image of {array.dtype} {array.shape} was taken"
    prompt = {"box": np.array([0.0, 0.0, array.shape[1], array.shape[0]])}
    made = predictor.predict(**prompt)
    if wrong := _unsound(made, array.shape[:2]):
        return "silent", wrong
    predictor.set_image(np.ascontiguousarray(array))
    return (FINE, "") if _equal(made, predictor.predict(**prompt)) else ("silent", "not the same again")


def _command(state: State, random: np.random.Generator, folder: Path) -> Outcome:
    encoder, decoder = _pick(random, state.models)
    source, target = folder / "image.png", folder / "overlay.png"
    Image.fromarray(state.image).save(source)
    arguments = [str(source), "--encoder", str(encoder), "--decoder", str(decoder), "-o", str(target)]
    numbers: list[str] = []
    for _ in range(random.integers(0, 3)):
        valid = random.random() < 0.4
        box = random.random() < 0.4
        given = ["3", "5", "40", "31"] if box else ["20", "12"]
        if not valid:
            given[int(random.integers(len(given)))] = _pick(random, NUMBERS)
            given = given[: int(random.integers(1, 6))]
        numbers += given
        arguments.append(f"--{'box' if box else 'point'}={','.join(given)}")
    outcome = run_command(segment.main, arguments)
    left = {path.name for path in folder.iterdir()}
    if outcome[0] == FINE:
        if any(not np.isfinite(float(number)) for number in numbers):
            return "silent", f"{arguments[7:]} was taken"
        with Image.open(target) as drawn:
            return outcome if drawn.size == state.image.shape[1::-1] else ("silent", "a picture of another size")
    return outcome if left == {"image.png"} else ("dirty", f"left {sorted(left)}")
