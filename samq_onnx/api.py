# SPDX-License-Identifier: Apache-2.0
"""Quantize from Python: a float SAM and images in, quantized models, their plans and reports out. Prints nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from PIL import Image

from samq_onnx.analysis.mixed import Goal, meet
from samq_onnx.array_feeds import ArrayFolder
from samq_onnx.calibrate.statistics_file import StatisticsFile
from samq_onnx.codes.check import MOST_BITS
from samq_onnx.data import Calibration
from samq_onnx.documents import brief, parsed
from samq_onnx.door import admit
from samq_onnx.encoder import hinted
from samq_onnx.errors import UserError
from samq_onnx.external import data_name
from samq_onnx.families import NOTHING, Hints, Part, Role, identify
from samq_onnx.feeds import Feeds as MadeFeeds
from samq_onnx.files import atomic_folder, atomic_path
from samq_onnx.float_model import RECIPE, check_float
from samq_onnx.fusion import FusionReport, fusion_report
from samq_onnx.methods import DEFAULT_METHOD, Method, Scheme, Widths, configured, parameters
from samq_onnx.methods.scheme import SiteBits, check_site_bits
from samq_onnx.methods.step import Feeds
from samq_onnx.models import load_model, model_sha256
from samq_onnx.pair import PAIR, pair_hash
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.passes.report import Report
from samq_onnx.pipeline import Preparation, lower_model, quantize_model
from samq_onnx.plan import QuantPlan
from samq_onnx.predictor import SamPredictor
from samq_onnx.progress import silent
from samq_onnx.reconstruct.effort import CACHE_GB, Effort
from samq_onnx.runtime import open_session
from samq_onnx.samples import Sample
from samq_onnx.scratch import Scratch

__all__ = ["DECODER", "ENCODER", "Images", "Quantized", "Result", "lower", "quantize"]

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
PARTS = {"encoder": ENCODER, "decoder": DECODER}  # of a folder
ALONE = "model"  # name of a file's plan
FLOAT_HASH = "samq_onnx.float_model.sha256"
CALIBRATION_HASH = "samq_onnx.calibration.sha256"
ENCODER_SHARE = 0.4  # of the time for both parts, without what a decoder takes before it learns
DECODER_FIRST = 120  # that, at most, in units of what it takes to prepare it
ONE_FILE_LIMIT = 1_900_000_000  # bytes of weights; a protobuf holds less than 2 GiB

Images = str | os.PathLike[str] | Calibration | Sequence[np.ndarray]
"""A folder, or pictures, uint8 [H, W, 3] each, or arrays for every input (`samq_onnx.array_feeds.ArrayFolder`)."""


@dataclasses.dataclass
class Quantized:
    """A quantized model.

    Attributes:
        model: itself. plan: every number of it; with the float model it gives the model again (`lower`).
        reports: of all steps and passes: where they did something, and where not and why.
        sites: kind of attention -> how many there are.
        recipe: method, parameters, widths and target.
        notes: lines about what the model is fed. feeds: how many inputs it was calibrated on. seconds: it took.
        sample: one of these inputs.
    """

    model: ir.Model = dataclasses.field(repr=False)
    plan: QuantPlan = dataclasses.field(repr=False)
    reports: list[Report] = dataclasses.field(repr=False)
    sites: dict[str, int]
    recipe: dict[str, Any]
    notes: tuple[str, ...] = ()
    feeds: int = 0
    seconds: float = 0.0
    sample: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, repr=False)

    def save(self, path: str | os.PathLike[str]) -> FusionReport | None:
        """Write the model, completely or not at all; it replaces a file only if ONNX Runtime loads it.

        Returns:
            What ran in integers and what in float; None where no input is known.

        Raises:
            UserError: it cannot be written.
        """
        with atomic_path(path) as temporary:
            weights = sum(v.const_value.nbytes for v in self.model.graph.initializers.values() if v.const_value)
            external = data_name(temporary.name) if weights > ONE_FILE_LIMIT else None
            ir.save(self.model, temporary, external_data=external)
            if self.sample is None:
                open_session(temporary)
                return None
            return fusion_report(temporary, self.sample)


@dataclasses.dataclass
class Result:
    """What quantizing a file, or a folder of encoder and decoder, gave.

    Attributes:
        parts: ``encoder`` and ``decoder``, or ``model``.
        left_out: a line for each image or annotation that could not be used.
        widths: where a goal chose them: which, what was predicted and what was measured.
    """

    parts: dict[str, Quantized]
    left_out: list[str] = dataclasses.field(default_factory=list)
    widths: dict[str, Any] | None = None

    @property
    def model(self) -> ir.Model:
        """Of a file: the quantized model."""
        return self._alone.model

    @property
    def plan(self) -> QuantPlan:
        """Of a file: its plan."""
        return self._alone.plan

    @property
    def plans(self) -> dict[str, QuantPlan]:
        """The plan of each part."""
        return {name: part.plan for name, part in self.parts.items()}

    @property
    def _alone(self) -> Quantized:
        if set(self.parts) != {ALONE}:
            raise UserError("these are an encoder and a decoder; see parts")
        return self.parts[ALONE]

    def save(self, output: str | os.PathLike[str]) -> dict[str, FusionReport | None]:
        """Write the model to a file, or both to a folder, both or none.

        Returns:
            As `Quantized.save`, by part.

        Raises:
            UserError: it cannot be written.
        """
        if ALONE in self.parts:
            return {ALONE: self.parts[ALONE].save(output)}
        with atomic_folder(output) as folder:
            return {name: part.save(folder / PARTS[name]) for name, part in self.parts.items()}


def _settings(method: Method) -> dict[str, Any]:
    """Dotted name of each parameter -> its value."""

    def value(name: str) -> Any:
        found: Any = method
        for step in name.split("."):
            found = getattr(found, step)
        return found

    return {one.name: value(one.name) for one in parameters(type(method))}


def _recipe(method: Method, scheme: Scheme, target: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": method.name,
        "parameters": _settings(method),
        "weight_bits": scheme.widths.weight,
        "activation_bits": scheme.widths.activation,
        "target": target,
    }
    if scheme.strict:
        found["strict"] = True
    if scheme.sites:
        found["site_bits"] = scheme.sites
    return found


def _calibration_sha256(calibration: Calibration, used: Iterable[Sample]) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(sample.path for sample in used), *filter(None, [calibration.annotations])]:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@contextlib.contextmanager
def _calibration(images: Images) -> Iterator[Calibration]:
    """What images are given, as a folder."""
    if isinstance(images, (str, os.PathLike, Calibration)):
        yield Calibration.of(images)
        return
    if not isinstance(images, Iterable) or not (pictures := list(images)):
        raise UserError("no images to calibrate on; give a folder, or pictures, uint8 [H, W, 3] each")
    with Scratch() as folder:
        for number, pixels in enumerate(pictures):
            fits = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
            if not fits or not pixels.size:
                raise UserError(f"image {number}: wanted RGB of type uint8, [H, W, 3]; or give a folder")
            Image.fromarray(pixels).save(folder / f"{number:06}.png")
        yield Calibration(folder)


@dataclasses.dataclass(frozen=True)
class Order:
    """What is asked for, checked; the same for all parts of a model.

    Attributes:
        method: with its parameters. target: name of what it is for.
        widths: of everything. decoder_widths: of a decoder, if they are others than those that the method gives it.
        strict: the same widths in every quantized layer.
        site_bits: part -> widths of single sites.
        hints: of the encoder's image, where its graph does not tell.
    """

    method: Method
    widths: Widths
    target: str
    decoder_widths: Widths | None = None
    strict: bool = False
    site_bits: Mapping[str, SiteBits] = dataclasses.field(default_factory=dict)
    hints: Hints = NOTHING

    @classmethod
    def of(
        cls,
        method: str,
        bits: str,
        target: str,
        settings: Mapping[str, str] | None = None,
        decoder_bits: str | None = None,
        strict: bool = False,
        site_bits: object = None,
        parts: Iterable[str] = (ALONE,),
    ) -> Order:
        """What words say.

        Args:
            site_bits: as JSON holds it: site -> role -> bits, for a folder part -> that.
            parts: of the model.

        Raises:
            UserError: a method, parameter, width, target or site that cannot be.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise UserError(f"settings: wanted name -> value, got {settings!r}")
        sites: dict[str, SiteBits] = {}
        if site_bits is not None:
            if not isinstance(site_bits, dict):
                raise UserError("widths of sites: wanted an object")
            named = {ALONE: site_bits} if ALONE in parts else site_bits
            if set(named) - set(parts):
                raise UserError(
                    f"widths of sites: wanted {' and '.join(parts)}, got {brief(sorted(set(named) - set(parts))[0])!r}"
                )
            sites = {name: check_site_bits(value, f"widths of sites, {name}") for name, value in named.items()}
        if strict and decoder_bits is not None:
            raise UserError("strict is one width for everything; leave out other widths for the decoder")
        TARGETS[target]  # says which there are
        decoder = Widths.parse(decoder_bits) if decoder_bits is not None else None
        return cls(configured(method, settings), Widths.parse(bits), target, decoder, strict, sites)

    def recipe(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        found = _recipe(self.method, Scheme(self.widths, self.strict), self.target)
        return {**found, "decoder_bits": str(self.decoder_widths or ""), "site_bits": self.site_bits}

    def scheme(self, name: str, part: Part) -> Scheme:
        """The bits of a part: what is asked for it, or else what the method makes of what is asked for all."""
        sites = self.site_bits.get(name, {})
        if part.role is Role.DECODER and self.decoder_widths is not None:
            return Scheme(self.decoder_widths, self.strict, sites)
        return Scheme(self.widths if self.strict else self.method.widths(part, self.widths), self.strict, sites)


@dataclasses.dataclass
class _Run:
    """The quantization of one file, or of two that belong together."""

    order: Order
    calibration: Calibration
    say: Callable[[str], None]
    kept: StatisticsFile | None = None
    pair: str | None = None
    effort: Effort = dataclasses.field(default_factory=Effort)

    @functools.cached_property
    def images_hash(self) -> str:
        """Of all images that there are."""
        return _calibration_sha256(self.calibration, self.calibration.images)

    @functools.cached_property
    def hash_of(self) -> Callable[[Path], str]:
        """The hash of a model that has been admitted, taken once."""
        return functools.cache(model_sha256)

    def one(
        self,
        name: str,
        source: Path,
        encoder: Path | None = None,
        quantized: Path | None = None,
        reader: Path | None = None,
    ) -> Quantized:
        """Quantize a file, a decoder with the embeddings of the ``quantized`` encoder, if there is one.

        Args:
            reader: the float decoder that reads an encoder's embedding.
        """
        started = time.perf_counter()
        order = self.order
        model = load_model(source)
        check_float(model, source)
        model.metadata_props.update(order.hints.metadata() if name != "decoder" else {})
        part = identify(model, os.fspath(source))
        if name == ALONE and order.decoder_widths is not None and part.role is not Role.DECODER:
            raise UserError(f"{source}: is no SAM decoder; leave out --decoder-bits")
        scheme = order.scheme(name, part)
        recipe = _recipe(order.method, scheme, order.target)
        self.say(f"{source}: {order.method.name} {str(scheme.widths).upper()}")
        feeds = self._feeds(part, quantized or encoder, source)
        notes = [*part.notes, *feeds.notes]
        if part.role is Role.DECODER and self.calibration.annotations and find_spec("pycocotools") is None:
            notes.append("points lie amid boxes, not masks; run: pip install samq_onnx[eval]")
        for note in notes:
            self.say(f"  {note}")
        describe = {
            **Hints.read(model.metadata_props).metadata(),
            RECIPE: json.dumps(recipe),
            FLOAT_HASH: self.hash_of(source),
            CALIBRATION_HASH: _calibration_sha256(self.calibration, feeds.samples),
        }
        model.metadata_props.pop(PAIR, None)
        if self.pair is not None:
            describe[PAIR] = self.pair

        def float_feeds() -> Feeds:
            return self._feeds(part, encoder, source) if quantized is not None else feeds

        fed = " ".join([name, *([self.hash_of(quantized or encoder or source)] if self.kept is not None else [])])
        outcome = quantize_model(
            model, part, feeds, order.method, scheme,
            target=order.target, float_feeds=float_feeds, label=source.stem, kept=self.kept, fed=fed, describe=describe,
            effort=self.effort, reader=reader,
        )  # fmt: skip
        return Quantized(
            outcome.model, outcome.plan, outcome.reports, outcome.sites,
            recipe, tuple(notes), len(feeds), time.perf_counter() - started, dict(feeds[0]),
        )  # fmt: skip

    def _feeds(self, part: Part, encoder: Path | None, source: Path) -> MadeFeeds:
        if isinstance(self.calibration, ArrayFolder):
            if encoder is not None:
                raise UserError(f"{source}: arrays are given for its inputs; leave out --encoder")
            return self.calibration.feeds(part)
        return part.feeds(self.calibration, hinted(encoder, part, self.order.hints), source.stem)


def parts_of(source: Path) -> tuple[str, ...]:
    """Names of the parts of a file or a folder."""
    return tuple(PARTS) if source.is_dir() else (ALONE,)


def execute(
    order: Order,
    source: Path,
    calibration: Calibration,
    *,
    encoder: Path | None = None,
    stats: Path | None = None,
    goal: Goal | None = None,
    effort: Effort | None = None,
    say: Callable[[str], None],
) -> Result:
    """Quantize a file, or a folder of encoder.onnx and decoder.onnx.

    Args:
        encoder: float encoder, for the embeddings that a decoder alone is calibrated on.
        stats: file of statistics that are used again, and added to.
        goal: lets single weights be narrower than ordered.
        effort: what learning may cost; of a folder, both parts together.
        say: is told what is going on, line by line.

    Raises:
        UserError: unusable model, images or statistics, or a goal that cannot be met.
    """
    if goal is not None:
        if effort is not None and effort.minutes is not None:
            raise UserError("minutes bound one run, and a budget or a loss takes several; leave out --minutes")
        sources = {name: source / PARTS[name] if source.is_dir() else source for name in parts_of(source)}

        def once(chosen: Order, images: Calibration) -> Result:
            return execute(
                chosen, source, images, encoder=encoder, stats=stats, effort=effort, say=lambda line: None
            )  # fmt: skip

        return meet(goal, order, sources, calibration, encoder, once, say)
    effort = effort or Effort()
    run = _Run(order, calibration, say, effort=effort)
    names = parts_of(source)
    files = [source / PARTS[name] for name in names] if source.is_dir() else [source]
    if source.is_dir():
        if encoder is not None:
            raise UserError(f"{source}: is a folder, whose encoder.onnx is used; leave out --encoder")
        if isinstance(calibration, ArrayFolder):
            raise UserError(f"{source}: is a folder; arrays calibrate one file, give encoder.onnx or decoder.onnx")
        SamPredictor(files[0], files[1], order.hints)  # refuses what does not fit together
        check_float(load_model(files[1]), files[1])  # before hours go into its encoder
        made_from = [*map(run.hash_of, files), run.images_hash]
        run.pair = pair_hash({"made_from": made_from, "recipe": order.recipe(), "version": version("samq_onnx")})
    if stats is not None:
        if not source.is_dir():
            admit(source)  # before it is hashed, which a pipe would make wait
        owner = {name: run.hash_of(file) for name, file in zip(names, files, strict=True)}
        run.kept = StatisticsFile(stats, {**owner, "images": run.images_hash})
    if source.is_dir():
        run.effort = effort.part(ENCODER_SHARE, _before_learning(files[1], effort))
        first = run.one("encoder", files[0], reader=files[1])
        run.effort = effort
        with Scratch() as folder:  # the decoder is calibrated on what this encoder gives
            first.save(folder / ENCODER)
            parts = {"encoder": first, "decoder": run.one("decoder", files[1], files[0], folder / ENCODER)}
    else:
        parts = {ALONE: run.one(ALONE, source, encoder)}
    if run.kept is not None:
        run.kept.save()
        say(f"statistics: {run.kept.found} from {stats}, {run.kept.collected} collected")
    return Result(parts, list(calibration.intake.left_out))


def _before_learning(decoder: Path, effort: Effort) -> float:
    """Seconds that a decoder will take before it can learn: its ranges are tried one by one; at most half of all."""
    if effort.minutes is None:
        return 0.0
    started = effort.clock.now()
    Preparation(load_model(decoder), MOST_BITS)
    return min(DECODER_FIRST * (effort.clock.now() - started), effort.left() / 2)


def quantize(
    model: str | os.PathLike[str],
    images: Images,
    *,
    method: str = DEFAULT_METHOD,
    bits: str = "w8a8",
    target: str = "samq",
    decoder_bits: str | None = None,
    strict: bool = False,
    settings: Mapping[str, str] | None = None,
    site_bits: Mapping[str, Any] | None = None,
    encoder: str | os.PathLike[str] | None = None,
    stats: str | os.PathLike[str] | None = None,
    budget_mb: float | None = None,
    max_loss: float | None = None,
    input_size: int | None = None,
    preprocess: str | None = None,
    minutes: float | None = None,
    cache_gb: float = CACHE_GB,
    device: str = "auto",
) -> Result:
    """Quantize a float SAM; nothing is printed, and nothing written but ``stats``.

    Args:
        model: ONNX file, or folder of encoder.onnx and decoder.onnx.
        images: folder of images, or pictures, uint8 [H, W, 3] RGB each, to calibrate on.
        method: a name that ``python -m samq_onnx.methods`` lists. settings: dotted name of a parameter -> its value.
        bits: ``wXaY``, widths of weights and activations, each 2 to 8. decoder_bits: those of a decoder, if others.
        target: ``samq``, integer kernels with function bodies, or ``qdq``, standard operators only.
        strict: the same widths in every quantized layer.
        site_bits: site -> role -> bits; of a folder, part -> that.
        encoder: float encoder for a decoder alone.
        stats: file of statistics that are used again, and added to.
        budget_mb, max_loss: choose 4 bits for as many weights as it takes, as `samq_onnx.analysis.mixed.Goal` says.
        input_size: side of the image that an encoder with free sides takes, where its graph does not tell.
        preprocess: the numbers that it takes, where its graph does not tell: normalised, bytes or unit.
        minutes: that all of it may take, where a method learns; None leaves it to the method.
        cache_gb: memory for activations while it learns. device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: unusable model, images or settings.
    """
    source = Path(model)
    goal = Goal(budget_mb, max_loss) if (budget_mb, max_loss) != (None, None) else None
    order = Order.of(method, bits, target, settings, decoder_bits, strict, site_bits, parts_of(source))
    order = dataclasses.replace(order, hints=Hints.of(input_size, preprocess))
    with silent(), _calibration(images) as calibration:
        return execute(
            order, source, calibration,
            encoder=Path(encoder) if encoder is not None else None,
            stats=Path(stats) if stats is not None else None,
            goal=goal,
            effort=Effort.of(minutes, cache_gb, device),
            say=lambda line: None,
        )  # fmt: skip


def lower(model: str | os.PathLike[str], plans: Mapping[str, QuantPlan], target: str | None = None) -> Result:
    """Make a float model, or a folder, compute with the codes of plans (`samq_onnx.plan_file`); needs no images.

    Args:
        target: what for, if not for that which the plan was made for.

    Raises:
        UserError: a plan does not belong to the model, or the target cannot take it.
    """
    source = Path(model)
    names = parts_of(source)
    if set(plans) != set(names):
        raise UserError(
            f"{source}: the plan is one of {brief(' and '.join(plans))}, wanted is one of {' and '.join(names)}"
        )
    if len({plan.metadata.get(PAIR) for plan in plans.values()}) > 1:
        raise UserError(f"{source}: the plan has parts of different runs; give the plan of one run")
    parts = {}
    for name in names:
        started = time.perf_counter()
        file = source / PARTS[name] if source.is_dir() else source
        plan, read = plans[name], load_model(file)  # admitted before it is hashed, which a pipe would make wait
        if plan.metadata.get(FLOAT_HASH) != model_sha256(file):
            raise UserError(f"{file}: the plan was made for another model; give the float model that was quantized")
        if target is not None and target != plan.target:
            plan = _for_target(plan, target)
        read.metadata_props.pop(PAIR, None)
        outcome = lower_model(read, plan, label=os.fspath(file))
        recipe = _recipe_of(plan)
        seconds = time.perf_counter() - started
        parts[name] = Quantized(outcome.model, plan, outcome.reports, outcome.sites, recipe, seconds=seconds)
    return Result(parts)


def _for_target(plan: QuantPlan, target: str) -> QuantPlan:
    """A plan for another target, which the model then says too."""
    TARGETS[target]  # says which there are
    recipe = json.dumps({**_recipe_of(plan), "target": target})
    return dataclasses.replace(plan, target=target, metadata={**plan.metadata, RECIPE: recipe})


def _recipe_of(plan: QuantPlan) -> dict[str, Any]:
    try:
        recipe = parsed(plan.metadata.get(RECIPE, ""))
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict) or recipe.get("target") != plan.target:
        raise UserError(f"the plan does not say how, and for which target, it was made ({RECIPE}); quantize again")
    return recipe
