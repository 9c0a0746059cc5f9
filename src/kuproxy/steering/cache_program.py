"""The BPF program of the flow cache: the same rewrite again, where the packet already is.

`cache` stands before `steer` at the ingress of the node's interfaces.  It decides nothing: user space has entered what
becomes of a flow's packets (cache_layout.py), and takes it back.  A packet that has an entry gets its addresses and
ports, with the checksums that cover them, and enters the node at ku0, exactly where a worker would have sent it:
routed and filtered as coming from there, whatever the settings of the interface that it came by.  The kernel's helpers
know about segments of 64 KiB and partial checksums.

Everything else goes on, unchanged, to `steer`: packets without an entry; fragments; IPv4 options and IPv6 extension
headers; TTL 0 or 1; lengths that contradict each other; and segments with SYN, FIN or RST.  Those also close the
flow's rows, both of them and at once, so that whatever a worker makes of such a segment holds for all that follow.
"""

from __future__ import annotations

from llvmlite import ir

from ..codes import Protocol
from .bpf import Verdict
from .cache_layout import KEY, LEASE_ROW, ROW, CountOf
from .emit import Buffer, Program, be16, i8, i16, i32, i64
from .keys import MARK4, MARK6, ConfigBit, KeyBit
from .parts import count, leave_to_others, read_config, require_mark

__all__ = ["cache", "ipv6_sum_probe"]

_ETH_HEADER = 14
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_FROM_NETWORK_HEADER = 1  # BPF_HDR_START_NET
_FIN_SYN_RST = 0x07
_IP_SUM, _TCP_SUM, _UDP_SUM = 10, 16, 6  # offsets of the checksums
_ADDRESSES4, _ADDRESSES6 = 12, 8  # of the addresses in the IP headers
# Flags of l4_csum_replace (enum in include/uapi/linux/bpf.h); the low four bits are the size of what changes, 0: a
# difference.
_PSEUDO_HEADER, _MANGLED_0, _IPV6 = 0x10, 0x20, 0x80
_INGRESS = 1  # BPF_F_INGRESS of redirect


def _offset(field: str) -> int:
    assert ROW.fields is not None
    return int(ROW.fields[field][1])


def _key_offset(field: str) -> int:
    assert KEY.fields is not None
    return int(KEY.fields[field][1])


class _Packet:
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


def cache(tunnel_ifindex: int, ipv6: bool = True) -> Program:
    """Maps: flows, rows, cached, config, interfaces. Without `ipv6` only IPv4 is looked at (see `ipv6_sum_probe`)."""
    program = Program("ku_cache")
    up = program.label("up")
    leave_to_others(program, up)
    packet = _read_packet(program, ipv6, up)
    row, index = _find_row(program, packet, up)
    _close_if_asked(program, packet, row, index, up)
    program.require(program.nonzero(packet.notes.load(packet.PLAIN, i32)), otherwise=up)
    _require_live(program, row, up)
    now = program.call("ktime_get_ns")
    _require_lease(program, now, up)
    _require_mark_of_replies(program, packet, row, up)
    _tally(program, packet, row, now)
    _rewrite(program, packet, row, ipv6)
    program.leave(program.build.trunc(program.call("redirect", i32(tunnel_ifindex), i64(_INGRESS)), i32))
    program.at(up)
    program.leave(Verdict.NEXT)
    return program


def ipv6_sum_probe() -> Program:
    """Returns 1 if the kernel knows the flag for IPv6's pseudo-header (Linux 6.16, and stable releases since then).

    Without it l4_csum_replace gives a packet whose checksum the device has computed (CHECKSUM_COMPLETE) a wrong sum.
    """
    program = Program("ku_ipv6_sum")
    offset = i32(_ETH_HEADER + 40 + _TCP_SUM)
    flags = i64(_PSEUDO_HEADER | _IPV6)
    outcome = program.call("l4_csum_replace", program.packet, offset, i64(0), i64(0), flags)
    program.leave(program.build.zext(program.equal(outcome, 0), i32))
    return program


# --- what the packet says -------------------------------------------------------------------------------


def _read_packet(program: Program, ipv6: bool, up: ir.Block) -> _Packet:
    """Five-tuple, lengths and TCP flags of an IPv4 or IPv6 packet; one that has no such things goes up."""
    packet = _Packet(program)
    four, transport = program.label("ipv4"), program.label("transport")
    protocol = program.context("protocol")
    program.go_if(program.equal(protocol, be16(_ETH_P_IP)), four)
    if ipv6:
        program.require(program.equal(protocol, be16(_ETH_P_IPV6)), otherwise=up)
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


def _load(program: Program, offset: ir.Value, target: Buffer, place: int, length: int, up: ir.Block) -> None:
    """Copy packet bytes to the stack; offsets count from the IP header. Up where the packet ends before."""
    outcome = program.call(
        "skb_load_bytes_relative",
        program.packet,
        offset,
        target.address(place),
        i32(length),
        i32(_FROM_NETWORK_HEADER),
    )
    program.require(program.equal(outcome, 0), otherwise=up)


def _host16(program: Program, value: ir.Value) -> ir.Value:
    """A 16-bit field of the packet as a number, 32 bits wide."""
    build = program.build
    wide = build.zext(value, i32)
    swapped = build.or_(build.shl(wide, i32(8)), build.lshr(wide, i32(8)))
    return build.and_(swapped, i32(0xFFFF))


def _fits(program: Program, length: ir.Value) -> ir.Value:
    """The frame holds as many bytes of IP."""
    return program.at_least(program.context("len"), program.build.add(length, i32(_ETH_HEADER)))


def _read_ipv4(program: Program, packet: _Packet, up: ir.Block) -> None:
    """RFC 791, section 3.1. Later fragments carry no ports: they go up."""
    build, header, notes = program.build, packet.header, packet.notes
    _load(program, i32(0), header, 0, 20, up)
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
    key.store(_key_offset("source") + 12, header.load(12, i32))
    key.store(_key_offset("destination") + 12, header.load(16, i32))
    key.store(_key_offset("protocol"), header.load(9, i8))


def _read_ipv6(program: Program, packet: _Packet, up: ir.Block) -> None:
    """RFC 8200, section 3. Extension headers go up; so does a payload length of 0, a jumbogram's (RFC 2675)."""
    build, header, notes = program.build, packet.header, packet.notes
    _load(program, i32(0), header, 0, 40, up)
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
        key.store(word, header.load(_ADDRESSES6 + word, i64))
    key.store(_key_offset("protocol"), header.load(6, i8))
    key.store(_key_offset("family"), i8(KeyBit.IPV6))


def _read_transport(program: Program, packet: _Packet, up: ir.Block) -> None:
    """Ports, and whether lengths and flags allow a rewrite; other protocols than TCP and UDP go up."""
    build, notes, transport = program.build, packet.notes, packet.transport
    protocol = packet.key.load(_key_offset("protocol"), i8)
    tcp, read = program.label("tcp"), program.label("read")
    offset = notes.load(packet.L4, i32)
    payload = build.sub(notes.load(packet.LENGTH, i32), offset)  # below 0, thus large, where lengths contradict

    def only_if(condition: ir.Value) -> None:
        sane = build.icmp_signed(">=", payload, i32(0))
        both = build.zext(build.and_(condition, sane), i32)
        notes.store(packet.PLAIN, build.and_(notes.load(packet.PLAIN, i32), both))

    program.go_if(program.equal(protocol, Protocol.TCP), tcp)
    program.require(program.equal(protocol, Protocol.UDP), otherwise=up)
    _load(program, offset, transport, 0, 8, up)
    length = _host16(program, transport.load(4, i16))
    only_if(build.and_(program.at_least(length, 8), program.at_least(payload, length)))
    program.go(read)

    program.at(tcp)
    _load(program, offset, transport, 0, 16, up)
    units = build.lshr(transport.load(12, i8), i8(4))
    length = build.shl(build.zext(units, i32), i32(2))
    only_if(build.and_(program.at_least(length, 20), program.at_least(payload, length)))
    closes = program.has_bits(transport.load(13, i8), _FIN_SYN_RST)
    notes.store(packet.CLOSES, build.zext(closes, i32))
    program.go(read)
    program.at(read)
    packet.key.store(_key_offset("source_port"), transport.load(0, i32))  # both


# --- what user space says -------------------------------------------------------------------------------


def _find_row(program: Program, packet: _Packet, up: ir.Block) -> tuple[ir.Value, ir.Value]:
    """The row of the packet's flow and direction, and its index; up where there is none of this generation."""
    build = program.build
    entry = program.look_up("flows", packet.key)
    program.require(program.nonzero(entry), otherwise=up)
    value = program.value(entry, i64)  # both words with one load
    index = build.trunc(value, i32)
    generation = build.trunc(build.lshr(value, i64(32)), i32)
    row = _row(program, index, up)
    armed = program.value(row, i32, _offset("armed"))
    program.require(program.equal(armed, generation), otherwise=up)
    program.require(program.nonzero(armed), otherwise=up)
    return row, index


def _row(program: Program, index: ir.Value, up: ir.Block) -> ir.Value:
    key = program.buffer(4)
    key.store(0, index)
    row = program.look_up("rows", key)
    program.require(program.nonzero(row), otherwise=up)
    return row


def _close_if_asked(program: Program, packet: _Packet, row: ir.Value, index: ir.Value, up: ir.Block) -> None:
    """SYN, FIN or RST: nothing of this flow is rewritten any more, in neither direction."""
    onward = program.label("goes_on")
    program.require(program.nonzero(packet.notes.load(packet.CLOSES, i32)), otherwise=onward)
    count(program, "cached", CountOf.CLOSED)
    program.set_value(row, _offset("closed"), i32(1))
    twin = _row(program, program.build.xor(index, i32(1)), up)
    program.set_value(twin, _offset("closed"), i32(1))
    program.go(up)
    program.at(onward)


def _require_live(program: Program, row: ir.Value, up: ir.Block) -> None:
    live = program.value(row, i32, _offset("live"))
    program.require(program.equal(live, program.value(row, i32, _offset("armed"))), otherwise=up)
    closed = program.value(row, i32, _offset("closed"))
    program.go_if(program.nonzero(closed), up)


def _require_lease(program: Program, now: ir.Value, up: ir.Block) -> None:
    """User space is there and wants it, or has been there a moment ago."""
    lease = _row(program, i32(LEASE_ROW), up)
    over = program.label("over")
    until = program.value(lease, i64, _offset("last_seen_ns"))
    program.require(program.at_least(until, now), otherwise=over)
    onward = program.label("leased")
    program.go(onward)
    program.at(over)
    count(program, "cached", CountOf.LAPSED)
    program.go(up)
    program.at(onward)


def _require_mark_of_replies(program: Program, packet: _Packet, row: ir.Value, up: ir.Block) -> None:
    """Where replies are restricted to marked interfaces, only those of these."""
    build = program.build
    with program.when(program.nonzero(program.value(row, i8, _offset("returning")))):
        config = read_config(program, up)
        with program.when(program.has_bits(config, ConfigBit.MARKED)):
            six = program.nonzero(packet.key.load(_key_offset("family"), i8))
            wanted = build.select(six, i32(MARK6), i32(MARK4))
            require_mark(program, wanted, program.context("ifindex"), up)


def _tally(program: Program, packet: _Packet, row: ir.Value, now: ir.Value) -> None:
    """Count it while it is as it came."""
    count(program, "cached", CountOf.HIT)
    program.set_value(row, _offset("last_seen_ns"), now)
    program.add_to_value(row, _offset("packets"), i64(1))
    length = program.build.zext(packet.notes.load(packet.LENGTH, i32), i64)
    program.add_to_value(row, _offset("bytes"), length)


# --- the rewrite ------------------------------------------------------------------------------------------


def _rewrite(program: Program, packet: _Packet, row: ir.Value, ipv6: bool) -> None:
    """Addresses, ports, checksums, Ethernet destination. A packet that was changed in part is dropped."""
    failed, done = program.label("failed"), program.label("rewritten")
    if ipv6:
        four = program.label("rewrite4")
        program.require(program.nonzero(packet.key.load(_key_offset("family"), i8)), otherwise=four)
        _rewrite_family(program, packet, row, True, failed)
        program.go(done)
        program.at(four)
    _rewrite_family(program, packet, row, False, failed)
    program.go(done)
    program.at(failed)
    count(program, "cached", CountOf.FAILED)
    program.leave(Verdict.DROP)
    program.at(done)
    _store(program, 0, program.within(row, _offset("mac")), 6, failed)


def _rewrite_family(program: Program, packet: _Packet, row: ir.Value, six: bool, failed: ir.Block) -> None:
    build = program.build
    at, length, header = (_ADDRESSES6, 32, 40) if six else (_ADDRESSES4, 8, 20)
    l4 = _ETH_HEADER + header
    addresses = program.within(row, _offset("addresses"))
    old = packet.header.address(at)
    change = program.call("csum_diff", old, i32(length), addresses, i32(length), i32(0))
    udp = program.equal(packet.key.load(_key_offset("protocol"), i8), Protocol.UDP)
    place = build.select(udp, i32(l4 + _UDP_SUM), i32(l4 + _TCP_SUM))
    zero = build.select(udp, i64(_MANGLED_0), i64(0))  # a UDP checksum of 0 is none, and stays so
    pseudo = build.or_(zero, i64(_PSEUDO_HEADER | (_IPV6 if six else 0)))
    _expect(program, program.call("l4_csum_replace", program.packet, place, i64(0), change, pseudo), failed)
    if not six:
        outcome = program.call(
            "l3_csum_replace", program.packet, i32(_ETH_HEADER + _IP_SUM), i64(0), change, i64(0)
        )
        _expect(program, outcome, failed)
    _store(program, _ETH_HEADER + at, addresses, length, failed)
    old_ports = packet.transport.load(0, i32)
    new_ports = program.value(row, i32, _offset("source_port"))  # both
    with program.when(build.not_(program.equal(old_ports, new_ports))):
        outcome = program.call(
            "l4_csum_replace",
            program.packet,
            place,
            build.zext(old_ports, i64),
            build.zext(new_ports, i64),
            build.or_(zero, i64(4)),
        )
        _expect(program, outcome, failed)
        _store(program, l4, program.within(row, _offset("source_port")), 4, failed)


def _store(program: Program, offset: int, source: ir.Value, length: int, failed: ir.Block) -> None:
    """Write packet bytes; checksums are looked after."""
    outcome = program.call("skb_store_bytes", program.packet, i32(offset), source, i32(length), i64(0))
    _expect(program, outcome, failed)


def _expect(program: Program, outcome: ir.Value, failed: ir.Block) -> None:
    program.require(program.equal(outcome, 0), otherwise=failed)
