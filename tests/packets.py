"""Frames for tests: built here from bytes, checked by scapy.

Builders share nothing with the package, not even a checksum.  `verify_checksums` is an oracle that shares nothing
with the builders either: scapy takes the frame apart and recomputes.

    frame(udp("40.0.0.1", "90.0.0.1", 10001, 3306, b"hello"), vlan=(7,))
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address
AnyAddress = Address | str

ICMP, TCP, UDP, ICMP6, SCTP, UDP_LITE, DCCP, GRE = 1, 6, 17, 58, 132, 136, 33, 47
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

CLIENT_MAC = bytes.fromhex("020000000001")
OUR_MAC = bytes.fromhex("020000000002")


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = [_crc_of_byte(value) for value in range(256)]


def sctp_crc(data: bytes) -> bytes:
    """RFC 9260 appendix A: preset to ones, inverted, least significant byte first."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


# ------------------------------------------------------------------------------------------------- transport


@dataclass(frozen=True)
class Datagram:
    """An IP payload and where it goes."""

    source: Address
    destination: Address
    protocol: int
    payload: bytes

    @property
    def version(self) -> int:
        return self.source.version


def _addresses(source: AnyAddress, destination: AnyAddress) -> tuple[Address, Address]:
    source, destination = ip_address(source), ip_address(destination)
    assert source.version == destination.version
    return source, destination


def _pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    # IPv4's and IPv6's sum up alike: only their zeros are in different places.
    return source.packed + destination.packed + struct.pack(">II", length, protocol)


def _checksummed(
    source: Address, destination: Address, protocol: int, payload: bytes, at: int, *, partial: bool = False
) -> Datagram:
    pseudo = _pseudo_header(source, destination, protocol, len(payload))
    if partial:
        checksum = 0xFFFF - internet_checksum(pseudo)
    else:
        checksum = internet_checksum(pseudo + payload)
        if checksum == 0 and protocol in (UDP, UDP_LITE):
            checksum = 0xFFFF
    return Datagram(
        source, destination, protocol, payload[:at] + struct.pack(">H", checksum) + payload[at + 2 :]
    )


def tcp(
    source: AnyAddress,
    destination: AnyAddress,
    source_port: int,
    destination_port: int,
    data: bytes = b"",
    *,
    flags: int = SYN,
    sequence: int = 1000,
    acknowledgement: int = 0,
    options: bytes = b"",
    partial: bool = False,
) -> Datagram:
    source, destination = _addresses(source, destination)
    assert len(options) % 4 == 0
    header = struct.pack(
        ">HHIIBBHHH",
        source_port,
        destination_port,
        sequence,
        acknowledgement,
        (5 + len(options) // 4) << 4,
        flags,
        0xFFFF,
        0,
        0,
    )
    return _checksummed(source, destination, TCP, header + options + data, 16, partial=partial)


def udp(
    source: AnyAddress,
    destination: AnyAddress,
    source_port: int,
    destination_port: int,
    data: bytes = b"hello",
    *,
    no_checksum: bool = False,
    partial: bool = False,
) -> Datagram:
    source, destination = _addresses(source, destination)
    payload = struct.pack(">HHHH", source_port, destination_port, 8 + len(data), 0) + data
    if no_checksum:
        return Datagram(source, destination, UDP, payload)
    return _checksummed(source, destination, UDP, payload, 6, partial=partial)


def udp_with_checksum(
    source: AnyAddress, destination: AnyAddress, source_port: int, destination_port: int, wanted: int
) -> Datagram:
    """A datagram of two bytes of data, chosen so that the checksum becomes `wanted`."""
    for word in range(65536):
        datagram = udp(source, destination, source_port, destination_port, struct.pack(">H", word))
        if struct.unpack_from(">H", datagram.payload, 6)[0] == wanted:
            return datagram
    raise ValueError(f"no data gives the checksum {wanted:#x}")


def udp_lite(
    source: AnyAddress,
    destination: AnyAddress,
    source_port: int,
    destination_port: int,
    data: bytes = b"lite",
) -> Datagram:
    source, destination = _addresses(source, destination)
    payload = struct.pack(">HHHH", source_port, destination_port, 0, 0) + data  # coverage 0: everything
    return _checksummed(source, destination, UDP_LITE, payload, 6)


def dccp(
    source: AnyAddress,
    destination: AnyAddress,
    source_port: int,
    destination_port: int,
    data: bytes = b"dccp",
) -> Datagram:
    """A DCCP request (RFC 4340) with a 48-bit sequence number."""
    source, destination = _addresses(source, destination)
    header = struct.pack(">HHBBHBBHII", source_port, destination_port, 5, 0, 0, 1, 0, 0, 77, 0)
    return _checksummed(source, destination, DCCP, header + data, 6)


SCTP_INIT_CHUNK = struct.pack(">BBHIIHHI", 1, 0, 20, 0x11223344, 65536, 5, 5, 0x55667788)


def sctp(
    source: AnyAddress,
    destination: AnyAddress,
    source_port: int,
    destination_port: int,
    chunks: bytes = SCTP_INIT_CHUNK,
    *,
    tag: int = 0,
) -> Datagram:
    source, destination = _addresses(source, destination)
    payload = struct.pack(">HHII", source_port, destination_port, tag, 0) + chunks
    return Datagram(source, destination, SCTP, payload[:8] + sctp_crc(payload) + payload[12:])


def icmp(
    source: AnyAddress, destination: AnyAddress, kind: int, code: int = 0, body: bytes = bytes(4)
) -> Datagram:
    """ICMP or ICMPv6, as the addresses say; `body` is what follows the checksum."""
    source, destination = _addresses(source, destination)
    payload = struct.pack(">BBH", kind, code, 0) + body
    if source.version == 6:
        return _checksummed(source, destination, ICMP6, payload, 2)
    checksum = struct.pack(">H", internet_checksum(payload))
    return Datagram(source, destination, ICMP, payload[:2] + checksum + payload[4:])


def echo(
    source: AnyAddress,
    destination: AnyAddress,
    identifier: int = 1,
    sequence: int = 1,
    data: bytes = b"ping",
    *,
    reply: bool = False,
) -> Datagram:
    kind = (8, 0)[reply] if ip_address(source).version == 4 else (128, 129)[reply]
    return icmp(source, destination, kind, 0, struct.pack(">HH", identifier, sequence) + data)


def icmp_error(
    source: AnyAddress, destination: AnyAddress, inner: Datagram, kind: int | None = None
) -> Datagram:
    """Port unreachable, or another error, about the packet `inner`."""
    if ip_address(source).version == 4:
        kind, code = (3, 3) if kind is None else (kind, 0)
    else:
        kind, code = (1, 4) if kind is None else (kind, 0)
    return icmp(source, destination, kind, code, bytes(4) + ip_packet(inner)[:48])


def other(
    source: AnyAddress, destination: AnyAddress, protocol: int = GRE, data: bytes = b"\0\0\x08\0rest"
) -> Datagram:
    source, destination = _addresses(source, destination)
    return Datagram(source, destination, protocol, data)


# --------------------------------------------------------------------------------------------- IP and Ethernet


def extension(kind: int, data: bytes = bytes(6), *, size: int | None = None) -> tuple[int, bytes]:
    """An extension header without its next-header byte: padding options, or a routing header that is used up."""
    assert (len(data) + 2) % 8 == 0
    if kind == ROUTING:
        data = bytes([0, 0]) + data[2:]  # type 0, no segments left
    elif not any(data):
        data = bytes([1, len(data) - 2]) + bytes(len(data) - 2)  # PadN
    return kind, bytes([(len(data) + 2) // 8 - 1 if size is None else size]) + data


def fragment_header(offset: int, more: bool, identification: int) -> tuple[int, bytes]:
    """`offset` in bytes."""
    assert offset % 8 == 0
    return FRAGMENT, struct.pack(">BHI", 0, offset | more, identification)


def ipv4(
    datagram: Datagram,
    *,
    ttl: int = 64,
    options: bytes = b"",
    tos: int = 0,
    identification: int = 0x1234,
    offset: int = 0,
    more: bool = False,
    dont_fragment: bool = False,
) -> bytes:
    """`offset` in bytes."""
    assert len(options) % 4 == 0 and offset % 8 == 0
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        tos,
        20 + len(options) + len(datagram.payload),
        identification,
        offset // 8 | more << 13 | dont_fragment << 14,
        ttl,
        datagram.protocol,
        0,
        datagram.source.packed,
        datagram.destination.packed,
    )
    header += options
    return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:] + datagram.payload


def ipv6(
    datagram: Datagram,
    *,
    ttl: int = 64,
    extensions: Sequence[tuple[int, bytes]] = (),
    traffic_class: int = 0,
    flow_label: int = 0x54321,
) -> bytes:
    """`extensions` in their order, from `extension` and `fragment_header`."""
    kinds = [kind for kind, _ in extensions] + [datagram.protocol]
    chain = b"".join(bytes([after]) + rest for after, (_, rest) in zip(kinds[1:], extensions, strict=True))
    return (
        struct.pack(
            ">IHBB16s16s",
            6 << 28 | traffic_class << 20 | flow_label,
            len(chain) + len(datagram.payload),
            kinds[0],
            ttl,
            datagram.source.packed,
            datagram.destination.packed,
        )
        + chain
        + datagram.payload
    )


def ip_packet(datagram: Datagram, **how: object) -> bytes:
    build = ipv4 if datagram.version == 4 else ipv6
    return build(datagram, **how)  # type: ignore[arg-type]


def frame(
    datagram: Datagram, *, vlan: Sequence[int] = (), vlan_type: int = 0x8100, pad_to: int = 0, **how: object
) -> bytes:
    """Ethernet, VLAN tags, the packet (`how` goes to `ipv4` or `ipv6`), and zeros up to `pad_to`."""
    tags = b"".join(struct.pack(">HH", vlan_type, tag) for tag in vlan)
    ethertype = 0x0800 if datagram.version == 4 else 0x86DD
    whole = OUR_MAC + CLIENT_MAC + tags + struct.pack(">H", ethertype) + ip_packet(datagram, **how)
    return whole.ljust(pad_to, b"\0")


def fragments(
    datagram: Datagram,
    size: int = 1480,
    *,
    identification: int = 0x4321,
    vlan: Sequence[int] = (),
    **how: object,
) -> list[bytes]:
    """The datagram in frames of `size` bytes of payload (a multiple of 8), first one first."""
    assert size % 8 == 0
    pieces = []
    for offset in range(0, len(datagram.payload), size):
        piece = replace(datagram, payload=datagram.payload[offset : offset + size])
        more = offset + size < len(datagram.payload)
        if datagram.version == 4:
            pieces.append(
                frame(piece, vlan=vlan, offset=offset, more=more, identification=identification, **how)
            )
        else:
            header = fragment_header(offset, more, identification)
            pieces.append(frame(piece, vlan=vlan, extensions=[header], **how))
    return pieces


# -------------------------------------------------------------------------------------------------- collections


def samples() -> Iterator[tuple[str, bytes]]:
    """Every kind of valid packet that the rules treat differently, by name."""
    for source, destination in (("40.0.0.1", "90.0.0.1"), ("4000::1", "9000::1")):
        version = ip_address(source).version
        transports = {
            "tcp-syn": tcp(source, destination, 10001, 80),
            "tcp-options": tcp(source, destination, 10001, 80, options=bytes([2, 4, 5, 0xB4])),
            "tcp-data": tcp(source, destination, 10001, 80, b"GET /", flags=PSH | ACK, acknowledgement=7),
            "tcp-fin": tcp(source, destination, 10001, 80, flags=FIN | ACK, acknowledgement=7),
            "tcp-rst": tcp(source, destination, 10001, 80, flags=RST),
            "udp": udp(source, destination, 10001, 53),
            "udp-odd": udp(source, destination, 10001, 53, b"odd"),
            "udp-empty": udp(source, destination, 10001, 53, b""),
            "sctp": sctp(source, destination, 10001, 80),
            "echo-request": echo(source, destination),
            "echo-reply": echo(source, destination, reply=True),
            "icmp-error": icmp_error(source, destination, udp(destination, source, 53, 10001)),
            "udp-lite": udp_lite(source, destination, 10001, 80),
            "dccp": dccp(source, destination, 10001, 80),
            "other": other(source, destination),
            "other-empty": other(source, destination, data=b""),
        }
        for name, datagram in transports.items():
            yield f"ip{version}-{name}", frame(datagram)
        plain = transports["udp"]
        yield f"ip{version}-vlan", frame(plain, vlan=(7,))
        yield f"ip{version}-qinq", frame(plain, vlan=(7, 8), vlan_type=0x88A8)
        yield f"ip{version}-padded", frame(plain, pad_to=100)
        long = udp(source, destination, 10001, 53, bytes(range(100)))
        for number, piece in enumerate(fragments(long, 48)):
            yield f"ip{version}-fragment-{number}", piece
        yield f"ip{version}-tcp-first-fragment", fragments(transports["tcp-data"], 24)[0]
        yield f"ip{version}-sctp-first-fragment", fragments(transports["sctp"], 24)[0]
    plain4, plain6 = udp("40.0.0.1", "90.0.0.1", 10001, 53), udp("4000::1", "9000::1", 10001, 53)
    yield "ip4-udp-no-checksum", frame(udp("40.0.0.1", "90.0.0.1", 10001, 53, no_checksum=True))
    yield "ip4-options", frame(plain4, options=bytes([1, 1, 1, 0]))
    yield "ip4-all-options", frame(plain4, options=bytes([1] * 39 + [0]))
    yield "ip4-qinq-options", frame(plain4, vlan=(7, 8), options=bytes([148, 4, 0, 0]))
    yield "ip4-tos", frame(plain4, tos=0xB8, dont_fragment=True)
    for name, kind in (("hop-by-hop", HOP_BY_HOP), ("routing", ROUTING), ("destination", DESTINATION)):
        yield f"ip6-{name}", frame(plain6, extensions=[extension(kind)])
    yield "ip6-long-extension", frame(plain6, extensions=[extension(DESTINATION, bytes(30))])
    yield "ip6-atomic-fragment", frame(plain6, extensions=[fragment_header(0, False, 9)])
    chain = [extension(HOP_BY_HOP), extension(DESTINATION), extension(ROUTING), fragment_header(0, False, 9)]
    yield "ip6-four-extensions", frame(plain6, extensions=chain)
    yield "ip6-eight-extensions", frame(plain6, extensions=[extension(DESTINATION)] * 8)
    yield (
        "ip6-fragment-behind-extension",
        frame(plain6, extensions=[extension(HOP_BY_HOP), fragment_header(0, True, 9)]),
    )
    yield "ip6-authentication", frame(replace(plain6, protocol=AUTHENTICATION))
    yield "ip6-neighbour-solicitation", frame(icmp("fe80::1", "ff02::1:ff00:1", 135, 0, bytes(20)), ttl=255)


SAMPLES: dict[str, bytes] = dict(samples())


def vpp_flows(count: int = 5, *, version: int = 4, node_port: int = 0, data: bytes = b"Test") -> list[bytes]:
    """The packets of VPP's own kube-proxy test: UDP from 40.0.0.x:10000+i to port 3306 of 90.0.0.i.

    (`4000::x` to `9000::i` for IPv6.)  With `node_port`, all of them go to that port of the router instead.
    """
    flows = []
    for i in range(1, count + 1):
        source = f"40.0.0.{i}" if version == 4 else f"4000::{i}"
        if node_port:
            destination = "40.0.0.254" if version == 4 else "4000::fe"
        else:
            destination = f"90.0.0.{i}" if version == 4 else f"9000::{i}"
        flows.append(frame(udp(source, destination, 10000 + i, node_port or 3306, data)))
    return flows


# ----------------------------------------------------------------------------------------------------- replies


def headers(data: bytes) -> tuple[int, int, int, bool]:
    """Of an IP frame: offset of the IP header and of the L4 header, protocol, whether it is a later fragment."""
    l3 = 14
    while data[l3 - 2 : l3] in (b"\x81\x00", b"\x88\xa8"):
        l3 += 4
    if data[l3] >> 4 == 4:
        later = struct.unpack_from(">H", data, l3 + 6)[0] & 0x1FFF != 0
        return l3, l3 + (data[l3] & 15) * 4, data[l3 + 9], later
    kind, l4, later = data[l3 + 6], l3 + 40, False
    while kind in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION) and not later:
        later = kind == FRAGMENT and struct.unpack_from(">H", data, l4 + 2)[0] >> 3 != 0
        length = 8 if kind == FRAGMENT else (data[l4 + 1] + 1) * 8
        kind, l4 = data[l4], l4 + length
    return l3, l4, kind, later


def untagged(data: bytes) -> bytes:
    """The frame without its VLAN tags."""
    while data[12:14] in (b"\x81\x00", b"\x88\xa8"):
        data = data[:12] + data[16:]
    return data


def _swap(data: bytearray, at: int, width: int) -> None:
    one, two = data[at : at + width], data[at + width : at + 2 * width]
    data[at : at + 2 * width] = two + one


def reply_to(data: bytes, *, ttl: int = 64) -> bytes:
    """The frame as its receiver would answer: MAC and IP addresses and ports swapped, echo request made reply.

    A swap changes no checksum but SCTP's; that of an echo changes with its type (RFC 1624).
    """
    l3, l4, protocol, later = headers(data)
    reply = bytearray(data)
    _swap(reply, 0, 6)
    if data[l3] >> 4 == 4:
        end = l3 + struct.unpack_from(">H", data, l3 + 2)[0]
        _swap(reply, l3 + 12, 4)
        reply[l3 + 8] = ttl
        reply[l3 + 10 : l3 + 12] = bytes(2)
        reply[l3 + 10 : l3 + 12] = struct.pack(">H", internet_checksum(bytes(reply[l3:l4])))
    else:
        end = l3 + 40 + struct.unpack_from(">H", data, l3 + 4)[0]
        _swap(reply, l3 + 8, 16)
        reply[l3 + 7] = ttl
    if later:
        return bytes(reply)
    if protocol in (TCP, UDP, SCTP):
        _swap(reply, l4, 2)
    if protocol == SCTP:
        reply[l4 + 8 : l4 + 12] = bytes(4)
        reply[l4 + 8 : l4 + 12] = sctp_crc(bytes(reply[l4:end]))
    if protocol in (ICMP, ICMP6) and end >= l4 + 4 and data[l4] in (8, 128):
        reply[l4] = {8: 0, 128: 129}[data[l4]]
        difference = (reply[l4] - data[l4]) << 8
        checksum = struct.unpack_from(">H", data, l4 + 2)[0]
        reply[l4 + 2 : l4 + 4] = struct.pack(">H", (checksum - difference) % 0xFFFF)
    return bytes(reply)


# ------------------------------------------------------------------------------------------------------- oracle


def verify_checksums(data: bytes) -> list[str]:
    """What scapy finds wrong with the checksums of a frame; empty if nothing is.

    Fragments: only the IPv4 header's can be verified.  A UDP checksum of zero counts as right in IPv4.
    """
    from scapy.layers.inet import IP, in4_chksum
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, in6_chksum
    from scapy.layers.l2 import Ether
    from scapy.layers.sctp import crc32c
    from scapy.utils import checksum

    faults = []
    packet = Ether(data)
    if IP in packet:
        layer = packet[IP]
        l3 = bytes(layer)[: layer.len]
        header, payload = l3[: layer.ihl * 4], l3[layer.ihl * 4 :]
        if checksum(header) != 0:
            faults.append(f"IPv4 header checksum {layer.chksum:#06x}")
        if layer.frag or layer.flags.MF:
            return faults
        protocol = layer.proto

        def over(protocol: int, payload: bytes) -> int:
            return in4_chksum(protocol, layer, payload)

    elif IPv6 in packet:
        layer = packet[IPv6]
        if IPv6ExtHdrFragment in packet:
            fragment = packet[IPv6ExtHdrFragment]
            if fragment.offset or fragment.m:
                return faults
        l3, l4, protocol, _ = headers(data)
        payload = data[l4 : l3 + 40 + layer.plen]

        def over(protocol: int, payload: bytes) -> int:
            return in6_chksum(protocol, layer, payload)

    else:
        return ["not IP"]

    if protocol == ICMP and layer.version == 4:
        if checksum(payload) != 0:
            faults.append("ICMP checksum")
    elif protocol == SCTP:
        expected = crc32c(payload[:8] + bytes(4) + payload[12:])
        if struct.pack(">I", expected) != payload[8:12]:
            faults.append(f"SCTP CRC32C {payload[8:12].hex()} instead of {expected:08x}")
    elif protocol in (TCP, UDP, UDP_LITE, DCCP) or (protocol == ICMP6 and layer.version == 6):
        at = {TCP: 16, UDP: 6, UDP_LITE: 6, DCCP: 6, ICMP6: 2}[protocol]
        stored = struct.unpack_from(">H", payload, at)[0]
        if stored == 0 and protocol == UDP:
            if layer.version == 6:
                faults.append("UDP checksum 0 in IPv6")
        elif over(protocol, payload) not in (0, 0xFFFF):
            faults.append(f"checksum of protocol {protocol} is {stored:#06x}")
    return faults
