# SPDX-License-Identifier: Apache-2.0
"""How a mistake in the input is told to the user, by commands in one line (`samq_onnx.command`)."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, what to do."""
