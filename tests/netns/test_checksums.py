"""No packet leaves with a bad checksum, while all offloads stay as the kernel sets them.

A frame that a local socket sends over veth has but a partial checksum: the pseudo-header's sum, which a network card
would complete.  The kernel says so to whoever receives the frame (TP_STATUS_CSUMNOTREADY), and checks it no further: it
takes a partial checksum for a good one.  So complete and partial checksums are both judged here, by scapy's
arithmetic, on frames as they were received; and the kernel's own counters besides.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, in4_chksum, in4_pseudoheader
from scapy.layers.inet6 import IPv6, in6_chksum, in6_pseudoheader
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from kuproxy.demo.manifest import ECHO, HTTP
from kuproxy.demo.pods import LARGE
from kuproxy.demo.topology import Host
from netns.world import CLIENT, NODE, NONE, WEB, Captured, Kept, World, captured, connect, echo, ping, world

pytestmark = pytest.mark.netns

TCP_NUMBER, UDP_NUMBER, ICMP_NUMBER, ICMPV6_NUMBER, FRAGMENT = 6, 17, 1, 58, 44
CHECKSUM_AT = {TCP_NUMBER: 16, UDP_NUMBER: 6, ICMPV6_NUMBER: 2}


DRIVERS = {
    "af_packet": ("--driver", "af_packet"),
    "af_xdp-native": ("--driver", "af_xdp", "--xdp-mode", "native"),
    "af_xdp-generic": ("--driver", "af_xdp", "--xdp-mode", "generic"),
}


@pytest.fixture(scope="module", params=DRIVERS)
def busy(request: pytest.FixtureRequest) -> Iterator[World]:
    with world() as made:
        made.start(*DRIVERS[request.param])
        made.leaves_partial = request.param == "af_packet"
        yield made


def judge(seen: Captured) -> str:
    """What kind of checksum a frame has: "complete TCP" and so on, with "BAD " before it if it is wrong."""
    frame = Ether(seen.frame)
    kind = "partial" if seen.partial else "complete"
    if IP in frame:
        packet = frame[IP]
        if checksum(bytes(packet)[: packet.ihl * 4]):
            return "BAD IPv4 header"
        if packet.flags.MF or packet.frag:
            return "fragment"  # of a datagram that the receiver's kernel puts together and checks: see the counters
        protocol, payload = packet.proto, bytes(packet)[packet.ihl * 4 : packet.len]
    elif IPv6 in frame:
        packet = frame[IPv6]
        if packet.nh == FRAGMENT:
            return "fragment"
        protocol, payload = packet.nh, bytes(packet)[40 : 40 + packet.plen]
    else:
        return "other"
    if protocol == ICMP_NUMBER:
        return ("BAD " if checksum(payload) else "") + "complete ICMP"
    if protocol not in CHECKSUM_AT:
        return "other"
    name = f"{kind} {({TCP_NUMBER: 'TCP', UDP_NUMBER: 'UDP'}).get(protocol, 'ICMPv6')}"
    at = CHECKSUM_AT[protocol]
    (found,) = struct.unpack_from(">H", payload, at)
    if seen.partial:
        four = IP in frame
        header = in4_pseudoheader(protocol, packet, len(payload)) if four else None
        if header is None:
            header = bytes(in6_pseudoheader(protocol, packet, len(payload)))
        good = found == ~checksum(header) & 0xFFFF
    elif protocol == UDP_NUMBER and found == 0:
        return "no UDP"
    elif IP in frame:
        good = in4_chksum(protocol, packet, payload) in (0, 0xFFFF)
    else:
        good = in6_chksum(protocol, packet, payload) in (0, 0xFFFF)
    return ("" if good else "BAD ") + name


def test_the_judge_knows_bad_from_good() -> None:
    """The oracle itself: a changed byte makes every kind of packet bad."""
    layers = [
        (IP(src="10.0.0.1", dst="10.0.0.2"), TCP(dport=80)),
        (IP(src="10.0.0.1", dst="10.0.0.2"), UDP(dport=80)),
        (IPv6(src="fd00::1", dst="fd00::2"), TCP(dport=80)),
        (IPv6(src="fd00::1", dst="fd00::2"), UDP(dport=80)),
    ]
    for ip, l4 in layers:
        good = bytearray(bytes(Ether() / ip / l4 / Raw(b"some data")))
        name = l4.name
        assert judge(Captured(bytes(good), False)) == f"complete {name}"
        assert judge(Captured(bytes(good), True)) == f"BAD partial {name}"
        good[-1] ^= 1
        assert judge(Captured(bytes(good), False)) == f"BAD complete {name}"
        start = 14 + (20 if ip.version == 4 else 40)
        length = len(good) - start
        pseudo = struct.pack(
            "!16s16sI4x" if ip.version == 6 else "!4s4sI",
            *(socket.inet_pton(10 if ip.version == 6 else 2, each) for each in (ip.src, ip.dst)),
            length,
        )
        total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo)) + (6 if name == "TCP" else 17)
        at = start + (16 if name == "TCP" else 6)
        good[at : at + 2] = struct.pack("!H", total % 0xFFFF)
        assert judge(Captured(bytes(good), True)) == f"partial {name}"


def _load(world: World) -> None:
    """Something of everything: both families, cluster IPs and node ports, both directions, large and small."""
    ways = [
        *((each, HTTP.port, ECHO.port) for each in WEB),
        *((each, HTTP.node_port, ECHO.node_port) for each in NODE),
    ]
    for host in (world.client, world.node):
        for address, tcp, udp in ways:
            connection = Kept(host, address, tcp)
            for path in ("/", LARGE, "/"):
                connection.get(path)
            connection.close()
            for length in (0, 1, 2, 999, 1400):
                echo(host, address, udp, b"x" * length)
    for address, _, udp in ways:
        echo(world.client, address, udp, b"y" * 4000)
        echo(world.client, address, udp, b"y" * 4001)
    for address in NONE:
        with pytest.raises(ConnectionRefusedError):
            connect(world.client, address, HTTP.port)
        with pytest.raises(ConnectionRefusedError):
            echo(world.client, address)
    for address in NODE:
        ping(world.client, address)


def _ask_complete(client: Host, family: int) -> None:
    """Datagrams whose checksums scapy has computed, past the kernel's sockets; each is answered."""
    ip = (IP, IPv6)[family](src=CLIENT[family], dst=WEB[family])
    ports = range(40_000, 40_200)
    packets = [
        ip / UDP(sport=port, dport=ECHO.port) / Raw(struct.pack(">I", port * 65_537) * (port % 7 + 1))
        for port in ports
    ]
    if family == 0:  # without a checksum, which only IPv4 allows
        packets.append(ip / UDP(sport=40_200, dport=ECHO.port, chksum=0) / Raw(b"none"))
    with ExitStack() as stack:
        sockets = []  # that hold the ports, so that the client's kernel does not refuse the answers
        for packet in packets:
            opened = client.call(socket.socket, (socket.AF_INET, socket.AF_INET6)[family], socket.SOCK_DGRAM)
            sockets.append(stack.enter_context(opened))
            opened.settimeout(3)
            opened.bind((CLIENT[family], packet[UDP].sport))
        _send(client, packets)
        for opened in sockets:
            assert opened.recv(2048).startswith(b"pod")


def _send(client: Host, packets: list[Packet], damage: int = 0) -> None:
    """To the node, as they are; `damage` is flipped in the last byte."""
    arp = client.call(Path("/proc/thread-self/net/arp").read_text)
    mac = next(line.split()[3] for line in arp.splitlines() if line.startswith(f"{NODE[0]} "))
    with client.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sending:
        sending.bind(("eth0", 0))
        for packet in packets:
            frame = bytearray(bytes(Ether(dst=mac) / packet))
            frame[-1] ^= damage
            sending.send(frame)


def test_every_checksum_that_arrives_is_right(busy: World) -> None:
    hosts = (busy.client, *busy.pods)
    before = {host.name: counters(host) for host in (*hosts, busy.node)}
    with captured(*hosts) as captures:
        _load(busy)
        for family in (0, 1):
            _ask_complete(busy.client, family)
        at_client, *at_pods = ([judge(each) for each in capture.close()] for capture in captures)
    pods = Counter(kind for kinds in at_pods for kind in kinds)
    client = Counter(at_client)
    assert not [kind for kind in (*client, *pods) if kind.startswith("BAD")], (client, pods)
    # All kinds were there, so the silence above means something.
    # AF_PACKET hands unfinished packets on with a word about it; through AF_XDP only finished ones may go.
    state = "partial" if busy.leaves_partial else "complete"
    assert client[f"{state} TCP"] >= 40
    assert pods[f"{state} TCP"] >= 40
    assert client[f"{state} UDP"] >= 40
    if not busy.leaves_partial:
        assert not [kind for kind in (*client, *pods) if kind.startswith("partial")], (client, pods)
    assert client["fragment"] >= 12
    assert pods["fragment"] >= 12
    assert pods["complete UDP"] >= 400
    assert pods["no UDP"] == 1
    assert client["complete TCP"] >= 2  # resets that kuproxy wrote
    assert client["complete ICMP"] >= 1  # port unreachable
    assert client["complete ICMPv6"] >= 1
    for host in (*hosts, busy.node):
        errors = {
            name: number - before[host.name].get(name, 0)
            for name, number in counters(host).items()
            if name in BAD and number != before[host.name].get(name, 0)
        }
        assert errors == {}, host.name


BAD = {
    "TcpInCsumErrors",
    "TcpInErrs",
    "UdpInCsumErrors",
    "UdpInErrors",
    "IcmpInCsumErrors",
    "IcmpInErrors",
    "IpInHdrErrors",
    "IpExtInCsumErrors",
    "IpExtInTruncatedPkts",
    "IpReasmFails",
    "Udp6InCsumErrors",
    "Udp6InErrors",
    "Icmp6InCsumErrors",
    "Icmp6InErrors",
    "Ip6InHdrErrors",
    "Ip6InTruncatedPkts",
    "Ip6ReasmFails",
}


def counters(host: Host) -> dict[str, int]:
    """Everything in snmp, netstat and snmp6, named as `nstat` names it."""

    def read() -> list[str]:
        return [Path("/proc/thread-self/net", name).read_text() for name in ("snmp", "netstat", "snmp6")]

    *tables, flat = host.call(read)
    found = {}
    for table in tables:
        lines = table.splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group = names.partition(":")[0]
            for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
                found[group + name] = int(value)
    for line in flat.splitlines():
        name, value = line.split()
        found[name] = int(value)
    assert found.keys() >= BAD - {"IpExtInCsumErrors"}, BAD - found.keys()
    return found


def test_the_counters_see_a_bad_checksum(busy: World) -> None:
    """And a damaged packet stays damaged: kuproxy does not make its checksum good."""
    before = [counters(pod) for pod in busy.pods]
    ping(busy.client, NODE[0])  # so that the node's MAC address is known
    packets = [
        (IP, IPv6)[family](src=CLIENT[family], dst=WEB[family])
        / UDP(sport=41_000, dport=ECHO.port)
        / Raw(b"damaged")
        for family in (0, 1)
    ]
    _send(busy.client, packets, damage=0x10)
    assert echo(busy.client, WEB[0])  # after them
    assert echo(busy.client, WEB[1])
    for name in ("UdpInCsumErrors", "Udp6InCsumErrors"):
        after = sum(counters(pod)[name] for pod in busy.pods)
        assert after == sum(each[name] for each in before) + 1, name
