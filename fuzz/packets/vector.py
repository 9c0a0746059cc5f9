"""One vector, compiled: packets into the frame and into the log, and afterwards what must be true of each.

The log is written before the graph runs and lies in memory that a parent process sees: whatever becomes of this
process, the packets that it died of are there.
"""

from typing import NamedTuple

import numpy as np

from fuzz.packets.mutator import draw, make_packet
from kuproxy.codes import N_REASONS, Outcome, PacketFlag, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.layout import (
    HEADROOM,
    HOLD_BYTES,
    HOLD_LONGEST,
    HOLD_ROOM,
    META_COUNT,
    META_HOLD_BASE,
    N_NODES,
    VNET_BYTES,
    W_HELD_NOW,
    W_OUTCOMES,
    W_RECEIVED,
)
from kuproxy.dataplane.memory import copy_bytes
from kuproxy.drivers._records import describe
from kuproxy.drivers.contract import ANSWER_ROOM, MIN_ROOM

GUARD = 64  # bytes behind a slot's room that nobody may write
GUARD_BYTE = 0xA5
RECORD = 8  # of the log: length (4, little-endian), ticks passed (2), interface, flags
STARTS, PARTIAL, GSO, CHANGE = 0x80, 1, 2, 0x40  # flags of a record; CHANGE: control's, 8 bytes of seed

_VNET_PARTIAL = int(PacketFlag.VNET | PacketFlag.PARTIAL_CHECKSUM)
_GSO = int(PacketFlag.GSO)
_TRANSMIT, _PASS, _DROP, _HELD = (
    int(each) for each in (Outcome.TRANSMIT, Outcome.PASS, Outcome.DROP, Outcome.HELD)
)
_FRAGMENTED = int(Reason.FRAGMENTED)
_KEPT = 2048  # the longest packet that comes back

# What `judge` finds: FAULTS[code]
FAULTS = (
    "",
    "a packet has no outcome, or one that does not exist",
    "a packet has a reason that does not exist",
    "a packet lies outside its slot",
    "bytes behind a slot's room were written",
    "a packet that was appended lies outside the hold",
    "a packet that was appended has no end",
    "the outcomes do not add up to the packets received",
    "the outcomes counted are not those of the packets",
    "the fragments held are not those counted",
)


class Pool(NamedTuple):
    """Packets to draw from."""

    data: np.ndarray  # uint8[n]
    offsets: np.ndarray  # int64[count]
    lengths: np.ndarray  # int64[count]; 0: none here


class Words(NamedTuple):
    """The dictionary."""

    addresses4: np.ndarray  # uint8[n, 4]
    addresses6: np.ndarray  # uint8[n, 16]
    ports: np.ndarray  # int64[n]


class Log(NamedTuple):
    """Where packets are noted before the graph sees them."""

    data: np.ndarray  # uint8[n]
    used: np.ndarray  # int64[2]: bytes of whole vectors; bytes with the one under way


@kernel
def room_of(length):
    """The least that a driver grants, see drivers.contract."""
    return max(MIN_ROOM, length + ANSWER_ROOM)


@kernel
def _note(log, length, ticks, interface, flags):
    at = log.used[1]
    for n in range(4):
        log.data[at + n] = (length >> 8 * n) & 0xFF
    log.data[at + 4], log.data[at + 5] = ticks & 0xFF, ticks >> 8
    log.data[at + 6], log.data[at + 7] = interface, flags
    log.used[1] = at + RECORD


@kernel
def note_change(log, seed, ticks):
    """Control did something, which `seed` (int64) tells; returns False if the log is full."""
    if log.used[1] + RECORD + 8 > len(log.data):
        return False
    _note(log, 8, ticks, 0, CHANGE)
    for n in range(8):
        log.data[log.used[1] + n] = (seed >> 8 * n) & 0xFF
    log.used[1] += 8
    log.used[0] = log.used[1]
    return True


@kernel
def fill(frame, log, random, pool, seen, words, vector, stride, ticks):
    """Put up to `vector` packets into frame and log; returns how many (fewer when the log is full)."""
    last = np.int64(-1)
    put = 0
    while put < vector:
        slot = put * stride
        start = slot + HEADROOM
        length, last, extra = make_packet(frame.data, start, random, pool, seen, words, last)
        if log.used[1] + RECORD + length > len(log.data):
            break
        interface = 1 if extra & 4 else 0
        flags = (extra & 3) | (STARTS if put == 0 else 0)
        _note(log, length, ticks if put == 0 else 0, interface, flags)
        copy_bytes(log.data, log.used[1], frame.data, start, length)
        log.used[1] += length
        room = room_of(length)
        describe(frame.packets, put, start, length, room, interface, start - VNET_BYTES, 0)
        for n in range(start - VNET_BYTES, start):
            frame.data[n] = 0
        marks = 0
        if flags & PARTIAL:
            marks |= _VNET_PARTIAL
        if flags & GSO:
            marks |= _GSO
            # struct virtio_net_hdr, as engine.packets.put writes it
            at = start - VNET_BYTES
            frame.data[at], frame.data[at + 6], frame.data[at + 8] = 1, 34, 6
        frame.packets[put]["flags"] = marks
        for n in range(start + room, start + room + GUARD):
            frame.data[n] = GUARD_BYTE
        put += 1
    frame.meta[META_COUNT] = put
    return put


@kernel
def before(state, sums):
    """Keep the counters that `judge` compares: int64[8]."""
    for outcome in range(5):
        sums[outcome] = state.header[W_OUTCOMES + outcome]
    sums[5] = state.header[W_RECEIVED]
    sums[6] = _pieces(state)


@kernel
def _pieces(state):
    total = np.int64(0)
    for node in range(N_NODES):
        total += np.int64(state.counters[node, _FRAGMENTED])
    return total


@kernel
def judge(frame, state, sums, vector, stride):
    """0, or the code of what is wrong (FAULTS) | index << 8."""
    ends = np.int64(0)
    counted = 0
    by_outcome = (np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0))
    transmit, passed, drop, held = by_outcome[:4]
    count = frame.meta[META_COUNT]
    hold = frame.meta[META_HOLD_BASE]
    for index in range(count):
        packet = frame.packets[index]
        outcome = np.int64(packet["outcome"])
        start, length = np.int64(packet["start"]), np.int64(packet["length"])
        where = np.int64(index) << 8
        if outcome < _TRANSMIT or outcome > _HELD:
            return where | 1
        if np.int64(packet["reason"]) >= N_REASONS:
            return where | 2
        transmit += outcome == _TRANSMIT
        passed += outcome == _PASS
        drop += outcome == _DROP
        held += outcome == _HELD
        if index < vector:
            first = index * stride + HEADROOM
            room = np.int64(packet["room"]) + start  # the graph may move both
            if (
                start < first - HEADROOM
                or start + length > (index + 1) * stride - GUARD
                or room > (index + 1) * stride
            ):
                return where | 3
        else:
            counted += 1
            if outcome == _HELD:
                return where | 6
            if start < hold or start + length > hold + HOLD_ROOM or length > HOLD_BYTES:
                return where | 5
            ends += 1
    pieces = _pieces(state) - sums[6]
    if state.header[W_RECEIVED] - sums[5] != vector:
        return 7
    total = np.int64(0)
    for outcome in range(1, 5):
        total += state.header[W_OUTCOMES + outcome] - sums[outcome]
    if total != vector or state.header[W_OUTCOMES] != 0:
        return 7
    released = counted - pieces
    if (
        state.header[W_OUTCOMES + _TRANSMIT] - sums[_TRANSMIT] != transmit - pieces
        or state.header[W_OUTCOMES + _PASS] - sums[_PASS] != passed
        or state.header[W_OUTCOMES + _DROP] - sums[_DROP] != drop
        or state.header[W_OUTCOMES + _HELD] - sums[_HELD] != held - released
    ):
        return 8
    if state.header[W_HELD_NOW] != state.header[W_OUTCOMES + _HELD]:
        return 9
    return 0


@kernel
def guards(frame, log, vector, stride):
    """Index of the first slot behind whose room somebody wrote, or -1; to be asked before the log goes on."""
    at = log.used[0]
    for index in range(vector):
        length = np.int64(0)
        for n in range(4):
            length |= np.int64(log.data[at + n]) << 8 * n
        first = index * stride + HEADROOM + room_of(length)
        for n in range(first, first + GUARD):
            if frame.data[n] != GUARD_BYTE:
                return index
        at += RECORD + length
    return -1


@kernel
def keep(frame, log, random, seen):
    """The vector is done: some of what it sent may come back."""
    log.used[0] = log.used[1]
    for index in range(frame.meta[META_COUNT]):
        packet = frame.packets[index]
        length = np.int64(packet["length"])
        if packet["outcome"] == _TRANSMIT and 0 < length <= _KEPT and draw(random, 4) == 0:
            place = draw(random, len(seen.lengths))
            copy_bytes(seen.data, seen.offsets[place], frame.data, np.int64(packet["start"]), length)
            seen.lengths[place] = length


def empty_seen(count: int = 256) -> Pool:
    """Room for packets that come back."""
    return Pool(np.zeros(count * _KEPT, np.uint8), np.arange(count) * _KEPT, np.zeros(count, np.int64))


assert HOLD_LONGEST + HEADROOM <= HOLD_BYTES
