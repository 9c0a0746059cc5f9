"""What `ku plot` refuses; what it draws is in docs/simulate.md, whose commands tests/test_commands.py runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def ku(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kuproxy", *words],
        capture_output=True, text=True, check=False, timeout=300, cwd=directory, env=os.environ,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ring", "ten"), "'ten'"),
        (("ring", "--new-len", "17", "10.0.0.1"), "17"),
        (("shares", "10.0.0.1", "2001::1"), "IPv4"),
        (("shares", "10.0.0.1=0"), "weight above 0"),
        (("series", "none.csv"), "none.csv"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_status_2(tmp_path, words, said):
    done = ku(tmp_path, "plot", *words)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert said in line


def test_a_series_without_the_column_names_those_it_has(tmp_path):
    (tmp_path / "s.csv").write_text("algorithm,time_s,occupancy\nx,1,0.5\nx,2,many\n")
    assert "it has occupancy" in ku(tmp_path, "plot", "series", "--column", "colour", "s.csv").stderr
    assert "s.csv:3: time_s or occupancy is not a number" in ku(tmp_path, "plot", "series", "s.csv").stderr
