"""Result files: one CSV a suite, with the machine in comment lines, and one Markdown table over all of them."""

import csv
from dataclasses import fields
from pathlib import Path

from bench.harness import Figure

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = [field.name for field in fields(Figure)]


def number(value: float) -> str:
    """Four significant digits, never in exponents."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def write_csv(path: Path, machine: dict[str, str], command: str, figures: list[Figure]) -> None:
    """Comment lines `# name: value`, a header, then a line for each figure. Replaces the file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", newline="") as file:
        for name, value in {"command": command, **machine}.items():
            file.write(f"# {name}: {value}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for f in figures:
            values = [number(v) for v in (f.min, f.median, f.max)]
            writer.writerow([f.case, f.metric, f.unit, *values, f.rounds, f.note])
    unfinished.replace(path)


def read_csv(path: Path) -> tuple[dict[str, str], list[Figure]]:
    """The machine (and command), and the figures."""
    lines = path.read_text().splitlines()
    comments = [line[2:].partition(": ") for line in lines if line.startswith("# ")]
    rows = csv.DictReader(line for line in lines if not line.startswith("# "))
    figures = [
        Figure(
            r["case"], r["metric"], r["unit"], float(r["min"]), float(r["median"]), float(r["max"]),
            int(r["rounds"]), r["note"],
        )
        for r in rows
    ]  # fmt: skip
    return {name: value for name, _, value in comments}, figures


def table(figures: list[Figure]) -> str:
    """A Markdown table."""
    lines = ["| case | metric | unit | min | median | max | note |", "|---|---|---|--:|--:|--:|---|"]
    for f in figures:
        values = " | ".join(number(v) for v in (f.min, f.median, f.max))
        lines.append(f"| `{f.case}` | {f.metric} | {f.unit} | {values} | {f.note} |")
    return "\n".join(lines)


def write_summary(directory: Path) -> Path:
    """SUMMARY.md from every CSV in the directory, each under its own machine and command."""
    parts = ["# Results", "", "Written by `python -m bench`; what they mean: docs/performance.md."]
    for path in sorted(directory.glob("*.csv")):
        machine, figures = read_csv(path)
        facts = "; ".join(f"{name} {value}" for name, value in machine.items() if name != "command")
        parts += ["", f"## {path.stem}", "", f"`{machine.get('command', '')}`", "", facts, "", table(figures)]
        for picture in sorted(directory.glob(f"{path.stem}-*.svg")):
            parts += ["", f"![{picture.stem}]({picture.name})"]
    target = directory / "SUMMARY.md"
    target.write_text("\n".join(parts) + "\n")
    return target
