"""The pcapng format (draft-ietf-opsawg-pcapng): blocks of [type, length, body, length], padded to 4 bytes.

A section header block opens a section and fixes its byte order; interface description blocks number the
section's interfaces; enhanced, simple and (obsolete) packet blocks hold packets.  Packet blocks are walked by
a kernel, which skips unknown blocks and returns to Python for the two rare kinds.
"""

import struct

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.memory import clear_bytes, copy_bytes, load16, load32, store32, swap16, swap32
from kuproxy.drivers.capture.problems import ETHERNET, MAX_PACKET, Stop

SECTION = 0x0A0D0D0A  # the same in both byte orders
INTERFACE_BLOCK = 1
PACKET_BLOCK = 2  # obsolete
SIMPLE_PACKET = 3
ENHANCED_PACKET = 6
BYTE_ORDER_MAGIC = 0x1A2B3C4D

OPTION_END = 0
OPTION_NAME = 2  # if_name
OPTION_RESOLUTION = 9  # if_tsresol
OPTION_OFFSET = 14  # if_tsoffset
OPTION_APPLICATION = 4  # shb_userappl
MICROSECONDS = 6  # if_tsresol when not said: 10^-6

# One interface of the current section.
INTERFACE = np.dtype(
    [
        ("ordinal", "<i8"),  # among the interfaces of the whole file
        ("link_type", "<i8"),
        ("snaplen", "<i8"),  # 0: no limit
        ("resolution", "<i8"),  # if_tsresol: units of 10^-n s, or with bit 7 of 2^-n s
        ("offset_s", "<i8"),  # if_tsoffset: added to every timestamp
    ]
)

ARRAY_FULL, END = int(Stop.ARRAY_FULL), int(Stop.END)
AT_SECTION, AT_INTERFACE = int(Stop.SECTION), int(Stop.INTERFACE)
CUT_BLOCK, TOO_LONG, BLOCK_BODY = int(Stop.CUT_BLOCK), int(Stop.TOO_LONG), int(Stop.BLOCK_BODY)
BLOCK_LENGTH, BLOCK_TRAILER = int(Stop.BLOCK_LENGTH), int(Stop.BLOCK_TRAILER)
NO_INTERFACE, LINK_TYPE = int(Stop.NO_INTERFACE), int(Stop.LINK_TYPE)

_NS = np.uint64(1_000_000_000)
_TIME_MASK = np.uint64((1 << 63) - 1)
_FRACTION_BITS = 34  # 2^34 * 10^9 still fits 64 bits


@kernel
def _read32(data, position, swapped):
    value = load32(data, position)
    return swap32(value) if swapped else value


@kernel
def _read16(data, position, swapped):
    value = load16(data, position)
    return swap16(value) if swapped else value


@kernel
def to_ns(ticks, resolution, offset_s):
    """Nanoseconds since the epoch of a timestamp (uint64) in an interface's units. Wraps after 2262."""
    exponent = resolution & 0x7F
    if resolution & 0x80:
        shift = np.uint64(exponent)
        whole = ticks >> shift
        fraction = ticks & ((np.uint64(1) << shift) - np.uint64(1))
        if exponent > _FRACTION_BITS:
            fraction = fraction >> np.uint64(exponent - _FRACTION_BITS)
            shift = np.uint64(_FRACTION_BITS)
        ns = whole * _NS + ((fraction * _NS) >> shift)
    else:
        scale = np.uint64(1)
        for _ in range(abs(exponent - 9)):
            scale = scale * np.uint64(10)
        if exponent <= 9:
            ns = ticks * scale
        else:
            ns = ticks // scale
    return np.int64(ns & _TIME_MASK) + offset_s * 1_000_000_000


@kernel
def index_blocks(data, position, swapped, interfaces, last_ns, packets):
    """Index the packets from the block at data[position] on. Returns (position, count, last time, Stop).

    `interfaces` (INTERFACE) are those described so far in this section.  Simple packets carry no time: they
    get that of the packet before.  `position` points at the block that stopped the walk.
    """
    end = len(data)
    n = 0
    while position < end:
        if n == len(packets):
            return position, n, last_ns, ARRAY_FULL
        if position + 12 > end:
            return position, n, last_ns, CUT_BLOCK
        kind = _read32(data, position, swapped)
        if kind == SECTION:  # its length may be in the other byte order
            return position, n, last_ns, AT_SECTION
        length = _read32(data, position + 4, swapped)
        if length < 12 or length & 3:
            return position, n, last_ns, BLOCK_LENGTH
        if position + length > end:
            return position, n, last_ns, CUT_BLOCK
        if _read32(data, position + length - 4, swapped) != length:
            return position, n, last_ns, BLOCK_TRAILER
        if kind == INTERFACE_BLOCK:
            return position, n, last_ns, AT_INTERFACE
        if kind != ENHANCED_PACKET and kind != SIMPLE_PACKET and kind != PACKET_BLOCK:
            position += length
            continue

        fields = 16 if kind == SIMPLE_PACKET else 32  # bytes of the block that are neither packet nor option
        if length < fields:
            return position, n, last_ns, BLOCK_BODY
        which = np.int64(0)
        if kind == ENHANCED_PACKET:
            which = np.int64(_read32(data, position + 8, swapped))
        elif kind == PACKET_BLOCK:
            which = np.int64(_read16(data, position + 8, swapped))
        if which >= len(interfaces):
            return position, n, last_ns, NO_INTERFACE
        interface = interfaces[which]
        if interface["link_type"] != ETHERNET:
            return position, n, last_ns, LINK_TYPE

        if kind == SIMPLE_PACKET:
            original = np.int64(_read32(data, position + 8, swapped))
            snaplen = np.int64(interface["snaplen"])
            captured = min(original, snaplen) if snaplen > 0 else original
            body = position + 12
        else:
            high = np.uint64(_read32(data, position + 12, swapped))
            low = np.uint64(_read32(data, position + 16, swapped))
            captured = np.int64(_read32(data, position + 20, swapped))
            original = np.int64(_read32(data, position + 24, swapped))
            resolution, offset_s = np.int64(interface["resolution"]), np.int64(interface["offset_s"])
            last_ns = to_ns(high << np.uint64(32) | low, resolution, offset_s)
            body = position + 28
        if captured > MAX_PACKET:
            return position, n, last_ns, TOO_LONG
        if captured > length - fields:
            return position, n, last_ns, BLOCK_BODY
        p = packets[n]
        p["offset"] = body
        p["time_ns"] = last_ns
        p["captured"] = captured
        p["original"] = max(original, captured)
        p["interface"] = interface["ordinal"]
        p["has_vnet"] = 0
        n += 1
        position += length
    return position, n, last_ns, END


@kernel
def encode_block(buffer, position, data, start, length, original, time_ns, interface):
    """Write one enhanced packet block at buffer[position], in nanoseconds. Returns the position behind it."""
    padded = (length + 3) & ~3
    total = 32 + padded
    store32(buffer, position, ENHANCED_PACKET)
    store32(buffer, position + 4, total)
    store32(buffer, position + 8, interface)
    store32(buffer, position + 12, time_ns >> 32 & 0xFFFFFFFF)
    store32(buffer, position + 16, time_ns & 0xFFFFFFFF)
    store32(buffer, position + 20, length)
    store32(buffer, position + 24, original)
    body = position + 28
    copy_bytes(buffer, body, data, start, length)
    clear_bytes(buffer, body + length, padded - length)
    store32(buffer, body + padded, total)
    return position + total


# ------------------------------------------------------------------------- the rare blocks, in plain Python


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("<II", kind, total) + body + struct.pack("<I", total)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def section_header() -> bytes:
    """A section header block of ours: little-endian, version 1.0, length not given."""
    options = _option(OPTION_APPLICATION, b"kuproxy") + _option(OPTION_END, b"")
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1) + options)


def interface_description(name: str) -> bytes:
    """An Ethernet interface with nanosecond timestamps. Names are at most 65,535 bytes of UTF-8."""
    options = _option(OPTION_NAME, name.encode("utf-8", "surrogateescape")[:0xFFFF])
    options += _option(OPTION_RESOLUTION, b"\x09") + _option(OPTION_END, b"")
    return _block(INTERFACE_BLOCK, struct.pack("<HHI", ETHERNET, 0, MAX_PACKET) + options)


def parse_section(block: bytes) -> tuple[bool, int]:
    """(is the section big-endian?, length of the block) from the first 16 bytes or more of a section header.

    Raises ValueError with what is wrong.
    """
    if len(block) < 16:
        raise ValueError("the file ends inside a section header")
    (magic,) = struct.unpack_from("<I", block, 8)
    if magic == BYTE_ORDER_MAGIC:
        order = "<"
    elif magic == int.from_bytes(BYTE_ORDER_MAGIC.to_bytes(4, "big"), "little"):
        order = ">"
    else:
        raise ValueError(f"a section header without a byte-order magic (0x{magic:08x})")
    length, _, major, minor = struct.unpack_from(order + "IIHH", block, 4)
    if major != 1:
        raise ValueError(f"pcapng version {major}.{minor} is not known")
    if length < 28 or length & 3:
        raise ValueError(f"a section header of {length} bytes")
    return order == ">", length


def parse_interface(block: bytes, big_endian: bool) -> tuple[str | None, int, int, int, int]:
    """(name, link type, snaplen, resolution, offset in s) from a whole interface description block.

    Raises ValueError with what is wrong.
    """
    order = ">" if big_endian else "<"
    if len(block) < 20:
        raise ValueError(f"an interface description of {len(block)} bytes")
    link_type, _, snaplen = struct.unpack_from(order + "HHI", block, 8)
    name, resolution, offset_s = None, MICROSECONDS, 0
    position, end = 16, len(block) - 4
    while position + 4 <= end:
        code, size = struct.unpack_from(order + "HH", block, position)
        value = block[position + 4 : position + 4 + size]
        if code == OPTION_END:
            break
        if position + 4 + size > end:
            raise ValueError("an option of an interface description is longer than its block")
        if code == OPTION_NAME:
            name = value.rstrip(b"\0").decode("utf-8", "surrogateescape") or None
        elif code == OPTION_RESOLUTION and size == 1:
            resolution = value[0]
        elif code == OPTION_OFFSET and size == 8:
            (offset_s,) = struct.unpack(order + "q", value)
        position += 4 + size + (-size % 4)
    exponent, limit = (resolution & 0x7F, 63) if resolution & 0x80 else (resolution, 19)
    if exponent > limit:
        raise ValueError(f"timestamps in units of {2 if resolution & 0x80 else 10}^-{exponent} s")
    if abs(offset_s) >= 1 << 33:
        raise ValueError(f"a timestamp offset of {offset_s} s")
    return name, link_type, snaplen, resolution, offset_s
