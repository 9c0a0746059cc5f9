"""ARP and neighbour discovery as bytes: what is asked on the link about an address, and what is answered.

RFC 826 and RFC 5227 (ARP probe, announcement, reply), RFC 4861 (neighbour solicitation and advertisement, section
7.2.6 for unsolicited ones) and RFC 4862 (duplicate address detection, which is IPv6's probe).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from kuproxy.model.vip import Address

__all__ = ["Heard", "announcement", "answer", "parse", "probe"]

_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1")
_UNSPECIFIED = IPv6Address("::")
_ARP, _IPV6, _ICMPV6 = 0x0806, 0x86DD, 58
_REQUEST, _REPLY = 1, 2
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOLICITED, _OVERRIDE = 0x40000000, 0x20000000  # RFC 4861 section 4.4; the router flag is not ours to set


class Heard(NamedTuple):
    """What a frame says about an address."""

    address: Address
    mac: bytes  # who says it
    claims: bool  # it has the address, or says so; else it asks
    probes: bool = False  # it asks because it wants the address itself
    asker: Address | None = None  # whom to answer; None: everybody


def _ethernet(destination: bytes, mac: bytes, kind: int, payload: bytes) -> bytes:
    return (destination + mac + struct.pack(">H", kind) + payload).ljust(60, b"\0")


def _arp(operation: int, destination: bytes, mac: bytes, sender: int, target_mac: bytes, target: int) -> bytes:
    fixed = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
    body = mac + sender.to_bytes(4, "big") + target_mac + target.to_bytes(4, "big")
    return _ethernet(destination, mac, _ARP, fixed + body)


def _sum(data: bytes) -> int:
    """RFC 1071's checksum of bytes, an even number of them."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _icmp6(
    mac: bytes, destination_mac: bytes, source: IPv6Address, destination: IPv6Address, message: bytes
) -> bytes:
    """`message`: with a zero checksum.  The hop limit is 255, which shows that no router passed it on (RFC 4861)."""
    pseudo = source.packed + destination.packed + struct.pack(">II", len(message), _ICMPV6)
    message = message[:2] + struct.pack(">H", _sum(pseudo + message)) + message[4:]
    header = struct.pack(">IHBB", 6 << 28, len(message), _ICMPV6, 255)
    return _ethernet(destination_mac, mac, _IPV6, header + source.packed + destination.packed + message)


def _multicast_mac(address: IPv6Address) -> bytes:
    return b"\x33\x33" + address.packed[12:]  # RFC 2464 section 7


def _solicited_node(address: IPv6Address) -> IPv6Address:
    return IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:])  # RFC 4291 section 2.7.1


def probe(address: Address, mac: bytes) -> bytes:
    """Does anybody have it?  In a form that enters no one's table (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2)."""
    if isinstance(address, IPv4Address):
        return _arp(_REQUEST, _BROADCAST, mac, 0, bytes(6), int(address))
    group = _solicited_node(address)
    message = struct.pack(">BBHI", _SOLICITATION, 0, 0, 0) + address.packed
    return _icmp6(mac, _multicast_mac(group), _UNSPECIFIED, group, message)


def _advertisement(address: IPv6Address, mac: bytes, flags: int) -> bytes:
    option = struct.pack(">BB", 2, 1) + mac  # target link-layer address
    return struct.pack(">BBHI", _ADVERTISEMENT, 0, 0, flags) + address.packed + option


def announcement(address: Address, mac: bytes) -> bytes:
    """It is here, for everybody who has it elsewhere (RFC 5227 sections 2.3, 3: a request; RFC 4861 section 7.2.6)."""
    if isinstance(address, IPv4Address):
        return _arp(_REQUEST, _BROADCAST, mac, int(address), bytes(6), int(address))
    message = _advertisement(address, mac, _OVERRIDE)
    return _icmp6(mac, _multicast_mac(_ALL_NODES), address, _ALL_NODES, message)


def answer(heard: Heard, mac: bytes) -> bytes:
    """It is here, for who has asked."""
    address = heard.address
    if isinstance(address, IPv4Address):
        asker = 0 if heard.asker is None else int(heard.asker)
        return _arp(_REPLY, heard.mac, mac, int(address), heard.mac, asker)
    if not isinstance(heard.asker, IPv6Address):  # a probe has no address to be answered at (RFC 4861 section 7.2.4)
        return announcement(address, mac)
    message = _advertisement(address, mac, _SOLICITED | _OVERRIDE)
    return _icmp6(mac, heard.mac, address, heard.asker, message)


def parse(frame: bytes) -> Heard | None:
    """What a frame says about some address; None for all that says nothing, or is not what the RFCs demand."""
    if len(frame) < 14:
        return None
    (kind,) = struct.unpack_from(">H", frame, 12)
    if kind == _ARP and len(frame) >= 42:
        return _parse_arp(frame)
    if kind == _IPV6 and len(frame) >= 78:
        return _parse_icmp6(frame)
    return None


def _parse_arp(frame: bytes) -> Heard | None:
    if frame[14:20] != struct.pack(">HHBB", 1, 0x0800, 6, 4):
        return None
    (operation,) = struct.unpack_from(">H", frame, 20)
    mac, sender = frame[22:28], IPv4Address(frame[28:32])
    target = IPv4Address(frame[38:42])
    if operation not in (_REQUEST, _REPLY):
        return None
    if not int(sender):  # a probe
        return Heard(target, mac, claims=False, probes=True) if operation == _REQUEST else None
    if operation == _REQUEST and sender != target:
        return Heard(target, mac, claims=False, asker=sender)
    return Heard(sender, mac, claims=True)


def _parse_icmp6(frame: bytes) -> Heard | None:
    length, following, hops = struct.unpack_from(">HBB", frame, 18)
    if following != _ICMPV6 or hops != 255 or len(frame) < 54 + length or length < 24:
        return None
    source = IPv6Address(frame[22:38])
    message = frame[54 : 54 + length]
    pseudo = frame[22:54] + struct.pack(">II", length, _ICMPV6)
    padded = message + bytes(length % 2)
    if message[1] or _sum(pseudo + padded):
        return None
    target = IPv6Address(message[8:24])
    if target.is_multicast:
        return None
    mac = frame[6:12]
    if message[0] == _ADVERTISEMENT:
        return Heard(target, mac, claims=True)
    if message[0] == _SOLICITATION:
        probes = source == _UNSPECIFIED
        return Heard(target, mac, claims=False, probes=probes, asker=None if probes else source)
    return None

