"""`--seed N`: that one alone."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="chaos: live through this seed alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    one = metafunc.config.getoption("--seed", default=None)
    for name, seeds in (("seed", metafunc.module.SEEDS), ("long_seed", metafunc.module.LONG_SEEDS)):
        if name in metafunc.fixturenames:
            chosen = seeds if one is None else ([one] if name == "seed" else [])
            metafunc.parametrize(name, chosen)
