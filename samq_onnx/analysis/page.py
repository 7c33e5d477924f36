# SPDX-License-Identifier: Apache-2.0
"""The page: one file of HTML with inline SVG, nothing loaded, no script."""

from __future__ import annotations

from html import escape
from typing import Any

from samq_onnx.analysis import svg
from samq_onnx.analysis.verdict import HELP, WORST, cause

__all__ = ["page"]

Facts = dict[str, Any]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 980px; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #d5dae2 }
.verdict { background: #f3f6fa; border-left: 4px solid #2463c4; padding: .6em 1.1em; overflow-wrap: anywhere }
.verdict p { margin: .35em 0 }
details { border-top: 1px solid #e4e8ee; padding: .35em 0 } summary { cursor: pointer; overflow-wrap: anywhere }
summary .why { color: #8a4a00; white-space: nowrap }
.plots { display: flex; flex-wrap: wrap; gap: 14px 20px; margin: .6em 0 } figure { margin: 0; max-width: 100% }
figcaption { font-size: 12.5px; color: #465063; max-width: 300px }
dt { font-weight: 600; color: #8a4a00 } dd { margin: 0 0 .5em }
.wide figcaption { max-width: 620px } .note { color: #465063; font-size: 13px }
svg { display: block; max-width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: #465063 }
.n { text-anchor: middle } .e { text-anchor: end } .s { text-anchor: start } .axis { stroke: #8d97a8; stroke-width: 1 }
.kept { fill: #d6ecd9 } polyline.before { fill: #b9c0cc55; stroke: #98a1b0; stroke-width: 1 }
polyline.after { fill: none; stroke: #2463c4; stroke-width: 1.4 } path.before { stroke: #b4bbc7; fill: none }
path.after { stroke: #2463c4; fill: none; stroke-opacity: .8 }
rect.chosen { fill: #2463c4 } rect.other { fill: #c3cbd7 }
.key span { display: inline-block; width: 1.1em; height: .8em; margin: 0 .35em 0 1em }
"""


def page(report: Facts) -> str:
    """The whole page of what `samq_onnx.analyze.analyze` found."""
    parts = report["parts"]
    opening = "".join(_opening(name, part) for name, part in parts.items())
    sections = "".join(_section(name, part) for name, part in parts.items())
    title = f"What quantizing costs: {report['model']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>"
        f'<p class="note">{escape(report["how"])}</p>{opening}{_help(parts)}{_key()}{sections}</body></html>\n'
    )


def _help(parts: Facts) -> str:
    """What can be done about the causes that occur."""
    names = {cause(site)[0] for part in parts.values() for site in part["sites"][:WORST]}
    by_words: dict[str, list[str]] = {}
    for name, words in HELP.items():
        if name in names:
            by_words.setdefault(words, []).append(name)
    told = "".join(f"<dt>{escape(', '.join(one))}</dt><dd>{escape(words)}</dd>" for words, one in by_words.items())
    return f"<h2>What helps</h2><dl>{told}</dl>"


def _key() -> str:
    return (
        "<h2>How to read the plots</h2>"
        '<p class="note key">In the plots:<span style="background:#b9c0cc"></span>before the folds'
        '<span style="background:#2463c4"></span>after them'
        '<span style="background:#d6ecd9"></span>the range that codes hold. Shares of values are on a logarithmic '
        "axis down to one in a million.</p>"
    )


def _opening(name: str, part: Facts) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in part["verdict"])
    return f'<div class="verdict"><p><b>{escape(name)}</b></p>{lines}</div><p></p>'


def _section(name: str, part: Facts) -> str:
    sites = part["sites"]
    rows = [
        (site["site"], site["losses"]["all"]["error"], f"{_percent(site['losses']['all']['error'])}  {cause(site)[0]}")
        for site in sites[:WORST]
    ]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in part["notes"])
    told = "".join(_site(site, number < WORST, number == 0) for number, site in enumerate(sites))
    return (
        f"<h2>{escape(name)}: the sites that cost most when quantized alone</h2>{svg.bars(rows)}"
        f'<p class="note">Percentages are the squared error of {escape(part["judged"])} over its square.</p>{notes}'
        f"<h2>{escape(name)}: all {len(sites)} sites, the costliest first</h2>{told}"
    )


def _site(site: Facts, worst: bool, opened: bool) -> str:
    name, why = cause(site) if worst else ("", "")
    loss = site["losses"]["all"]
    flips = f", {100 * loss['flips']:.2g} % of pixels flip" if loss["flips"] is not None else ""
    roles = ", ".join(f"{role} {_percent(one['error'])}" for role, one in site["losses"].items() if role != "all")
    alone = f'<p class="note">One tensor alone: {roles}. {escape(f"{name.capitalize()}: {why}")}.</p>' if worst else ""
    plots = "".join(_plot(tensor) for tensor in site["tensors"])
    plots += "".join(_channels(one["role"], one["channels"]) for one in site["tensors"] if "channels" in one)
    return (
        f"<details{' open' if opened else ''}><summary><b>{escape(site['site'])}</b> ({escape(site['kind'])}): "
        f'{_percent(loss["error"])}{flips} <span class="why">{escape(name)}</span></summary>'
        f'{alone}<div class="plots">{plots}</div></details>'
    )


def _plot(tensor: Facts) -> str:
    kept = tensor.get("range")
    drawn = svg.histogram(
        tuple(tensor["edges"]), tensor["before"], tensor["after"], tuple(kept) if kept is not None else None
    )
    words = [f"{tensor['role']}: {tensor['bits']} bits, signal to noise {tensor['sqnr_db']:.1f} dB"]
    if kept is not None:
        low, high = tensor["seen"]
        words.append(f"codes hold {kept[0]:.3g} to {kept[1]:.3g}, values go from {low:.3g} to {high:.3g}")
    if "bimodal" in tensor:
        says = {True: "two peaks", False: "one peak"}
        words.append(f"{says[tensor['bimodal']['before']]} before, {says[tensor['bimodal']['after']]} after")
    if "largest_of_row" in tensor:
        words.append(f"{tensor['codes']} codes, largest of a middle row {tensor['largest_of_row']:.2g}")
    made = f"<figure>{drawn}<figcaption>{escape('; '.join(words))}</figcaption></figure>"
    if "tau" in tensor:
        points = [(point[0], point[1]) for point in tensor["tau"]["curve"]]
        errors = [error for _, error in points]
        made += (
            f"<figure>{svg.curve(points, tensor['tau']['chosen'])}<figcaption>error of the attention output by code, "
            f"logarithmic: {min(errors):.2e} to {max(errors):.2e}; chosen stands out</figcaption></figure>"
        )
    return made


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _channels(role: str, found: Facts) -> str:
    before, after = found["before"], found["after"]
    drawn = svg.channels((before["low"], before["high"]), (after["low"], after["high"]))
    return (
        f'<figure class="wide">{drawn}<figcaption>range of each channel of {escape(role)}; the widest reaches '
        f"{before['ratio']:.1f} times as far as the middle one before the folds, {after['ratio']:.1f} times after them"
        "</figcaption></figure>"
    )
