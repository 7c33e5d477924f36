# SPDX-License-Identifier: Apache-2.0
"""Which encoder and decoder were made together: both carry the hash of what they were made from.

A decoder is calibrated on the encoder of its own run. Where files of one folder are of two runs, because something
ended between the replacement of one and of the other, they are refused. Who takes an encoder of one folder and a
decoder of another knows what they do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samq_onnx.errors import UserError

__all__ = ["PAIR", "check_made_together", "pair_hash"]

PAIR = "samq_onnx.pair"  # metadata of a model


def pair_hash(made_from: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides what the files of a run are, which JSON can hold."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def check_made_together(metadata: Mapping[str | os.PathLike[str], Mapping[str, str]]) -> None:
    """Refuse files of one folder that were made in different runs.

    Args:
        metadata: path of a model file -> its metadata.

    Raises:
        UserError: they were.
    """
    runs: dict[Path, tuple[Path, str]] = {}
    for name, properties in metadata.items():
        path, run = Path(name), properties.get(PAIR)
        if run is None:
            continue
        first, other = runs.setdefault(path.absolute().parent, (path, run))
        if other != run:
            raise UserError(
                f"{first} and {path} were made in different runs, of which the later one was cut off; make both again"
            )
