"""ICMP errors: ours, and those of others about packets that we changed. Sections kp-icmp and kp-icmp-error."""

from __future__ import annotations

from enum import Enum

from kuproxy.codes import Family, Protocol, Reason
from kuproxy.model.vip import Address
from kuproxy.reference.checksum import changed, complete
from kuproxy.reference.packet import Packet
from kuproxy.reference.reject import (
    ANSWER_TTL,
    UNSPECIFIED,
    error_frame,
    is_loopback,
    is_multicast,
)
from kuproxy.reference.rewrite import CHECKSUM_AT, ICMP6_CHECKSUM_AT, UDP_LITE
from kuproxy.reference.translate import (
    LEAST_MTU6,
    Ends,
    Header,
    Quoted,
    ethernet_of,
    header_of,
    ipv4_header,
    ipv6_header,
    other_protocol,
    translated_l4,
)

ERRORS = {Family.IPV4: (3, 4, 5, 11, 12), Family.IPV6: range(128)}


class Say(Enum):
    """What kp-icmp shall send."""

    TIME_EXCEEDED = Reason.TIME_EXCEEDED_SENT
    TOO_BIG = Reason.PACKET_TOO_BIG_SENT
    SOURCE_ROUTE = Reason.SOURCE_ROUTE_SENT
    PARAMETER_PROBLEM = Reason.PARAMETER_PROBLEM_SENT
    ECHO_REPLY = Reason.ECHO_ANSWERED


TYPE_AND_CODE = {
    (Say.TIME_EXCEEDED, Family.IPV4): (11, 0),
    (Say.TIME_EXCEEDED, Family.IPV6): (3, 0),
    (Say.TOO_BIG, Family.IPV4): (3, 4),
    (Say.TOO_BIG, Family.IPV6): (2, 0),
    (Say.SOURCE_ROUTE, Family.IPV4): (3, 5),
    (Say.PARAMETER_PROBLEM, Family.IPV6): (4, 0),
}


def may_be_told(packet: Packet) -> bool:
    """Not if the answer could go nowhere, or to many."""
    return not (
        packet.source in UNSPECIFIED
        or is_loopback(packet.source)
        or is_multicast(packet.source)
        or is_multicast(packet.destination)
    )


def may_be_error(packet: Packet) -> bool:
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)."""
    return not packet.is_later_fragment and not is_error(packet) and may_be_told(packet)


def is_error(packet: Packet) -> bool:
    return packet.icmp_type is not None and packet.icmp_type in ERRORS[packet.family]


def own_error(packet: Packet, say: Say, value: int, own: Address | None) -> bytes:
    """The frame that goes back in the packet's place."""
    kind = bytes(TYPE_AND_CODE[say, packet.family])
    return error_frame(packet, kind + bytes(2) + value.to_bytes(4, "big"), own or packet.destination)


def echo_reply(packet: Packet) -> bytes:
    """Addresses swapped, type changed, everything else as it came."""
    data = bytearray(packet.data)
    data[0:6], data[6:12] = data[6:12], data[0:6]
    l3, l4 = packet.l3, packet.l4
    if packet.family == Family.IPV4:
        data[l3 + 8] = ANSWER_TTL
        data[l3 + 12 : l3 + 20] = packet.destination.packed + packet.source.packed
        data[l3 + 10 : l3 + 12] = bytes(2)
        data[l3 + 10 : l3 + 12] = complete(bytes(data[l3:l4])).to_bytes(2, "big")
    else:
        data[l3 + 7] = ANSWER_TTL
        data[l3 + 8 : l3 + 40] = packet.destination.packed + packet.source.packed
    old = bytes(data[l4 : l4 + 2])
    data[l4] = 0 if packet.family == Family.IPV4 else 129
    if not packet.partial_checksum:
        checksum = changed(packet.word(l4 + 2), old, data[l4 : l4 + 2])
        data[l4 + 2 : l4 + 4] = checksum.to_bytes(2, "big")
    return bytes(data)


def has_good_checksum(packet: Packet) -> bool:
    message = bytes(packet.data[packet.l4 : packet.end])
    return complete(_pseudo_header(packet.family, packet.source, packet.destination, len(message)) + message) == 0


def _pseudo_header(family: Family, source: Address, destination: Address, length: int) -> bytes:
    if family == Family.IPV4:
        return b""
    return source.packed + destination.packed + length.to_bytes(4, "big") + bytes([0, 0, 0, Protocol.ICMP6])


def _with_checksum(family: Family, source: Address, destination: Address, message: bytes) -> bytes:
    message = message[:2] + bytes(2) + message[4:]
    checksum = complete(_pseudo_header(family, source, destination, len(message)) + message)
    return message[:2] + checksum.to_bytes(2, "big") + message[4:]


def rewritten_quote(
    packet: Packet, quoted: Quoted, address: Address, port: int, *, source: bool, quote: bytes | None = None
) -> bytes:
    """The embedded packet, or what became of it (`quote`), with another source or destination in its own family."""
    data = bytearray(quote or packet.data[quoted.at : packet.end])
    l4 = quoted.l4 - quoted.at
    old = quoted.ends.source if source else quoted.ends.destination
    before, after = old.packed, address.packed
    if packet.family == Family.IPV4:
        checksum = changed(int.from_bytes(data[10:12], "big"), before, after)
        data[10:12] = checksum.to_bytes(2, "big")
        at = 12 if source else 16
    else:
        at = 8 if source else 24
    data[at : at + len(after)] = after
    if quoted.protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP):
        place = l4 + (0 if source else 2)
        before, after = before + bytes(data[place : place + 2]), after + port.to_bytes(2, "big")
        data[place : place + 2] = port.to_bytes(2, "big")
    at = CHECKSUM_AT.get(quoted.protocol, 0)
    if quoted.protocol == Protocol.ICMP6 and packet.family == Family.IPV6:
        at = ICMP6_CHECKSUM_AT
    if at and l4 + at + 2 <= len(data):
        checksum = int.from_bytes(data[l4 + at : l4 + at + 2], "big")
        if quoted.protocol != Protocol.UDP or checksum != 0:
            checksum = changed(checksum, before, after)
            if checksum == 0 and quoted.protocol in (Protocol.UDP, UDP_LITE):
                checksum = 0xFFFF
            data[l4 + at : l4 + at + 2] = checksum.to_bytes(2, "big")
    return bytes(data)


def same_family_error(
    packet: Packet, quote: bytes, source: Address, destination: Address, decrement: bool
) -> bytes:
    """The error with another embedded packet and other addresses. Padding stays."""
    data = bytearray(packet.data)
    l3, l4, end = packet.l3, packet.l4, packet.end
    if packet.family == Family.IPV4:
        before = bytes(data[l3 + 8 : l3 + 10] + data[l3 + 12 : l3 + 20])
        data[l3 + 8] -= decrement
        data[l3 + 12 : l3 + 20] = source.packed + destination.packed
        after = bytes(data[l3 + 8 : l3 + 10] + data[l3 + 12 : l3 + 20])
        data[l3 + 10 : l3 + 12] = changed(packet.word(l3 + 10), before, after).to_bytes(2, "big")
    else:
        data[l3 + 7] -= decrement
        data[l3 + 8 : l3 + 40] = source.packed + destination.packed
    message = bytes(data[l4 : l4 + 8]) + quote
    data[l4:end] = _with_checksum(packet.family, source, destination, message)
    return bytes(data)


def crossed_error(
    packet: Packet,
    quoted: Quoted,
    told: tuple[int, int, int],
    outer: Ends,
    inner: Ends,
    *,
    decrement: bool,
    identification: int,
) -> bytes:
    """The error in the other family, with the packet that it embeds."""
    kind, code, rest = told
    family = Family(outer.source.version)
    l4 = bytes(packet.data[quoted.l4 : packet.end])
    l4 = translated_l4(l4, quoted.protocol, quoted.ends, inner, quoted.length, whole=False)
    header = quoted.header
    new = Header(
        header.tos,
        header.ttl,
        other_protocol(header.protocol),
        0,
        header.more,
        header.identification if family == Family.IPV6 or header.more else 0,
    )
    if family == Family.IPV6:
        quote = ipv6_header(new, inner.source, inner.destination, quoted.length, header.more) + l4
        quote = quote[: LEAST_MTU6 - 48]
    else:
        quote = ipv4_header(new, inner.source, inner.destination, quoted.length) + l4
    message = bytes([kind, code, 0, 0]) + rest.to_bytes(4, "big") + quote
    message = _with_checksum(family, outer.source, outer.destination, message)
    outside = header_of(packet)
    protocol = Protocol.ICMP6 if family == Family.IPV6 else Protocol.ICMP
    front = Header(outside.tos, outside.ttl - decrement, protocol, identification=identification)
    if family == Family.IPV6:
        ip = ipv6_header(front, outer.source, outer.destination, len(message), False)
    else:
        ip = ipv4_header(front, outer.source, outer.destination, len(message))
    return ethernet_of(packet, family) + ip + message
