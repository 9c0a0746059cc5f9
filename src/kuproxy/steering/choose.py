"""Which of several workers gets a packet: in BPF, and the same in Python.

Both directions of a flow come to one worker, because the worker follows from the client's address and port alone: the
source on the way in, the destination on the way back.  Of the address the last four bytes count, so that an IPv4
client and its form in the NAT46 prefix (RFC 6052, /96) have one worker.  Where a worker gives a flow another source,
it takes one whose replies come back to itself (dataplane/worker_choice.py says all this once more, for that).

ICMP goes to worker 0: an echo has no port, and neither masquerading nor NAT64 could choose its replies' worker.
Other protocols without ports count as port 0.

A fragment's worker is its flow's, which only the first one can tell.  Whichever fragment of a datagram comes first
decides for all: a first one by its ports, a later one, which cannot know better, by port 0.  So only a datagram that
was fragmented and reordered may miss its flow's worker.
"""

from __future__ import annotations

from llvmlite import ir

from ..codes import PROTOCOLS_WITH_PORTS, Protocol
from .emit import Buffer, Program, be16, i8, i16, i32, i64
from .flow import Flow, PieceBit
from .keys import Address

__all__ = ["FRAGMENT_NS", "choose_worker", "worker_of"]

_MIX = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: Fibonacci hashing
_ICMP = (Protocol.ICMP, Protocol.ICMP6)

# How long a datagram's worker is remembered: as long as a worker remembers its ports (kp-fragment). After that, or when
# a further first fragment comes, the identification is another datagram's.
FRAGMENT_NS = 5_000_000_000
# Value of the map `fragments`: when it was written, in ns, whose low bits give way to the worker and whether the first
# fragment has been here.
_WORKER_BITS = 0xFF
_FIRST_CAME = 0x100
_TIME_BITS = -0x200


def worker_of(client: Address, port: int, workers: int, protocol: int = Protocol.TCP) -> int:
    """Which worker gets the packets of this client address and port, as `choose_worker` computes it."""
    if protocol in _ICMP:
        return 0
    counted = port if protocol in PROTOCOLS_WITH_PORTS else 0
    mixed = int.from_bytes(client.packed[-4:], "little") ^ be16(counted) << 32
    return (mixed * _MIX % (1 << 64) >> 32) * workers >> 32


def choose_worker(
    program: Program, flow: Flow, address: int, port: int, workers: int, generic_xdp: bool = False
) -> None:
    """`address` and `port` are where the flow holds the client's; its ports may be changed here.

    veth hands a packet from transmit queue n to receive queue n, PACKET_FANOUT_QM to socket n.  The field holds
    the receive queue plus one (`skb_record_rx_queue()`).

    Generic XDP takes the transmit queue's number for that field, too, and so sees the queue before it
    (`netif_get_rxqueue()`): there queue 0 is left out.
    """
    build = program.build
    piece = flow.load(flow.PIECE, i8)
    with program.when(program.has_bits(piece, PieceBit.FIRST)):
        flow.store(flow.SOURCE_PORT, flow.load(flow.FIRST_PORTS, i32))  # both
    mixed = build.zext(flow.load(address + 12, i32), i64)
    mixed = build.xor(mixed, build.shl(build.zext(flow.load(port, i16), i64), i64(32)))
    mixed = build.mul(mixed, i64(_MIX - (1 << 64)))
    worker = build.lshr(build.mul(build.lshr(mixed, i64(32)), i64(workers)), i64(32))
    kind = build.select(program.nonzero(piece), flow.load(flow.KIND, i8), flow.load(flow.PROTOCOL, i8))
    chosen = program.buffer(8)
    chosen.store(0, build.select(program.one_of(kind, _ICMP), i64(0), worker))
    settled = program.label("settled")
    program.require(program.nonzero(piece), otherwise=settled)
    _follow_datagram(program, flow, piece, chosen, settled)
    program.go(settled)
    program.at(settled)
    first = i32(2 if generic_xdp else 1)
    program.set_context("queue_mapping", build.add(build.trunc(chosen.load(0, i64), i32), first))


def _follow_datagram(
    program: Program, flow: Flow, piece: ir.Value, chosen: Buffer, settled: ir.Block
) -> None:
    """Put in `chosen` the worker that the datagram has already, or make the one there the datagram's."""
    build = program.build
    key = flow.scratch
    key.clear()
    for word in range(0, 32, 8):  # source and destination
        key.store(word, flow.load(flow.SOURCE + word, i64))
    key.store(32, flow.load(flow.IDENTIFICATION, i32))
    family = flow.load(flow.FAMILY, i8)
    key.store(36, build.select(program.nonzero(family), i8(0), flow.load(flow.KIND, i8)))
    key.store(37, family)
    now = program.call("ktime_get_ns")
    is_first = program.has_bits(piece, PieceBit.FIRST)
    place = program.look_up("fragments", key)
    with program.when(program.nonzero(place)):
        known = program.value(place, i64)
        age = build.sub(now, build.and_(known, i64(_TIME_BITS)))  # below zero: another CPU's, a moment ago
        fresh = build.icmp_signed("<", age, i64(FRAGMENT_NS))
        another = build.and_(is_first, program.has_bits(known, _FIRST_CAME))
        with program.when(build.and_(fresh, build.not_(another))):
            chosen.store(0, build.and_(known, i64(_WORKER_BITS)))
            program.require(is_first, otherwise=settled)
    value = program.buffer(8)
    came = build.select(is_first, i64(_FIRST_CAME), i64(0))
    value.store(0, build.or_(build.or_(build.and_(now, i64(_TIME_BITS)), came), chosen.load(0, i64)))
    program.update("fragments", key, value)
