"""The keyed flow hash: the algorithm itself, and an attack on one bucket with it and without it."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.floods.collide import colliding
from dataplane.test_flood import World
from kuproxy.codes import FlowState, Node, Reason
from kuproxy.control.compile import address_words
from kuproxy.dataplane import hash as kernels
from kuproxy.dataplane.layout import FLOW_HASH_RANDOM, WAYS
from kuproxy.engine.flow_key import VPP, FlowKey, flow_hash_of
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.memory import SharedMemory, WorkerMemory
from kuproxy.errors import TableFullError
from kuproxy.reference import flow_hash
from kuproxy.reference.hashes import siphash13
from packets import ACK, SYN, frame, tcp, udp
from reference.worlds import vip

KEY = bytes(range(16))
VIP_ADDRESS, VIP_PORT = "90.0.0.1", 80
LOG2 = 10
PODS = [f"10.0.0.{n}" for n in range(1, 17)]


def _of_interpreter(message: bytes, seed: int) -> int:
    """What another implementation makes of it: Python hashes bytes by SipHash-1-3, under a key that the seed gives."""
    line = "import sys; print(hash(bytes.fromhex(sys.argv[1])) & (1 << 64) - 1)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", line, message.hex()],
        env={"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def _key_of_seed(seed: int) -> bytes:
    """CPython's `lcg_urandom`, whose first 16 bytes are the key; all zeros for seed 0."""
    state, key = seed, bytearray(16)
    for place in range(16 if seed else 0):
        state = (state * 214013 + 2531011) & 0xFFFFFFFF
        key[place] = state >> 16 & 0xFF
    return bytes(key)


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes bytes in another way")
@pytest.mark.parametrize("seed", [0, 1, 4242])
@pytest.mark.parametrize("message", [b"a", b"12345678", bytes(12), bytes(range(36)), bytes(range(200))])
def test_siphash_is_that_of_the_interpreter(message, seed):
    assert siphash13(message, _key_of_seed(seed)) == _of_interpreter(message, seed)


addresses = [st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)]
ports = st.integers(0, 65535)


@given(st.data(), st.sampled_from(addresses), ports, ports, st.binary(min_size=16, max_size=16))
def test_keyed_hashes_equal_the_reference(data, of_family, source_port, destination_port, key):
    source, destination = data.draw(of_family), data.draw(of_family)
    expected = flow_hash(source, destination, source_port, destination_port, key)
    words = (*address_words(source), *address_words(destination))
    _, key0, key1 = VPP.meeting(key).words
    word = kernels.ports_word(source_port, destination_port)
    assert int(kernels.keyed_words(key0, key1, source.version, *words, np.uint64(word))) == expected
    state = LocalEngine(0, flow_hash=key).state
    ends = address_words(source), address_words(destination)
    assert flow_hash_of(state, source.version, *ends, source_port, destination_port) == expected


# ------------------------------------------------------------------------------------------------- one bucket


def attacked(flow_hash_wish: bytes | None, flows: int = 1000) -> World:
    """UDP flows that share one bucket of VPP's hash, sent once each."""
    world = World(LOG2, vip(VIP_ADDRESS, PODS, protocol="udp", port=VIP_PORT, new_len=1024))
    world.engine.rehash(flow_hash_wish, 100)
    template = frame(udp("41.0.0.1", VIP_ADDRESS, 1, VIP_PORT))
    clients, their_ports = attack(flows)
    for first in range(0, flows, 100):
        world.send(template, clients[first : first + 100], their_ports[first : first + 100], 100)
    return world


def attack(flows: int) -> tuple[np.ndarray, np.ndarray]:
    first, target = int(ip_address("41.0.0.1")), int(ip_address(VIP_ADDRESS))
    return colliding(first, 4000, target, VIP_PORT, LOG2, flows)


def pods_used(world: World) -> int:
    return int(np.count_nonzero(world.engine.state.pod_counters[:, 0]))


def test_an_attack_fills_one_bucket_of_the_default_hash():
    """Four flows are remembered and the rest is not; all of them burden one pod. What it costs others is a bucket."""
    world = attacked(None)
    state = world.engine.state
    used = np.flatnonzero(state.entries["pod"])
    assert len(used) == WAYS and len(set(used // WAYS)) == 1
    assert world.counted(Node.BALANCE, Reason.UNTRACKED) == 1000 - WAYS
    assert pods_used(world) == 1
    # A bystander whose flow belongs to that bucket is served, and not remembered.
    template = frame(udp("41.0.0.1", VIP_ADDRESS, 1, VIP_PORT))
    clients, their_ports = attack(1100)
    world.send(template, clients[-1:], their_ports[-1:], 100)
    assert world.counted(Node.BALANCE, Reason.UNTRACKED) == 1001 - WAYS


@pytest.mark.parametrize("wish", [b"", KEY])
def test_a_keyed_hash_spreads_the_same_attack(wish):
    """A thousand flows in a table of 4,096, as any other thousand: hardly one finds its bucket full."""
    world = attacked(wish)
    state = world.engine.state
    used = np.flatnonzero(state.entries["pod"])
    assert len(used) > 980
    assert world.counted(Node.BALANCE, Reason.UNTRACKED) == 1000 - len(used)
    assert len(set(used // WAYS)) > 550  # of 1,024, 1,000 thrown at random hit 638
    assert pods_used(world) == len(PODS)


def test_established_connections_survive_the_attack_on_their_bucket():
    """SYNs into the bucket of an established connection: it stays, byte for byte, with its pod."""
    world = World(LOG2, vip(VIP_ADDRESS, PODS, protocol="tcp", port=VIP_PORT))
    syn, ack = (frame(tcp("41.0.0.1", VIP_ADDRESS, 1, VIP_PORT, flags=flags)) for flags in (SYN, ACK))
    clients, their_ports = attack(1000)
    for flags, answered in ((syn, SYN | ACK), (ack, None)):
        world.send(flags, clients[:1], their_ports[:1], 100)
        if answered is not None:
            world.answer(1, len(syn), answered, 100)
    assert world.in_state(FlowState.TCP_ESTABLISHED) == 1
    [slot] = np.flatnonzero(world.engine.state.entries["pod"])
    before = world.engine.state.flows[slot].copy()
    for first in range(1, 1000, 100):
        world.send(syn, clients[first : first + 100], their_ports[first : first + 100], 100)
    assert world.engine.state.flows[slot] == before
    assert world.in_state(FlowState.TCP_HALF_OPEN) <= 2


# -------------------------------------------------------------------------------------------------- the key


def test_a_random_key_is_drawn_once():
    first = VPP.meeting(b"")
    assert first.mode == FLOW_HASH_RANDOM and first != VPP.meeting(b"")
    assert first.meeting(b"") == first
    assert first.meeting(KEY) == VPP.meeting(KEY) != first
    assert VPP.meeting(KEY).meeting(b"").mode == FLOW_HASH_RANDOM, "a key that others know is no secret"
    assert first.meeting(None) == VPP
    with pytest.raises(ValueError, match="a key of 3 bytes"):
        VPP.meeting(b"123")


def test_a_successor_finds_the_flows():
    """The key lies with the flows, in memory that survives the process and its control."""
    world = attacked(b"")
    memory = world.engine.worker
    shared = SharedMemory()
    again = WorkerMemory.of(os.dup(memory.fixed.fd), os.dup(memory.flows.fd), shared)
    assert FlowKey.read(again.state) == FlowKey.read(memory.state) != VPP
    world.engine.workers = (again,)
    known = world.counted(Node.BALANCE, Reason.EXISTING_SESSION)
    clients, their_ports = attack(100)
    world.send(frame(udp("41.0.0.1", VIP_ADDRESS, 1, VIP_PORT)), clients, their_ports, 101)
    assert world.counted(Node.BALANCE, Reason.EXISTING_SESSION) > known + 95


def test_changing_the_hash_moves_no_flow_to_another_pod():
    """There and back again: every flow is where it was, and was found all the time."""
    world = World(12, vip(VIP_ADDRESS, PODS, protocol="udp", port=VIP_PORT))
    template = frame(udp("40.0.0.1", VIP_ADDRESS, 1, VIP_PORT))
    clients = np.full(100, int(ip_address("40.0.0.1")))
    numbers = np.arange(5000, 5100)
    world.send(template, clients, numbers, 100)
    before = _flows(world)
    assert len(before) == 100
    for wish in (KEY, b"", None):
        world.engine.rehash(wish, 101)
        assert _flows(world) == before
        known = world.counted(Node.BALANCE, Reason.EXISTING_SESSION)
        world.send(template, clients, numbers, 101)
        assert world.counted(Node.BALANCE, Reason.EXISTING_SESSION) == known + 100
        world.answer(100, len(template), 0, 101)
    assert world.counted(Node.NAT4_IN2OUT, Reason.IN2OUT) == 300


def _flows(world: World) -> set[tuple[int, int, int]]:
    state = world.engine.state
    slots = np.flatnonzero(state.entries["pod"])
    flows, pods = state.flows[slots], state.entries["pod"][slots]
    rows = zip(flows["client_lo"], flows["client_port"], pods, strict=True)
    return {(int(a), int(b), int(c)) for a, b, c in rows}


def test_a_hash_that_flows_do_not_fit_is_refused():
    """Eight flows fill both buckets; by another hash one of these would overflow: nothing changes."""
    world = World(1, vip(VIP_ADDRESS, PODS, protocol="udp", port=VIP_PORT))
    template = frame(udp("40.0.0.1", VIP_ADDRESS, 1, VIP_PORT))
    world.send(template, np.full(60, int(ip_address("40.0.0.1"))), np.arange(5000, 5060), 100)
    before = _flows(world)
    assert len(before) == 2 * WAYS
    keys = [bytes([number]) * 16 for number in range(12)]
    refused = 0
    for key in keys:
        try:
            world.engine.rehash(key, 101)
        except TableFullError as error:
            assert "give it more buckets" in str(error)
            refused += 1
        else:
            world.engine.rehash(None, 101)
        assert _flows(world) == before
        assert FlowKey.read(world.engine.state) == VPP
    assert refused > 6, "eight flows divide evenly by chance in three of ten"


def test_workers_have_one_key():
    engine = LocalEngine(4, workers=3, flow_hash=b"")
    assert len({FlowKey.read(state) for state in engine.states}) == 1
    engine.rehash(None, 1)
    assert {FlowKey.read(state) for state in engine.states} == {VPP}
