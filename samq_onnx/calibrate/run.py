# SPDX-License-Identifier: Apache-2.0
"""Run a model over calibration inputs block by block and hand its tensors to collectors.

Only one block is loaded at a time, and the single tensor that crosses to the next block waits on disk for each
input: memory grows neither with the number of inputs nor with the depth of the model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from samq_onnx.calibrate.blocks import Block, cut
from samq_onnx.errors import UserError
from samq_onnx.runtime import open_session

__all__ = ["Collector", "run"]


class Collector(Protocol):
    """Something that wants to see tensors: all of ``tensors`` at once, once for each calibration input."""

    @property
    def tensors(self) -> tuple[str, ...]: ...

    def update(self, *arrays: np.ndarray) -> None: ...


def _resident_memory() -> str:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return "unknown memory"
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"


def run(
    model: ir.Model,
    feeds: Sequence[Mapping[str, np.ndarray]],
    collectors: Sequence[Collector],
    *,
    label: str,
    progress: bool = True,
) -> None:
    """Feed every calibration input through ``model`` and update ``collectors``.

    Args:
        model: float model, samq nodes allowed; not changed.
        feeds: inputs by graph input name, fetched one at a time.
        label: shown in front of the progress bar.

    Raises:
        UserError: there is no input, or a tensor is not finite.
    """
    if not len(feeds):
        raise UserError("there are no calibration inputs; give a folder with images")
    blocks = cut(model, [collector.tensors for collector in collectors])
    # tqdm's None: only where a person watches
    bar = tqdm(total=len(blocks) * len(feeds), desc=label, unit="step", disable=None if progress else True, leave=False)
    with bar, tempfile.TemporaryDirectory(prefix="samq-calibrate-") as scratch:
        for number, block in enumerate(blocks):
            here = set(block.taps)
            mine = [collector for collector in collectors if set(collector.tensors) <= here]
            _run_block(block, feeds, mine, Path(scratch), bar)
            bar.set_postfix_str(f"block {number + 1} of {len(blocks)}, {_resident_memory()}")


def _run_block(
    block: Block, feeds: Sequence[Mapping[str, np.ndarray]], collectors: Sequence[Collector], scratch: Path, bar: tqdm
) -> None:
    session = open_session(ir.to_proto(block.model).SerializeToString())
    wanted = [output.name for output in session.get_outputs()]
    for index in range(len(feeds)):
        spilled = scratch / f"{index}.npy"
        inputs: dict[str, np.ndarray] = {}
        if block.feed_inputs:
            feed = feeds[index]
            inputs = {name: feed[name] for name in block.feed_inputs}
        if block.carried_in is not None:
            inputs[block.carried_in] = np.load(spilled, allow_pickle=False)
        found = dict(inputs)
        found.update(zip(wanted, session.run(wanted, inputs), strict=True))
        for collector in collectors:
            collector.update(*(found[name] for name in collector.tensors))
        if block.carried_out is not None:
            np.save(spilled, found[block.carried_out], allow_pickle=False)
        bar.update()
