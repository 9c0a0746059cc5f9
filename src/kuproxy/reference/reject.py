"""Answers for VIPs without pods: section kp-reject of docs/forwarding.md."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from kuproxy.codes import Family, Protocol
from kuproxy.model.vip import Address
from kuproxy.reference.checksum import complete
from kuproxy.reference.packet import IPV4_ETHERTYPE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Packet

ECHO_REQUEST = {Family.IPV4: 8, Family.IPV6: 128}
PORT_UNREACHABLE = {Family.IPV4: bytes([3, 3]), Family.IPV6: bytes([1, 4])}  # ICMP type, code
HEADER_BYTES = {Family.IPV4: 20, Family.IPV6: 40}
# RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)
MOST_ANSWER_BYTES = {Family.IPV4: 576, Family.IPV6: 1280}
ICMP_HEADER_BYTES = 8
ANSWER_TTL = 64

# Written out: what `is_loopback` and its like say of IPv4-mapped IPv6 addresses differs between versions of Python.
UNSPECIFIED = (ip_address("0.0.0.0"), ip_address("::"))
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1"))
MULTICAST = (ip_network("224.0.0.0/3"), ip_network("ff00::/8"))


def is_loopback(address: Address) -> bool:
    return any(address in network for network in LOOPBACK)


def is_multicast(address: Address) -> bool:
    return any(address in network for network in MULTICAST)


def must_not_be_answered(packet: Packet) -> bool:
    """RFC 1122 section 3.2.2 and RFC 4443 section 2.4 (e): no answer could arrive, or it would answer an answer."""
    return (
        packet.is_later_fragment
        or packet.source in UNSPECIFIED
        or is_loopback(packet.source)
        or is_multicast(packet.source)
        or is_multicast(packet.destination)
        or (packet.protocol == Protocol.TCP and bool(_tcp_flags(packet) & TCP_RST))
        or (packet.is_icmp and packet.icmp_type != ECHO_REQUEST[packet.family])
    )


def is_reset(packet: Packet) -> bool:
    """Whether the answer is a TCP reset, which no rate limits."""
    return packet.protocol == Protocol.TCP


def answer(packet: Packet) -> bytes:
    """The frame that goes back in the packet's place."""
    if is_reset(packet):
        return _frame(packet, Protocol.TCP, _tcp_reset(packet), checksum_at=16)
    return error_frame(packet, PORT_UNREACHABLE[packet.family] + bytes(6), packet.destination)


def error_frame(packet: Packet, head: bytes, origin: Address) -> bytes:
    """An ICMP error about the packet, in its place; `head` is its first eight bytes, checksum 0."""
    headers = HEADER_BYTES[packet.family] + ICMP_HEADER_BYTES
    fits = min(MOST_ANSWER_BYTES[packet.family], packet.room - packet.l3) - headers
    as_it_came = bytes(packet.data[packet.l3 : packet.end])
    protocol = Protocol.ICMP if packet.family == Family.IPV4 else Protocol.ICMP6
    return _frame(packet, protocol, head + as_it_came[:fits], checksum_at=2, origin=origin)


def _tcp_flags(packet: Packet) -> int:
    return packet.data[packet.l4 + 13]


def _tcp_reset(packet: Packet) -> bytes:
    """RFC 9293 section 3.10.7.1."""
    flags = _tcp_flags(packet)
    if flags & TCP_ACK:
        sequence = bytes(packet.data[packet.l4 + 8 : packet.l4 + 12])
        acknowledgement = bytes(4)
        answer_flags = TCP_RST
    else:
        header_length = (packet.data[packet.l4 + 12] >> 4) * 4
        length = packet.end - packet.l4 - header_length + bool(flags & TCP_SYN) + bool(flags & TCP_FIN)
        sequence = bytes(4)
        theirs = int.from_bytes(packet.data[packet.l4 + 4 : packet.l4 + 8], "big")
        acknowledgement = ((theirs + length) & 0xFFFFFFFF).to_bytes(4, "big")
        answer_flags = TCP_RST | TCP_ACK
    ports = packet.destination_port.to_bytes(2, "big") + packet.source_port.to_bytes(2, "big")
    # data offset 5; then window, checksum and urgent pointer, all zero
    return ports + sequence + acknowledgement + bytes([5 << 4, answer_flags]) + bytes(6)


def _frame(
    packet: Packet, protocol: int, payload: bytes, *, checksum_at: int, origin: Address | None = None
) -> bytes:
    """Ethernet with the VLAN tags as they were, a plain IP header, and the payload with its checksum."""
    to, origin_bytes = packet.source.packed, (origin or packet.destination).packed
    pseudo_header = b""
    if protocol != Protocol.ICMP:
        # RFC 9293 section 3.1 and RFC 8200 section 8.1: the same sum, IPv6 merely has wider fields
        pseudo_header = origin_bytes + to + len(payload).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    checksum = complete(pseudo_header + payload).to_bytes(2, "big")
    payload = payload[:checksum_at] + checksum + payload[checksum_at + 2 :]

    ethernet = bytes(packet.data[: packet.l3])
    ethernet = ethernet[6:12] + ethernet[0:6] + ethernet[12:]
    if int.from_bytes(ethernet[-2:], "big") == IPV4_ETHERTYPE:
        # version and header length, TOS 0; length; identification 0, don't fragment, offset 0
        header = bytes([0x45, 0]) + (20 + len(payload)).to_bytes(2, "big") + bytes([0, 0, 0x40, 0])
        header += bytes([ANSWER_TTL, protocol])
        header_checksum = complete(header + bytes(2) + origin_bytes + to)
        header += header_checksum.to_bytes(2, "big") + origin_bytes + to
    else:
        # version, traffic class 0, flow label 0; payload length; next header; hop limit
        header = bytes([0x60, 0, 0, 0]) + len(payload).to_bytes(2, "big") + bytes([protocol, ANSWER_TTL])
        header += origin_bytes + to
    return ethernet + header + payload


class RateLimit:
    """So many answers a second: a bucket of one second's worth, refilled by whole ticks of a tenth of it.

    Counted in tenths of an answer, so that rates that ten does not divide lose nothing.
    """

    def __init__(self, per_second: int):
        self.per_second = per_second
        self.tenths = per_second * 10
        self.since: int | None = None

    def allows(self, now: int) -> bool:
        """Take one answer's worth, if there is."""
        elapsed = 0 if self.since is None else (now - self.since) & 0xFFFFFFFF
        self.since = now
        self.tenths = min(self.per_second * 10, self.tenths + elapsed * self.per_second)
        if self.tenths < 10:
            return False
        self.tenths -= 10
        return True
