"""Who may get a packet: VIPs and node ports by destination, in one look at many packets."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from kuproxy.daemon.precedence import Destinations, of_addresses
from kuproxy.steering.cache_layout import KEY
from kuproxy.steering.keys import KeyBit

TCP, UDP, ICMP = 6, 17, 1


def key(destination: str, port: int, protocol: int, source: str = "198.51.100.1") -> np.ndarray:
    made = np.zeros(1, KEY)
    address = ip_address(destination)
    made["destination"] = np.frombuffer(address.packed.rjust(16, b"\0"), np.uint8)
    made["source"] = np.frombuffer(ip_address(source).packed.rjust(16, b"\0"), np.uint8)
    made["destination_port"], made["protocol"] = port, protocol
    made["family"] = KeyBit.IPV6 if address.version == 6 else 0
    return made


def vip(network: str, protocol: int, port: int) -> tuple[object, int, int]:
    return (ip_network(network), protocol, port)


VIPS = [
    vip("10.96.0.1/32", TCP, 80), vip("10.96.0.1/32", 0, 80), vip("10.96.0.1/32", TCP, 0), vip("10.96.0.1/32", 0, 0),
    vip("10.0.0.0/8", UDP, 53), vip("0.0.0.0/0", 0, 53), vip("fd96::1/128", TCP, 80), vip("10.96.0.2/32", ICMP, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("destination", "port", "protocol", "number"),
    [
        ("10.96.0.1", 80, TCP, 4),
        ("10.96.0.1", 80, UDP, 2),
        ("10.96.0.1", 81, TCP, 2),
        ("10.96.0.1", 53, UDP, 3),
        ("10.1.1.1", 53, UDP, 2),
        ("11.1.1.1", 53, TCP, 1),
        ("11.1.1.1", 54, TCP, 0),
        ("10.96.0.2", 80, TCP, 0),
        ("fd96::1", 80, TCP, 1),
        ("::10.96.0.1", 80, TCP, 0),
        ("fd96::2", 53, UDP, 0),
    ],
)
def test_how_many_vips_a_packet_could_go_to(destination: str, port: int, protocol: int, number: int) -> None:
    known = Destinations(VIPS)  # type: ignore[arg-type]
    assert known.vips_of(key(destination, port, protocol)).tolist() == [number]
    assert known.vips_of(np.zeros(0, KEY)).tolist() == []


def test_changes_are_told_once_and_forgotten_when_they_go() -> None:
    known = Destinations()
    assert known.change((), VIPS[:1], (), [(4, TCP, 30080)]) == ({VIPS[0]}, {(4, TCP, 30080)})  # type: ignore[arg-type]
    assert known.change(VIPS[:1], VIPS[:1], (), [(4, TCP, 30080)]) == (set(), set())  # type: ignore[arg-type]
    packet = key("10.96.0.1", 80, TCP)
    assert known.vips_of(packet).tolist() == [1]
    assert known.change(VIPS[:1], VIPS[4:6], [(4, TCP, 30080)], ()) == (set(VIPS[4:6]), set())  # type: ignore[arg-type]
    assert known.vips_of(packet).tolist() == [0]
    assert known.vips_of(key("10.9.9.9", 53, UDP)).tolist() == [2]
    known.change(VIPS[4:6], (), (), ())  # type: ignore[arg-type]
    assert known.vips_of(key("10.9.9.9", 53, UDP)).tolist() == [0]


def test_what_is_new_meets_packets() -> None:
    packets = np.concatenate([key("10.9.9.9", 53, UDP), key("192.0.2.1", 30080, TCP), key("fd96::1", 80, TCP)])
    become = Destinations.become
    assert become(packets, [VIPS[4]], []).tolist() == [True, False, False]  # type: ignore[list-item]
    assert become(packets, [VIPS[6]], []).tolist() == [False, False, True]  # type: ignore[list-item]
    assert become(packets, [], [(4, TCP, 30080)]).tolist() == [False, True, False]
    assert become(packets, [], [(4, UDP, 30080), (6, TCP, 30080)]).tolist() == [False] * 3
    assert become(packets, [], [(4, 0, 30080)]).tolist() == [False, True, False]
    many = [vip(f"10.96.{n}.1/32", TCP, 1) for n in range(256)]
    assert become(packets, [*many, VIPS[7]], []).tolist() == [True] * 3  # type: ignore[list-item]


def test_node_ports_are_those_at_served_addresses() -> None:
    known = Destinations((), [(4, TCP, 30080), (6, 0, 30081)])
    node = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    packets = np.concatenate(
        [
            key("192.0.2.1", 30080, TCP), key("192.0.2.2", 30080, TCP), key("192.0.2.1", 30080, UDP),
            key("2001:db8::1", 30081, UDP), key("2001:db8::1", 30080, TCP),
        ]
    )  # fmt: skip
    assert known.are_node_ports(packets, node).tolist() == [True, False, False, True, False]
    assert of_addresses(key("10.0.0.1", 1, TCP, source="192.0.2.1"), node).tolist() == [True]
    assert of_addresses(key("10.0.0.1", 1, TCP), node).tolist() == [False]
