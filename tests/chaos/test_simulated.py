"""Hours of virtual time, broken by seed: connections keep their pods, and tables equal the configuration.

    make chaos ARGS="--seed 17"
"""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos import simulated
from chaos.simulated import live_through
from control.test_adoption import meaning
from kuproxy.dataplane import flow_table
from kuproxy.dataplane.layout import Tables, WorkerState
from kuproxy.engine.repair import repair


def test_chaos(tmp_path: Path, simulated_seed: int) -> None:
    world = live_through(simulated_seed, tmp_path)
    # A night in which nothing happened proves nothing.
    assert world.checkpoints == 1
    assert world.opened > 5 and world.sent > 200, (world.opened, world.sent)
    assert sum(world.faults.values()) >= 5, world.faults


def test_the_same_seed_gives_the_same_night(tmp_path: Path) -> None:
    nights = []
    for name in ("first", "second"):
        world = live_through(4711, tmp_path / name)
        tables = meaning(world.controller.plane.compiler)
        nights.append((world.faults, world.sent, world.opened, world.connections, tables))
    assert nights[0] == nights[1]


def test_the_rig_notices_a_worker_that_nobody_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "repair", lambda *_: None)
    with pytest.raises(AssertionError):
        live_through(1, tmp_path)  # in which workers die four times


def test_the_rig_notices_forgotten_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: a connection breaks where pods have changed since it was opened."""

    def forget(tables: Tables, state: WorkerState) -> None:
        repair(tables, state)
        flow_table.flush(state)

    monkeypatch.setattr(simulated, "repair", forget)
    with pytest.raises(AssertionError, match="a connection to a healthy pod broke"):
        live_through(1, tmp_path)
