"""Several workers over one set of tables: every flow's replies come to the worker that knows it, and are restored."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import packets
from dataplane.test_flood import MASQUERADE, World
from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import Node, Outcome, Protocol, Reason, VipCounter
from kuproxy.dataplane.layout import BATCH, W_FLOWS, W_OUTCOMES, W_RECEIVED
from kuproxy.reference import RefPacket, Result
from kuproxy.reference.ports import worker_of
from reference.worlds import vip
from steering.model import parse
from steering.spread import Spread

INSIDE = 1
PODS = {4: [f"10.0.0.{last}" for last in range(1, 6)], 6: [f"2001::{last}" for last in range(2, 7)]}
VIPS = {
    "nat44": ("90.0.0.1", vip("90.0.0.1", PODS[4], target_port=8080, port=80)),
    "any": ("90.0.0.2", vip("90.0.0.2", PODS[4])),
    "masquerade": ("90.0.0.3", vip("90.0.0.3", PODS[4][:2], port=80, masquerade=True)),
    "affinity": ("90.0.0.4", vip("90.0.0.4", PODS[4], port=80, affinity_s=60.0)),
    "nat46": ("91.0.0.1", vip("91.0.0.1", PODS[6], kind="nat46")),
    "nat66": ("9000::1", vip("9000::1", PODS[6], target_port=8080, port=80)),
    "masquerade6": ("9000::3", vip("9000::3", PODS[6][:2], port=80, masquerade=True)),
    "nat64": ("9100::1", vip("9100::1", PODS[4], kind="nat64")),
}
NODE = (MASQUERADE, ip_address("2001:db8::1"))
WHOLE = ["tcp", "udp", "sctp"]
KINDS = {name: WHOLE + ["echo"] * (one.key.port == 0) for name, (_, one) in VIPS.items()}


class Node_:
    """Compiled workers, and steering's choice before them."""

    def __init__(self, workers: int) -> None:
        self.plane = CompiledPlane(
            Config(
                buckets=4096,
                masquerade=NODE,
                any_node_address=False,
                nat64_pool=ip_network("192.0.0.0/29"),
                nat64_ports=(1024, 65535),
                workers=workers,
            )
        )
        for _, each in VIPS.values():
            self.plane.set_vip(each)
        self.plane.mark_interface(INSIDE, True, True)
        self.spread = Spread(workers)

    def send(self, frames: list[bytes], interface: int) -> list[Result]:
        vector = [RefPacket(frame, interface) for frame in frames]
        whose = [self.spread.worker_of(frame, interface == 0, 0.0) or 0 for frame in frames]
        return self.plane.receive(vector, 100, whose)

    @property
    def states(self):
        return self.plane.engine.states


def request(rng: Random) -> bytes:
    name = rng.choice(list(VIPS))
    address = VIPS[name][0]
    network = "40.0.0.0" if "." in address else "4000::"
    client = str(ip_address(network) + rng.randrange(1, 30))
    kind = rng.choice(KINDS[name])
    if kind == "echo":
        return packets.frame(packets.echo(client, address, rng.randrange(5)))
    return packets.frame(getattr(packets, kind)(client, address, rng.randrange(1024, 1100), 80))


@given(st.integers(0, 2**48), st.sampled_from([2, 3, 5]))
def test_every_reply_is_restored(seed: int, workers: int) -> None:
    """Whatever the pod saw; counters of all workers together tell all packets."""
    rng = Random(seed)
    node = Node_(workers)
    requests = [request(rng) for _ in range(rng.choice([30, 120]))]
    results = node.send(requests, 0)
    # An echo has no port: towards a pod that has an address of ours one client at a time.
    served = [(sent, result) for sent, result in zip(requests, results, strict=True) if result.pod]
    assert {result.reason for result in results} <= {Reason.FORWARDED, Reason.MASQUERADE_EXHAUSTED}
    assert len(served) > len(requests) * 0.9
    replies = [packets.reply_to(result.data) for _, result in served]
    restored = node.send(replies, INSIDE)
    for (sent, _), result in zip(served, restored, strict=True):
        assert result.reason == Reason.IN2OUT
        there, back = parse(sent), parse(result.data)
        assert there is not None and back is not None
        assert (back.source, back.source_port) == (there.destination, there.destination_port)
        assert (back.destination, back.destination_port) == (there.source, there.source_port)
        assert packets.verify_checksums(result.data) == []

    received = sum(int(state.header[W_RECEIVED]) for state in node.states)
    outcomes = sum(int(state.header[W_OUTCOMES + each]) for state in node.states for each in Outcome)
    assert received == outcomes == len(requests) + len(replies)
    counted = node.plane.vip_counters()
    known = sum(int(state.header[W_FLOWS]) for state in node.states)
    assert sum(counts[VipCounter.FIRST_PACKET] for counts in counted.values()) == known
    assert sum(counts[VipCounter.FROM_POD_PACKETS] for counts in counted.values()) == len(replies)
    assert sum(int(state.header[W_FLOWS]) != 0 for state in node.states) == workers
    node.plane.close()


@pytest.mark.parametrize("workers", [2, 3])
def test_sixty_thousand_masqueraded_flows_to_one_pod(workers: int) -> None:
    """No two have the same port at the pod, and each worker gets the replies of its own."""
    world = World(
        17,
        vip("90.0.0.1", ["10.0.0.1"], protocol="udp", port=80, masquerade=True, node_port=30080),
        workers=workers,
    )
    world.compiler.set_node_addresses([MASQUERADE])
    template = packets.frame(packets.udp("40.0.0.1", "90.0.0.1", 1, 80))
    numbers = np.arange(60_000)
    clients, ports = (40 << 24) + numbers // 3, 1020 + numbers % 3
    base = ip_address("40.0.0.0")
    whose = np.array(
        [
            worker_of(base + int(client - (40 << 24)), int(port), Protocol.UDP, workers)
            for client, port in zip(clients, ports, strict=True)
        ]
    )
    waiting = [np.flatnonzero(whose == worker) for worker in range(workers)]
    for first in range(0, max(map(len, waiting)), BATCH):
        for world.worker, mine in enumerate(waiting):
            some = mine[first : first + BATCH]
            if len(some):
                world.send(template, clients[some], ports[some], 100)
                world.answer(len(some), len(template), 0, 100)
    taken = []
    for worker, state in enumerate(world.engine.states):
        flows = state.flows[state.entries["pod"] != 0]
        assert (flows["source"] == int.from_bytes(MASQUERADE.packed, "little")).all()
        own = flows["source_port"].tolist()
        assert {worker_of(MASQUERADE, port, Protocol.UDP, workers) for port in own} == {worker}
        taken += own
    full = world.counted(Node.BALANCE, Reason.FLOW_TABLE_FULL)
    assert len(taken) == len(set(taken)) == 60_000 - full > 59_500
    assert min(taken) >= 1024
    assert 30080 not in taken, "steering would take a reply to it for a client's packet"
    assert world.counted(Node.NAT4_IN2OUT, Reason.IN2OUT) == len(taken)


def test_all_connections_of_a_client_have_one_pod() -> None:
    """Although their ports bring them to different workers."""
    for workers in (1, 3):
        node = Node_(workers)
        frames = [packets.frame(packets.tcp("40.0.0.9", "90.0.0.4", port, 80)) for port in range(2000, 2060)]
        pods = {result.pod for frame in frames for result in node.send([frame], 0)}
        assert len(pods) == 1
        assert sum(int(state.header[W_FLOWS]) > 0 for state in node.states) == workers
        node.plane.close()


def test_numbers_of_tunnels_never_meet() -> None:
    """What may be fragmented on its way to a pod has an identification that no other worker gives out."""
    node = Node_(3)
    one = vip("90.0.0.9", PODS[4][:1], encap="gre4")
    node.plane.compiler.set_tunnel_sources(ip_address("40.0.0.250"), None)
    node.plane.set_vip(one)
    frames = [packets.frame(packets.udp("40.0.0.9", "90.0.0.9", port, 80)) for port in range(2000, 2150)]
    results = node.send(frames, 0)
    assert {result.reason for result in results} == {Reason.ENCAPSULATED}
    seen = [result.data[18:20] for result in results]
    assert len(set(seen)) == len(seen)
    node.plane.close()
