# SPDX-License-Identifier: Apache-2.0
"""Every method gives the plans that it gave, but for rounding that differs between CPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.golden.plans import FILE, made

CLOSE = 1e-3  # relative; sums of floats are taken in another order on another CPU
SHARE = 0.97  # of all numbers: a search whose best two candidates are as good may take either


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{place}/{key}")
    else:
        yield place, value


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, float) or isinstance(two, float):
        return abs(one - two) <= CLOSE * max(abs(one), abs(two))
    return bool(one == two)


def test_plans_are_those_of_before(tiny_sam: Path, one_image: Path) -> None:
    golden, found = json.loads(FILE.read_text()), made(tiny_sam, one_image)
    assert list(found) == list(golden), "python -m tests.golden writes the plans of a new method"
    for name, plans in golden.items():
        before, after = dict(_leaves(plans)), dict(_leaves(found[name]))
        assert before.keys() == after.keys()
        other = [place for place in before if not _same(before[place], after[place])]
        assert len(other) <= (1 - SHARE) * len(before), f"{name}: {len(other)} of {len(before)}, as {other[:5]}"
