"""Chaos on a real node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.real import FAULTS, Node, chaotic_node, live_through, plan

pytestmark = [pytest.mark.netns, pytest.mark.timeout(280)]

SEEDS = range(4)
LONG_SEEDS = range(100, 160)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with chaotic_node() as made:
        yield made


def test_a_seed(node: Node, seed: int) -> None:
    live_through(node, seed)


@pytest.mark.long
def test_many_seeds(node: Node, long_seed: int) -> None:
    live_through(node, long_seed)


def test_the_seeds_bring_every_fault() -> None:
    assert {fault for seed in LONG_SEEDS for fault in plan(seed)} == set(FAULTS)
    assert len({fault for seed in SEEDS for fault in plan(seed)}) >= 8
