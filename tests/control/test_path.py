"""Packets per edge, concluded from the nodes' counters: compared with what traces of every packet tell."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import packets
from kuproxy.codes import NODE_NEXT, Node, Outcome, Reason, end_of
from kuproxy.control.path import EDGES, edge_packets
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.sampling import take_sample
from kuproxy.plane import Plane
from kuproxy.vppcli.apply import Desired

SCRIPT = """\
ku conf masquerade 192.0.2.1 ip4-src-address 192.0.2.1
ku vip 90.0.0.1/32 protocol udp port 80 target_port 8080 node_port 30080
ku pod 90.0.0.1/32 10.0.0.1 10.0.0.2
ku vip 91.0.0.1/32 nat6
ku pod 91.0.0.1/32 2001::1
ku vip 92.0.0.1/32 masquerade
ku pod 92.0.0.1/32 10.0.0.3
ku vip 93.0.0.1/32 encap gre4
ku pod 93.0.0.1/32 10.0.0.4
ku vip 94.0.0.1/32
"""


def test_edges_lead_from_every_node_and_never_back() -> None:
    assert set(NODE_NEXT) == set(Node)
    order = list(NODE_NEXT)
    assert all(order.index(source) < order.index(target) for source, target in EDGES)


def test_they_are_what_traces_tell() -> None:
    engine = LocalEngine(8)
    plane = Plane(engine, decrement_ttl=True, any_node_address=True)
    desired = Desired()
    desired.run(SCRIPT)
    plane.apply(desired.config())
    plane.compiler.set_interface(1, 3)

    def udp(destination: str, port: int = 80, ttl: int = 64) -> bytes:
        return packets.frame(packets.udp("40.0.0.1", destination, 7000, port), ttl=ttl)

    # 200 bytes: the second fragment has no ports, and comes first.
    parts = packets.fragments(packets.udp("40.0.0.1", "90.0.0.1", 7001, 80, bytes(200)), 120)
    sent: list[bytes | tuple[bytes, int]] = [
        *[udp("90.0.0.1")] * 3, udp("90.0.0.1", ttl=1), udp("5.5.5.5", 30080), udp("91.0.0.1"), udp("91.0.0.1", ttl=1),
        udp("92.0.0.1"), udp("93.0.0.1"), udp("94.0.0.1"), udp("99.0.0.1"), b"short", *reversed(parts),
        (packets.frame(packets.udp("10.0.0.1", "40.0.0.1", 8080, 7000)), 1),
        (packets.frame(packets.udp("10.0.0.2", "40.0.0.1", 8080, 7000)), 1),
    ]  # fmt: skip
    engine.trace(len(sent))
    driver = MemoryDriver(sent)
    driver.receive(driver.frame)
    engine.process(driver.frame, 1000)
    driver.transmit(driver.frame)

    ways = [[step.node for step in packet.steps] for packet in plane.report().trace]
    # The fragment that was held is told a second time when kp-fragment releases it.
    assert [way[0] for way in ways] == [Node.INPUT] * len(sent) + [Node.FRAGMENT]
    told = Counter(edge for way in ways for edge in pairwise(way))
    sample = take_sample(engine.states, *plane.compiler.bounds(), 0.0)
    given = {node: int(sample.given[node]) for node in Node}
    seen = Counter(node for way in ways for node in way) - Counter([Node.FRAGMENT])
    assert given == {node: seen[node] for node in Node}
    ended = {
        node: sum(int(sample.counters[node, reason]) for reason in Reason if end_of(node, reason))
        for node in Node
    }
    assert edge_packets(given, ended) == {edge: told.get(edge, 0) for edge in EDGES}
    assert len(told) > 10, "the traffic went many ways"
    # And what ended is what was counted as ended, of every kind.
    totals = plane.totals()
    for outcome in (Outcome.TRANSMIT, Outcome.PASS, Outcome.DROP):
        counted = sum(
            int(sample.counters[node, reason])
            for node in Node
            for reason in Reason
            if end_of(node, reason) is outcome
        )
        assert counted == totals.outcomes[outcome], outcome


def test_what_cannot_be_known_is_said_to_be_unknown() -> None:
    given = {
        Node.INPUT: 10, Node.LOOKUP: 10, Node.BALANCE: 10, Node.MASQUERADE: 4, Node.NAT44: 6, Node.NAT66: 4
    }  # fmt: skip
    found = edge_packets(given, {Node.NAT44: 6, Node.NAT66: 4})
    assert found[Node.BALANCE, Node.MASQUERADE] == 4
    unknown = {edge for edge, packets in found.items() if packets is None}
    assert unknown == {
        (source, target) for source in (Node.BALANCE, Node.MASQUERADE) for target in (Node.NAT44, Node.NAT66)
    }


def test_counters_that_moved_meanwhile_make_nothing_negative() -> None:
    found = edge_packets({Node.INPUT: 5, Node.LOOKUP: 7, Node.BALANCE: 9}, {Node.INPUT: 1, Node.BALANCE: 8})
    assert all(packets is None or packets >= 0 for packets in found.values())
