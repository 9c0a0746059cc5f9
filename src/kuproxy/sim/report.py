"""Outcomes as a table to read, as files to keep (CSV, or Parquet with an extra), and as pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kuproxy.errors import ConfigError, DriverError
from kuproxy.pictures.chart import bars_svg, lines_svg
from kuproxy.sim.measures import Cell, Outcome

__all__ = ["cell_name", "check_format", "table_text", "write_plots", "write_results"]

_COLUMNS = (
    ("algorithm", "algorithm", "{}"),
    ("new_len", "new-len", "{}"),
    ("buckets", "buckets", "{}"),
    ("timeout_s", "timeout", "{:g}"),
    ("flows", "flows", "{}"),
    ("broken_flows", "broken", "{}"),
    ("orphaned_flows", "orphaned", "{}"),
    ("untracked_share", "untracked", "{:.3%}"),
    ("imbalance", "imbalance", "{:.3f}"),
    ("peak_occupancy", "occupancy", "{:.1%}"),
)
# (file, column of the series, what it says, where the axis begins)
_PLOTS = (
    ("imbalance.svg", "imbalance_packets", "packets of the busiest pod, times its due part", 1.0),
    ("imbalance-flows.svg", "imbalance_flows", "flows of the busiest pod, times its due part", 1.0),
    ("occupancy.svg", "occupancy", "part of the flow table that is used", 0.0),
    ("untracked.svg", "untracked", "packets that found no room in the flow table", 0.0),
)


def _shown(form: str, value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "by state" if form == "{:g}" else "-"
    return form.format(value)


def table_text(outcomes: Sequence[Outcome]) -> str:
    """One line a cell, under a head."""
    lines = [[head for _, head, _ in _COLUMNS]]
    for outcome in outcomes:
        row = outcome.summary()
        lines.append([_shown(form, row[name]) for name, _, form in _COLUMNS])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        first, *rest = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        text += "  ".join([first, *rest]).rstrip() + "\n"
    return text


def check_format(form: str) -> None:
    """Whether files of this format can be written, before any work is done for them.  Raises ConfigError."""
    if form == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ConfigError(
                "--format: parquet needs pyarrow: pip install 'kuproxy[sim]'; csv needs nothing"
            ) from None


def _write(path: Path, rows: list[dict[str, Any]], form: str) -> None:
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_results(directory: Path, outcomes: Sequence[Outcome], form: str) -> list[Path]:
    """`summary` with a row a cell, `series` with a row a cell and bin.  Raises DriverError."""
    paths = [directory / f"summary.{form}", directory / f"series.{form}"]
    tables = [
        [outcome.summary() for outcome in outcomes],
        [row for outcome in outcomes for row in outcome.rows()],
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(paths, tables, strict=True):
            _write(path, rows, form)
    except OSError as error:
        raise DriverError(f"{error.filename or directory}: {error.strerror}") from error
    return paths


def cell_name(cell: Cell, cells: Sequence[Cell]) -> str:
    """The algorithm, and those sizes that are not the same in all of `cells`."""
    parts = [cell.algorithm]
    for name, word in (("new_len", "new-len"), ("buckets", "buckets"), ("timeout_s", "timeout")):
        if len({str(getattr(each, name)) for each in cells if each.algorithm == cell.algorithm}) > 1:
            parts.append(f"{word} {_shown('{:g}', float(getattr(cell, name)))}")
    return ", ".join(parts)


def write_plots(directory: Path, outcomes: Sequence[Outcome]) -> list[Path]:
    """The series as lines, and broken flows as bars.  Raises DriverError."""
    cells = [outcome.cell for outcome in outcomes]
    names = [cell_name(cell, cells) for cell in cells]
    pictures: dict[str, str] = {}
    for file, column, label, y_from in _PLOTS:
        lines = {
            name: list(zip(outcome.series["time_s"].tolist(), outcome.series[column].tolist(), strict=True))
            for name, outcome in zip(names, outcomes, strict=True)
        }
        if any(not math.isnan(y) for line in lines.values() for _, y in line):
            title = column.replace("_", ", ")
            pictures[file] = lines_svg(lines, title=title, x_label="seconds", y_label=label, y_from=y_from)
    bars = [(name, float(outcome.broken)) for name, outcome in zip(names, outcomes, strict=True)]
    pictures["broken.svg"] = bars_svg(bars, title="broken flows", unit="flows")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, picture in pictures.items():
            (directory / file).write_text(picture + "\n")
    except OSError as error:
        raise DriverError(f"{error.filename or directory}: {error.strerror}") from error
    return [directory / file for file in pictures]
