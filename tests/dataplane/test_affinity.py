"""The affinity table: what a worker finds there, what several do to it at once, what a killed one leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataplane.affinity_hammer import CLIENTS, NOW, VIP, clients_of_one_set, prepare
from kuproxy.dataplane import affinity
from kuproxy.dataplane._jit import COMPILED
from kuproxy.dataplane.layout import AFFINITY_WAYS, AFFINITY_WORDS
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.memory import SharedMemory, TablesMemory

ZERO = np.uint64(0)


class Table:
    """Two workers and their table."""

    def __init__(self) -> None:
        self.engine = LocalEngine(0, workers=2)
        prepare(self.engine.tables)
        self.clients = np.zeros(CLIENTS, np.uint64)
        clients_of_one_set(self.clients)
        self.entries = self.engine.state.affinity.reshape(-1, AFFINITY_WORDS)

    def remember(self, client: int, pod: int, worker: int = 0, now: int = NOW) -> None:
        state = self.engine.states[worker]
        affinity.remember(self.engine.tables, state, VIP, ZERO, self.clients[client], pod, now)

    def pod_of(self, client: int, worker: int = 0, now: int = NOW) -> int:
        state = self.engine.states[worker]
        return int(affinity.pod_of(self.engine.tables, state, VIP, ZERO, self.clients[client], now))

    def used(self) -> np.ndarray:
        """Indices of entries that are not empty."""
        return np.flatnonzero(self.entries.any(axis=1))

    def claim(self, place: int, worker: int) -> None:
        """As a writer does before it writes."""
        self.entries[place, 0] = (int(self.entries[place, 0]) & ~0xFF) + 0x100 | worker << 1 | 1


def test_workers_see_the_same():
    table = Table()
    table.remember(0, 3, worker=0)
    assert table.pod_of(0, worker=1) == 3
    table.remember(0, 5, worker=1)
    assert table.pod_of(0, worker=0) == 5
    assert len(table.used()) == 1
    assert table.pod_of(0, now=NOW + 600) == 0
    table.engine.tables.pods[5]["generation"] += 1
    assert table.pod_of(0) == 0


def test_a_full_set_gives_up_whose_time_ends_first():
    table = Table()
    for client in range(AFFINITY_WAYS):
        table.remember(client, client + 1, now=NOW + client)
    table.remember(4, 5, now=NOW + 9)
    assert [table.pod_of(client, now=NOW + 9) for client in range(5)] == [0, 2, 3, 4, 5]


def test_an_entry_that_is_being_written_is_neither_read_nor_written():
    table = Table()
    table.remember(0, 1)
    [place] = table.used()
    table.claim(place, worker=1)
    before = table.entries[place].copy()
    assert table.pod_of(0) == 0
    table.remember(0, 2)  # finds another way
    assert (table.entries[place] == before).all()
    assert table.pod_of(0) == 2
    for each in range(place // 4 * 4, place // 4 * 4 + AFFINITY_WAYS):
        table.claim(each, worker=1)
    whole = table.entries.copy()
    table.remember(0, 3)  # gives up
    assert (table.entries == whole).all()
    assert table.pod_of(0) == 0


def test_what_a_killed_worker_left_is_made_empty():
    table = Table()
    for client in range(AFFINITY_WAYS):
        table.remember(client, client + 1)
    mine, _, theirs, _ = table.used()
    table.claim(mine, worker=1)
    table.claim(theirs, worker=0)
    assert affinity.repair(table.engine.state.affinity, worker=1) == 1
    assert not table.entries[mine, 1:].any() and table.entries[mine, 0] & 1 == 0
    assert table.entries[theirs, 0] & 1 == 1, "worker 0 lives, and is still writing"
    assert affinity.repair(table.engine.state.affinity) == 1
    assert affinity.repair(table.engine.state.affinity) == 0
    table.remember(9, 10)
    assert table.pod_of(9, worker=1) == 10


@pytest.mark.skipif(not COMPILED, reason="plain Python has no compare-and-swap between processes")
def test_several_processes_and_no_torn_entry():
    """Sixteen clients, four places, four writers: entries change hands all the time."""
    tables, shared = TablesMemory(), SharedMemory()
    prepare(tables.tables)
    fds = (tables.region.fd, shared.region.fd)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dataplane.affinity_hammer", str(number), "10000000", *map(str, fds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        for number in range(4)
    ]
    try:
        for each in started:
            assert each.stdout is not None and each.stdout.readline() == "ready\n"
        for each in started:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        results = [each.communicate(timeout=240)[0].split() for each in started]
    finally:
        for each in started:
            each.kill()
            each.wait()
    for found, wrong in results:
        assert int(found) > 10_000
        assert int(wrong) == 0
    assert affinity.repair(shared.region.arrays["affinity"]) == 0, "everybody let go"


@pytest.mark.skipif(not COMPILED, reason="plain Python has no compare-and-swap between processes")
def test_writers_killed_at_any_moment_leave_a_table_that_can_be_repaired():
    tables, shared = TablesMemory(), SharedMemory()
    prepare(tables.tables)
    fds = (tables.region.fd, shared.region.fd)
    table = shared.region.arrays["affinity"]
    for attempt in range(5):
        each = subprocess.Popen(
            [sys.executable, "-m", "dataplane.affinity_hammer", "1", "2000000000", *map(str, fds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert each.stdout is not None and each.stdin is not None and each.stdout.readline() == "ready\n"
        each.stdin.write("go\n")
        each.stdin.flush()
        time.sleep(0.05 + attempt / 100)
        os.kill(each.pid, 9)
        each.wait()
        each.stdin.close()
        each.stdout.close()
        affinity.repair(table, worker=1)
        assert not (table.reshape(-1, AFFINITY_WORDS)[:, 0] & 1).any()
