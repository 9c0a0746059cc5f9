"""The watcher survives: days of virtual time with faults of every kind, and no object lost or stale at their end."""

from __future__ import annotations

import pytest

from kube.simulation import World

SEEDS_A_TEST = 10


def live_through(seeds: range) -> None:
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except BaseException:
            print(f"seed {seed}, second {world.now:.3f} of the day; faults so far: {world.faults}")
            raise
        # A day in which nothing happened proves nothing.
        assert world.checkpoints == 12
        assert world.consumer.batches > 100
        assert len(world.faults) >= 15, world.faults
        assert sum(reflector.lists for reflector in world.cluster.reflectors) > 20


@pytest.mark.parametrize("first", range(0, 40, SEEDS_A_TEST))
def test_a_day_with_random_faults(first: int) -> None:
    live_through(range(first, first + SEEDS_A_TEST))


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 1400, SEEDS_A_TEST))
def test_many_days_with_random_faults(first: int) -> None:
    live_through(range(first, first + SEEDS_A_TEST))


def test_the_same_seed_gives_the_same_day() -> None:
    days = []
    for _ in range(2):
        world = World(4711)
        world.run(6 * 3600.0)
        days.append((world.faults, world.store.revision, world.consumer.batches, world.consumer.services))
    assert days[0] == days[1]
