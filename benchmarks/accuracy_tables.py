# SPDX-License-Identifier: Apache-2.0
"""Tables of the papers, as rows of the accuracy benchmark: ablations, and learned methods beside statistic ones."""

from __future__ import annotations

import itertools

from accuracy_row import Row

__all__ = ["TABLES"]

WIDTHS = ("w6a6-strict", "w4a4-strict")
STATISTIC = ("minmax", "omse", "repq-vit", "ptq4sam-s", "pq-sam", "saq-sam-s", "ahcptq-s", "auto")
LEARNED = ("adaround", "brecq", "qdrop", "lsq", "lsq+", "ptq4sam-l", "pq-sam-l", "saq-sam", "ahcptq", "samq")
NARROWEST = ("pq-sam@w2a4-strict", "pq-sam-l@w2a4-strict")  # which its paper has
SOFTMAX = ("uniform", "log2", "log-sqrt2", "log", "row")
REACHES = (6, 10, 14)  # lambda
ALPHAS = (0.20, 0.25, 0.30)


def _grouping() -> list[str]:
    """Of each order the values of lambda, and those of alpha, around the best of both."""
    values = [("reach", value) for value in REACHES] + [("alpha", value) for value in ALPHAS if value != 0.25]
    return [f"{name}={value},truncated={first}" for first in ("first", "last") for name, value in values]


def _rows(methods: tuple[str, ...] | list[str], widths: tuple[str, ...]) -> list[str]:
    return [f"{method}@{width}" for width in widths for method in methods]


_WORDS: dict[str, list[str]] = {
    # all that learns, beside what does not
    "learned": [*_rows([*STATISTIC, *LEARNED], WIDTHS), *NARROWEST],
    # PTQ4SAM, table 4: signs of keys (BIG), log codes behind the softmax (AGQ)
    "big-agq": _rows(
        [
            f"{method}:big={big},probabilities={codes}"
            for method in ("ptq4sam-s", "ptq4sam-l")
            for big, codes in itertools.product(("never", "decoder"), ("uniform", "log"))
        ],
        WIDTHS,
    ),
    # PTQ4SAM, table 5: codes behind the softmax
    "softmax": _rows([f"ptq4sam-s:probabilities={codes}" for codes in SOFTMAX], WIDTHS),
    # PQ-SAM, supplement and rebuttal: order of the two steps of OHC, lambda, alpha
    "grouping": _rows([f"pq-sam:{values}" for values in _grouping()], ("w4a4-strict",)),
    # SAQ-SAM: queries and keys of a decoder clipped by focus (PCC), by least error, by percentile, or not at all
    "clipping": _rows([f"saq-sam-s:clipping={name}" for name in ("focus", "omse", "percentile", "avg_minmax")], WIDTHS),
    # SAQ-SAM: what prompts respond (PAR), or the outputs of the same stages and layers, or nothing learned
    "par": _rows(["saq-sam", "saq-sam:response=false", "saq-sam:regulariser=0", "saq-sam-s"], WIDTHS),
}

TABLES: dict[str, list[Row]] = {name: [Row.parse(word) for word in words] for name, words in _WORDS.items()}
