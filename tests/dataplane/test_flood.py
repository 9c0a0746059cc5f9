"""The compiled graph under many flows: a flood of first packets, and tens of thousands of masqueraded flows."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from kuproxy.codes import FlowState, InterfaceFlag, Node, Outcome, Protocol, Reason
from kuproxy.control.compile import Compiler
from kuproxy.control.store import Store
from kuproxy.dataplane.layout import (
    BATCH,
    HOLD_ROOM,
    META_COUNT,
    W_FLOWS,
    W_OUTCOMES,
    W_STATES,
    make_frame,
)
from kuproxy.dataplane.ports import COUNT, FIRST
from kuproxy.engine.local import LocalEngine
from kuproxy.model.config import DEFAULT_TIMEOUTS_S
from kuproxy.model.vip import Vip
from kuproxy.reference.ports import worker_of
from packets import ACK, SYN, frame, tcp, udp
from reference.worlds import vip

STRIDE = 128
INSIDE = 1
MASQUERADE = ip_address("10.1.0.1")
SOURCE_AT, PORTS_AT, FLAGS_AT = 26, 34, 47  # in an Ethernet frame with IPv4


class World:
    """Workers, and frames that are made by numbers. `worker` gets them."""

    def __init__(self, log2_buckets: int, *vips: Vip, workers: int = 1):
        self.engine = LocalEngine(log2_buckets, workers)
        self.worker = 0
        self.compiler = Compiler(self.engine.tables, decrement_ttl=False, any_node_address=False)
        self.compiler.set_timeouts(DEFAULT_TIMEOUTS_S)
        self.compiler.set_masquerade([MASQUERADE])
        self.compiler.set_interface(INSIDE, int(InterfaceFlag.NAT4_IN))
        self.compiler.apply(Store().update("test", add=vips))
        self.frame = make_frame(np.zeros(BATCH * STRIDE + HOLD_ROOM, np.uint8))
        self.rows = self.frame.data[: BATCH * STRIDE].reshape(BATCH, STRIDE)

    def send(self, template: bytes, sources: np.ndarray, ports: np.ndarray, now: int) -> None:
        """Copies of `template` with these source addresses and ports (at most BATCH)."""
        count = len(sources)
        rows = self.rows[:count]
        rows[:, : len(template)] = np.frombuffer(template, np.uint8)
        rows[:, SOURCE_AT : SOURCE_AT + 4] = sources.astype(">u4").view(np.uint8).reshape(count, 4)
        rows[:, PORTS_AT : PORTS_AT + 2] = ports.astype(">u2").view(np.uint8).reshape(count, 2)
        words = rows[:, 14:34].reshape(count, 10, 2).astype(np.int64)
        words = words[:, :, 0] * 256 + words[:, :, 1]
        words[:, 5] = 0
        total = words.sum(axis=1)
        total = (total & 0xFFFF) + (total >> 16)
        total = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
        rows[:, 24], rows[:, 25] = total >> 8, total & 0xFF
        self._run(count, len(template), 0, now)

    def _run(self, count: int, length: int, interface: int, now: int) -> None:
        packets = self.frame.packets[:count]
        packets[:] = 0
        packets["start"] = np.arange(count) * STRIDE
        packets["length"], packets["room"], packets["interface"] = length, STRIDE, interface
        self.frame.meta[META_COUNT] = count
        self.engine.process(self.frame, now, self.worker)

    def answer(self, count: int, length: int, flags: int, now: int) -> None:
        """The pods' replies to what has just been sent."""
        rows = self.rows[:count]
        for at, size in ((SOURCE_AT, 4), (PORTS_AT, 2)):
            first, second = rows[:, at : at + size].copy(), rows[:, at + size : at + 2 * size].copy()
            rows[:, at : at + size], rows[:, at + size : at + 2 * size] = second, first
        rows[:, FLAGS_AT] = flags
        self._run(count, length, INSIDE, now)

    def counted(self, node: Node, reason: Reason) -> int:
        return sum(int(state.counters[node, reason]) for state in self.engine.states)

    def in_state(self, state: FlowState) -> int:
        return int(self.engine.state.header[W_STATES + state])


def segment(flags: int) -> bytes:
    return frame(tcp("40.0.0.1", "90.0.0.1", 1, 80, flags=flags))


def establish(world: World, sources: np.ndarray, ports: np.ndarray, now: int) -> None:
    syn, ack = segment(SYN), segment(ACK)
    for first in range(0, len(sources), BATCH):
        some = slice(first, first + BATCH)
        world.send(syn, sources[some], ports[some], now)
        world.answer(len(sources[some]), len(syn), SYN | ACK, now)
        world.send(ack, sources[some], ports[some], now)


@pytest.mark.parametrize("many", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_flood_of_syns_costs_no_established_flow(many):
    """1,000 connections, then random SYNs: all 1,000 live, memory bounded, and new connections come through."""
    world = World(10, vip("90.0.0.1", [f"10.0.0.{n}" for n in range(1, 9)], protocol="tcp", port=80))
    state = world.engine.state
    sources, ports = np.full(1000, ip_address("40.0.0.1")._ip), np.arange(2000, 3000)
    establish(world, sources, ports, 100)
    known = np.flatnonzero(state.flows["state"] == FlowState.TCP_ESTABLISHED)
    assert len(known) == world.in_state(FlowState.TCP_ESTABLISHED) > 950
    before = state.flows[known].copy()

    syn, rng = segment(SYN), np.random.default_rng(7)
    for sent in range(0, many, BATCH):
        world.send(
            syn, rng.integers(1 << 24, 1 << 29, BATCH), rng.integers(1, 65536, BATCH), 101 + sent // 100_000
        )
    assert (state.flows[known] == before).all()
    assert world.in_state(FlowState.TCP_HALF_OPEN) <= 2 * 1024
    assert state.header[W_FLOWS] <= 4096
    assert world.counted(Node.BALANCE, Reason.HALF_OPEN_EVICTED) > many / 2

    establish(world, np.full(500, ip_address("40.0.0.2")._ip), np.arange(500) + 2000, 120)
    assert world.in_state(FlowState.TCP_ESTABLISHED) >= len(known) + 450


@pytest.mark.parametrize("many", [3000, pytest.param(60_000, marks=pytest.mark.long)])
def test_masqueraded_flows_have_unique_tuples(many):
    """60,000 flows of many clients with few ports to one pod; then none is left, and the rest is refused."""
    world = World(17, vip("90.0.0.1", ["10.0.0.1"], protocol="udp", port=80, masquerade=True))
    template = frame(udp("40.0.0.1", "90.0.0.1", 1, 80))
    for first in range(0, many, BATCH):
        numbers = np.arange(first, min(first + BATCH, many))
        world.send(template, (40 << 24) + numbers // 3, 1020 + numbers % 3, 100)
    state = world.engine.state
    flows = state.flows[state.entries["pod"] != 0]
    assert len(flows) == many - world.counted(Node.BALANCE, Reason.FLOW_TABLE_FULL)
    assert len(np.unique(flows["source_port"])) == len(flows) > many * 0.99
    assert flows["source_port"].min() >= 1024
    assert (flows["source"] == int.from_bytes(MASQUERADE.packed, "little")).all()


def test_no_live_port_is_given_again_when_all_are_taken():
    """Of the ports of one worker of 64, about a thousand."""
    world = World(14, vip("90.0.0.1", ["10.0.0.1"], protocol="udp", port=80, masquerade=True), workers=64)
    world.worker = 5
    own = [port for port in range(FIRST, FIRST + COUNT) if worker_of(MASQUERADE, port, Protocol.UDP, 64) == 5]
    assert 900 < len(own) < 1100
    template = frame(udp("40.0.0.1", "90.0.0.1", 1, 80))
    for first in range(0, len(own) + 50, 10):
        numbers = np.arange(first, min(first + 10, len(own) + 50))
        world.send(template, (40 << 24) + numbers, numbers, 100)
    state = world.engine.states[5]
    flows = state.flows[state.entries["pod"] != 0]
    assert sorted(flows["source_port"]) == own
    assert world.counted(Node.BALANCE, Reason.MASQUERADE_EXHAUSTED) == 50
    assert state.header[W_OUTCOMES + Outcome.DROP] == 50
