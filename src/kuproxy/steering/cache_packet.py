"""What the flow cache's program takes from a packet: five-tuple, lengths, TCP flags, and whether it may be rewritten.

Packets that have no such things go up, and so do those that are out of the ordinary, but their flags are read first:
a segment with SYN, FIN or RST closes its flow whatever stands before it (IPv4 options, IPv6 extension headers, the
header of a first fragment), as the worker reads it there, too.
"""

from __future__ import annotations

from llvmlite import ir

from ..codes import Protocol
from .cache_layout import KEY
from .emit import Program, be16, i8, i16, i32, i64
from .keys import KeyBit
from .parts import ETH_P_IP, ETH_P_IPV6, load

__all__ = ["ADDRESSES4", "ADDRESSES6", "ETH_HEADER", "Packet", "key_offset", "read_packet"]

ETH_HEADER = 14
ADDRESSES4, ADDRESSES6 = 12, 8  # offsets of the addresses in the IP headers
_FIN_SYN_RST = 0x07
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_MAX_EXTENSIONS = 8  # as wire/ipv6.py walks


def key_offset(field: str) -> int:
    assert KEY.fields is not None
    return int(KEY.fields[field][1])


class Packet:
    """Places on the stack where a packet lies, as far as it is looked at."""

    # Offsets in `notes`.
    LENGTH = 0  # IP total length
    L4 = 4  # offset of the transport header, from the IP header
    PLAIN = 8  # 1: nothing about the IP header keeps it from being rewritten
    CLOSES = 12  # 1: TCP with SYN, FIN or RST
    SIZE = 16

    def __init__(self, program: Program) -> None:
        self.key = program.buffer(KEY.itemsize)
        self.header = program.buffer(40)
        self.transport = program.buffer(16)
        self.notes = program.buffer(self.SIZE)


def read_packet(program: Program, ipv6: bool, up: ir.Block) -> Packet:
    """Five-tuple, lengths and TCP flags of an IPv4 or IPv6 packet; one that has no such things goes up."""
    packet = Packet(program)
    four, transport = program.label("ipv4"), program.label("transport")
    protocol = program.context("protocol")
    program.go_if(program.equal(protocol, be16(ETH_P_IP)), four)
    if ipv6:
        program.require(program.equal(protocol, be16(ETH_P_IPV6)), otherwise=up)
        _read_ipv6(program, packet, up)
        program.go(transport)
    else:
        program.go(up)
    program.at(four)
    _read_ipv4(program, packet, up)
    program.go(transport)
    program.at(transport)
    _read_transport(program, packet, up)
    return packet


def _host16(program: Program, value: ir.Value) -> ir.Value:
    """A 16-bit field of the packet as a number, 32 bits wide."""
    build = program.build
    wide = build.zext(value, i32)
    swapped = build.or_(build.shl(wide, i32(8)), build.lshr(wide, i32(8)))
    return build.and_(swapped, i32(0xFFFF))


def _fits(program: Program, length: ir.Value) -> ir.Value:
    """The frame holds as many bytes of IP."""
    return program.at_least(program.context("len"), program.build.add(length, i32(ETH_HEADER)))


def _read_ipv4(program: Program, packet: Packet, up: ir.Block) -> None:
    """RFC 791, section 3.1. Later fragments carry no ports: they go up."""
    build, header, notes = program.build, packet.header, packet.notes
    load(program, i32(0), header.address(), 20, up)
    first = header.load(0, i8)
    program.require(program.equal(build.lshr(first, i8(4)), 4), otherwise=up)
    program.require(program.at_least(build.and_(first, i8(0x0F)), 5), otherwise=up)
    program.go_if(program.has_bits(header.load(6, i16), be16(0x1FFF)), up)
    length = _host16(program, header.load(2, i16))
    whole = build.not_(program.has_bits(header.load(6, i16), be16(0x2000)))
    living = program.at_least(header.load(8, i8), 2)
    plain = build.and_(program.equal(first, 0x45), build.and_(whole, living))
    plain = build.and_(plain, _fits(program, length))
    notes.store(packet.PLAIN, build.zext(plain, i32))
    notes.store(packet.LENGTH, length)
    notes.store(packet.L4, build.shl(build.zext(build.and_(first, i8(0x0F)), i32), i32(2)))
    key = packet.key
    key.store(key_offset("source") + 12, header.load(12, i32))
    key.store(key_offset("destination") + 12, header.load(16, i32))
    key.store(key_offset("protocol"), header.load(9, i8))


def _read_ipv6(program: Program, packet: Packet, up: ir.Block) -> None:
    """RFC 8200, section 3. A payload length of 0, a jumbogram's (RFC 2675), goes up."""
    build, header, notes = program.build, packet.header, packet.notes
    load(program, i32(0), header.address(), 40, up)
    program.require(program.equal(build.lshr(header.load(0, i8), i8(4)), 6), otherwise=up)
    payload = _host16(program, header.load(4, i16))
    length = build.add(payload, i32(40))
    plain = build.and_(program.nonzero(payload), program.at_least(header.load(7, i8), 2))
    plain = build.and_(plain, _fits(program, length))
    notes.store(packet.PLAIN, build.zext(plain, i32))
    notes.store(packet.LENGTH, length)
    notes.store(packet.L4, i32(40))
    key = packet.key
    for word in range(0, 32, 8):  # source and destination
        key.store(word, header.load(ADDRESSES6 + word, i64))
    key.store(key_offset("protocol"), header.load(6, i8))
    key.store(key_offset("family"), i8(KeyBit.IPV6))
    _skip_extensions(program, packet, up)


def _skip_extensions(program: Program, packet: Packet, up: ir.Block) -> None:
    """RFC 8200, section 4: what has extension headers is not rewritten, but its ports and flags are looked at.

    Up where there are more than a worker reads, and with later fragments, which carry no ports. What a worker would
    refuse besides (a header that is cut off) at most closes a flow too early.
    """
    build, notes, key, header = program.build, packet.notes, packet.key, packet.transport
    upper = program.label("upper")
    for number in range(_MAX_EXTENSIONS + 1):
        kind = key.load(key_offset("protocol"), i8)
        is_fragment = program.equal(kind, _FRAGMENT)
        is_option = program.one_of(kind, (_HOP_BY_HOP, _ROUTING, _DESTINATION))
        program.require(build.or_(is_fragment, is_option), otherwise=upper)
        if number == _MAX_EXTENSIONS:
            program.go(up)
            break
        offset = notes.load(packet.L4, i32)
        load(program, offset, header.address(), 8, up)
        program.go_if(build.and_(is_fragment, program.has_bits(header.load(2, i16), be16(0xFFF8))), up)
        # Length in units of 8 bytes, the first not counted; a fragment header has no length field.
        units = build.select(is_fragment, i8(0), header.load(1, i8))
        size = build.shl(build.add(build.zext(units, i32), i32(1)), i32(3))
        key.store(key_offset("protocol"), header.load(0, i8))
        notes.store(packet.L4, build.add(offset, size))
        notes.store(packet.PLAIN, i32(0))
    program.at(upper)


def _read_transport(program: Program, packet: Packet, up: ir.Block) -> None:
    """Ports, and whether lengths and flags allow a rewrite; other protocols than TCP and UDP go up."""
    build, notes, transport = program.build, packet.notes, packet.transport
    protocol = packet.key.load(key_offset("protocol"), i8)
    tcp, read = program.label("tcp"), program.label("read")
    offset = notes.load(packet.L4, i32)
    payload = build.sub(notes.load(packet.LENGTH, i32), offset)  # below 0, thus large, where lengths contradict

    def only_if(condition: ir.Value) -> None:
        sane = build.icmp_signed(">=", payload, i32(0))
        both = build.zext(build.and_(condition, sane), i32)
        notes.store(packet.PLAIN, build.and_(notes.load(packet.PLAIN, i32), both))

    program.go_if(program.equal(protocol, Protocol.TCP), tcp)
    program.require(program.equal(protocol, Protocol.UDP), otherwise=up)
    load(program, offset, transport.address(), 8, up)
    length = _host16(program, transport.load(4, i16))
    only_if(build.and_(program.at_least(length, 8), program.at_least(payload, length)))
    program.go(read)

    program.at(tcp)
    load(program, offset, transport.address(), 16, up)
    units = build.lshr(transport.load(12, i8), i8(4))
    length = build.shl(build.zext(units, i32), i32(2))
    only_if(build.and_(program.at_least(length, 20), program.at_least(payload, length)))
    closes = program.has_bits(transport.load(13, i8), _FIN_SYN_RST)
    notes.store(packet.CLOSES, build.zext(closes, i32))
    program.go(read)
    program.at(read)
    packet.key.store(key_offset("source_port"), transport.load(0, i32))  # both
