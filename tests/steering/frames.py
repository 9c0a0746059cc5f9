"""Frames for the steering programs, built byte by byte: options, extension headers, fragments and all."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address

HOST = bytes(6)  # the loopback interface's address, on which programs are tried
OTHER_HOST = bytes.fromhex("02aabbccddee")

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58


def ethernet(payload: bytes, kind: int, to: bytes = HOST) -> bytes:
    return to + bytes.fromhex("020000000001") + struct.pack(">H", kind) + payload


def l4(protocol: int, source_port: int, destination_port: int, data: bytes = b"payload!") -> bytes:
    """A header with ports (checksums are nobody's business here), or for other protocols just 8 bytes of it."""
    if protocol == TCP:
        return struct.pack(">HHIIBBHHH", source_port, destination_port, 1, 0, 0x50, 0x02, 1024, 0, 0) + data
    if protocol == UDP:
        return struct.pack(">HHHH", source_port, destination_port, 8 + len(data), 0) + data
    if protocol == SCTP:
        return struct.pack(">HHII", source_port, destination_port, 1, 0) + data
    return bytes([128 if protocol == ICMP6 else 8, 0]) + bytes(6) + data


def error(about: bytes, kind: int, code: int = 0, length: int | None = None) -> bytes:
    """An ICMP or ICMPv6 error that embeds the packet of a frame, or so many bytes of it."""
    return bytes([kind, code]) + bytes(6) + about[14:][:length]


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    options: bytes = b"",
    fragment: int = 0,
    to: bytes = HOST,
) -> bytes:
    """`fragment` is the 16-bit field: flags and offset. `options` in multiples of 4 bytes."""
    assert len(options) % 4 == 0
    header = struct.pack(
        ">BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        0,
        20 + len(options) + len(payload),
        7,
        fragment,
        64,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    return ethernet(header + options + payload, 0x0800, to)


def extension(kind: int, following: int, units: int = 0, fragment: int = 0) -> bytes:
    """An IPv6 extension header; `fragment` is the 16-bit field of a fragment header."""
    if kind == 44:
        return struct.pack(">BBHI", following, 0, fragment, 7)
    return bytes([following, units]) + bytes(6 + 8 * units)


def ipv6(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    extensions: Sequence[tuple[int, int, int]] = (),
    to: bytes = HOST,
) -> bytes:
    """`extensions` are (kind, additional units of 8 bytes, fragment field)."""
    kinds = [kind for kind, _, _ in extensions] + [protocol]
    chain = b"".join(
        extension(kind, kinds[index + 1], units, fragment)
        for index, (kind, units, fragment) in enumerate(extensions)
    )
    header = struct.pack(
        ">IHBB16s16s",
        6 << 28,
        len(chain) + len(payload),
        kinds[0],
        64,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    return ethernet(header + chain + payload, 0x86DD, to)
