"""What is measured is what is meant: every flow on trial, every refusal a second chance."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.second_chance import main


def test_each_figure_is_there_with_and_without(tmp_path: Path) -> None:
    made = tmp_path / "second-chance.csv"
    assert main(["--flows", "3000", "--rounds", "1", "--results", str(made)]) == 0
    lines = made.read_text().splitlines()
    assert "--flows 3000" in lines[0]
    rows = list(csv.DictReader(lines[1:]))
    assert {(row["what"], row["second_chance_s"]) for row in rows} == {
        (what, seconds) for what in ("first segment, ns", "refusal, ns", "change, ms") for seconds in ("0", "60")
    }
    assert all(float(row["median"]) > 0 for row in rows)
