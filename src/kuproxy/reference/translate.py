"""Between IPv4 and IPv6 (RFC 7915): section "Translation" of docs/forwarding.md, over bytes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from kuproxy.codes import Family, Protocol, Reason
from kuproxy.model.vip import Address
from kuproxy.reference.checksum import changed, changed_sum, complete
from kuproxy.reference.hashes import crc32c
from kuproxy.reference.packet import FRAGMENT_HEADER, Packet
from kuproxy.reference.rewrite import CHECKSUM_AT, SCTP_CHECKSUM_AT

ECHO = {Family.IPV4: (8, 0), Family.IPV6: (128, 129)}
ICMP_OF = {Family.IPV4: Protocol.ICMP, Family.IPV6: Protocol.ICMP6}
OTHER = {Family.IPV4: Family.IPV6, Family.IPV6: Family.IPV4}
LEAST_MTU6 = 1280
LARGEST_WITHOUT_DF = 1260
PIECE = 1232  # 1280 less both headers
SOURCE_ROUTES = (131, 137)


@dataclass(frozen=True)
class Far:
    """What IPv4 clients and IPv6 clients are called on the other side."""

    prefix: IPv6Network
    pool: IPv4Network | None
    ports: tuple[int, int]

    def mapped(self, address: Address) -> IPv6Address:
        """RFC 6052 section 2.2, for a prefix of 96 bits."""
        return IPv6Address(int(self.prefix.network_address) + int(address))

    def unmapped(self, address: Address) -> IPv4Address | None:
        if address not in self.prefix:
            return None
        return IPv4Address(int(address) & 0xFFFFFFFF)


def other_protocol(protocol: int) -> int:
    return {Protocol.ICMP: Protocol.ICMP6, Protocol.ICMP6: Protocol.ICMP}.get(protocol, protocol)  # type: ignore[call-overload]


def identifier_of(message: bytes | bytearray) -> int:
    return int.from_bytes(message[4:6], "big")


def echo_identifier(packet: Packet) -> int | None:
    """Of an unfragmented echo request or reply of the packet's own family."""
    if packet.is_fragment or packet.icmp_type not in ECHO[packet.family]:
        return None
    return identifier_of(packet.data[packet.l4 : packet.l4 + 8])


def has_source_route(packet: Packet) -> bool:
    """RFC 791 section 3.1: pointer not beyond the length."""
    options = bytes(packet.data[packet.l3 + 20 : packet.l4])
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if len(options) < 2 or options[1] < 2:
            return False
        if options[0] in SOURCE_ROUTES and len(options) > 2:
            return options[2] <= options[1]
        options = options[options[1] :]
    return False


def segments_left_at(packet: Packet) -> int | None:
    """Offset from the IPv6 header of the "segments left" of a routing header that has any."""
    kind, at = packet.data[packet.l3 + 6], packet.l3 + 40
    while at < packet.l4:
        if kind == 43 and packet.data[at + 3]:
            return at + 3 - packet.l3
        length = 8 if kind == FRAGMENT_HEADER else (packet.data[at + 1] + 1) * 8
        kind, at = packet.data[at], at + length
    return None


def refusal(packet: Packet) -> Reason | None:
    """Why a packet has no form in the other family."""
    if packet.is_icmp:
        if packet.is_fragment:
            return Reason.UNTRANSLATABLE_FRAGMENT
        if packet.icmp_type not in ECHO[packet.family]:
            return Reason.UNTRANSLATABLE_ICMP
        return None
    if not packet.has_ports:
        return Reason.UNTRANSLATABLE_PROTOCOL
    first_of_udp = packet.protocol == Protocol.UDP and packet.is_fragment and not packet.is_later_fragment
    has_none = first_of_udp and not packet.partial_checksum and packet.word(packet.l4 + 6) == 0
    return Reason.ZERO_CHECKSUM_FRAGMENT if packet.family == Family.IPV4 and has_none else None


# ------------------------------------------------------------------------------------------------------ headers


@dataclass(frozen=True)
class Header:
    """What both families' headers say."""

    tos: int
    ttl: int
    protocol: int  # of the payload
    offset: int = 0  # of a fragment, in units of 8 bytes
    more: bool = False
    identification: int = 0
    dont_fragment: bool = False


def header_of(packet: Packet) -> Header:
    """Of a parsed packet."""
    return read_header(packet.data, packet.l3, packet.protocol)


def read_header(data: bytes | bytearray, l3: int, protocol: int) -> Header:
    if data[l3] >> 4 == 4:
        field = int.from_bytes(data[l3 + 6 : l3 + 8], "big")
        identification = int.from_bytes(data[l3 + 4 : l3 + 6], "big")
        dont = bool(field & 0x4000)
        return Header(
            data[l3 + 1], data[l3 + 8], protocol, field & 0x1FFF, bool(field & 0x2000), identification, dont
        )
    traffic_class = (data[l3] & 15) << 4 | data[l3 + 1] >> 4
    kind, at = data[l3 + 6], l3 + 40
    offset, more, identification = 0, False, 0
    while kind in (0, 43, 44, 60) and at + 8 <= len(data):
        length = 8 if kind == FRAGMENT_HEADER else (data[at + 1] + 1) * 8
        if kind == FRAGMENT_HEADER:
            field = int.from_bytes(data[at + 2 : at + 4], "big")
            if field & 0xFFF9:
                offset, more = field >> 3, bool(field & 1)
                identification = int.from_bytes(data[at + 6 : at + 8], "big")
            if offset:
                break
        kind, at = data[at], at + length
    return Header(traffic_class, data[l3 + 7], protocol, offset, more, identification)


def ipv6_header(
    header: Header, source: Address, destination: Address, length: int, fragment: bool
) -> bytes:
    """For `length` bytes of payload, with a fragment header if asked for (RFC 7915 section 4.1)."""
    words = (6 << 28 | header.tos << 20).to_bytes(4, "big")
    chain = b""
    if fragment:
        field = header.offset << 3 | header.more
        chain = bytes([header.protocol, 0]) + field.to_bytes(2, "big") + header.identification.to_bytes(4, "big")
    payload_length = (length + len(chain)) & 0xFFFF
    following = FRAGMENT_HEADER if fragment else header.protocol
    tail = bytes([following, header.ttl]) + source.packed + destination.packed
    return words + payload_length.to_bytes(2, "big") + tail + chain


def ipv4_header(header: Header, source: Address, destination: Address, length: int) -> bytes:
    """For `length` bytes of payload (RFC 7915 section 5.1)."""
    total = 20 + length
    is_fragment = header.offset or header.more
    field = header.offset | header.more << 13
    if not is_fragment and total > LARGEST_WITHOUT_DF:
        field = 0x4000
    start = bytes([0x45, header.tos]) + (total & 0xFFFF).to_bytes(2, "big")
    start += header.identification.to_bytes(2, "big") + field.to_bytes(2, "big")
    start += bytes([header.ttl, header.protocol])
    ends = source.packed + destination.packed
    return start + complete(start + bytes(2) + ends).to_bytes(2, "big") + ends


# ---------------------------------------------------------------------------------------------------- transport


@dataclass(frozen=True)
class Ends:
    """Addresses and ports; for an echo, `source_port` is its identifier (None: as it was)."""

    source: Address
    destination: Address
    source_port: int | None = None
    destination_port: int | None = None


def translated_l4(
    l4: bytes, protocol: int, old: Ends, new: Ends, length: int, *, partial: bool = False, whole: bool = True
) -> bytes:
    """The payload in the other family. `length` is what its header says, of which less may be quoted."""
    if protocol in (Protocol.ICMP, Protocol.ICMP6):
        return _translated_echo(l4, old, new, length, partial)
    data = bytearray(l4)
    old_ports = bytes(data[:4])
    assert new.source_port is not None and new.destination_port is not None
    new_ports = new.source_port.to_bytes(2, "big") + new.destination_port.to_bytes(2, "big")
    data[:4] = new_ports
    if protocol == Protocol.SCTP:
        if whole and not partial:
            flipped = bytes(a ^ b for a, b in zip(old_ports, new_ports, strict=True)).ljust(len(data), b"\0")
            at = SCTP_CHECKSUM_AT
            crc = int.from_bytes(data[at : at + 4], "little") ^ crc32c(flipped)
            data[at : at + 4] = crc.to_bytes(4, "little")
        return bytes(data)
    at = CHECKSUM_AT[protocol]
    if at + 2 > len(data):
        return bytes(data)
    checksum = int.from_bytes(data[at : at + 2], "big")
    old_ends, new_ends = old.source.packed + old.destination.packed, new.source.packed + new.destination.packed
    if partial:
        checksum = changed_sum(checksum, old_ends, new_ends)
    elif protocol == Protocol.UDP and checksum == 0:
        return bytes(data)
    else:
        checksum = changed(checksum, old_ends + old_ports, new_ends + new_ports)
        if protocol == Protocol.UDP and checksum == 0:
            checksum = 0xFFFF
    data[at : at + 2] = checksum.to_bytes(2, "big")
    return bytes(data)


def _pseudo6(ends: Ends, length: int, protocol: int = Protocol.ICMP6) -> bytes:
    if ends.source.version == 4:
        return b""
    return ends.source.packed + ends.destination.packed + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


def _translated_echo(l4: bytes, old: Ends, new: Ends, length: int, partial: bool) -> bytes:
    data = bytearray(l4)
    is_request = data[0] in (8, 128)
    data[0] = ECHO[Family(new.source.version)][0 if is_request else 1]
    if new.source_port is not None:
        data[4:6] = new.source_port.to_bytes(2, "big")
    if partial:
        data[2:4] = bytes(2)
        checksum = complete(_pseudo6(new, len(data)) + bytes(data))
    else:
        before = bytes(l4[:2]) + bytes(l4[4:6]) + _pseudo6(old, length)
        after = bytes(data[:2]) + bytes(data[4:6]) + _pseudo6(new, length)
        checksum = changed(int.from_bytes(data[2:4], "big"), before, after)
    data[2:4] = checksum.to_bytes(2, "big")
    return bytes(data)


def with_udp_checksum(l4: bytes, ends: Ends) -> bytes:
    """RFC 7915 section 4.5."""
    length = int.from_bytes(l4[4:6], "big")
    checksum = complete(_pseudo6(ends, length, Protocol.UDP) + l4[:length]) or 0xFFFF
    return l4[:6] + checksum.to_bytes(2, "big") + l4[8:]


def with_complete_checksum(l4: bytes, protocol: int) -> bytes:
    """A partial checksum, which is the pseudo-header's sum, completed."""
    at = CHECKSUM_AT[protocol]
    checksum = complete(l4)
    if checksum == 0 and protocol == Protocol.UDP:
        checksum = 0xFFFF
    return l4[:at] + checksum.to_bytes(2, "big") + l4[at + 2 :]


def ethernet_of(packet: Packet, family: Family) -> bytes:
    ethertype = b"\x08\x00" if family == Family.IPV4 else b"\x86\xdd"
    return bytes(packet.data[: packet.l3 - 2]) + ethertype


# ---------------------------------------------------------------------------------------------------- ICMP errors


@dataclass(frozen=True)
class Quoted:
    """What can be read of the packet that an ICMP error embeds."""

    at: int
    l4: int
    header: Header
    ends: Ends  # ports 0 without
    length: int  # of its payload, as its header tells
    identifier: int = 0

    @property
    def protocol(self) -> int:
        return self.header.protocol


def read_quoted(packet: Packet) -> Quoted | None:
    """None for later fragments, for ICMP errors, and for what is cut before its ports."""
    data, at, end = packet.data, packet.l4 + 8, packet.end
    if packet.family == Family.IPV4:
        if end - at < 20 or data[at] >> 4 != 4:
            return None
        l4 = at + (data[at] & 15) * 4
        if l4 < at + 20 or l4 > end or packet.word(at + 6) & 0x1FFF:
            return None
        protocol = data[at + 9]
        length = packet.word(at + 2) - (l4 - at)
        if length < 0:
            return None
        source, destination = data[at + 12 : at + 16], data[at + 16 : at + 20]
    else:
        if end - at < 40 or data[at] >> 4 != 6:
            return None
        protocol, l4 = data[at + 6], at + 40
        for seen in range(10):
            if protocol not in (0, 43, 44, 60):
                break
            if seen == 8 or end - l4 < 8:
                return None
            size = 8 if protocol == FRAGMENT_HEADER else (data[l4 + 1] + 1) * 8
            if end - l4 < size or (protocol == FRAGMENT_HEADER and packet.word(l4 + 2) >> 3):
                return None
            protocol, l4 = data[l4], l4 + size
        length = packet.word(at + 4) + 40 - (l4 - at)
        if length < 0:
            return None
        source, destination = data[at + 8 : at + 24], data[at + 24 : at + 40]
    header = read_header(data[:end], at, protocol)
    addresses = ip_address(bytes(source)), ip_address(bytes(destination))
    if protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP):
        if end - l4 < 8:
            return None
        return Quoted(at, l4, header, Ends(*addresses, packet.word(l4), packet.word(l4 + 2)), length)
    identifier = 0
    if protocol == ICMP_OF[packet.family]:
        errors = (3, 4, 5, 11, 12) if packet.family == Family.IPV4 else range(128)
        if end - l4 < 8 or data[l4] in errors:
            return None
        identifier = packet.word(l4 + 4)
    return Quoted(at, l4, header, Ends(*addresses, 0, 0), length, identifier)


PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)  # RFC 1191 section 7.1
POINTER_TO_6 = {0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6} | dict.fromkeys(range(12, 16), 8) | dict.fromkeys(range(16, 20), 24)
POINTER_TO_4 = (
    {0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8} | dict.fromkeys(range(8, 24), 12) | dict.fromkeys(range(24, 40), 16)
)
TO_6 = {
    **{(3, code): (1, 0) for code in (0, 1, 5, 6, 7, 8, 11, 12)},
    **{(3, code): (1, 1) for code in (9, 10, 13, 15)},
    (3, 2): (4, 1),
    (3, 3): (1, 4),
    (3, 4): (2, 0),
    (11, 0): (3, 0),
    (11, 1): (3, 1),
    (12, 0): (4, 0),
    (12, 2): (4, 0),
}
TO_4 = {
    (1, 0): (3, 1),
    (1, 1): (3, 10),
    (1, 2): (3, 1),
    (1, 3): (3, 1),
    (1, 4): (3, 3),
    (3, 0): (11, 0),
    (3, 1): (11, 1),
    (4, 0): (12, 0),
    (4, 1): (3, 2),
}


def counterpart(packet: Packet, mtu_of_links: int = 0) -> tuple[int, int, int] | None:
    """Type, code and second word of the error in the other family (RFC 7915 sections 4.2 and 5.2).

    No larger MTU is told than that of our links, if it is known.
    """
    limit = mtu_of_links or 2**32
    kind, code = packet.data[packet.l4], packet.data[packet.l4 + 1]
    rest = int.from_bytes(packet.data[packet.l4 + 4 : packet.l4 + 8], "big")
    if packet.family == Family.IPV6:
        if kind == 2:
            return 3, 4, max(0, min(rest - 20, limit - 20, 0xFFFF))
        if (kind, code) not in TO_4 or ((kind, code) == (4, 0) and rest not in POINTER_TO_4):
            return None
        return *TO_4[kind, code], POINTER_TO_4[rest] << 24 if (kind, code) == (4, 0) else 0
    if (kind, code) not in TO_6:
        return None
    if (kind, code) == (3, 4):
        mtu = rest & 0xFFFF
        if mtu == 0:
            length = packet.word(packet.l4 + 8 + 2)
            mtu = next((plateau for plateau in PLATEAUS if plateau < length), 68)
        return 2, 0, max(LEAST_MTU6, min(mtu + 20, limit))
    if (kind, code) == (3, 2):
        return 4, 1, 6
    if kind == 12:
        pointer = POINTER_TO_6.get(rest >> 24)
        return None if pointer is None else (4, 0, pointer)
    return *TO_6[kind, code], 0
