"""kp-fragment: later fragments learn the ports of their first one ("shallow virtual reassembly" in VPP).

docs/forwarding.md, "kp-fragment". Nothing is put together: each fragment is forwarded by itself. Fragments that come
before their first one wait in the frame's hold area and are released into the same frame as the first.
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.flow_table import is_live
from kuproxy.dataplane.graph_queue import count, enqueue, finish
from kuproxy.dataplane.hash import flow_hash, ports_word
from kuproxy.dataplane.layout import (
    FRAGMENT_SLOTS,
    HEADROOM,
    HOLD_BYTES,
    HOLD_LONGEST,
    HOLD_RELEASED,
    HOLD_SLOTS,
    META_COUNT,
    META_HOLD_BASE,
    T_N_NODEPORTS,
    TICKS_PER_SECOND,
    VNET_BYTES,
    W_HELD_NOW,
    W_HELD_SEQUENCE,
    W_OUTCOMES,
)
from kuproxy.dataplane.match import vip_address
from kuproxy.dataplane.membership import is_marked, is_node_address, is_pod_address
from kuproxy.dataplane.memory import copy_bytes, crc32c, load16, load32
from kuproxy.wire import ipv4, ipv6, l4

_NODE = int(Node.FRAGMENT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_VNET = int(PacketFlag.VNET)
_HELD = int(Outcome.HELD)
_ZERO = np.uint64(0)
_TIMEOUT = 5 * TICKS_PER_SECOND
_ASSOCIATIVITY = 4

# Values of HELD["used"]
_FREE = 0
_WAITING = 1
_RELEASED = HOLD_RELEASED


@kernel
def _identification(data, packet):
    """The datagram's identification as it lies in the packet."""
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    if packet["family"] == 4:
        return load16(data, l3 + ipv4.IDENTIFICATION)
    end = np.int64(packet["start"]) + np.int64(packet["end"])
    _, _, _, at = ipv6.skip_extensions(data, l3, end)
    return load32(data, at + ipv6.FRAGMENT_IDENTIFICATION)


@kernel
def _header_protocol(data, packet):
    """IPv4's protocol field belongs to the key (RFC 791); in IPv6 it does not (RFC 8200 section 4.5)."""
    if packet["family"] == 4:
        l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
        return int(data[l3 + ipv4.PROTOCOL])
    return 0


@kernel
def _same_datagram(record, family, protocol, identification, src_hi, src_lo, dst_hi, dst_lo):
    return (
        np.int64(record["identification"]) == identification
        and record["src_lo"] == src_lo
        and record["dst_lo"] == dst_lo
        and record["src_hi"] == src_hi
        and record["dst_hi"] == dst_hi
        and np.int64(record["family"]) == family
        and (family == 6 or np.int64(record["protocol"]) == protocol)
    )


@kernel
def _find(state, family, protocol, identification, src_hi, src_lo, dst_hi, dst_lo, now, insert):
    """Index of the datagram's record, or -1; with `insert`, of the one to overwrite (a free, expired or the oldest)."""
    word = crc32c(crc32c(crc32c(_ZERO, src_lo ^ src_hi), dst_lo ^ dst_hi), np.uint64(identification))
    base = np.int64(word) & (FRAGMENT_SLOTS - _ASSOCIATIVITY)
    best = np.int64(-1)
    best_left = np.int64(1) << 62
    for index in range(base, base + _ASSOCIATIVITY):
        record = state.fragments[index]
        usable = record["used"] != 0 and is_live(record["expires"], now)
        if usable and _same_datagram(
            record, family, protocol, identification, src_hi, src_lo, dst_hi, dst_lo
        ):
            return index
        left = (np.int64(record["expires"]) - now) & 0xFFFFFFFF if usable else np.int64(-1)
        if left < best_left:
            best = index
            best_left = left
    return best if insert else np.int64(-1)


@kernel
def _learn(frame, state, packet, record):
    """Give a later fragment the ports, protocol and flow hash of its datagram."""
    protocol = np.int64(record["l4_protocol"])
    packet["protocol"] = protocol
    packet["src_port"] = record["src_port"]
    packet["dst_port"] = record["dst_port"]
    word = _ZERO
    if l4.has_ports(protocol):
        word = ports_word(np.int64(record["src_port"]), np.int64(record["dst_port"]))
    src_hi, src_lo = source(frame.data, packet)
    dst_hi, dst_lo = destination(frame.data, packet)
    family = np.int64(packet["family"])
    packet["hash"] = np.uint32(flow_hash(state, family, src_hi, src_lo, dst_hi, dst_lo, word))


@kernel
def _release_held(frame, state, record):
    """Append the waiting fragments of this datagram to the frame, oldest first."""
    while True:
        oldest = -1
        for index in range(HOLD_SLOTS):
            held = state.held[index]
            if held["used"] == _WAITING and _same_datagram(
                held,
                np.int64(record["family"]),
                np.int64(record["protocol"]),
                np.int64(record["identification"]),
                record["src_hi"],
                record["src_lo"],
                record["dst_hi"],
                record["dst_lo"],
            ):
                if oldest < 0 or held["sequence"] < state.held[oldest]["sequence"]:
                    oldest = index
        if oldest < 0:
            return
        held = state.held[oldest]
        held["used"] = _RELEASED
        number = frame.meta[META_COUNT]
        frame.meta[META_COUNT] = number + 1
        packet = frame.packets[number]
        start = frame.meta[META_HOLD_BASE] + oldest * HOLD_BYTES + HEADROOM
        packet["start"] = start
        packet["vnet"] = start - VNET_BYTES
        packet["length"] = held["length"]
        packet["room"] = HOLD_BYTES - HEADROOM
        packet["end"] = held["end"]
        packet["l3"] = held["l3"]
        packet["l4"] = held["l4"]
        packet["interface"] = held["interface"]
        packet["flags"] = held["flags"]
        packet["family"] = held["family"]
        packet["vip"] = 0
        packet["pod"] = 0
        packet["slot"] = 0
        packet["new_port"] = 0
        packet["outcome"] = 0
        packet["reason"] = 0
        _learn(frame, state, packet, record)
        state.header[W_HELD_NOW] -= 1
        state.header[W_OUTCOMES + _HELD] -= 1
        count(state, _NODE, Reason.FRAGMENT_RELEASED.value, 1)
        enqueue(frame, Node.LOOKUP.value, number)


@kernel
def _first(frame, state, packet, number, now):
    """Remember the ports, let the packet go on, release what waited for it."""
    family = np.int64(packet["family"])
    protocol = _header_protocol(frame.data, packet)
    identification = _identification(frame.data, packet)
    src_hi, src_lo = source(frame.data, packet)
    dst_hi, dst_lo = destination(frame.data, packet)
    index = _find(state, family, protocol, identification, src_hi, src_lo, dst_hi, dst_lo, now, True)
    record = state.fragments[index]
    record["src_hi"] = src_hi
    record["src_lo"] = src_lo
    record["dst_hi"] = dst_hi
    record["dst_lo"] = dst_lo
    record["identification"] = identification
    record["expires"] = (now + _TIMEOUT) & 0xFFFFFFFF
    record["src_port"] = packet["src_port"]
    record["dst_port"] = packet["dst_port"]
    record["protocol"] = protocol
    record["l4_protocol"] = packet["protocol"]
    record["family"] = family
    record["used"] = 1
    count(state, _NODE, Reason.FIRST_FRAGMENT.value, 1)
    enqueue(frame, Node.LOOKUP.value, number)
    _release_held(frame, state, record)


@kernel
def _may_be_ours(tables, packet, src_hi, src_lo, dst_hi, dst_lo):
    family = np.int64(packet["family"])
    if vip_address(tables, dst_hi, dst_lo, family):
        return True
    if tables.header[T_N_NODEPORTS] != _ZERO and is_node_address(tables, family, dst_hi, dst_lo):
        return True
    return is_marked(tables, packet) and is_pod_address(tables, packet, src_hi, src_lo)


@kernel
def _hold(frame, state, packet, identification, protocol, src_hi, src_lo, dst_hi, dst_lo, now):
    """Keep a copy until the first fragment comes; returns the reason."""
    length = np.int64(packet["length"])
    if length > HOLD_LONGEST:
        return Reason.FRAGMENT_TOO_LONG.value
    free = -1
    for index in range(HOLD_SLOTS):
        if state.held[index]["used"] == _FREE:
            free = index
            break
    if free < 0:
        return Reason.FRAGMENT_HOLD_FULL.value
    target = frame.meta[META_HOLD_BASE] + free * HOLD_BYTES + HEADROOM
    start = np.int64(packet["start"])
    flags = np.int64(packet["flags"])
    if flags & _VNET:
        vnet = np.int64(packet["vnet"])
        copy_bytes(frame.data, target - VNET_BYTES, frame.data, vnet, VNET_BYTES)
    copy_bytes(frame.data, target, frame.data, start, length)
    held = state.held[free]
    held["src_hi"] = src_hi
    held["src_lo"] = src_lo
    held["dst_hi"] = dst_hi
    held["dst_lo"] = dst_lo
    held["identification"] = identification
    held["expires"] = (now + _TIMEOUT) & 0xFFFFFFFF
    held["length"] = length
    held["end"] = packet["end"]
    held["interface"] = packet["interface"]
    held["l3"] = packet["l3"]
    held["l4"] = packet["l4"]
    held["flags"] = flags
    held["protocol"] = protocol
    held["family"] = packet["family"]
    held["used"] = _WAITING
    state.header[W_HELD_SEQUENCE] += 1
    held["sequence"] = state.header[W_HELD_SEQUENCE]
    state.header[W_HELD_NOW] += 1
    return Reason.FRAGMENT_HELD.value


@kernel
def _later(frame, tables, state, packet, number, now):
    """Forward with the known ports, or hold, or let go what cannot be ours."""
    family = np.int64(packet["family"])
    protocol = _header_protocol(frame.data, packet)
    identification = _identification(frame.data, packet)
    src_hi, src_lo = source(frame.data, packet)
    dst_hi, dst_lo = destination(frame.data, packet)
    index = _find(state, family, protocol, identification, src_hi, src_lo, dst_hi, dst_lo, now, False)
    if index >= 0:
        _learn(frame, state, packet, state.fragments[index])
        count(state, _NODE, Reason.LATER_FRAGMENT.value, 1)
        enqueue(frame, Node.LOOKUP.value, number)
    elif not _may_be_ours(tables, packet, src_hi, src_lo, dst_hi, dst_lo):
        finish(packet, state, _NODE, Outcome.PASS.value, Reason.NO_VIP.value)
    else:
        reason = _hold(frame, state, packet, identification, protocol, src_hi, src_lo, dst_hi, dst_lo, now)
        outcome = _HELD if reason == Reason.FRAGMENT_HELD.value else Outcome.DROP.value
        finish(packet, state, _NODE, outcome, reason)


@kernel
def recycle_held(state):
    """Give back the hold buffers that went out with the last frame."""
    for index in range(HOLD_SLOTS):
        if state.held[index]["used"] == _RELEASED:
            state.held[index]["used"] = _FREE


@kernel
def expire_held(state, now):
    """Drop the fragments whose first one did not come in time."""
    if state.header[W_HELD_NOW] == 0:
        return
    for index in range(HOLD_SLOTS):
        held = state.held[index]
        if held["used"] == _WAITING and not is_live(held["expires"], now):
            held["used"] = _FREE
            state.header[W_HELD_NOW] -= 1
            state.header[W_OUTCOMES + _HELD] -= 1
            state.header[W_OUTCOMES + Outcome.DROP.value] += 1
            count(state, _NODE, Reason.FRAGMENT_TIMEOUT.value, 1)


@kernel
def kp_fragment(frame, tables, state, now):
    """First fragments teach, later ones learn or wait."""
    for position in range(frame.queued[_NODE]):
        number = np.int64(frame.queue[_NODE, position])
        packet = frame.packets[number]
        if np.int64(packet["flags"]) & _LATER:
            _later(frame, tables, state, packet, number, now)
        else:
            _first(frame, state, packet, number, now)
