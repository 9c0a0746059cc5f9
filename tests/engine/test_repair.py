"""A worker is killed between any two instructions; its memory is put right, and the next one goes on."""

from __future__ import annotations

import os
import signal
import time
from random import Random

import numpy as np
import pytest

import packets
from engine.soundness import check
from kuproxy.codes import InterfaceFlag, Node, Reason
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.repair import repair
from kuproxy.plane import Plane
from kuproxy.vppcli.apply import Desired

SCRIPT = """\
ku conf ip4-src-address 192.0.2.1 second-chance 60
ku vip 90.0.0.0/24 new_len 64
ku pod 90.0.0.0/24 10.0.0.1 10.0.0.2 10.0.0.3
ku vip 91.0.0.0/24 encap gre4 new_len 64
ku pod 91.0.0.0/24 10.1.0.1 10.1.0.2
"""
CHANGE = """\
ku pod 90.0.0.0/24 10.0.0.1 del
ku pod 90.0.0.0/24 10.0.0.4
"""
PODS = [f"10.0.0.{n}" for n in range(1, 5)]


def engine_with_services() -> LocalEngine:
    engine = LocalEngine(6)
    desired, plane = Desired(), Plane(engine, decrement_ttl=True, any_node_address=True)
    for script in (SCRIPT, CHANGE):
        desired.run(script)
        plane.apply(desired.config())
    plane.compiler.set_interface(0, int(InterfaceFlag.NAT4_IN))
    return engine


def some_packet(rng: Random) -> bytes:
    """A client's, some of connections that began elsewhere, or a pod's refusal of one."""
    client, port = f"40.0.0.{rng.randrange(1, 9)}", rng.randrange(1024, 1028)
    if rng.random() < 0.4:
        return packets.frame(packets.tcp(rng.choice(PODS), client, 80, port, flags=packets.RST))
    address = f"9{rng.randrange(2)}.0.0.{rng.randrange(1, 9)}"
    if rng.random() < 0.3:
        return packets.frame(packets.udp(client, address, port, 80))
    return packets.frame(packets.tcp(client, address, port, 80, flags=rng.choice((packets.SYN, packets.ACK))))


def forward(engine: LocalEngine, rng: Random, tick: int) -> None:
    driver = MemoryDriver([some_packet(rng) for _ in range(64)])
    driver.receive(driver.frame)
    engine.process(driver.frame, tick)
    driver.transmit(driver.frame)
    engine.maintain(tick, 4)


@pytest.mark.parametrize("rounds", [25, pytest.param(500, marks=pytest.mark.long)])
def test_killed_at_any_moment(rounds: int) -> None:
    """A real process over real shared memory, and a real SIGKILL."""
    engine = engine_with_services()
    rng = Random(7)
    forward(engine, rng, 1)  # compiled, before there is a child
    lost = 0
    for number in range(rounds):
        child = os.fork()
        if child == 0:
            own, tick = Random(number), 10 * number + 2
            while True:
                forward(engine, own, tick)
                tick += 1
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        repair(engine.tables, engine.state)
        assert check(engine.tables, engine.state) > 0
        lost = int(engine.state.counters[Node.INPUT, Reason.WORKER_ENDED])
        forward(engine, rng, 10 * number + 9)
        check(engine.tables, engine.state)
    assert lost <= 64 * rounds, "no more than what the processes had in their hands"


def test_flows_move_in_what_is_forwarded() -> None:
    """Otherwise nobody would be killed over it."""
    engine = engine_with_services()
    rng = Random(3)
    for tick in range(1, 40):
        forward(engine, rng, tick)
    assert engine.state.counters[Node.NAT4_IN2OUT, Reason.SECOND_CHANCE] > 10
    check(engine.tables, engine.state)


def test_nothing_is_lost_of_what_is_whole() -> None:
    engine = engine_with_services()
    rng = Random(1)
    for tick in range(1, 20):
        forward(engine, rng, tick)
    before = {name: array.copy() for name, array in engine.state._asdict().items()}
    repair(engine.tables, engine.state)
    for name, array in engine.state._asdict().items():
        assert (array == before[name]).all(), name


def test_what_is_half_written_is_forgotten() -> None:
    """Each way in which a flow can be half a flow, one at a time."""
    engine = engine_with_services()
    rng = Random(2)
    for tick in range(1, 5):
        forward(engine, rng, tick)
    state = engine.state
    natted = [
        slot
        for slot in np.flatnonzero(state.entries["pod"]).tolist()
        if engine.tables.vips[state.entries[slot]["vip"]]["encap"] == 0
    ]
    flows = check(engine.tables, state)
    state.reverse[state.flows[natted[0]]["reverse"]]["slot"] = 0
    state.flows["reverse"][natted[1]] = len(state.reverse) + 5
    state.entries["pod"][natted[2]] = 0
    state.entries["vip"][natted[3]] = 0
    state.entries["hash"][natted[4]] ^= 1
    state.flows["state"][natted[5]] = 99
    repair(engine.tables, state)
    assert check(engine.tables, state) == flows - 6
