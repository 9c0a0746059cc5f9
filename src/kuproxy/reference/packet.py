"""Reading a frame: section kp-input of docs/forwarding.md, in its order."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from kuproxy.codes import PROTOCOLS_WITH_PORTS, Family, Outcome, Protocol, Reason
from kuproxy.model.vip import Address
from kuproxy.reference.checksum import fold, words
from kuproxy.reference.hashes import flow_hash

VLAN_TAGS = (0x8100, 0x88A8)
IPV4_ETHERTYPE = 0x0800
IPV6_ETHERTYPE = 0x86DD

HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS = 0, 43, 44, 60
EXTENSION_HEADERS = (HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS)
MOST_EXTENSION_HEADERS = 8

SHORTEST_HEADER: dict[int, int] = {Protocol.TCP: 20, Protocol.UDP: 8, Protocol.SCTP: 12}

TCP_FIN, TCP_SYN, TCP_RST, TCP_ACK = 0x01, 0x02, 0x04, 0x10

ANY_ADDRESS = IPv4Address(0)


class Refused(Exception):
    """The packet goes no further than kp-input."""

    def __init__(self, outcome: Outcome, reason: Reason):
        super().__init__(f"{outcome.name} {reason.name}")
        self.outcome = outcome
        self.reason = reason


@dataclass(frozen=True)
class Endpoints:
    """What one direction of a flow carries in its headers: the five-tuple."""

    source: Address
    source_port: int
    destination: Address
    destination_port: int
    protocol: int

    def hash(self, key: bytes = b"") -> int:
        """By VPP's hash, or by the keyed one."""
        return flow_hash(self.source, self.destination, self.source_port, self.destination_port, key)


@dataclass(eq=False, slots=True)
class Packet:
    """A frame and what was read from it. Offsets count from its first byte; ports are 0 where there are none."""

    data: bytearray
    interface: int = 0
    partial_checksum: bool = False  # the L4 checksum field holds only the pseudo-header's sum
    room: int = 65535  # bytes that an answer in this packet's place may have
    gso: bool = False  # several segments under one header
    family: Family = Family.NONE
    l3: int = 0
    l4: int = 0
    end: int = 0  # of the IP packet: what follows is padding
    source: Address = ANY_ADDRESS
    destination: Address = ANY_ADDRESS
    protocol: int = 0  # of the innermost header after all extensions
    source_port: int = 0
    destination_port: int = 0
    is_fragment: bool = False
    is_later_fragment: bool = False  # one without an L4 header
    identification: int = 0  # of the datagram that a fragment is part of

    @property
    def has_ports(self) -> bool:
        return self.protocol in PROTOCOLS_WITH_PORTS

    @property
    def is_icmp(self) -> bool:
        """ICMP of this packet's own family (ICMPv6 in IPv4 is some other protocol)."""
        return self.protocol == (Protocol.ICMP if self.family == Family.IPV4 else Protocol.ICMP6)

    @property
    def icmp_type(self) -> int | None:
        """None if it is not ICMP, or a fragment without the ICMP header."""
        return self.data[self.l4] if self.is_icmp and not self.is_later_fragment else None

    @property
    def ttl(self) -> int:
        """TTL or hop limit."""
        return self.data[self.l3 + (8 if self.family == Family.IPV4 else 7)]

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(
            self.source, self.source_port, self.destination, self.destination_port, self.protocol
        )

    def word(self, offset: int) -> int:
        """16 bits in network order."""
        return int.from_bytes(self.data[offset : offset + 2], "big")


def parse(packet: Packet) -> None:
    """Fill in everything behind `room`.  Raises Refused for a packet that is malformed or not IP."""
    ethertype = _parse_ethernet(packet)
    if ethertype == IPV4_ETHERTYPE:
        _parse_ipv4(packet)
    elif ethertype == IPV6_ETHERTYPE:
        _parse_ipv6(packet)
    else:
        raise Refused(Outcome.PASS, Reason.NOT_IP)
    if not packet.is_later_fragment:
        _parse_l4(packet)


def _drop_if(condition: bool, reason: Reason) -> None:
    if condition:
        raise Refused(Outcome.DROP, reason)


def _parse_ethernet(packet: Packet) -> int:
    """The EtherType behind at most two VLAN tags."""
    packet.l3 = 14
    _drop_if(len(packet.data) < packet.l3, Reason.TRUNCATED_ETHERNET)
    for _ in range(2):
        if packet.word(packet.l3 - 2) in VLAN_TAGS:
            packet.l3 += 4
            _drop_if(len(packet.data) < packet.l3, Reason.TRUNCATED_ETHERNET)
    return packet.word(packet.l3 - 2)


def _parse_ipv4(packet: Packet) -> None:
    data, l3 = packet.data, packet.l3
    left = len(data) - l3
    _drop_if(left < 20, Reason.TRUNCATED_IPV4)
    _drop_if(data[l3] >> 4 != 4, Reason.BAD_VERSION)
    header_length = (data[l3] & 0x0F) * 4
    total_length = packet.word(l3 + 2)
    _drop_if(header_length < 20, Reason.BAD_HEADER_LENGTH)
    _drop_if(header_length > left, Reason.TRUNCATED_IPV4)
    _drop_if(not header_length <= total_length <= left, Reason.BAD_TOTAL_LENGTH)
    header = data[l3 : l3 + header_length]
    _drop_if(fold(sum(words(header))) != 0xFFFF, Reason.BAD_IPV4_CHECKSUM)

    packet.family = Family.IPV4
    packet.l4 = l3 + header_length
    packet.end = l3 + total_length
    packet.protocol = data[l3 + 9]
    packet.source = IPv4Address(bytes(data[l3 + 12 : l3 + 16]))
    packet.destination = IPv4Address(bytes(data[l3 + 16 : l3 + 20]))
    more_fragments = bool(packet.word(l3 + 6) & 0x2000)
    offset = packet.word(l3 + 6) & 0x1FFF
    packet.is_fragment = more_fragments or offset != 0
    packet.is_later_fragment = offset != 0
    packet.identification = packet.word(l3 + 4)


def _parse_ipv6(packet: Packet) -> None:
    data, l3 = packet.data, packet.l3
    left = len(data) - l3
    _drop_if(left < 40, Reason.TRUNCATED_IPV6)
    _drop_if(data[l3] >> 4 != 6, Reason.BAD_VERSION)
    payload_length = packet.word(l3 + 4)
    _drop_if(40 + payload_length > left, Reason.BAD_TOTAL_LENGTH)

    packet.family = Family.IPV6
    packet.end = l3 + 40 + payload_length
    packet.source = IPv6Address(bytes(data[l3 + 8 : l3 + 24]))
    packet.destination = IPv6Address(bytes(data[l3 + 24 : l3 + 40]))
    packet.protocol = data[l3 + 6]
    packet.l4 = l3 + 40
    _skip_extension_headers(packet)


def _skip_extension_headers(packet: Packet) -> None:
    """Leaves `protocol` and `l4` at the first header that is none of the four (RFC 8200 section 4)."""
    skipped = 0
    while packet.protocol in EXTENSION_HEADERS and not packet.is_later_fragment:
        _drop_if(skipped == MOST_EXTENSION_HEADERS, Reason.EXTENSION_HEADER_LIMIT)
        at = packet.l4
        _drop_if(at + 8 > packet.end, Reason.TRUNCATED_EXTENSION)
        is_fragment_header = packet.protocol == FRAGMENT_HEADER
        length = 8 if is_fragment_header else (packet.data[at + 1] + 1) * 8
        _drop_if(at + length > packet.end, Reason.TRUNCATED_EXTENSION)
        if is_fragment_header:
            offset, more_fragments = packet.word(at + 2) >> 3, packet.data[at + 3] & 1
            # Neither: an atomic fragment, skipped like any other header (RFC 6946).
            if offset or more_fragments:
                packet.is_fragment = True
                packet.is_later_fragment = offset != 0
                packet.identification = int.from_bytes(packet.data[at + 4 : at + 8], "big")
        packet.protocol = packet.data[at]
        packet.l4 = at + length
        skipped += 1


def _parse_l4(packet: Packet) -> None:
    data, l4 = packet.data, packet.l4
    left = packet.end - l4
    needed = 8 if packet.is_icmp else SHORTEST_HEADER.get(packet.protocol, 0)
    _drop_if(left < needed, Reason.FRAGMENT_FIRST_TOO_SHORT if packet.is_fragment else Reason.TRUNCATED_L4)

    if packet.protocol == Protocol.TCP:
        header_length = (data[l4 + 12] >> 4) * 4
        _drop_if(not 20 <= header_length <= left, Reason.BAD_L4_LENGTH)
    elif packet.protocol == Protocol.UDP:
        length = packet.word(l4 + 4)
        _drop_if(length < 8 or (length > left and not packet.is_fragment), Reason.BAD_L4_LENGTH)
    if packet.has_ports:
        packet.source_port = packet.word(l4)
        packet.destination_port = packet.word(l4 + 2)
