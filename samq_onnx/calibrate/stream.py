# SPDX-License-Identifier: Apache-2.0
"""Run a model over calibration inputs block by block and hand its tensors to collectors.

Only one block is loaded at a time, and the single tensor that crosses to the next block waits on disk for each
input: memory grows neither with the number of inputs nor with the depth of the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from tqdm import tqdm

from samq_onnx.calibrate.blocks import Block, cut
from samq_onnx.errors import UserError
from samq_onnx.progress import progress_bar
from samq_onnx.runtime import open_session, run_session
from samq_onnx.sampling import spread
from samq_onnx.scratch import Scratch

__all__ = ["Collector", "Feed", "check_finite", "chosen", "open_block", "resident_memory", "run"]

LARGEST_BLOCK = 2_000_000_000  # bytes of weights; a protobuf holds less than 2 GiB

Feed = Mapping[str, np.ndarray]


class Collector(Protocol):
    """Something that wants to see tensors: all of ``tensors`` at once, once for each calibration input.

    Attributes:
        inputs: of so many, evenly spread (`chosen`); of all if None.
    """

    @property
    def tensors(self) -> tuple[str, ...]: ...

    @property
    def inputs(self) -> int | None: ...

    def update(self, *arrays: np.ndarray) -> None: ...


def run(
    model: ir.Model,
    feeds: Sequence[Feed],
    collectors: Sequence[Collector],
    *,
    label: str,
    done: Callable[[Collector], None] | None = None,
) -> None:
    """Feed calibration inputs, those that a collector wants, through ``model`` and update ``collectors``.

    Args:
        model: float model, samq nodes allowed; not changed.
        feeds: inputs by graph input name, fetched one at a time.
        label: shown in front of the progress bar, which says how far it is: time left, block, memory in use.
        done: is given each collector once it has seen all its inputs, which is at the end of its block.

    Raises:
        UserError: there is no input, or the model does not run, or a tensor is not finite, or a block is too large for
            one ONNX file.
        ValueError: a collector wants a tensor that the model does not have.
    """
    if not len(feeds):
        raise UserError("there are no calibration inputs; give a folder with images")
    if not collectors:
        return
    blocks = cut(model, [collector.tensors for collector in collectors])
    seen = [chosen(len(feeds), collector.inputs) for collector in collectors]
    indices = sorted(set().union(*seen))
    bar = progress_bar(len(blocks) * len(indices), label, "step")
    with bar, Scratch() as scratch:
        for number, block in enumerate(blocks, 1):
            bar.set_postfix_str(f"block {number} of {len(blocks)}, {resident_memory()}", refresh=False)
            mine = [(collectors[index], seen[index]) for index in block.groups]
            _run_block(block, feeds, indices, mine, scratch, bar)
            if done is not None:
                for collector, _ in mine:
                    done(collector)


def chosen(count: int, wanted: int | None) -> set[int]:
    """Indices of ``wanted`` of so many inputs, evenly spread; of all if None."""
    return set(spread(count, count if wanted is None else wanted))


def _run_block(
    block: Block,
    feeds: Sequence[Feed],
    indices: Sequence[int],
    collectors: Sequence[tuple[Collector, set[int]]],
    scratch: Path,
    bar: tqdm,
) -> None:
    session = open_block(block.model)
    outputs = [output.name for output in session.get_outputs()]
    wanted = sorted({name for collector, _ in collectors for name in collector.tensors})
    for index in indices:
        carried = scratch / f"{index}.npy"
        tensors: dict[str, np.ndarray] = {}
        if block.feed_inputs:
            feed = feeds[index]
            tensors = {name: feed[name] for name in block.feed_inputs}
        if block.carried_in is not None:
            tensors[block.carried_in] = np.load(carried, allow_pickle=False)
            carried.unlink()
        made = run_session(session, tensors, f"the model on calibration input {index + 1}", outputs)
        tensors.update(zip(outputs, made, strict=True))
        for name in wanted:
            check_finite(name, tensors[name], index)
        for collector, seen in collectors:
            if index in seen:
                collector.update(*(tensors[name] for name in collector.tensors))
        if block.carried_out is not None:
            np.save(carried, tensors[block.carried_out], allow_pickle=False)
        bar.update()


def check_finite(name: str, array: np.ndarray, index: int) -> None:
    """Refuse a tensor that is not finite.

    Args:
        index: of the calibration input, from 0.

    Raises:
        UserError: names the tensor and the input.
    """
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = array.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise UserError(f"tensor {name} is not finite on calibration input {index + 1}; check the model and that image")


def open_block(model: ir.Model, *, gives_back: bool = False) -> ort.InferenceSession:
    """A session that leaves idle cores to others.

    Args:
        gives_back: memory after every run, where many sessions are open at once.

    Raises:
        UserError: the model is too large for one ONNX file, or does not load.
    """
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if weights > LARGEST_BLOCK:
        raise UserError(
            f"{weights / 1e9:.1f} GB of the model's weights lie where it cannot be cut, 2 GB can be calibrated; "
            "split the model"
        )
    options = ort.SessionOptions()
    # idle threads would take the cores from the collectors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = not gives_back
    return open_session(ir.to_proto(model).SerializeToString(), options=options)


def resident_memory() -> str:
    """Memory that this process holds, for a progress bar."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return "unknown memory"
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
