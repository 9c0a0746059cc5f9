"""The BPF program of the flow cache: the same rewrite again, where the packet already is.

`cache` stands before `steer` at the ingress of the node's interfaces.  It decides nothing: user space has entered what
becomes of a flow's packets (cache_layout.py), and takes it back.  A packet that has an entry gets its addresses and
ports, with the checksums that cover them, and enters the node at ku0, exactly where a worker would have sent it:
routed and filtered as coming from there, whatever the settings of the interface that it came by (or goes a shorter way:
cache_shortcuts.py).  The kernel's helpers know about segments of 64 KiB and partial checksums.

Everything else goes on, unchanged, to `steer`: packets without an entry; replies that come in where they may not
(reply_path.py); fragments; IPv4 options and IPv6 extension
headers; TTL 0 or 1; lengths that contradict each other; and segments with SYN, FIN or RST.  Those also close the
flow's rows, both of them and at once, so that whatever a worker makes of such a segment holds for all that follow
(cache_packet.py reads them).
"""

from __future__ import annotations

from llvmlite import ir

from ..codes import Protocol
from .bpf import Verdict
from .cache_layout import LEASE_ROW, SHORTCUT_ROW, CountOf, offset
from .cache_packet import ADDRESSES4, ADDRESSES6, ETH_HEADER, Packet, key_offset, read_packet
from .cache_shortcuts import take_shortcut
from .emit import Program, i8, i32, i64
from .keys import MARK4, MARK6, ConfigBit
from .parts import count, expect, leave_to_others, read_config, require_mark, store
from .reply_path import LOOKUP_SIZE, require_reply_path

__all__ = ["cache", "ipv6_sum_probe"]

_IP_SUM, _TCP_SUM, _UDP_SUM = 10, 16, 6  # offsets of the checksums
# Flags of l4_csum_replace (enum in include/uapi/linux/bpf.h); the low four bits are the size of what changes, 0: a
# difference.
_PSEUDO_HEADER, _MANGLED_0, _IPV6 = 0x10, 0x20, 0x80
_INGRESS = 1  # BPF_F_INGRESS of redirect
_MOMENT_BITS = 30  # of nanoseconds: how long a reply's place is known for, see ROW


def cache(tunnel_ifindex: int, ipv6: bool = True, shortcuts: bool = False) -> Program:
    """Maps: flows, rows, cached, config, interfaces, related.

    Without `ipv6` only IPv4 is looked at (see `ipv6_sum_probe`).

    `shortcuts`: rows may name other ways than the one into the node.
    """
    program = Program("ku_cache")
    up = program.label("up")
    leave_to_others(program, up)
    packet = read_packet(program, ipv6, up)
    row, index = _find_row(program, packet, up)
    now = program.call("ktime_get_ns")
    _require_place_of_replies(program, packet, row, now, tunnel_ifindex, up)
    _close_if_asked(program, packet, row, index, up)
    program.require(program.nonzero(packet.notes.load(packet.PLAIN, i32)), otherwise=up)
    _require_live(program, row, up)
    _require_lease(program, now, up)
    _tally(program, packet, row, now)
    failed = _rewrite(program, packet, row, ipv6)
    if shortcuts:
        lease = _row(program, i32(SHORTCUT_ROW), failed)
        take_shortcut(program, packet, row, lease, now, failed)
    store(program, 0, program.within(row, offset("mac")), 6, failed)
    program.leave(program.build.trunc(program.call("redirect", i32(tunnel_ifindex), i64(_INGRESS)), i32))
    program.at(up)
    program.leave(Verdict.NEXT)
    return program


def ipv6_sum_probe() -> Program:
    """Returns 1 if the kernel knows the flag for IPv6's pseudo-header (Linux 6.16, and stable releases since then).

    Without it l4_csum_replace gives a packet whose checksum the device has computed (CHECKSUM_COMPLETE) a wrong sum.
    """
    program = Program("ku_ipv6_sum")
    offset = i32(ETH_HEADER + 40 + _TCP_SUM)
    flags = i64(_PSEUDO_HEADER | _IPV6)
    outcome = program.call("l4_csum_replace", program.packet, offset, i64(0), i64(0), flags)
    program.leave(program.build.zext(program.equal(outcome, 0), i32))
    return program


# --- what user space says -------------------------------------------------------------------------------


def _find_row(program: Program, packet: Packet, up: ir.Block) -> tuple[ir.Value, ir.Value]:
    """The row of the packet's flow and direction, and its index; up where there is none of this generation."""
    build = program.build
    entry = program.look_up("flows", packet.key)
    program.require(program.nonzero(entry), otherwise=up)
    value = program.value(entry, i64)  # both words with one load
    index = build.trunc(value, i32)
    generation = build.trunc(build.lshr(value, i64(32)), i32)
    row = _row(program, index, up)
    armed = program.value(row, i32, offset("armed"))
    program.require(program.equal(armed, generation), otherwise=up)
    program.require(program.nonzero(armed), otherwise=up)
    return row, index


def _row(program: Program, index: ir.Value, up: ir.Block) -> ir.Value:
    row = program.look_up("rows", program.index(index))
    program.require(program.nonzero(row), otherwise=up)
    return row


def _close_if_asked(program: Program, packet: Packet, row: ir.Value, index: ir.Value, up: ir.Block) -> None:
    """SYN, FIN or RST: nothing of this flow is rewritten any more, in neither direction."""
    onward = program.label("goes_on")
    program.require(program.nonzero(packet.notes.load(packet.CLOSES, i32)), otherwise=onward)
    count(program, "cached", CountOf.CLOSED)
    program.set_value(row, offset("closed"), i32(1))
    twin = _row(program, program.build.xor(index, i32(1)), up)
    program.set_value(twin, offset("closed"), i32(1))
    program.go(up)
    program.at(onward)


def _require_live(program: Program, row: ir.Value, up: ir.Block) -> None:
    live = program.value(row, i32, offset("live"))
    program.require(program.equal(live, program.value(row, i32, offset("armed"))), otherwise=up)
    closed = program.value(row, i32, offset("closed"))
    program.go_if(program.nonzero(closed), up)


def _require_lease(program: Program, now: ir.Value, up: ir.Block) -> None:
    """User space is there and wants it, or has been there a moment ago."""
    lease = _row(program, i32(LEASE_ROW), up)
    over = program.label("over")
    until = program.value(lease, i64, offset("last_seen_ns"))
    program.require(program.at_least(until, now), otherwise=over)
    onward = program.label("leased")
    program.go(onward)
    program.at(over)
    count(program, "cached", CountOf.LAPSED)
    program.go(up)
    program.at(onward)


def _require_place_of_replies(
    program: Program, packet: Packet, row: ir.Value, now: ir.Value, tunnel_ifindex: int, up: ir.Block
) -> None:
    """Of replies only those that come in where they may: at marked interfaces, or where their pod is.

    Others go up, and close nothing: `steer` refuses them likewise.
    """
    build, strict, onward = program.build, program.label("strict"), program.label("in_place")
    program.require(program.nonzero(program.value(row, i8, offset("returning"))), otherwise=onward)
    config = read_config(program, up)
    program.require(program.has_bits(config, ConfigBit.MARKED), otherwise=strict)
    six = program.nonzero(packet.key.load(key_offset("family"), i8))
    require_mark(program, build.select(six, i32(MARK6), i32(MARK4)), program.context("ifindex"), up)
    program.go(onward)
    program.at(strict)
    program.require(program.has_bits(config, ConfigBit.STRICT), otherwise=onward)
    # Looked up once in a while for each flow: what the kernel said holds for the interface and for 1.07 s at most.
    moment = build.shl(build.lshr(now, i64(_MOMENT_BITS)), i64(32))
    place = build.or_(moment, build.zext(program.context("ifindex"), i64))
    program.go_if(program.equal(program.value(row, i64, offset("came_by")), place), onward)
    require_reply_path(program, packet.key, program.buffer(LOOKUP_SIZE), tunnel_ifindex, refused=up, again=up)
    program.set_value(row, offset("came_by"), place)
    program.go(onward)
    program.at(onward)


def _tally(program: Program, packet: Packet, row: ir.Value, now: ir.Value) -> None:
    """Count it while it is as it came."""
    count(program, "cached", CountOf.HIT)
    program.set_value(row, offset("last_seen_ns"), now)
    program.add_to_value(row, offset("packets"), i64(1))
    length = program.build.zext(packet.notes.load(packet.LENGTH, i32), i64)
    program.add_to_value(row, offset("bytes"), length)


# --- the rewrite ------------------------------------------------------------------------------------------


def _rewrite(program: Program, packet: Packet, row: ir.Value, ipv6: bool) -> ir.Block:
    """Addresses, ports, checksums. Returns where to go with a packet that was changed in part: it is dropped."""
    failed, done = program.label("failed"), program.label("rewritten")
    if ipv6:
        four = program.label("rewrite4")
        program.require(program.nonzero(packet.key.load(key_offset("family"), i8)), otherwise=four)
        _rewrite_family(program, packet, row, True, failed)
        program.go(done)
        program.at(four)
    _rewrite_family(program, packet, row, False, failed)
    program.go(done)
    program.at(failed)
    count(program, "cached", CountOf.FAILED)
    program.leave(Verdict.DROP)
    program.at(done)
    return failed


def _rewrite_family(program: Program, packet: Packet, row: ir.Value, six: bool, failed: ir.Block) -> None:
    build = program.build
    at, length, header = (ADDRESSES6, 32, 40) if six else (ADDRESSES4, 8, 20)
    l4 = ETH_HEADER + header
    addresses = program.within(row, offset("addresses"))
    old = packet.header.address(at)
    change = program.call("csum_diff", old, i32(length), addresses, i32(length), i32(0))
    udp = program.equal(packet.key.load(key_offset("protocol"), i8), Protocol.UDP)
    place = build.select(udp, i32(l4 + _UDP_SUM), i32(l4 + _TCP_SUM))
    zero = build.select(udp, i64(_MANGLED_0), i64(0))  # a UDP checksum of 0 is none, and stays so
    pseudo = build.or_(zero, i64(_PSEUDO_HEADER | (_IPV6 if six else 0)))
    expect(program, program.call("l4_csum_replace", program.packet, place, i64(0), change, pseudo), failed)
    if not six:
        outcome = program.call(
            "l3_csum_replace", program.packet, i32(ETH_HEADER + _IP_SUM), i64(0), change, i64(0)
        )
        expect(program, outcome, failed)
    store(program, ETH_HEADER + at, addresses, length, failed)
    old_ports = packet.transport.load(0, i32)
    new_ports = program.value(row, i32, offset("source_port"))  # both
    with program.when(build.not_(program.equal(old_ports, new_ports))):
        outcome = program.call(
            "l4_csum_replace",
            program.packet,
            place,
            build.zext(old_ports, i64),
            build.zext(new_ports, i64),
            build.or_(zero, i64(4)),
        )
        expect(program, outcome, failed)
        store(program, l4, program.within(row, offset("source_port")), 4, failed)
