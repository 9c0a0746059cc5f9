"""Flows that control prolongs: the ones that are meant, never another one, and never for a shorter time."""

from __future__ import annotations

import os

import numpy as np
import pytest

from kuproxy.codes import FlowState
from kuproxy.engine.memory import WorkerMemory
from kuproxy.engine.touch import TOUCH, receive_touches, send_touches, touch_all

NOW = 1000


@pytest.fixture
def memory() -> WorkerMemory:
    """Eight entries, of which the third holds an established flow until 2000."""
    made = WorkerMemory(1)
    entry, flow = made.state.entries[2], made.state.flows[2]
    entry["hash"], entry["pod"], entry["vip"], entry["expires"] = 77, 5, 1, 2000
    flow["created"], flow["reverse_hash"], flow["state"] = 900, 88, int(FlowState.TCP_ESTABLISHED)
    return made


def touch(**changes: int) -> np.ndarray:
    made = np.zeros(1, TOUCH)
    fields = {"slot": 2, "expires": 3000, "hash": 77, "pod": 5, "created": 900, "reverse_hash": 88} | changes
    for name, value in fields.items():
        made[name] = value
    return made


def test_a_flow_lives_longer(memory: WorkerMemory) -> None:
    assert touch_all(memory.state, touch()) == 1
    assert memory.state.entries[2]["expires"] == 3000


@pytest.mark.parametrize(
    "changes",
    [{"slot": 3}, {"slot": 8}, {"hash": 78}, {"pod": 6}, {"created": 901}, {"reverse_hash": 89}],
)
def test_another_flow_does_not(memory: WorkerMemory, changes: dict[str, int]) -> None:
    before = memory.state.entries.copy()
    assert touch_all(memory.state, touch(**changes)) == 0
    assert (memory.state.entries == before).all()


def test_neither_does_one_that_has_gone_or_ends(memory: WorkerMemory) -> None:
    memory.state.flows[2]["state"] = int(FlowState.TCP_CLOSING)
    assert touch_all(memory.state, touch()) == 0
    memory.state.flows[2]["state"] = int(FlowState.TCP_ESTABLISHED)
    memory.state.entries[2]["pod"] = 0
    assert touch_all(memory.state, touch(pod=0)) == 0
    assert memory.state.entries[2]["expires"] == 2000


@pytest.mark.parametrize(("before", "wanted", "after"), [
    (2000, 1999, 2000), (2000, 2000, 2000), (0xFFFFFFF0, 5, 5), (5, 0xFFFFFFF0, 5),
])  # fmt: skip
def test_never_for_a_shorter_time_and_across_the_clocks_wrap(
    memory: WorkerMemory, before: int, wanted: int, after: int
) -> None:
    memory.state.entries[2]["expires"] = before
    assert touch_all(memory.state, touch(expires=wanted)) == 1
    assert memory.state.entries[2]["expires"] == after


@pytest.mark.parametrize("number", [0, 1, 100_000])
def test_they_travel_in_memory(number: int) -> None:
    touches = np.zeros(number, TOUCH)
    touches["slot"] = np.arange(number)
    fd = send_touches(touches)
    try:
        assert (receive_touches(fd) == touches).all()
    finally:
        os.close(fd)
