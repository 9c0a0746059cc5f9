"""Changing a packet's address and port: sections kp4-nat4, kp6-nat6 of docs/forwarding.md.

Everything incremental: a damaged packet must arrive as damaged as it came, or nobody would ever notice.
"""

from __future__ import annotations

from kuproxy.codes import Family, Protocol
from kuproxy.model.vip import Address
from kuproxy.reference.checksum import changed, changed_sum
from kuproxy.reference.hashes import crc32c
from kuproxy.reference.packet import Packet

DCCP = 33
UDP_LITE = 136

# Where the checksum lies in the headers of the protocols whose checksum covers a pseudo-header.
CHECKSUM_AT: dict[int, int] = {Protocol.TCP: 16, Protocol.UDP: 6, UDP_LITE: 6, DCCP: 6}
ICMP6_CHECKSUM_AT = 2  # in IPv6 only: ICMP of IPv4 has no pseudo-header
SCTP_CHECKSUM_AT = 8


class SctpFragment(Exception):
    """A fragment of an SCTP packet whose port must change: the CRC32C would need the other fragments."""


def set_destination(packet: Packet, address: Address, port: int) -> None:
    """Address, and port of protocols that have one. Raises SctpFragment, with the packet untouched."""
    if not packet.has_ports:
        port = packet.destination_port
    _set(packet, packet.destination, address, packet.destination_port, port, source=False)
    packet.destination = address
    packet.destination_port = port


def set_source(packet: Packet, address: Address, port: int) -> None:
    """Address, and port of protocols that have one. Raises SctpFragment, with the packet untouched."""
    if not packet.has_ports:
        port = packet.source_port
    _set(packet, packet.source, address, packet.source_port, port, source=True)
    packet.source = address
    packet.source_port = port


def port_is_fixed(packet: Packet, source_port: int) -> bool:
    """A fragment of an SCTP packet whose source port would have to become this one."""
    return packet.protocol == Protocol.SCTP and packet.is_fragment and packet.source_port != source_port


def decrement_ttl(packet: Packet) -> None:
    """TTL or hop limit; only IPv4's is covered by a checksum."""
    data, l3 = packet.data, packet.l3
    if packet.family == Family.IPV6:
        data[l3 + 7] -= 1
        return
    old = bytes(data[l3 + 8 : l3 + 10])  # the word that holds it
    data[l3 + 8] -= 1
    _put(packet, l3 + 10, changed(packet.word(l3 + 10), old, data[l3 + 8 : l3 + 10]))


def _set(packet: Packet, old: Address, new: Address, old_port: int, new_port: int, *, source: bool) -> None:
    if packet.protocol == Protocol.SCTP and packet.is_fragment and old_port != new_port:
        raise SctpFragment
    if not packet.is_later_fragment:
        # Without ports, the same zero twice: that changes nothing.
        old_bytes, new_bytes = old_port.to_bytes(2, "big"), new_port.to_bytes(2, "big")
        if packet.protocol == Protocol.SCTP:
            _change_sctp_crc(packet, old_bytes, new_bytes, source=source)
        else:
            _change_l4_checksum(packet, old.packed, new.packed, old_bytes, new_bytes)
        if packet.has_ports:
            _put(packet, packet.l4 + (0 if source else 2), new_port)

    l3 = packet.l3
    if packet.family == Family.IPV4:
        _put(packet, l3 + 10, changed(packet.word(l3 + 10), old.packed, new.packed))
        at = l3 + (12 if source else 16)
    else:
        at = l3 + (8 if source else 24)
    packet.data[at : at + len(new.packed)] = new.packed


def checksum_at(packet: Packet) -> int | None:
    """Offset from the L4 header of a checksum with a pseudo-header; None where there is none."""
    if packet.protocol == Protocol.ICMP6 and packet.family == Family.IPV6:
        return ICMP6_CHECKSUM_AT
    return CHECKSUM_AT.get(packet.protocol)


def _change_l4_checksum(packet: Packet, old: bytes, new: bytes, old_port: bytes, new_port: bytes) -> None:
    at_in_header = checksum_at(packet)
    if at_in_header is None:
        return
    at = packet.l4 + at_in_header
    if at + 2 > packet.end:
        return  # UDP-Lite or DCCP, into which nobody has looked so far, cut short
    checksum = packet.word(at)
    if packet.partial_checksum:
        # The pseudo-header's sum alone: it covers the address, not the port, and is not inverted.
        _put(packet, at, changed_sum(checksum, old, new))
        return
    if packet.protocol == Protocol.UDP and checksum == 0:
        return  # the sender did not compute one (RFC 768)
    checksum = changed(checksum, old + old_port, new + new_port)
    if packet.protocol in (Protocol.UDP, UDP_LITE) and checksum == 0:
        checksum = 0xFFFF  # RFC 768, RFC 3828: zero would mean "none"
    _put(packet, at, checksum)


def _change_sctp_crc(packet: Packet, old_port: bytes, new_port: bytes, *, source: bool) -> None:
    """CRC is linear: crc(a xor b) = crc(a) xor crc(b), with a register that starts at zero for b.

    b is the difference: zero but for the port. It does not cover addresses (RFC 9260 section 6.8).
    """
    if packet.partial_checksum:
        return  # nothing was computed yet, and there is no pseudo-header
    flipped = bytearray(packet.end - packet.l4)
    at = 0 if source else 2
    flipped[at : at + 2] = bytes(a ^ b for a, b in zip(old_port, new_port, strict=True))
    stored = packet.data[packet.l4 + SCTP_CHECKSUM_AT : packet.l4 + SCTP_CHECKSUM_AT + 4]
    crc = int.from_bytes(stored, "little") ^ crc32c(flipped)
    packet.data[packet.l4 + SCTP_CHECKSUM_AT : packet.l4 + SCTP_CHECKSUM_AT + 4] = crc.to_bytes(4, "little")


def _put(packet: Packet, offset: int, word: int) -> None:
    packet.data[offset : offset + 2] = word.to_bytes(2, "big")
