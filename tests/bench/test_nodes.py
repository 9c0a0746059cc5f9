"""The figures about several nodes: the models of routers do what RFC 2992 says, and counting agrees with reckoning."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from bench.nodes import RESULTS, ROUTERS, counted, main, spread, untracked

HASHES = np.random.default_rng(1).integers(0, (1 << 64) - 1, 200_000, dtype=np.uint64, endpoint=True)


@pytest.mark.parametrize("kind", ROUTERS)
def test_every_node_has_its_part(kind: str) -> None:
    counts = np.bincount(spread(kind, HASHES, np.arange(8)), minlength=8)
    assert counts.min() > 0.95 * len(HASHES) / 8 and counts.max() < 1.05 * len(HASHES) / 8


@pytest.mark.parametrize(
    ("kind", "lost", "moved"),
    [
        ("threshold", 0, 1 / 2),  # RFC 2992 section 4: at an edge
        ("threshold", 4, 1 / 4 + 1 / (4 * 9)),  # in the middle: (1/4)(1 + 1/N) for an odd N, and N = 9 here
        ("resilient", 4, 1 / 9),
        ("modulo", 4, 1 - 1 / 9),
    ],
)
def test_how_much_moves_when_a_node_is_lost(kind: str, lost: int, moved: float) -> None:
    before = spread(kind, HASHES, np.arange(9))
    after = spread(kind, HASHES, np.delete(np.arange(9), lost))
    assert abs((before != after).mean() - moved) < 0.01
    if kind == "resilient":
        assert (before[before != after] == lost).all()


def test_full_buckets_are_counted_as_they_are_reckoned() -> None:
    for load in (0.5, 1.0, 2.0, 4.0):
        assert abs(untracked(load) - counted(load, 16)) < 0.002
    assert untracked(0.1) < 1e-5 < untracked(1.0) < untracked(2.0) < 0.05


def test_the_results_are_those_of_the_command(tmp_path: Path) -> None:
    """As far as chance goes: the file in the repository was made from twenty times as many flows."""
    made = tmp_path / "shares.csv"
    main(["--flows", "100000", "--results", str(made)])

    def rows(path: Path) -> list[dict[str, str]]:
        return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))

    one, other = rows(RESULTS), rows(made)
    assert len(one) == len(other) > 100
    for first, second in zip(one, other, strict=True):
        assert all(first[name] == second[name] for name in ("table", "nodes", "router", "event", "slots", "pods"))
        if first["broken_percent"]:
            assert abs(float(first["broken_percent"]) - float(second["broken_percent"])) < 0.5
            assert (float(first["broken_percent"]) == 0) == (first["pods"] == "none")
