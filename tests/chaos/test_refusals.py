"""A kernel that refuses, floods, deaths over an update: by seed; and that it would notice.

    make chaos ARGS="-k refusals --seed 109"
"""

from __future__ import annotations

import numpy as np
import pytest

from chaos.refusals import ChaosWorld, live_through
from kuproxy.control.compile import Compiler
from kuproxy.dataplane import flow_table

LENGTH_H = 6


def lived(seed: int) -> ChaosWorld:
    world = live_through(seed, LENGTH_H)
    assert world.checkpoints == 3 and world.deaths and world.opened > 50 and world.continued > 10 * world.opened / 2
    return world


def test_chaos(refusal_seed: int) -> None:
    lived(refusal_seed)


def test_the_same_seed_is_the_same_story() -> None:
    one, other = live_through(3, 2), live_through(3, 2)
    assert one.log == other.log and one.faults == other.faults and one.continued == other.continued


def test_every_fault_comes() -> None:
    """In half a day; none of the seeds is an idyll."""
    world = live_through(7, 12)
    missing = {"control died", "steering refused", "clock jumped", "flood", "restart"} - world.faults.keys()
    assert not missing and world.refused > 0


@pytest.mark.parametrize("fault", ["flows forgotten", "adoption forgets", "pods renamed"])
def test_it_notices(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of ours, put in: each of them breaks some seed."""
    if fault == "flows forgotten":
        born = ChaosWorld._born

        def forgetful(self: ChaosWorld) -> None:
            flow_table.flush(self.engine.state)
            born(self)

        monkeypatch.setattr(ChaosWorld, "_born", forgetful)
    elif fault == "adoption forgets":
        adopt = Compiler.adopt

        def careless(self: Compiler, references: np.ndarray) -> int:
            self.tables.vips["flags"][1:] = 0
            return adopt(self, references)

        monkeypatch.setattr(Compiler, "adopt", careless)
    else:
        drain = Compiler._drain

        def wrong(self: Compiler, record, pod) -> None:
            index = record.pods[pod]
            drain(self, record, pod)
            self._draining.pop(index, None)
            self._pod_indices.free(index)  # although flows refer to it

        monkeypatch.setattr(Compiler, "_drain", wrong)
    with pytest.raises(Exception):  # noqa: B017
        for seed in range(4):
            live_through(seed, LENGTH_H, lambda _: None)


