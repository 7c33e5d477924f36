# SPDX-License-Identifier: Apache-2.0
"""Sessions in threads, opened and closed again and again: the same bits every time, and memory that does not grow.

    python benchmarks/soak.py --minutes 3

In rounds, until time is up, new threads draw some of these each: open a session of its own, with the native kernels or
with the function bodies, run it and close it; run one of the sessions that all threads share; open a `SamPredictor` of
its own and predict; set an image and predict with a predictor on shared sessions. Every output is compared, bit for
bit, with what a session of the same kind gave before the threads started.

Memory is the resident set of this process after each round, when all threads have ended and the C library has given
back what it keeps free. The median of the last quarter of the rounds may be larger than the median of the second
quarter by SHARE of it or by MARGIN bytes, whichever is more. The first quarter warms up; before it, all threads run
each shared session at once, because ONNX Runtime keeps the memory that a session's runs have needed at one time.

Exits with status 1 where bits differ or memory grows.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from samq_onnx import assets, data, images
from samq_onnx.api import DECODER, ENCODER, quantize
from samq_onnx.command import command_parser, main_guard
from samq_onnx.errors import UserError
from samq_onnx.families import identify
from samq_onnx.files import check_writable, write_json
from samq_onnx.inventory import check_files
from samq_onnx.models import read_model
from samq_onnx.predictor import SamPredictor
from samq_onnx.progress import progress_bar
from samq_onnx.runtime import open_session

SHARE, MARGIN = 0.02, 8_000_000
BOX = np.array([30.0, 40.0, 200.0, 180.0])
SHARED = "shared"
RUNS = 2  # of a session before it is closed
JOBS = 2  # of a thread in a round
FEWEST_ROUNDS = 4

Outputs = list[np.ndarray]
KINDS = {True: "native", False: "body"}


@dataclasses.dataclass(frozen=True)
class Job:
    """Something that a thread does: gives outputs, which must be ``wanted``."""

    name: str
    run: Callable[[], Outputs]
    wanted: Outputs


def _open(model: Path, native: bool) -> ort.InferenceSession:
    return open_session(model, native=native, threads=1)


def _opened(model: Path, native: bool, feed: dict[str, np.ndarray]) -> Outputs:
    session = _open(model, native)
    return [output for _ in range(RUNS) for output in session.run(None, feed)]


def _predicted(predictor: SamPredictor, image: np.ndarray) -> Outputs:
    predictor.set_image(image)
    return list(predictor.predict(box=BOX))


def _jobs(encoder: Path, decoder: Path) -> list[Job]:
    """All that threads draw from, each done once alone."""
    image = images.load(data.image_paths(assets.demo_images())[0])
    feeds = {model: identify(read_model(model), str(model)).sample_feed() for model in (encoder, decoder)}
    runs: dict[str, Callable[[], Outputs]] = {}
    for native, kind in KINDS.items():
        shared = {model: _open(model, native) for model in (encoder, decoder)}
        for model, part in ((encoder, "encoder"), (decoder, "decoder")):
            runs[f"open {part}, {kind}"] = lambda m=model, n=native: _opened(m, n, feeds[m])  # type: ignore[misc]
            runs[f"{SHARED} {part}, {kind}"] = lambda m=model, s=shared: s[m].run(None, feeds[m])  # type: ignore[misc]
        runs[f"open predictor, {kind}"] = lambda n=native: _predicted(  # type: ignore[misc]
            SamPredictor(_open(encoder, n), _open(decoder, n)), image
        )
        runs[f"{SHARED} predictor, {kind}"] = lambda s=shared: _predicted(  # type: ignore[misc]
            SamPredictor(s[encoder], s[decoder]), image
        )
    return [Job(name, run, run()) for name, run in runs.items()]


def _resident() -> int:
    """Bytes of the resident set of this process, without what is free."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library that has no such function
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


class _Soak:
    """What the threads share: how often each job was done, and how often with other bits."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.different: Counter[str] = Counter()

    def warm_up(self, threads: int) -> None:
        """Let all threads run each shared session at the same time, which makes its memory as large as it can be."""
        for job in self._jobs:
            if job.name.startswith(SHARED):
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(lambda job: job.run(), [job] * 2 * threads))

    def work(self, seed: Sequence[int]) -> None:
        """One thread's part of a round."""
        for number in np.random.default_rng(seed).integers(len(self._jobs), size=JOBS):
            job = self._jobs[number]
            made = job.run()
            same = len(made) == len(job.wanted) and all(map(_same, made, job.wanted))
            with self._lock:
                self.done[job.name] += 1
                self.different[job.name] += not same


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def soak(encoder: Path, decoder: Path, minutes: float, threads: int) -> dict[str, Any]:
    """Run and report: jobs and differences by name, resident set in bytes, the bound, and whether all is well.

    Raises:
        UserError: a model that does not open or does not run.
    """
    work = _Soak(_jobs(encoder, decoder))
    resident: list[int] = []
    work.warm_up(threads)
    started = shown = time.monotonic()
    bar = progress_bar(round(60 * minutes), "soak", "s")
    with bar:
        while shown < started + 60 * minutes or len(resident) < FEWEST_ROUNDS:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work.work, [(len(resident), thread) for thread in range(threads)]))
            resident.append(_resident())
            bar.set_postfix_str(f"{work.done.total()} jobs, {resident[-1] / 1e6:.0f} MB", refresh=False)
            now = time.monotonic()
            bar.update(round(now - started) - round(shown - started))
            shown = now
    quarter = len(resident) // 4
    before, after = statistics.median(resident[quarter : 2 * quarter]), statistics.median(resident[-quarter:])
    bound = max(SHARE * before, MARGIN)
    return {
        "seconds": shown - started,
        "threads": threads,
        "jobs": dict(work.done),
        "different": {name: count for name, count in work.different.items() if count},
        "resident": resident,
        "resident_before": before,
        "resident_after": after,
        "growth": after - before,
        "bound": bound,
        "well": not work.different.total() and after - before <= bound,
    }


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("soak", __doc__)
    parser.prog = "python benchmarks/soak.py"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--encoder", type=Path, help="default: SAM-Nano's, quantized by minmax when it starts")
    parser.add_argument("--decoder", type=Path, help="the decoder that belongs to --encoder")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--threads", type=int, default=4, help="at work at the same time")
    parser.add_argument("--json", type=check_writable, help="write the report here")
    return parser


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `soak`."""
    arguments = _parser().parse_args(argv)
    ort.set_default_logger_severity(3)
    if (arguments.encoder is None) != (arguments.decoder is None):
        raise UserError("--encoder and --decoder belong together; give both or none")
    if not 0 < arguments.minutes < 1e6 or not 0 < arguments.threads <= 1000:
        raise UserError("--minutes must be above 0, --threads 1 to 1000")
    check_files([arguments.encoder, arguments.decoder], [arguments.json])
    with tempfile.TemporaryDirectory(prefix="samq-soak-") as scratch:
        encoder, decoder = arguments.encoder, arguments.decoder
        if encoder is None:
            encoder, decoder = Path(scratch) / ENCODER, Path(scratch) / DECODER
            quantize(assets.nano_dir(), assets.calibration_images(), method="minmax").save(scratch)
        report = soak(encoder, decoder, arguments.minutes, arguments.threads)
    for name, count in sorted(report["jobs"].items()):
        print(f"{name:<28}{count:8d} done{report['different'].get(name, 0):8d} different")
    before, after, bound = (report[key] / 1e6 for key in ("resident_before", "resident_after", "bound"))
    print(f"resident {before:.1f} MB, then {after:.1f} MB: {after - before:+.1f}, at most {bound:.1f} is taken as flat")
    if arguments.json:
        write_json(arguments.json, report)
    return 0 if report["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
