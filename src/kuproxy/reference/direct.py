"""Direct return: sections "Tunnels" and kp-l3dsr of docs/forwarding.md. Pods answer the client without us."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kuproxy.codes import Encap, Family, Node, Protocol, Reason
from kuproxy.model.vip import Address, Vip
from kuproxy.reference import rewrite
from kuproxy.reference.checksum import changed, fold, words
from kuproxy.reference.hashes import crc32c
from kuproxy.reference.numbers import Numbers
from kuproxy.reference.packet import IPV4_ETHERTYPE, IPV6_ETHERTYPE, Packet

NODES = {Encap.GRE: Node.GRE, Encap.IPIP: Node.IPIP, Encap.GUE: Node.GUE, Encap.L3DSR: Node.L3DSR}

GRE_PROTOCOL = 47
INSIDE = {Family.IPV4: 4, Family.IPV6: 41}  # as IP protocols
ETHERTYPE = {Family.IPV4: IPV4_ETHERTYPE, Family.IPV6: IPV6_ETHERTYPE}
TUNNEL_HEADER = {Encap.GRE: 4, Encap.IPIP: 0, Encap.GUE: 12}
IP_HEADER = {Family.IPV4: 20, Family.IPV6: 40}
TTL = 64
DONT_FRAGMENT = 0x4000


class NoTunnel(Exception):
    """The packet cannot enter the tunnel."""

    def __init__(self, reason: Reason):
        super().__init__(reason.name)
        self.reason = reason


@dataclass
class Tunnels:
    """Our outer addresses, and the numbering of what routers may fragment."""

    ipv4: Address | None
    ipv6: Address | None
    identifications: Numbers

    def source(self, family: Family) -> Address:
        source = self.ipv4 if family == Family.IPV4 else self.ipv6
        if source is None:
            raise NoTunnel(Reason.TUNNEL_NO_SOURCE)
        return source

    def encapsulate(self, packet: Packet, vip: Vip, pod: Address, flow_hash: int) -> bytearray:
        """The frame with the outer headers. Raises NoTunnel."""
        family = Family(pod.version)
        source = self.source(family)
        ip_length = IP_HEADER[family] + TUNNEL_HEADER[vip.encap] + packet.end - packet.l3
        if ip_length > 65535 + (0 if family == Family.IPV4 else 40):
            raise NoTunnel(Reason.TUNNEL_TOO_LONG)
        if packet.partial_checksum:
            complete_checksum(packet)
        inner = bytes(packet.data[packet.l3 : packet.end])
        if vip.encap is Encap.GRE:
            protocol, payload = GRE_PROTOCOL, struct.pack(">HH", 0, ETHERTYPE[packet.family]) + inner
        elif vip.encap is Encap.IPIP:
            protocol, payload = INSIDE[packet.family], inner
        else:
            protocol = int(Protocol.UDP)
            payload = _gue(packet, inner, vip.gue_port, flow_hash, source, pod)
        ethernet = bytes(packet.data[: packet.l3 - 2]) + struct.pack(">H", ETHERTYPE[family])
        if family == Family.IPV4:
            header = self._ipv4(packet, protocol, payload, source, pod)
        else:
            first = 6 << 28 | _traffic_class(packet) << 20 | flow_hash & 0xFFFFF
            header = struct.pack(">IHBB", first, len(payload), protocol, TTL) + source.packed + pod.packed
        return bytearray(ethernet + header + payload)

    def _ipv4(
        self, packet: Packet, protocol: int, payload: bytes, source: Address, destination: Address
    ) -> bytes:
        flags = packet.word(packet.l3 + 6) & DONT_FRAGMENT if packet.family == Family.IPV4 else 0
        identification = 0
        if not flags:
            identification = self.identifications.next()
        header = bytearray(
            struct.pack(
                ">BBHHHBBH",
                0x45,
                _traffic_class(packet),
                20 + len(payload),
                identification,
                flags,
                TTL,
                protocol,
                0,
            )
            + source.packed
            + destination.packed
        )
        header[10:12] = _checksum(bytes(header))
        return bytes(header)


def _gue(packet: Packet, inner: bytes, port: int, flow_hash: int, source: Address, pod: Address) -> bytes:
    """UDP and GUE headers and what is inside. Over IPv6 with a checksum, over IPv4 without."""
    source_port = 0xC000 | flow_hash & 0x3FFF
    length = 12 + len(inner)
    data = struct.pack(">HHHHBBH", source_port, port, length, 0, 0, INSIDE[packet.family], 0) + inner
    if pod.version == 6:
        pseudo = source.packed + pod.packed + struct.pack(">II", length, Protocol.UDP)
        checksum = _checksum(pseudo + data)
        data = data[:6] + (b"\xff\xff" if checksum == b"\0\0" else checksum) + data[8:]
    return data


def _checksum(data: bytes) -> bytes:
    return (fold(sum(words(data))) ^ 0xFFFF).to_bytes(2, "big")


def _traffic_class(packet: Packet) -> int:
    if packet.family == Family.IPV4:
        return packet.data[packet.l3 + 1]
    return packet.word(packet.l3) >> 4 & 0xFF


def complete_checksum(packet: Packet) -> None:
    """The pseudo-header's sum in the field becomes the whole checksum; fragments never have a partial one."""
    if not packet.is_fragment:
        if packet.protocol == Protocol.SCTP:
            at = packet.l4 + rewrite.SCTP_CHECKSUM_AT
            packet.data[at : at + 4] = bytes(4)
            crc = crc32c(bytes(packet.data[packet.l4 : packet.end]), 0xFFFFFFFF) ^ 0xFFFFFFFF
            packet.data[at : at + 4] = crc.to_bytes(4, "little")
        else:
            _complete_sum(packet)
    packet.partial_checksum = False


def _complete_sum(packet: Packet) -> None:
    at_in_header = rewrite.checksum_at(packet)
    if at_in_header is None or packet.l4 + at_in_header + 2 > packet.end:
        return
    checksum = _checksum(bytes(packet.data[packet.l4 : packet.end]))
    if packet.protocol in (Protocol.UDP, rewrite.UDP_LITE) and checksum == b"\0\0":
        checksum = b"\xff\xff"
    at = packet.l4 + at_in_header
    packet.data[at : at + 2] = checksum


def set_dscp(packet: Packet, dscp: int) -> None:
    """Its six bits of TOS or traffic class; ECN's two stay."""
    data, l3 = packet.data, packet.l3
    old = bytes(data[l3 : l3 + 2])
    new_class = dscp << 2 | _traffic_class(packet) & 3
    if packet.family == Family.IPV4:
        data[l3 + 1] = new_class
        checksum = changed(packet.word(l3 + 10), old, bytes(data[l3 : l3 + 2]))
        data[l3 + 10 : l3 + 12] = checksum.to_bytes(2, "big")
    else:
        word = packet.word(l3) & 0xF00F | new_class << 4
        data[l3 : l3 + 2] = word.to_bytes(2, "big")
