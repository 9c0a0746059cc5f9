"""A packet as a user names it: a 5-tuple, bytes in hexadecimal, or one of a capture."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from kuproxy.codes import Protocol
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import parse_address
from kuproxy.reference.checksum import complete
from kuproxy.reference.hashes import crc32c

__all__ = ["PROTOCOL_WORDS", "FiveTuple", "five_tuple", "frame_of", "from_capture", "from_hex"]

Address = IPv4Address | IPv6Address

PROTOCOL_WORDS = {
    "tcp": Protocol.TCP,
    "udp": Protocol.UDP,
    "sctp": Protocol.SCTP,
    "icmp": Protocol.ICMP,
    "icmp6": Protocol.ICMP6,
}
TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16}
_ETHERTYPES = (0x0800, 0x86DD, 0x8100, 0x88A8)
_MACS = bytes.fromhex("020000000002020000000001")  # ours, the sender's: locally administered, nobody's
_TTL = 64
_ECHO = {Protocol.ICMP: 8, Protocol.ICMP6: 128}


@dataclass(frozen=True, slots=True)
class FiveTuple:
    protocol: Protocol
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    tcp_flags: int = TCP_FLAGS["syn"]


def _end(text: str, field: str, *, port_needed: bool) -> tuple[Address, int]:
    """`10.0.0.1:80`, `[2001::1]:80`, or without ports an address alone."""
    host, port = text, 0
    match = re.fullmatch(r"\[(.+)\]:(\d+)|([^:\[\]]+):(\d+)", text)
    if match:
        host, number = (match[1], match[2]) if match[1] else (match[3], match[4])
        port = int(number)
    elif port_needed:
        hint = "say ADDRESS:PORT, or [ADDRESS]:PORT for IPv6"
        raise ConfigError(Problem(f"{text!r} has no port", field=field, hint=hint))
    try:
        address = parse_address(host.strip("[]"))
    except ValueError as error:
        raise ConfigError(Problem(str(error), field=field)) from None
    if port > 65535:
        raise ConfigError(Problem(f"{port} is not a port", field=field, hint="a port is 0 to 65535"))
    return address, port


def five_tuple(protocol: str, source: str, destination: str, tcp_flags: str = "syn") -> FiveTuple:
    """From words.  Raises ConfigError."""
    kind = PROTOCOL_WORDS.get(protocol.lower())
    if kind is None:
        hint = f"it is one of {', '.join(PROTOCOL_WORDS)}"
        raise ConfigError(Problem(f"{protocol!r} is no protocol", field="PROTOCOL", hint=hint))
    with_ports = kind not in _ECHO
    one, one_port = _end(source, "SOURCE", port_needed=with_ports)
    other, other_port = _end(destination, "DESTINATION", port_needed=with_ports)
    if one.version != other.version:
        raise ConfigError(
            Problem(f"{one} and {other} are of two families", field="DESTINATION", hint="a packet has one")
        )
    if not with_ports and (kind is Protocol.ICMP) != (one.version == 4):
        right = "icmp" if one.version == 4 else "icmp6"
        raise ConfigError(Problem(f"IPv{one.version} has {right}", field="PROTOCOL", hint=f"say {right}"))
    flags = 0
    for word in filter(None, tcp_flags.lower().split(",")):
        if word not in TCP_FLAGS:
            hint = f"they are {', '.join(TCP_FLAGS)}, joined by commas"
            raise ConfigError(Problem(f"{word!r} is no flag", field="--tcp-flags", hint=hint))
        flags |= TCP_FLAGS[word]
    return FiveTuple(kind, one, one_port, other, other_port, flags)


def _segment(packet: FiveTuple) -> tuple[bytes, int]:
    """The IP payload with zeros for the checksum, and where that lies; -1 for SCTP's CRC."""
    ports = struct.pack(">HH", packet.source_port, packet.destination_port)
    if packet.protocol is Protocol.TCP:
        return ports + struct.pack(">IIBBHHH", 1, 0, 5 << 4, packet.tcp_flags, 0xFFFF, 0, 0), 16
    if packet.protocol is Protocol.UDP:
        return ports + struct.pack(">HH", 8, 0), 6
    if packet.protocol is Protocol.SCTP:  # INIT (RFC 9260 section 3.3.2), tag 0 as it must have
        return ports + bytes(8) + struct.pack(">BBHIIHHI", 1, 0, 20, 1, 0xFFFF, 1, 1, 1), -1
    return struct.pack(">BBHHH", _ECHO[packet.protocol], 0, 0, packet.source_port, 1), 2


def frame_of(packet: FiveTuple) -> bytes:
    """The shortest frame with these headers, checksums right: a SYN, an empty datagram, an INIT, an echo request."""
    payload, at = _segment(packet)
    source, destination = packet.source.packed, packet.destination.packed
    if at < 0:
        payload = payload[:8] + struct.pack("<I", crc32c(payload, 0xFFFFFFFF) ^ 0xFFFFFFFF) + payload[12:]
    else:
        pseudo = source + destination + struct.pack(">II", len(payload), packet.protocol)
        checksum = complete((b"" if packet.protocol is Protocol.ICMP else pseudo) + payload)
        if checksum == 0 and packet.protocol is Protocol.UDP:
            checksum = 0xFFFF
        payload = payload[:at] + struct.pack(">H", checksum) + payload[at + 2 :]
    if packet.source.version == 6:
        header = struct.pack(">IHBB", 6 << 28, len(payload), packet.protocol, _TTL) + source + destination
        return _MACS + struct.pack(">H", 0x86DD) + header + payload
    parts = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0x4000, _TTL, packet.protocol)
    checksum = complete(parts + bytes(2) + source + destination)
    header = parts + struct.pack(">H", checksum) + source + destination
    return _MACS + struct.pack(">H", 0x0800) + header + payload


def from_hex(text: str) -> bytes:
    """A frame, or an IP packet, which then gets an Ethernet header.  Spaces, colons and line ends are skipped.

    Raises ConfigError.
    """
    digits = re.sub(r"[\s:]|0x", "", text)
    try:
        data = bytes.fromhex(digits)
    except ValueError:
        wrong = re.search(r"[^0-9a-fA-F]", digits)
        message = f"{wrong[0]!r} is no hexadecimal digit" if wrong else "an odd number of digits"
        raise ConfigError(
            Problem(message, field="--hex", hint="say the bytes of a frame, two digits each")
        ) from None
    if not data:
        raise ConfigError(Problem("is empty", field="--hex", hint="say the bytes of a frame"))
    if len(data) > 65_535:
        raise ConfigError(Problem(f"{len(data)} bytes are too many", field="--hex", hint="65535 at most"))
    if data[0] >> 4 in (4, 6) and int.from_bytes(data[12:14], "big") not in _ETHERTYPES:
        return _MACS + (b"\x08\x00" if data[0] >> 4 == 4 else b"\x86\xdd") + data
    return data


def from_capture(path: Path, number: int) -> tuple[bytes, int, str]:
    """Packet `number`, counted from 1, with its interface's index and name.  Raises DriverError or ConfigError."""
    from kuproxy.drivers.capture.reader import Capture

    capture = Capture(path)
    if not 1 <= number <= len(capture):
        raise ConfigError(
            Problem(f"there is no packet {number}", file=str(path), hint=f"it has {len(capture)}, from 1 on")
        )
    index = int(capture.packets[number - 1]["interface"])
    return capture.packet(number - 1), index, capture.interfaces[index]
