# SPDX-License-Identifier: Apache-2.0
"""What the accuracy benchmark has measured: a JSON file, tables, a chart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from accuracy_row import FLOAT, Row
from bar_chart import bar_chart, grid
from markdown_table import markdown_table

from samq_onnx.documents import read_document
from samq_onnx.errors import UserError
from samq_onnx.evaluate import PROMPTS
from samq_onnx.files import atomic_path, write_json

__all__ = ["Results"]

KEPT = "0.96"  # least IoU with the float mask of a mask that is kept
HEAD = ("row", "width", "IoU", "against float", "Dice", f"kept at {KEPT}", "agreement", "oracle IoU", "seconds")
HIGHLIGHTED = "auto"

Record = dict[str, Any]
"""``settings``, and what was measured or the ``error``."""


class _Section(NamedTuple):
    """What can be compared: rows of one float model, measured alike."""

    settings: Record
    rows: list[tuple[Row, Record]]

    def title(self, prompt: str) -> str:
        return f"{self.settings['model']}, {prompt} prompts"

    def lines(self, prompt: str) -> list[str]:
        """Its part of the Markdown."""
        data, calibration = ("/".join(Path(self.settings[name]).parts[-2:]) for name in ("data", "calib"))
        sizes = [f"{one[prompt]['instances']} objects of {one[prompt]['images']} images" for _, one in self.measured()]
        about = (
            f"{sizes[0] if sizes else 'Nothing'} of {data}, calibrated on {calibration}; percent, +- standard error."
        )
        return [f"### {self.title(prompt)}", "", about, "", markdown_table([HEAD, *self._cells(prompt)])]

    def measured(self) -> list[tuple[Row, Record]]:
        return [(row, record) for row, record in self.rows if "error" not in record]

    def _cells(self, prompt: str) -> Iterator[list[str]]:
        for row, record in self.rows:
            if "error" in record:
                yield [row.name, row.width, record["error"], *[""] * (len(HEAD) - 3)]
                continue
            found = record[prompt]
            seconds, kept, agreement = "", "", ""
            if (compared := found.get("agreement")) is not None:
                seconds, agreement = f"{record['seconds']:.0f}", f"{100 * compared['mean_iou']:.2f}"
                kept = f"{100 * compared['shares'][KEPT]:.1f}"
            numbers = [f"{100 * found[name]:.2f}" for name in ("mean_iou", "mean_dice", "oracle_mean_iou")]
            yield [row.name, row.width, numbers[0], _loss(found, 2), numbers[1], kept, agreement, numbers[2], seconds]

    def bars(self, prompt: str) -> list[tuple[str, float, str, bool]]:
        """What the chart draws: agreement, in which rows differ most, and as remarks mean IoU and its difference."""
        bars = []
        for row, record in self.measured():
            found = record[prompt]
            agreement = found["agreement"]["mean_iou"] if "agreement" in found else 1.0
            remark = f"{100 * agreement:.1f}   IoU {100 * found['mean_iou']:.1f}  {_loss(found, 1)}"
            bars.append((f"{row.name} {row.width}".strip(), agreement, remark, row.method == HIGHLIGHTED))
        return bars


def _loss(found: Record, digits: int) -> str:
    """Difference of mean IoU to float in points, and its standard error."""
    if "agreement" not in found:
        return ""
    loss = found["agreement"]["difference"]["iou"]
    error = loss["standard_error"]
    return f"{100 * loss['mean']:+.{digits}f}" + ("" if error is None else f" +- {100 * error:.{digits}f}")


class Results:
    """All rows of a file, of this run and earlier ones.

    Args:
        path: of the JSON file; the Markdown and the chart lie beside it.

    Raises:
        UserError: the file is none of this benchmark.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: list[Record] = []
        if path.exists():
            wanted = "remove it to measure all rows again"
            self._records = read_document(path, wanted)
            rows = self._records if isinstance(self._records, list) else [None]
            if not all(isinstance(row, dict) and "settings" in row for row in rows):
                raise UserError(f"{path}: holds other things than rows of this benchmark; {wanted}")

    def has(self, settings: Record) -> bool:
        """Whether a row was measured, with these settings."""
        return any(record["settings"] == settings and "error" not in record for record in self._records)

    def add(self, settings: Record, found: Record) -> str:
        """Keep what a row gave, in all files; a line that tells it."""
        self._records = [one for one in self._records if one["settings"] != settings]
        self._records.append({"settings": settings, **found})
        write_json(self._path, self._records)
        self._records = read_document(self._path, "")  # as another run finds them
        with atomic_path(self._path.with_suffix(".md")) as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")
        charts = [
            [bar_chart(f"{section.title(prompt)}: IoU with float masks, %", section.bars(prompt)) for prompt in PROMPTS]
            for section in self._sections()
            if section.measured()
        ]
        if charts:
            with atomic_path(self._path.with_suffix(".png")) as temporary:
                grid(charts).save(temporary)
        told = found.get("error") or ", ".join(f"{one} {100 * found[one]['mean_iou']:.2f}" for one in PROMPTS)
        return f"{settings['model']}, {settings['row']}: {told}"

    def markdown(self) -> str:
        """A table for each model and prompt."""
        return "\n".join(line for section in self._sections() for prompt in PROMPTS for line in section.lines(prompt))

    def _sections(self) -> list[_Section]:
        """Rows that can be compared, float first, then by width from wide to narrow, else as they were measured."""
        found: list[_Section] = []
        for record in self._records:
            settings = {name: value for name, value in record["settings"].items() if name != "row"}
            section = next((one for one in found if one.settings == settings), None)
            if section is None:
                section = _Section(settings, [])
                found.append(section)
            section.rows.append((Row.parse(record["settings"]["row"]), record))
        for section in found:
            section.rows.sort(key=lambda pair: (pair[0] != FLOAT, pair[0].strict, *[-bits for bits in pair[0].widths]))
        return found
