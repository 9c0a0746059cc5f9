"""The commands of docs/simulate.md, run as they stand, and `ku plot`."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

PAGE = Path(__file__).parents[2] / "docs/simulate.md"


def ku(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kuproxy", *words],
        capture_output=True, text=True, check=False, timeout=300, cwd=directory, env=os.environ,
    )  # fmt: skip


def test_every_command_of_the_page_works_in_its_order(tmp_path):
    page = PAGE.read_text()
    for language, name in (("ku", "services.ku"), ("yaml", "plan.yaml")):
        (tmp_path / name).write_text(page.split(f"```{language}\n")[1].split("```")[0])
    lines = re.findall(r"^    ku (.+)$", page, re.MULTILINE)
    assert len(lines) >= 10
    printed = {}
    for line in lines:
        done = ku(tmp_path, *shlex.split(line))
        assert done.returncode == 0, f"{line}: {done.stderr}"
        printed[line] = done.stdout
    assert (tmp_path / "sent.pcap").read_bytes() == (tmp_path / "replayed.pcap").read_bytes()
    for picture in (*tmp_path.glob("*.svg"), *tmp_path.glob("results/*.svg")):
        ElementTree.fromstring(picture.read_text())
    with (tmp_path / "results/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * 2
    with (tmp_path / "results/series.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) * 100
    # The page's table is what the command says.
    here = re.findall(r"(\d+)  (karger|rendezvous) .*?%\s+([\d.]+) %", printed["simulate paper"])
    assert len(here) == 4
    for size, method, figure in here:
        assert re.search(rf"\| {int(size):,} \| {method.capitalize()} \| [\d.]+ % \| {figure} % \|", page)


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
