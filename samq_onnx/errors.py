# SPDX-License-Identifier: Apache-2.0
"""How a mistake in the input is told to the user, by commands in one line (`samq_onnx.command`)."""

from __future__ import annotations

import re

__all__ = ["UserError", "shortened"]


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, what to do."""


LONGEST = 200  # characters
BEGINNING = 60  # of those, where the middle is left out
NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:|Exception during \w+: "
    r"|This is an invalid model\. "
    r"|\S+\.(?:cc|h):\d+ (?:\w+ )*[\w:<>~]+\([^()]*\)(?: const)? |[\w:]*::[\w:<>]+\([^()]*\) "
)


def shortened(error: BaseException) -> str:
    """The message of an error of a library as one short line: without paths of its sources, and without its middle
    where it is long, as its end says more than lists of types do."""
    text = " ".join(NOISE.sub("", " ".join(str(error).split())).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:BEGINNING]} ... {text[BEGINNING + 5 - LONGEST :]}"
