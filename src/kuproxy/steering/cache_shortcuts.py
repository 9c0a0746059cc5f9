"""Ways out of the node that are shorter than the node's own, for packets that the flow cache's program has rewritten.

Which row may take which, user space has found out (ways.py), and says for how long at most it may be believed: a lease
of its own, which anything that happens on the node suspends.  A packet that takes a shortcut looks as if it had been
routed: its TTL is one less.  Where it would not fit, where the lease is over, and where the row says so, it enters the
node like any other.
"""

from __future__ import annotations

from llvmlite import ir

from ..codes import Protocol
from .cache_layout import CountOf, Way, offset
from .cache_packet import ETH_HEADER, Packet, key_offset
from .emit import Program, i8, i16, i32, i64
from .keys import KeyBit
from .parts import count, expect, store

__all__ = ["take_shortcut"]

_TTL, _HOP_LIMIT, _IP_SUM = 8, 7, 10  # offsets in the IP headers
_NEXT_HOP_SIZE = 20  # sizeof(struct bpf_redir_neigh)


def take_shortcut(
    program: Program, packet: Packet, row: ir.Value, lease: ir.Value, now: ir.Value, failed: ir.Block
) -> None:
    """Leave by the row's way, if it has one that may be taken; else go on."""
    build, route = program.build, program.label("route")
    way = program.value(row, i8, offset("way"))
    program.require(program.nonzero(way), otherwise=route)
    until = program.value(lease, i64, offset("last_seen_ns"))
    program.require(program.at_least(until, now), otherwise=route)
    _require_fit(program, packet, row, route)
    count(program, "cached", CountOf.SHORT)
    _decrement_ttl(program, packet, failed)
    ifindex = program.value(row, i32, offset("ifindex"))
    peer = program.label("peer")
    program.require(program.equal(way, Way.NEIGHBOUR), otherwise=peer)
    next_hop = program.within(row, offset("next_hop"))
    verdict = program.call("redirect_neigh", ifindex, next_hop, i32(_NEXT_HOP_SIZE), i64(0))
    program.leave(build.trunc(verdict, i32))
    program.at(peer)
    store(program, 0, program.within(row, offset("macs")), 12, failed)
    program.leave(build.trunc(program.call("redirect_peer", ifindex, i64(0)), i32))
    program.at(route)


def _require_fit(program: Program, packet: Packet, row: ir.Value, route: ir.Block) -> None:
    """Not longer than the way's MTU; of a GSO frame each segment (`skb_gso_validate_network_len()`).

    The kernel fragments the others, or complains about them.
    """
    build, fits = program.build, program.label("fits")
    mtu = build.zext(program.value(row, i16, offset("mtu")), i32)
    program.go_if(program.at_least(mtu, packet.notes.load(packet.LENGTH, i32)), fits)
    segment = program.context("gso_size")
    program.require(program.nonzero(segment), otherwise=route)
    units = build.zext(build.lshr(packet.transport.load(12, i8), i8(4)), i32)
    tcp = program.equal(packet.key.load(key_offset("protocol"), i8), Protocol.TCP)
    header = build.select(tcp, build.shl(units, i32(2)), i32(8))
    whole = build.add(build.add(packet.notes.load(packet.L4, i32), header), segment)
    program.require(program.at_least(mtu, whole), otherwise=route)
    program.go(fits)
    program.at(fits)


def _decrement_ttl(program: Program, packet: Packet, failed: ir.Block) -> None:
    """As `ip_decrease_ttl()` does; it was 2 or more."""
    build = program.build
    less = program.buffer(8)
    six = program.nonzero(build.and_(packet.key.load(key_offset("family"), i8), i8(KeyBit.IPV6)))
    four, done = program.label("ttl4"), program.label("ttl")
    program.require(six, otherwise=four)
    less.store(0, build.sub(packet.header.load(_HOP_LIMIT, i8), i8(1)))
    store(program, ETH_HEADER + _HOP_LIMIT, less.address(), 1, failed)
    program.go(done)
    program.at(four)
    before = packet.header.load(_TTL, i16)  # with the protocol in the upper byte of a little-endian word
    after = build.sub(before, i16(1))
    less.store(0, after)
    outcome = program.call(
        "l3_csum_replace",
        program.packet,
        i32(ETH_HEADER + _IP_SUM),
        build.zext(before, i64),
        build.zext(after, i64),
        i64(2),
    )
    expect(program, outcome, failed)
    store(program, ETH_HEADER + _TTL, less.address(), 1, failed)
    program.go(done)
    program.at(done)
