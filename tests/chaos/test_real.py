"""A real node in namespaces, broken by seed: it forwards, breaks no connection, and converges to the configuration.

    make chaos ARGS="--seed 17"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from chaos.faults import FAULTS
from chaos.plan import KINDS, plan_of
from chaos.rig import Rig, rig

pytestmark = [pytest.mark.netns, pytest.mark.timeout(280)]


class Bench:
    """One rig for all seeds; after a failure another one, so that a seed is judged by what it did itself."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._rig: Rig | None = None

    def get(self) -> Rig:
        if self._rig is None:
            self._rig = self._stack.enter_context(rig())
        return self._rig

    def close(self) -> None:
        self._rig = None
        self._stack.close()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_every_kind_is_planned() -> None:
    assert set(KINDS) == set(FAULTS)
    assert set(KINDS) == {kind for seed in range(14) for kind in plan_of(seed).faults}


def test_the_same_seed_is_the_same_plan() -> None:
    assert [plan_of(seed) for seed in range(50)] == [plan_of(seed) for seed in range(50)]
    assert len({plan_of(seed).steps for seed in range(500)}) == 500


def test_chaos(bench: Bench, real_seed: int) -> None:
    plan = plan_of(real_seed)
    made = bench.get()
    try:
        made.run(plan)
    except BaseException:
        print(plan)
        print(f'again: make chaos ARGS="--seed {real_seed}"')
        print(made.node.log[-6000:])
        print(made.evidence)
        bench.close()
        raise
