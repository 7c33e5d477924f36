# SPDX-License-Identifier: Apache-2.0
"""Why a model loses what it loses, in plain words: its costliest sites, and what is wrong with each."""

from __future__ import annotations

from typing import Any

__all__ = ["HELP", "WORST", "cause", "verdict"]

WORST = 10  # sites that are told
GRADES = (  # error relative to the output's square, and what that is called
    (0.3, "collapses"),
    (0.03, "loses a lot"),
    (0.003, "loses a little"),
    (0.0, "keeps what the float model gives"),
)
CREST = 15.0  # largest value in units of the root mean square; a normal distribution has about five
SHARP = 0.5  # largest probability of the middle row
OUTLIERS = 8.0
FLAT = 0.05
LEAST = 0.01  # share of a cause that is told
ROW_CODES = (
    "Codes relative to the largest of their row (auto, samq) or log codes (ptq4sam-s, repq-vit) fit it better; where "
    "it has them, more bits (--site-bits)."
)
HELP = {  # cause -> what can be done about it
    "outlier channels": (
        "A few channels reach far beyond the others, and all share one step. Folds that scale or rotate channels help "
        "and cost nothing when the model runs: auto tries them, smoothquant, os-plus and repq-vit scale those behind "
        "norms. No fold reaches channels behind a GELU: more bits there (--site-bits), or hybrid codes (ahcptq-s)."
    ),
    "bimodal keys": "All methods centre keys or turn their signs; the report of quantize says why it was not possible.",
    "sharp softmax": ROW_CODES,
    "flat softmax": ROW_CODES,
    "softmax": ROW_CODES,
    "heavy tail": "More bits for this site (--site-bits), or ranges that cut off less or more (another method).",
    "few bits": "More bits for this site (--site-bits), or weights that are rounded together (auto) or learned (samq).",
}

Facts = dict[str, Any]


def cause(site: Facts) -> tuple[str, str]:
    """What is wrong with a site: a word or two, and a sentence."""
    losses = {role: loss["error"] for role, loss in site["losses"].items() if role != "all"}
    role = max(losses, key=lambda name: losses[name]) if losses else site["tensors"][0]["role"]
    tensor = next(one for one in site["tensors"] if one["role"] == role)
    bits, crest = tensor["bits"], tensor["crest"]
    channels = tensor.get("channels", {}).get("after")
    if channels is not None and channels["ratio"] > OUTLIERS:
        reach = "reaches" if channels["outliers"] == 1 else "reach"
        return "outlier channels", (
            f"{channels['outliers']} of {len(channels['low'])} channels of {role} {reach} more than {OUTLIERS:.0f} "
            f"times as far as the middle one, the widest {channels['ratio']:.0f} times: one scale for all leaves the "
            f"others about {max(1, round(2**bits / channels['ratio']))} of {2**bits} codes"
        )
    if role == "k" and tensor["bimodal"]["after"]:
        return "bimodal keys", (
            "the keys have two peaks with little between them, and the codes between the peaks are wasted; centring "
            "or flipping them (BIG) was not possible or not asked for"
        )
    if role == "probabilities":
        largest = tensor["largest_of_row"]
        if largest > SHARP:
            return "sharp softmax", (
                f"half of all rows put {100 * largest:.0f} % or more on one key, and the many small probabilities "
                f"beside it share what is left of {2**bits} codes"
            )
        if largest < FLAT and tensor.get("codes") != "row":
            return "flat softmax", (
                f"the largest probability of a middle row is {largest:.2g}; with one scale for all it has few codes"
            )
        return "softmax", f"{2**bits} codes are too few for rows that hold both large and small probabilities"
    if crest > CREST:
        return "heavy tail", (
            f"the largest value of {role} is {crest:.0f} times the root mean square (a normal distribution has about "
            f"5): a range that holds it is coarse, a narrower one cuts it off"
        )
    return "few bits", f"{role} has no unusual shape; {bits} bits are what it loses by"


def grade(error: float) -> str:
    """What an error relative to the output's square is called."""
    return next(name for least, name in GRADES if error >= least)


def verdict(sites: list[Facts], whole: Facts, what: str) -> list[str]:
    """Sentences about a model.

    Args:
        sites: costliest first. whole: loss of the quantized model. what: name of the output that is judged.
    """
    error = whole["error"]
    lines = [
        f"Quantized as planned, the model {grade(error)}: the squared error of {what} is {100 * error:.3g} % of its "
        "square."
    ]
    if whole["flips"] is not None:
        lines[0] = lines[0][:-1] + f", and {100 * whole['flips']:.2g} % of the mask pixels change sides."
    total = sum(site["losses"]["all"]["error"] for site in sites) or 1.0
    shares = [site["losses"]["all"]["error"] / total for site in sites[:WORST]]
    half = next((n for n in range(1, len(shares) + 1) if sum(shares[:n]) >= 0.5), len(shares))
    lines.append(
        f"{half} of {len(sites)} sites {'makes' if half == 1 else 'make'} up {100 * sum(shares[:half]):.0f} % of what "
        "all cost when each is quantized alone."
    )
    causes: dict[str, float] = {}
    for site, share in zip(sites, shares, strict=False):
        name, _ = cause(site)
        causes[name] = causes.get(name, 0.0) + share
    ranked = sorted(causes.items(), key=lambda pair: -pair[1])
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked if share >= LEAST)
    lines.append(f"By cause, of the {len(shares)} costliest sites: {told}.")
    for site, share in list(zip(sites, shares, strict=False))[: max(3, min(half, 5))]:
        name, why = cause(site)
        lines.append(f"{site['site']} ({100 * share:.0f} %): {name}: {why}.")
    return lines
