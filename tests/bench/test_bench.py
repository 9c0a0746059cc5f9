"""The benchmarks run at a tiny scale and write well-formed files. How fast anything was is not looked at."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from bench import harness, results, traffic
from bench.__main__ import main
from bench.suites import SUITES
from packets import verify_checksums

# They make network namespaces.
NETNS = {"live": (pytest.mark.netns, pytest.mark.long), "startup": (pytest.mark.netns,)}


@pytest.mark.parametrize(
    "suite", [pytest.param(name, marks=NETNS[name]) if name in NETNS else name for name in SUITES]
)
def test_a_suite_writes_its_results(suite, tmp_path, capsys):
    assert main([suite, "--scale", "tiny", "--results", str(tmp_path)]) == 0
    path = tmp_path / f"{suite}.csv"
    machine, figures = results.read_csv(path)
    assert {"command", "cpu", "mhz", "caches", "kernel", "load", "numba", "numpy", "commit"} <= set(machine)
    assert figures
    for figure in figures:
        assert figure.case and figure.metric and figure.unit
        assert figure.min <= figure.median <= figure.max
        assert figure.rounds >= 1
    names = [case.name for case in SUITES[suite](harness.TINY)]
    assert len(set(names)) == len(names), "two cases share a name"
    assert {figure.case for figure in figures} == set(names)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# ")]
    assert lines[0].split(",") == results.COLUMNS
    assert {len(row) for row in csv.reader(lines)} == {len(results.COLUMNS)}
    summary = (tmp_path / "SUMMARY.md").read_text()
    assert f"## {suite}" in summary
    assert list(tmp_path.glob(f"{suite}-*.svg"))
    assert capsys.readouterr().out.count("| `") == len(figures)


def test_properties_hold_at_any_scale(tmp_path):
    assert main(["properties", "--scale", "tiny", "--results", str(tmp_path)]) == 0
    _, figures = results.read_csv(tmp_path / "properties.csv")
    found = {figure.metric: figure.max for figure in figures}
    assert found["most minus fewest"] <= 1
    assert found["different digests"] == 1
    assert found["flows tracked"] == 4
    assert found["flows that changed pod"] == 0
    assert found["age at expiry, timeout 40 s"] == pytest.approx(40, abs=1)
    assert found["moved, of pods that stayed"] == 0


def test_only_chooses_cases_by_part_of_their_name_or_by_pattern(capsys):
    assert main(["--list", "--scale", "tiny", "--only", "nat66*hit"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["--list", "--scale", "tiny", "--only", "*nat66*hit"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed and all("nat66" in name and name.endswith("hit") for name in listed[1::2])


def test_nothing_chosen_is_an_error(tmp_path, capsys):
    assert main(["memory", "--scale", "tiny", "--results", str(tmp_path), "--only", "no such case"]) == 1
    assert "--list" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", [4, 6])
def test_frames_are_valid_and_distinct(family):
    rows = traffic.udp_rows(family, 200, vips=3)
    assert len(np.unique(rows, axis=0)) == 200
    assert [verify_checksums(row.tobytes()) for row in rows] == [[]] * 200
    assert [verify_checksums(row.tobytes()) for row in traffic.replies(rows)] == [[]] * 200


def test_numbers_have_four_digits_and_no_exponents():
    assert [results.number(v) for v in (0, 3.0, 0.12345, 12.345, 123456.7, 2e9)] == [
        "0", "3", "0.123", "12.3", "123457", "2000000000",
    ]  # fmt: skip
