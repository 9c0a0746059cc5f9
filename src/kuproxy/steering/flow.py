"""What a packet says about its flow, as the steering programs read it.

Addresses, protocol and ports of an IPv4 or IPv6 packet.  A fragment carries no ports (the first one does, but the
others must take the same way), so all of them are known by address alone.  Extension headers of IPv6 are skipped up
to `MAX_EXTENSIONS`; behind more of them, and where the ports lie outside the packet, nothing is ours.  Whether a
fragment is ours never depends on more than that; but where several workers wait, `read_flow` also tells which datagram
it belongs to, and the ports that the first one carries, so that they can be brought to one of them.

An ICMP error is about the packet that it embeds, and goes back along that packet's way (RFC 5508 section 4): it is
taken for a packet of the embedded flow's other direction, whoever sent it.  One that embeds too little, or a later
fragment, or that was not sent to the embedded packet's sender, is foreign.
"""

from __future__ import annotations

from enum import IntFlag

from llvmlite import ir

from ..codes import PROTOCOLS_WITH_PORTS, Protocol
from .emit import Buffer, Program, be16, i8, i16, i32, i64
from .keys import FRAGMENT, MARK4, MARK6, KeyBit
from .parts import ETH_P_IP, ETH_P_IPV6, load

__all__ = ["MAX_EXTENSIONS", "Flow", "MessageBit", "PieceBit", "read_flow"]

MAX_EXTENSIONS = 4

_HOP_BY_HOP, _ROUTING, _FRAGMENT_HEADER, _DESTINATION = 0, 43, 44, 60
_ICMP_HEADER = 8  # before the embedded packet
_QUOTED = 8  # bytes of the embedded packet's own payload that are needed; RFC 792 promises as many
_SCRATCH = 64  # at least Flow.SIZE; what is put there: LOOKUP_SIZE of reply_path.py, FRAGMENT_KEY_SIZE
_ERRORS4 = (3, 4, 5, 11, 12)  # RFC 792; in IPv6 types below 128 (RFC 4443 section 2.1)
_ECHO_REQUEST4, _ECHO_REQUEST6 = 8, 128


class Flow(Buffer):
    """What the decision needs of a packet, on the program's stack. The constants are offsets."""

    SOURCE = 0  # 16 bytes, IPv4 in the last four
    DESTINATION = 16
    SOURCE_PORT = 32  # network byte order
    DESTINATION_PORT = 34
    PROTOCOL = 36  # FRAGMENT for every fragment
    FAMILY = 37  # 0 or KeyBit.IPV6
    MARK = 38  # MARK4 or MARK6
    MESSAGE = 39  # `MessageBit`s
    PIECE = 40  # `PieceBit`s; this and what follows only if fragments are asked for, else zero
    KIND = 41  # of a fragment, the protocol: of a first one the innermost, of later ones as far as they know
    AHEAD = 42  # 1: it goes to a VIP or node port, but may turn out to be a reply; for `steer` alone
    IDENTIFICATION = 44  # of a fragment's datagram
    FIRST_PORTS = 48  # both, as they lie in a first fragment; 0 where it has none
    SIZE = 56

    scratch: Buffer  # 64 bytes that are of no use any more once the packet has been read: the stack is short


class MessageBit(IntFlag):
    """What else is to be known of ICMP."""

    REQUEST = 1  # an echo request, which is nobody's reply
    ERROR = 2  # all the rest of the flow comes from the embedded packet


class PieceBit(IntFlag):
    """Which fragment of its datagram a packet is. None: it is whole, or bears the protocol `FRAGMENT`."""

    FIRST = 1
    LATER = 2


def read_flow(program: Program, foreign: ir.Block, fragments: bool = False) -> Flow:
    """Read the packet; one that is neither IPv4 nor IPv6, or that cannot be read, is foreign.

    `fragments`: also what can be known of a fragment.
    """
    flow = Flow(program, Flow.SIZE)
    embedded = Flow(program, _SCRATCH)
    flow.scratch = embedded
    header = program.buffer(40)
    l4_offset = program.buffer(8)
    ipv4, ports, error, done = (program.label(name) for name in ("ipv4", "ports", "error", "flow"))
    piece = program.label("piece")
    protocol = program.context("protocol")
    program.go_if(program.equal(protocol, be16(ETH_P_IP)), ipv4)
    program.require(program.equal(protocol, be16(ETH_P_IPV6)), otherwise=foreign)
    _read_ipv6(program, flow, header, l4_offset, foreign, fragments=fragments)
    program.require(program.equal(flow.load(flow.PROTOCOL, i8), Protocol.ICMP6), otherwise=ports)
    _require_icmp6_error(program, flow, header, l4_offset, done, foreign)
    _read_ipv6(program, embedded, header, l4_offset, foreign, embedded=True)
    program.go(error)

    program.at(ipv4)
    _read_ipv4(program, flow, header, l4_offset, foreign, fragments=fragments)
    program.require(program.equal(flow.load(flow.PROTOCOL, i8), Protocol.ICMP), otherwise=ports)
    _require_icmp_error(program, flow, header, l4_offset, done, foreign)
    _read_ipv4(program, embedded, header, l4_offset, foreign, embedded=True)
    program.go(error)

    program.at(ports)
    kind = flow.load(flow.PROTOCOL, i8)
    program.require(program.one_of(kind, tuple(PROTOCOLS_WITH_PORTS)), otherwise=piece)
    load(program, l4_offset.load(0, i32), header.address(), 4, foreign)
    flow.store(flow.SOURCE_PORT, header.load(0, i32))  # both
    program.go(done)

    program.at(piece)
    if fragments:
        _read_first_ports(program, flow, header, l4_offset, done)
    program.go(done)

    program.at(error)
    load(program, l4_offset.load(0, i32), header.address(), _QUOTED, foreign)
    _turn_round(program, flow, embedded, header, foreign)
    program.go(done)
    program.at(done)
    return flow


def _read_ipv4(
    program: Program,
    flow: Flow,
    header: Buffer,
    l4_offset: Buffer,
    foreign: ir.Block,
    embedded: bool = False,
    fragments: bool = False,
) -> None:
    """RFC 791, section 3.1. An embedded packet lies where `l4_offset` points before."""
    build = program.build
    start = l4_offset.load(0, i32) if embedded else i32(0)
    load(program, start, header.address(), 20, foreign)
    first = header.load(0, i8)
    program.require(program.equal(build.lshr(first, i8(4)), 4), otherwise=foreign)
    words = build.and_(first, i8(0x0F))
    program.require(program.at_least(words, 5), otherwise=foreign)
    l4_offset.store(0, build.add(start, build.shl(build.zext(words, i32), i32(2))))
    flow.store(flow.SOURCE + 12, header.load(12, i32))
    flow.store(flow.DESTINATION + 12, header.load(16, i32))
    if embedded:
        program.go_if(program.has_bits(header.load(6, i16), be16(0x1FFF)), foreign)  # an offset
        flow.store(flow.PROTOCOL, header.load(9, i8))
    else:
        # "More fragments", or an offset.
        fragment = program.has_bits(header.load(6, i16), be16(0x3FFF))
        flow.store(flow.PROTOCOL, build.select(fragment, i8(FRAGMENT), header.load(9, i8)))
        if fragments:
            identification = build.zext(header.load(4, i16), i32)
            _note_piece(
                program, flow, fragment, header.load(6, i16), 0x1FFF, header.load(9, i8), identification
            )
    flow.store(flow.MARK, i8(MARK4))


def _note_piece(
    program: Program,
    flow: Flow,
    is_piece: ir.Value,
    field: ir.Value,
    offset_bits: int,
    kind: ir.Value,
    identification: ir.Value,
) -> None:
    """Where `is_piece`: first or later one, by the offset in its 16-bit field."""
    with program.when(is_piece):
        later = program.has_bits(field, be16(offset_bits))
        flow.store(flow.PIECE, program.build.select(later, i8(PieceBit.LATER), i8(PieceBit.FIRST)))
        flow.store(flow.KIND, kind)
        flow.store(flow.IDENTIFICATION, identification)


def _read_first_ports(
    program: Program, flow: Flow, header: Buffer, l4_offset: Buffer, done: ir.Block
) -> None:
    """Of a first fragment; `l4_offset` is where the walk over the headers ended. One that has none keeps zeros."""
    build = program.build
    program.require(program.equal(flow.load(flow.PIECE, i8), PieceBit.FIRST), otherwise=done)
    found = program.label("first")
    program.require(program.nonzero(flow.load(flow.FAMILY, i8)), otherwise=found)
    # IPv6: the walk ended at the fragment header, of 8 bytes.
    l4_offset.store(0, build.add(l4_offset.load(0, i32), i32(8)))
    for _ in range(MAX_EXTENSIONS):
        kind = flow.load(flow.KIND, i8)
        program.require(program.one_of(kind, (_HOP_BY_HOP, _ROUTING, _DESTINATION)), otherwise=found)
        offset = l4_offset.load(0, i32)
        load(program, offset, header.address(), 8, done)
        flow.store(flow.KIND, header.load(0, i8))
        length = build.shl(build.add(build.zext(header.load(1, i8), i32), i32(1)), i32(3))
        l4_offset.store(0, build.add(offset, length))
    program.go(found)
    program.at(found)
    program.require(program.one_of(flow.load(flow.KIND, i8), tuple(PROTOCOLS_WITH_PORTS)), otherwise=done)
    load(program, l4_offset.load(0, i32), header.address(), 4, done)
    flow.store(flow.FIRST_PORTS, header.load(0, i32))


def _read_ipv6(
    program: Program,
    flow: Flow,
    header: Buffer,
    l4_offset: Buffer,
    foreign: ir.Block,
    embedded: bool = False,
    fragments: bool = False,
) -> None:
    """RFC 8200, sections 3 and 4: the header, then a bounded walk over the extension headers.

    A fragment header that says "the only fragment" (RFC 6946) is skipped like any other, an embedded first
    fragment's too. An embedded packet lies where `l4_offset` points before.
    """
    build = program.build
    start = l4_offset.load(0, i32) if embedded else i32(0)
    load(program, start, header.address(), 40, foreign)
    program.require(program.equal(build.lshr(header.load(0, i8), i8(4)), 6), otherwise=foreign)
    for word in range(0, 32, 8):  # source and destination
        flow.store(flow.SOURCE + word, header.load(8 + word, i64))
    flow.store(flow.FAMILY, i8(KeyBit.IPV6))
    flow.store(flow.MARK, i8(MARK6))
    flow.store(flow.PROTOCOL, header.load(6, i8))
    l4_offset.store(0, build.add(start, i32(40)))

    upper = program.label("upper")
    for _ in range(MAX_EXTENSIONS):
        kind = flow.load(flow.PROTOCOL, i8)
        is_fragment = program.equal(kind, _FRAGMENT_HEADER)
        is_option = program.one_of(kind, (_HOP_BY_HOP, _ROUTING, _DESTINATION))
        program.require(build.or_(is_fragment, is_option), otherwise=upper)
        offset = l4_offset.load(0, i32)
        load(program, offset, header.address(), 8, foreign)
        # Fragment offset; outside, also "more fragments" (section 4.5).
        bits = be16(0xFFF8 if embedded else 0xFFF9)
        split = build.and_(is_fragment, program.has_bits(header.load(2, i16), bits))
        flow.store(flow.PROTOCOL, build.select(split, i8(FRAGMENT), header.load(0, i8)))
        if fragments:
            _note_piece(
                program, flow, split, header.load(2, i16), 0xFFF8, header.load(0, i8), header.load(4, i32)
            )
        program.go_if(split, foreign if embedded else upper)
        # Length in units of 8 bytes, the first not counted; a fragment header has no length field.
        units = build.select(is_fragment, i8(0), header.load(1, i8))
        length = build.shl(build.add(build.zext(units, i32), i32(1)), i32(3))
        l4_offset.store(0, build.add(offset, length))
    last = flow.load(flow.PROTOCOL, i8)
    still = program.one_of(last, (_HOP_BY_HOP, _ROUTING, _FRAGMENT_HEADER, _DESTINATION))
    program.go_if(still, foreign)
    program.go(upper)
    program.at(upper)


def _require_icmp_error(
    program: Program, flow: Flow, header: Buffer, l4_offset: Buffer, done: ir.Block, foreign: ir.Block
) -> None:
    """Go on with an error, `l4_offset` at the packet it embeds; the flow of any other message is known."""
    load(program, l4_offset.load(0, i32), header.address(), 1, foreign)
    message = header.load(0, i8)
    _note_request(program, flow, message, _ECHO_REQUEST4)
    program.require(program.one_of(message, _ERRORS4), otherwise=done)
    _enter_message(program, l4_offset)


def _require_icmp6_error(
    program: Program, flow: Flow, header: Buffer, l4_offset: Buffer, done: ir.Block, foreign: ir.Block
) -> None:
    """The same for IPv6.

    Neighbour discovery and multicast listeners (types 130 to 137) belong to the link: without a pod's neighbour
    advertisements the node would lose it.
    """
    load(program, l4_offset.load(0, i32), header.address(), 1, foreign)
    message = header.load(0, i8)
    _note_request(program, flow, message, _ECHO_REQUEST6)
    link = program.build.and_(
        program.at_least(message, 130), program.build.not_(program.at_least(message, 138))
    )
    program.go_if(link, foreign)
    program.go_if(program.at_least(message, 128), done)
    _enter_message(program, l4_offset)


def _note_request(program: Program, flow: Flow, message: ir.Value, request: int) -> None:
    is_request = program.equal(message, request)
    flow.store(flow.MESSAGE, program.build.select(is_request, i8(MessageBit.REQUEST), i8(0)))


def _enter_message(program: Program, l4_offset: Buffer) -> None:
    l4_offset.store(0, program.build.add(l4_offset.load(0, i32), i32(_ICMP_HEADER)))


def _turn_round(program: Program, flow: Flow, embedded: Flow, l4: Buffer, foreign: ir.Block) -> None:
    """Make the flow the embedded one's other direction; `l4` holds the first bytes of the embedded L4 header."""
    for word in (0, 8):
        to_sender = program.equal(
            flow.load(flow.DESTINATION + word, i64), embedded.load(embedded.SOURCE + word, i64)
        )
        program.require(to_sender, otherwise=foreign)
        flow.store(flow.SOURCE + word, embedded.load(embedded.DESTINATION + word, i64))
    kind = embedded.load(embedded.PROTOCOL, i8)
    flow.store(flow.PROTOCOL, kind)
    flow.store(flow.MESSAGE, i8(MessageBit.ERROR))
    with program.when(program.one_of(kind, tuple(PROTOCOLS_WITH_PORTS))):
        flow.store(flow.SOURCE_PORT, l4.load(2, i16))
        flow.store(flow.DESTINATION_PORT, l4.load(0, i16))
