"""What the differential tests draw from: few of everything, so that things meet.

Three clients with three ports, VIPs that overlap on purpose, pods and ports that services share, tables of one to
four buckets: most flows collide with another one in some way.  One packet in ten is damaged, mostly in a header.

A VIP or a packet has a dozen parts, and a run hundreds of packets; drawn one part at a time they would exhaust what
Hypothesis gives a run.  So each is made from one drawn number, the seed of its own random generator: a failing run
still shrinks to its few packets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from random import Random
from typing import TypeVar

from hypothesis import strategies as st

import packets
from kuproxy.codes import PROTOCOLS_WITH_PORTS, Encap, Family, HashMode, Origin, Protocol
from kuproxy.model.config import NAT64_POOL, NAT64_PORTS
from kuproxy.model.vip import ENCAP_WORDS, Pod, Vip, VipKey, encap_of, vip_type
from kuproxy.reference import RefPacket

Address = IPv4Address | IPv6Address
T = TypeVar("T")

OUTSIDE, INSIDE = 0, 1  # INSIDE is marked for both families at the start


def made_by(make: Callable[[Random], T]) -> st.SearchStrategy[T]:
    """A strategy whose every value comes from one drawn seed."""
    return st.integers(0, 2**48 - 1).map(lambda seed: make(Random(seed)))


def one_in(rng: Random, n: int) -> bool:
    return rng.randrange(n) == 0


@dataclass(frozen=True)
class Config:
    """How a plane is made; the names are those of `Reference`."""

    buckets: int = 1024
    timeout_ticks: int = 400
    decrement_ttl: bool = True
    any_node_address: bool = True
    node_addresses: tuple[Address, ...] = ()
    reject_rate: int = 1000
    ip4_src_address: Address | None = None
    ip6_src_address: Address | None = None
    masquerade: tuple[Address, ...] = ()
    nat64_pool: IPv4Network | None = NAT64_POOL
    nat64_ports: tuple[int, int] = NAT64_PORTS
    translation_mtu: int = 0
    own_addresses: dict[Family, Address] = field(default_factory=dict)
    pod_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    all_node_addresses: tuple[Address, ...] = ()
    workers: int = 1
    flow_key: bytes = b""
    second_chance: bool = False


TUNNEL_SOURCES = (ip_address("40.0.0.250"), ip_address("4000::fa"))
NODE_ADDRESSES = (ip_address("40.0.0.254"), ip_address("4000::fe"))

FLOW_KEYS = [b"", bytes(range(16)), b"\xff" * 16]
MASQUERADES = [(), NODE_ADDRESSES, (ip_address("40.0.0.9"), ip_address("4000::9"))]

# Of the clients, the third is a pod and the second the node; or nobody knows.
POD_RANGES = tuple(map(ip_network, ("10.0.0.0/8", "40.0.1.0/24", "2001::/16", "4001::/16")))
# 40.0.1.1 and 4001::1 as on the pods' bridge: the node's, and in the pods' ranges.
ALL_NODE_ADDRESSES = (
    *NODE_ADDRESSES,
    *map(ip_address, ("40.0.0.2", "4000::2", "40.0.1.1", "4001::1")),
)
ORIGINS = [
    *[(POD_RANGES, ALL_NODE_ADDRESSES)] * 3,
    (POD_RANGES[1:2], ALL_NODE_ADDRESSES),
    (
        tuple(map(ip_network, ("40.0.0.0/16", "4000::/64"))),
        ALL_NODE_ADDRESSES,
    ),  # the node lies in the pods' range
    ((), ALL_NODE_ADDRESSES),
    ((), ()),
]

configs = st.builds(
    Config,
    buckets=st.sampled_from([1, 2, 4]),
    timeout_ticks=st.sampled_from([5, 60, 400]),
    decrement_ttl=st.booleans(),
    any_node_address=st.booleans(),
    node_addresses=st.just(NODE_ADDRESSES),
    reject_rate=st.sampled_from([1000, 3, 1, 0]),
    ip4_src_address=st.sampled_from([TUNNEL_SOURCES[0]] * 2 + [None]),
    ip6_src_address=st.sampled_from([TUNNEL_SOURCES[1]] * 2 + [None]),
    masquerade=st.sampled_from(MASQUERADES),
    nat64_pool=st.sampled_from([IPv4Network("192.0.0.0/29"), IPv4Network("192.0.0.0/31"), None]),
    nat64_ports=st.sampled_from([(1024, 65535), (1, 1), (7, 8)]),
    translation_mtu=st.sampled_from([0, 1280, 1280, 1500]),
    pod_ranges=st.just(POD_RANGES),
    all_node_addresses=st.just(ALL_NODE_ADDRESSES),
    own_addresses=st.sampled_from([{}, dict(zip((Family.IPV4, Family.IPV6), NODE_ADDRESSES, strict=True))]),
    workers=st.sampled_from([1, 1, 2, 3]),
    flow_key=st.sampled_from(FLOW_KEYS),
    second_chance=st.sampled_from([True, True, False]),
)
start_times = st.sampled_from([100, 2**31 - 60, 2**32 - 60, 2**32 - 1])

# --------------------------------------------------------------------------------------------------------- TCP


def _with_flags(data: bytes, flags: int) -> bytes:
    """A TCP segment with other flags, and the checksum that goes with them (RFC 1624); anything else as it is."""
    try:
        _, l4, protocol, later = packets.headers(data)
    except (struct.error, IndexError):
        return data
    if protocol != packets.TCP or later or len(data) < l4 + 20:
        return data
    changed = bytearray(data)
    [old], [checksum] = (struct.unpack_from(">H", data, l4 + at) for at in (12, 16))
    new = old & 0xFF00 | flags
    total = (checksum ^ 0xFFFF) + (old ^ 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into(">H", changed, l4 + 12, new)
    struct.pack_into(">H", changed, l4 + 16, total ^ 0xFFFF)
    return bytes(changed)


def make_segments(rng: Random, vip: Vip) -> list[RefPacket]:
    """To this VIP, mostly from the midst of connections that no node here has seen begin."""
    version = vip.key.prefix.version
    addressed = [str(vip.key.prefix.network_address), *ADDRESSED[version]]
    within = [each for each in addressed if ip_address(each) in vip.key.prefix]
    made = []
    for _ in range(rng.choice([4, 24])):
        address, port = rng.choice(within), vip.key.port or 80
        if vip.node_port and one_in(rng, 4):
            address, port = NODE[version], vip.node_port
        flags = rng.choice([packets.ACK] * 6 + [packets.ACK | packets.FIN, packets.SYN, packets.RST])
        client, client_port = rng.choice(CLIENTS[version]), 1024 + rng.randrange(40)
        segment = packets.tcp(client, address, client_port, port, b"data", flags=flags)
        made.append(RefPacket(packets.frame(segment), OUTSIDE, one_in(rng, 10)))
    return made


def make_answer(rng: Random, data: bytes) -> bytes:
    """A receiver's, who mostly knows no such connection."""
    answers = [packets.RST] * 6 + [packets.RST | packets.ACK, packets.ACK, packets.ACK]
    return _with_flags(packets.reply_to(data), rng.choice(answers))


# --------------------------------------------------------------------------------------------------------- VIPs

CLIENTS = {4: ["40.0.0.1", "40.0.0.2", "40.0.1.1"], 6: ["4000::1", "4000::2", "4001::1"]}
CLIENT_PORTS = [1024, 1025, 1026]
SOURCE_RANGES = {4: ["40.0.0.0/24", "10.0.0.1/32"], 6: ["4000::/64", "2001::2/128"]}
PREFIXES = {
    4: ["90.0.0.1/32", "90.0.0.1/32", "90.0.0.2/32", "90.0.0.0/24", "90.0.0.0/8", "0.0.0.0/0"],
    6: ["9000::1/128", "9000::1/128", "9000::2/128", "9000::/64", "9000::/16", "::/0"],
}
# VIPs whose pods are of the other family
CROSSING = {4: ["91.0.0.1/32", "91.0.0.0/16"], 6: ["9100::1/128", "9100::/32"]}
ADDRESSED = {
    4: ["90.0.0.1", "90.0.0.2", "90.0.0.3", "90.1.0.1", "91.0.0.1", "91.0.0.2"],
    6: ["9000::1", "9000::2", "9000::3", "9000:1::1", "9100::1", "9100::2"],
}
NODE = {4: "40.0.0.254", 6: "4000::fe"}
SELDOM_ADDRESSED = {
    4: ["91.0.0.1", "192.0.0.1", "127.0.0.1", "224.0.0.1", "40.0.0.253"],
    6: ["9100::1", "64:ff9b:1::2800:1", "::1", "ff02::1", "4000::fd"],
}
PODS = {4: [f"10.0.0.{last}" for last in range(1, 6)], 6: [f"2001::{last}" for last in range(2, 7)]}
NODE_PORTS = [30080, 30081]


def make_pods(rng: Random, version: int, with_ports: bool) -> tuple[Pod, ...]:
    """Up to six of five addresses: sometimes one address with two ports, sometimes none."""
    ports = [0, 0, 80, 9090] if with_ports else [0]
    many = rng.choice([0, 1, 1, 2, 2, 3, 6])
    return tuple(Pod(ip_address(rng.choice(PODS[version])), rng.choice(ports)) for _ in range(many))


def make_vip(rng: Random) -> Vip:
    version = rng.choice([4, 6])
    other_family = one_in(rng, 4)
    prefix = ip_network(rng.choice(CROSSING[version] if other_family else PREFIXES[version]))
    icmp = Protocol.ICMP if version == 4 else Protocol.ICMP6
    protocol = rng.choice([Protocol.ANY] * 4 + [*PROTOCOLS_WITH_PORTS, icmp])
    has_ports = protocol == Protocol.ANY or protocol in PROTOCOLS_WITH_PORTS
    port = rng.choice([0, 80, 80, 81]) if has_ports else 0
    if not other_family and one_in(rng, 4):
        return make_direct_vip(rng, VipKey(prefix, protocol, port))
    kind = vip_type(prefix, f"nat{'64' if version == 6 else '46'}" if other_family else None)
    pod_family = 4 if kind.pod_family == Family.IPV4 else 6
    return Vip(
        VipKey(prefix, protocol, port),
        kind,
        target_port=rng.choice([0, 80, 8080, 8080]) if port else 0,
        node_port=rng.choice(NODE_PORTS) if has_ports and one_in(rng, 2) else 0,
        new_len=rng.choice([1, 2, 16, 128]),
        pods=make_pods(rng, pod_family, bool(port)),
        outside_pods=make_pods(rng, pod_family, bool(port)) if one_in(rng, 4) else None,
        reject=one_in(rng, 2),
        masquerade=one_in(rng, 8),
        masquerade_from=Origin(rng.randrange(8)) if one_in(rng, 4) else Origin(0),
        reset=one_in(rng, 2),
        affinity_s=rng.choice([1.0, 6.0, 40.0]) if one_in(rng, 8) else 0.0,
        source_ranges=tuple(map(ip_network, SOURCE_RANGES[version])) if one_in(rng, 8) else (),
        hash_mode=HashMode.SOURCE if one_in(rng, 12) else HashMode.FLOW,
    )


def make_direct_vip(rng: Random, key: VipKey) -> Vip:
    """Pods answer the client themselves."""
    encap, kind = encap_of(key.prefix, rng.choice([word for word in ENCAP_WORDS if word[:3] != "nat"]))
    return Vip(
        key,
        kind,
        new_len=rng.choice([1, 2, 16, 128]),
        pods=make_pods(rng, 4 if kind.pod_family == Family.IPV4 else 6, False),
        reject=one_in(rng, 2),
        encap=encap,
        dscp=rng.choice([0, 1, 46, 63]) if encap is Encap.L3DSR else 0,
        gue_port=rng.choice([0, 5555]) if encap is Encap.GUE else 0,
    )


vips = made_by(make_vip)
pods = {
    (version, with_ports): made_by(lambda rng, args=(version, with_ports): make_pods(rng, *args))
    for version in (4, 6)
    for with_ports in (False, True)
}

# ---------------------------------------------------------------------------------------------------- datagrams


KINDS = ["tcp"] * 5 + ["udp"] * 5 + ["sctp", "sctp", "echo", "echo", "icmp", "error", "other"]
KINDS_IN_FRAGMENTS = ["udp", "udp", "tcp", "sctp", "sctp", "sctp", "echo", "other"]


def make_datagram(
    rng: Random, kinds: Sequence[str] = KINDS, size: int | None = None, *, crossing: bool = False
) -> packets.Datagram:
    """What a client sends, mostly to VIPs; seldom, what a pod sends of its own accord."""
    version = rng.choice([4, 6])
    if crossing:
        source, source_port = rng.choice(CLIENTS[version]), rng.choice(CLIENT_PORTS)
        destination, port = ADDRESSED[version][4], 80
    elif one_in(rng, 12):
        source, source_port = rng.choice(PODS[version]), rng.choice([80, 8080, 9090])
        destination, port = rng.choice(CLIENTS[version]), rng.choice(CLIENT_PORTS)
    else:
        source, source_port = rng.choice(CLIENTS[version]), rng.choice(CLIENT_PORTS)
        if one_in(rng, 12):
            source = rng.choice(PODS[version])  # which may be given to itself
        if one_in(rng, 40):
            source = rng.choice(["0.0.0.0", "224.0.0.9"] if version == 4 else ["::", "ff02::9"])
        destination, port = rng.choice(ADDRESSED[version]), rng.choice([80, 80, 80, 81, 81, 8080, 0])
        if one_in(rng, 5):
            destination, port = NODE[version], rng.choice(NODE_PORTS)
        elif one_in(rng, 12):
            destination, port = rng.choice(SELDOM_ADDRESSED[version]), rng.choice([80, *NODE_PORTS])
    data = (bytes(range(256)) * 16)[: rng.randrange(40) if size is None else size]
    return _transport(rng, rng.choice(kinds), (source, destination), (source_port, port), data)


def _transport(
    rng: Random, kind: str, two: tuple[str, str], ports: tuple[int, int], data: bytes
) -> packets.Datagram:
    if kind == "tcp":
        flags = rng.choice([packets.SYN, packets.SYN, packets.ACK, packets.FIN | packets.ACK, packets.RST, 0])
        options = rng.choice([b"", bytes(4)])
        return packets.tcp(*two, *ports, data, flags=flags, acknowledgement=99, options=options)
    if kind == "udp":
        return packets.udp(*two, *ports, data, no_checksum=one_in(rng, 5))
    if kind == "sctp":
        return packets.sctp(*two, *ports, data)
    if kind == "echo":
        return packets.echo(*two, identifier=rng.randrange(2), data=data, reply=one_in(rng, 4))
    if kind == "icmp":
        return packets.icmp(*two, rng.choice([3, 4, 5, 8, 11, 12, 13, 128, 130, 135, 137, 138, 200]))
    if kind == "error":
        source, destination = two
        return packets.icmp_error(source, destination, packets.udp(destination, source, *reversed(ports)))
    build = rng.choice([packets.udp_lite, packets.dccp, None])
    if build is not None:
        return build(*two, *ports)
    return packets.other(*two, rng.choice([0, 1, 33, 44, 47, 50, 58, 59, 60, 135, 136]), data)


# -------------------------------------------------------------------------------------------------------- frames

EXTENSIONS = [
    packets.extension(packets.HOP_BY_HOP),
    packets.extension(packets.ROUTING),
    packets.extension(packets.DESTINATION, bytes(14)),
    packets.fragment_header(0, False, 1),
    (packets.ROUTING, bytes([0, 2, 1, 0, 0, 0, 0])),  # a segment is left
]
OPTIONS = [
    *(bytes([1] * length) for length in (4, 8, 40)),
    *[bytes([131, 7, 4, 1, 2, 3, 4, 0])] * 4,  # a loose source route, unexpired
    bytes([137, 7, 8, 1, 2, 3, 4, 0]),  # a strict one, used up
    bytes([131, 1, 0, 0]),
    bytes([1, 1, 1, 131]),
]


def make_frame(rng: Random) -> bytes:
    datagram = make_datagram(rng)
    how: dict[str, object] = {
        "ttl": rng.choice([0, 1, 2, 255]) if one_in(rng, 8) else 64,
        "vlan": rng.choice([(7,), (7, 8), (7, 8, 9)]) if one_in(rng, 6) else (),
        "pad_to": rng.choice([0, 0, 60]),
    }
    if datagram.version == 4:
        how["options"] = rng.choice(OPTIONS) if one_in(rng, 5) else b""
        how["dont_fragment"] = one_in(rng, 2)
        how["tos"] = rng.choice([0, 0xB9])
    elif one_in(rng, 4):
        how["extensions"] = rng.choices(EXTENSIONS, k=rng.choice([1, 2, 3, 8, 9]))
    return packets.frame(datagram, **how)  # type: ignore[arg-type]


def _set_ipv4_checksum(data: bytearray, l3: int) -> None:
    """So that other damage to the header is not hidden behind a wrong checksum."""
    length = (data[l3] & 15) * 4 if len(data) > l3 else 0
    if length >= 20 and len(data) >= l3 + length and data[l3] >> 4 == 4:
        data[l3 + 10 : l3 + 12] = bytes(2)
        data[l3 + 10 : l3 + 12] = struct.pack(">H", packets.internet_checksum(bytes(data[l3 : l3 + length])))


def _headers(data: bytes) -> tuple[int, int, int]:
    """Offsets of the IP header, its length field, and the L4 header; whatever they are if it is not IP."""
    try:
        l3, l4, _, _ = packets.headers(data)
    except (IndexError, struct.error):
        return 14, 16, 34
    return l3, l3 + (2 if data[l3] >> 4 == 4 else 4), l4


def make_damaged(rng: Random) -> bytes:
    """A frame cut, flipped or overwritten; often with an IPv4 checksum that agrees."""
    data = bytearray(make_frame(rng))
    l3, length_at, l4 = _headers(data)
    kind = rng.choice(["cut", "cut", "flip", "byte", "byte", "length", "l4"])
    if kind == "cut":
        near = rng.choice([14, l3, l3 + 20, l3 + 40, l4, l4 + 8, l4 + 12, l4 + 20, len(data)])
        del data[max(0, min(len(data) - 1, near + rng.randrange(-3, 3))) :]
        if (
            one_in(rng, 2) and len(data) > length_at + 2
        ):  # and say so in the length, so that L4 is cut instead
            length = len(data) - l3 - (0 if length_at == l3 + 2 else 40)
            data[length_at : length_at + 2] = struct.pack(">H", max(0, length))
    elif kind == "flip":
        data[rng.randrange(12, len(data))] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        at = min(len(data) - 1, rng.choice([l3, l3, l3, rng.randrange(l3, l3 + 8), l4]))
        data[at] = rng.choice([0, 1, 0x44, 0x44, 0x46, 0x4F, 0x65, 44, 60, 0xFF, 0x60])
    elif kind == "length":
        old = struct.unpack_from(">H", data, length_at)[0]
        new = max(0, rng.choice([old - 1, old + 1, old - 8, 19, 20, 0, 0xFFFF]))
        data[length_at : length_at + 2] = struct.pack(">H", new)
    elif len(data) >= l4 + 13:
        at = l4 + rng.choice([4, 5, 12])  # UDP's length, TCP's data offset
        data[at] = rng.choice([0, 7, 8, 0x40, 0x50, 0x60, 0xF0, 0xFF])
    if not one_in(rng, 3):
        _set_ipv4_checksum(data, l3)
    return bytes(data)


def make_fragments(rng: Random) -> list[bytes]:
    """Some of the fragments of a datagram, in some order; identifications repeat."""
    datagram = make_datagram(rng, KINDS_IN_FRAGMENTS, size=rng.randrange(30, 200), crossing=one_in(rng, 3))
    if datagram.protocol == packets.UDP and datagram.version == 4 and one_in(rng, 4):
        datagram = replace(datagram, payload=datagram.payload[:6] + bytes(2) + datagram.payload[8:])
    pieces = packets.fragments(datagram, rng.choice([24, 40, 64]), identification=rng.randrange(3))
    rng.shuffle(pieces)
    return pieces[: rng.choice([len(pieces), len(pieces), 1, 2])]


def make_long(rng: Random) -> list[RefPacket]:
    """What may be too long for the other side, or must be cut in pieces; whole or itself a fragment."""
    size = rng.choice([1232, 1233, 1240, 1241, 1252, 1300, 1472, 2464, 2500, 4000]) - 8
    datagram = make_datagram(rng, ["udp", "udp", "tcp", "echo", "sctp"], size, crossing=one_in(rng, 2))
    how: dict[str, object] = {"dont_fragment": one_in(rng, 2)} if datagram.version == 4 else {}
    if one_in(rng, 3) and size > 1232:
        frames = packets.fragments(datagram, 1232, **how)  # type: ignore[arg-type]
    else:
        frames = [packets.frame(datagram, **how)]  # type: ignore[arg-type]
    partial = one_in(rng, 4)
    return [RefPacket(data, OUTSIDE, partial) for data in frames]


def make_hold(rng: Random) -> list[RefPacket]:
    """More fragments without a first one than the hold has places for, or one that is as long as a place."""
    destination = rng.choice(ADDRESSED[4])
    if one_in(rng, 2):
        size = rng.choice([9206, 9207]) - 34
        later = packets.other("40.0.0.1", destination, packets.UDP, bytes(size))
        return [RefPacket(packets.frame(later, offset=64))]
    later = packets.other("40.0.0.1", destination, packets.UDP, bytes(8))
    return [RefPacket(packets.frame(later, offset=64, identification=1000 + i)) for i in range(70)]


def make_packets(rng: Random) -> list[RefPacket]:
    """One frame, or the fragments of one datagram."""
    if one_in(rng, 100):
        return make_hold(rng)
    if one_in(rng, 15):
        return make_long(rng)
    kind = rng.randrange(10)
    if kind == 0:
        frames = [make_damaged(rng)]
    elif kind == 1:
        frames = make_fragments(rng)
    else:
        frames = [make_frame(rng)]
    interface = INSIDE if one_in(rng, 8) else OUTSIDE
    partial = one_in(rng, 10)
    gso = one_in(rng, 6)
    return [RefPacket(data, interface, partial, gso=gso) for data in frames]


MOST_IN_A_VECTOR = 150  # below what a frame takes beside the fragments that it may release


def _joined(parts: Sequence[list[RefPacket]]) -> list[RefPacket]:
    return [packet for part in parts for packet in part][:MOST_IN_A_VECTOR]


bursts = st.lists(made_by(make_packets), min_size=1, max_size=12).map(_joined)


# --------------------------------------------------------------------------------------------------------- time

# Around the fragments' 5 s, the timeouts of `configs`, and the refilling of the rate limit.
durations = st.sampled_from([1, 2, 4, 5, 6, 10, 49, 50, 51, 59, 60, 61, 399, 400, 401])


def make_complaint(rng: Random, about: bytes) -> RefPacket:
    """An ICMP error about a frame that went out, from its receiver or from a router on the way."""
    l3, l4, _, _ = packets.headers(about)
    version = about[l3] >> 4
    width = 4 if version == 4 else 16
    at = l3 + (12 if version == 4 else 8)
    complained, receiver = about[at : at + width], about[at + width : at + 2 * width]
    router = ip_address("50.0.0.1" if version == 4 else rng.choice(["5000::1", "64:ff9b:1::3200:1"]))
    source = router if one_in(rng, 2) else ip_address(receiver)
    quote = bytearray(about[l3:][: rng.choice([l4 - l3 + 8, l4 - l3 + 4, 64, 576, 1232])])
    if one_in(rng, 8):
        quote[rng.randrange(len(quote))] ^= 1 << rng.randrange(8)
    kinds4 = [
        (3, 0),
        (3, 2),
        (3, 3),
        (3, 4),
        (3, 4),
        (3, 9),
        (3, 14),
        (4, 0),
        (5, 0),
        (11, 0),
        (12, 0),
        (12, 1),
    ]
    kinds6 = [(1, 0), (1, 1), (1, 4), (1, 5), (2, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2)]
    kind, code = rng.choice(kinds4 if version == 4 else kinds6)
    rest = struct.pack(">I", rng.choice([0, 6, 20, 1280, 1400, 0x08000000, 0x0C000000, 0x02000000, 66000]))
    datagram = packets.icmp(source, ip_address(complained), kind, code, rest + bytes(quote))
    if one_in(rng, 12):
        payload = bytearray(datagram.payload)
        payload[-1] ^= 1
        datagram = replace(datagram, payload=bytes(payload))
    how: dict[str, object] = {"ttl": rng.choice([64, 64, 64, 1, 2])}
    how |= {"options": bytes(4)} if version == 4 and one_in(rng, 5) else {}
    interface = OUTSIDE if one_in(rng, 4) else INSIDE
    return RefPacket(packets.frame(datagram, **how), interface, one_in(rng, 12))  # type: ignore[arg-type]


reply_ttls = st.sampled_from([64, 64, 64, 64, 1, 0])
