"""Which seeds run: `--seed N` or `--seed A-B` those alone, else a few of each tier, and 500 where long tests run."""

from __future__ import annotations

import pytest

# The tier's fixture, its seeds in every run, and those of long runs besides.
TIERS = (
    ("real_seed", range(14), range(14, 500)),
    ("simulated_seed", range(4), range(4, 500)),
    ("refusal_seed", range(4), range(4, 500)),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where `tests/chaos` is named on the command line, as `make chaos` does."""
    parser.addoption("--seed", default="", help="this chaos seed alone, or a range of them: 7, 100-199")


def seeds_of(text: str) -> list[int]:
    """Raises UsageError."""
    first, dash, last = text.partition("-")
    try:
        return list(range(int(first), int(last) + 1)) if dash else [int(first)]
    except ValueError:
        raise pytest.UsageError(f"--seed {text!r}: give a number, or two as in 100-199") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = metafunc.config.getoption("--seed", default="")
    for name, short, long in TIERS:
        if name in metafunc.fixturenames:
            marked = [pytest.param(seed, marks=pytest.mark.long) for seed in long]
            metafunc.parametrize(name, seeds_of(chosen) if chosen else [*short, *marked])
