# SPDX-License-Identifier: Apache-2.0
"""What a pass has to say: what it did, and what it left alone and why."""

from __future__ import annotations

import dataclasses

__all__ = ["Report"]


@dataclasses.dataclass
class Report:
    """What one pass did to a graph.

    Attributes:
        name: of the pass, for people.
        done: names of the sites or nodes that it changed.
        refused: one sentence each: where it did not do what a user would have liked, and why.
        facts: numbers about what was done.
    """

    name: str
    done: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, float] = dataclasses.field(default_factory=dict)

    def refuse(self, site: str, reason: str) -> None:
        """Note that ``site`` was left alone, and why."""
        self.refused.append(f"{self.name} at {site}: {reason}")
