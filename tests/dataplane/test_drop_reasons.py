"""Every reason to drop a packet, each produced by a packet that goes through the compiled graph."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, ip_address, ip_network

import pytest

import packets
from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import Node, Outcome, Reason, end_of
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.model.vip import Pod, Vip
from kuproxy.plane import Plane
from kuproxy.reference import RefPacket, Result
from kuproxy.vppcli.apply import Desired
from packets import echo, fragments, frame, icmp, ip_packet, other, sctp, tcp, udp
from reference.worlds import vip

INSIDE = 1
CLIENT, ADDRESS, POD = "40.0.0.1", "90.0.0.1", "10.0.0.1"
PLAIN = vip(ADDRESS, [POD], port=80, target_port=8080)
TO6, TO4 = vip(ADDRESS, ["2001::2"], kind="nat46"), vip("9000::1", [POD], kind="nat64")
UDP4 = frame(udp(CLIENT, ADDRESS, 7000, 80))
UDP6 = frame(udp("4000::1", "9000::1", 7000, 80))
L3, L4 = 14, 34  # offsets in UDP4


@dataclass
class Drop:
    """The last of `sent` is dropped; those before prepare it."""

    sent: list[bytes | RefPacket]
    vips: tuple[Vip, ...] = (PLAIN,)
    config: Config = field(default_factory=Config)
    inside: bool = False
    sweep_at: int = 0  # ticks; 0: never


def patched(data: bytes, at: int, text: bytes) -> bytes:
    """With these bytes there, and (IPv4) the header checksum made right."""
    new = bytearray(data)
    new[at : at + len(text)] = text
    if new[12:14] == b"\x08\x00" and len(new) >= L4:
        new[24:26] = bytes(2)
        new[24:26] = struct.pack(">H", packets.internet_checksum(bytes(new[L3:L4])))
    return bytes(new)


def _later(identification: int = 1, size: int = 56, data: int = 100) -> bytes:
    return fragments(udp(CLIENT, ADDRESS, 7000, 80, bytes(data)), size, identification=identification)[1]


def _tcp_of(length: int) -> packets.Datagram:
    """So many zeros as TCP."""
    return packets.Datagram(ip_address(CLIENT), ip_address(ADDRESS), packets.TCP, bytes(length))


def _first(datagram: packets.Datagram) -> bytes:
    return fragments(datagram, 48)[0]


def _damaged_error() -> list[bytes]:
    """From the pod, about what the client sent it."""
    about = ip_packet(udp(CLIENT, POD, 7000, 8080))
    return [UDP4, frame(icmp(POD, CLIENT, 3, 3, bytes(4) + about))[:-1] + b"\xff"]


def _clients(*ports: int) -> list[bytes]:
    return [frame(udp(CLIENT, ADDRESS, port, 80)) for port in ports]


HIDDEN = vip(ADDRESS, [POD], port=80, masquerade=True)
TUNNEL = vip(ADDRESS, [POD], port=80, encap="gre4")
HIDDEN_ALL = vip(ADDRESS, [POD], masquerade=True)
NODE = (ip_address("10.1.0.1"),)
NINE_HEADERS = [packets.extension(packets.DESTINATION)] * 9

DROPS = {
    Reason.TRUNCATED_ETHERNET: Drop([UDP4[:13]]),
    Reason.TRUNCATED_IPV4: Drop([UDP4[:33]]),
    Reason.TRUNCATED_IPV6: Drop([UDP6[:53]]),
    Reason.BAD_VERSION: Drop([patched(UDP4, L3, b"\x65")]),
    Reason.BAD_HEADER_LENGTH: Drop([patched(UDP4, L3, b"\x44")]),
    Reason.BAD_TOTAL_LENGTH: Drop([patched(UDP4, L3 + 2, struct.pack(">H", len(UDP4)))]),
    Reason.BAD_IPV4_CHECKSUM: Drop([UDP4[:24] + b"\xab\xcd" + UDP4[26:]]),
    Reason.EXTENSION_HEADER_LIMIT: Drop([frame(udp("4000::1", "9000::1", 7, 8), extensions=NINE_HEADERS)]),
    Reason.TRUNCATED_EXTENSION: Drop(
        [frame(udp("4000::1", "9000::1", 7, 8), extensions=[packets.extension(packets.DESTINATION, size=99)])]
    ),
    Reason.TRUNCATED_L4: Drop([frame(_tcp_of(19))]),
    Reason.BAD_L4_LENGTH: Drop([patched(UDP4, L4 + 4, struct.pack(">H", 7))]),
    Reason.NO_POD: Drop([UDP4], (vip(ADDRESS, port=80),)),
    Reason.REJECT_RATE_LIMITED: Drop([UDP4], (vip(ADDRESS, port=80, reject=True),), Config(reject_rate=0)),
    Reason.REJECT_SUPPRESSED: Drop(
        [frame(tcp(CLIENT, ADDRESS, 7000, 80, flags=packets.RST))], (vip(ADDRESS, port=80, reject=True),)
    ),
    Reason.TTL_EXPIRED: Drop(
        [UDP4, frame(icmp(POD, CLIENT, 3, 3, bytes(4) + ip_packet(udp(CLIENT, POD, 7000, 8080))), ttl=1)],
        inside=True,
    ),
    Reason.FLOW_CLASH: Drop(
        [frame(echo(CLIENT, ADDRESS)), frame(echo(CLIENT, "90.0.0.2"))],
        (vip(ADDRESS, [POD]), vip("90.0.0.2", [POD])),
    ),
    Reason.FRAGMENT_HOLD_FULL: Drop([_later(number) for number in range(65)]),
    Reason.FRAGMENT_TOO_LONG: Drop([_later(size=9200, data=18400)]),
    Reason.FRAGMENT_TIMEOUT: Drop([_later()], sweep_at=100),
    Reason.FRAGMENT_FIRST_TOO_SHORT: Drop([frame(_tcp_of(16), more=True)]),
    Reason.SCTP_FRAGMENT: Drop([_first(sctp(CLIENT, ADDRESS, 7000, 80, bytes(100)))]),
    Reason.ICMP_BAD_CHECKSUM: Drop(_damaged_error(), inside=True),
    Reason.ERROR_SUPPRESSED: Drop([frame(udp("224.0.0.9", ADDRESS, 7000, 80), ttl=1)]),
    Reason.ERROR_RATE_LIMITED: Drop(
        [frame(udp(CLIENT, ADDRESS, 7000, 80), ttl=1)], config=Config(reject_rate=0)
    ),
    Reason.SECOND_CHANCE: Drop(
        [
            frame(tcp(CLIENT, ADDRESS, 7000, 80, flags=packets.ACK)),
            RefPacket(frame(tcp("10.0.0.2", CLIENT, 8080, 7000, flags=packets.RST)), INSIDE),
        ],
        (PLAIN, replace(PLAIN, pods=(Pod(ip_address("10.0.0.2")),))),
        Config(second_chance=True),
        inside=True,
    ),
    Reason.FLOW_TABLE_FULL: Drop(_clients(1, 2, 3, 4, 5), (TO6,), Config(buckets=1)),
    Reason.PORTS_EXHAUSTED: Drop(
        [frame(udp("4000::1", "9000::1", port, 80)) for port in (1, 2)],
        (TO4,),
        Config(nat64_pool=IPv4Network("192.0.0.1/32"), nat64_ports=(7, 7)),
    ),
    Reason.UNTRANSLATABLE_PROTOCOL: Drop([frame(other(CLIENT, ADDRESS))], (TO6,)),
    Reason.UNTRANSLATABLE_ICMP: Drop([frame(icmp(CLIENT, ADDRESS, 13, 0, bytes(16)))], (TO6,)),
    Reason.UNTRANSLATABLE_FRAGMENT: Drop([_first(echo(CLIENT, ADDRESS, data=bytes(100)))], (TO6,)),
    Reason.ZERO_CHECKSUM_FRAGMENT: Drop(
        [_first(udp(CLIENT, ADDRESS, 7000, 80, bytes(100), no_checksum=True))], (TO6,)
    ),
    Reason.MASQUERADE_EXHAUSTED: Drop(
        [frame(echo(client, ADDRESS)) for client in ("40.0.0.1", "40.0.0.2")],
        (HIDDEN_ALL,),
        Config(masquerade=NODE),
    ),
    Reason.NO_MASQUERADE_ADDRESS: Drop([UDP4], (HIDDEN,)),
    Reason.SOURCE_RANGE: Drop(
        [UDP4], (vip(ADDRESS, [POD], port=80, source_ranges=(ip_network("50.0.0.0/8"),)),)
    ),
    Reason.TUNNEL_NO_SOURCE: Drop([UDP4], (TUNNEL,)),
    Reason.TUNNEL_GSO: Drop([RefPacket(UDP4, gso=True)], (TUNNEL,), Config(ip4_src_address=NODE[0])),
    Reason.SESSION_CAP: Drop(_clients(1, 2), (vip(ADDRESS, [POD], port=80, session_cap=1),)),
}
# Ends other than a drop, and events beside the end.
NO_DROPS = {
    Reason.NONE, Reason.NOT_IP, Reason.NO_VIP, Reason.NO_TRANSLATION, Reason.UNSUPPORTED_PROTOCOL,
    Reason.FORWARDED, Reason.IN2OUT, Reason.REJECT_SENT, Reason.FRAGMENT_HELD, Reason.VIP_MATCHED,
    Reason.FIRST_FRAGMENT, Reason.LATER_FRAGMENT, Reason.FRAGMENT_RELEASED, Reason.EXISTING_SESSION,
    Reason.FIRST_PACKET, Reason.UNTRACKED, Reason.CLASH_AVOIDED, Reason.IN2OUT_UNTRACKED,
    Reason.ICMP_ERROR_TRANSLATED, Reason.TIME_EXCEEDED_SENT, Reason.ECHO_ANSWERED, Reason.SOURCE_ROUTE_SENT,
    Reason.PARAMETER_PROBLEM_SENT, Reason.PACKET_TOO_BIG_SENT, Reason.FRAGMENTED, Reason.HALF_OPEN_EVICTED,
    Reason.CHOSEN_AFRESH, Reason.MASQUERADED, Reason.PORT_TRANSLATED, Reason.AFFINITY,
    Reason.ENCAPSULATED, Reason.TENTATIVE,
}  # fmt: skip


def test_every_reason_is_either() -> None:
    """A new reason must say here how a packet comes to it, or that none is dropped for it."""
    # The former: below; the latter is no kernel's, see tests/engine/test_repair.py.
    assert set(Reason) - NO_DROPS == {*DROPS, Reason.TUNNEL_TOO_LONG, Reason.WORKER_ENDED}
    assert not NO_DROPS & set(DROPS)


@pytest.mark.parametrize("reason", DROPS, ids=lambda reason: reason.name)
def test_it_is_dropped(reason: Reason) -> None:
    drop = DROPS[reason]
    plane = CompiledPlane(drop.config)
    try:
        plane.mark_interface(INSIDE, True, True)
        for one in drop.vips:
            plane.set_vip(one)
        last: Result | None = None
        for number, data in enumerate(drop.sent):
            before_last = number < len(drop.sent) - 1
            interface = INSIDE if drop.inside and not before_last else 0
            packet = data if isinstance(data, RefPacket) else RefPacket(data, interface=interface)
            [last] = plane.receive([packet], 0)
            assert not before_last or last.outcome != Outcome.DROP, last.reason
        assert last is not None
        if drop.sweep_at:
            assert last.outcome == Outcome.HELD
            plane.sweep(drop.sweep_at)
        else:
            assert last[:2] == (Outcome.DROP, reason)
        # Counted as such, once, and in no other way.
        assert plane.outcomes().get(Outcome.DROP) == 1
        [(node, count)] = [(node, count) for (node, counted), count in plane.counters().items() if counted == reason]
        assert count == 1
        assert end_of(Node(node), reason) is Outcome.DROP
    finally:
        plane.close()


def test_a_packet_too_long_for_a_tunnel() -> None:
    """65,535 bytes and a tunnel's headers; only a driver has room for such a packet."""
    engine = LocalEngine(4)
    plane = Plane(engine, decrement_ttl=True, any_node_address=True)
    desired = Desired()
    desired.run(f"ku conf ip4-src-address {NODE[0]}\nku vip {ADDRESS} encap gre4\nku pod {ADDRESS} {POD}")
    plane.apply(desired.config())
    driver = MemoryDriver([frame(udp(CLIENT, ADDRESS, 7000, 80, bytes(65535 - 28)))])
    driver.receive(driver.frame)
    engine.process(driver.frame, 1)
    driver.transmit(driver.frame)
    [dropped] = driver.dropped
    assert dropped[2:4] == (Outcome.DROP, Reason.TUNNEL_TOO_LONG)
    assert plane.totals().outcomes[Outcome.DROP] == 1
