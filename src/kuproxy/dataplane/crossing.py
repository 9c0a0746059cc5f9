"""A translated packet's way out: its size, its fragments, its outcome. Shared by the nodes that cross the families.

docs/forwarding.md, "Translation". Sizes by RFC 7915: section 4 for IPv4 to IPv6, section 5.1 for the other way.
"""

import numpy as np

from kuproxy.codes import Outcome, PacketFlag, Protocol, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.answers import forget_offloads
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.graph_queue import SEND_TOO_BIG, answer, count, finish
from kuproxy.dataplane.layout import (
    HOLD_BYTES,
    HOLD_HEADROOM,
    HOLD_RELEASED,
    HOLD_SLOTS,
    META_COUNT,
    META_HOLD_BASE,
    T_DECREMENT_TTL,
    T_TRANSLATION_MTU,
    VNET_BYTES,
    W_IDENTIFICATION,
)
from kuproxy.dataplane.memory import clear_bytes, copy_bytes, load16, store16, swap16
from kuproxy.dataplane.rewrite import port_is_fixed
from kuproxy.dataplane.translate import FRAGMENT_HEADER, LARGEST_SAFE6, to_ipv4, to_ipv6
from kuproxy.dataplane.worker_choice import next_identification
from kuproxy.wire import ipv4, ipv6, l4

_FRAGMENT = int(PacketFlag.FRAGMENT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_GSO = int(PacketFlag.GSO)
_VNET = int(PacketFlag.VNET)
_TRANSMIT = int(Outcome.TRANSMIT)
_DROP = int(Outcome.DROP)
_PIECE = (LARGEST_SAFE6 - ipv6.HEADER - FRAGMENT_HEADER) & ~7  # bytes of payload in a fragment: 1232


@kernel
def _free_places(state):
    free = 0
    for index in range(HOLD_SLOTS):
        if state.held[index]["used"] == 0:
            free += 1
    return free


@kernel
def _complete(data, packet):
    """A partial checksum becomes a whole one: the field holds the pseudo-header's sum already."""
    start = np.int64(packet["start"])
    at = start + np.int64(packet["l4"])
    protocol = np.int64(packet["protocol"])
    offset = l4.checksum_offset(6, protocol)
    if offset != 0:
        new = fold(sum_bytes(data, at, start + np.int64(packet["end"]) - at)) ^ 0xFFFF
        if new == 0 and protocol == Protocol.UDP.value:
            new = 0xFFFF
        store16(data, at + offset, new)


@kernel
def _piece(frame, state, packet, offset, length, last):
    """Append a fragment with payload bytes offset:offset + length of `packet` to the frame."""
    data = frame.data
    place = 0
    while state.held[place]["used"] != 0:
        place += 1
    state.held[place]["used"] = HOLD_RELEASED
    target = frame.meta[META_HOLD_BASE] + place * HOLD_BYTES + HOLD_HEADROOM
    start = np.int64(packet["start"])
    front = np.int64(packet["l4"])
    copy_bytes(data, target, data, start, front)
    copy_bytes(data, target + front, data, start + front + offset, length)
    clear_bytes(data, target - VNET_BYTES, VNET_BYTES)
    header = target + front - FRAGMENT_HEADER
    field = swap16(load16(data, header + ipv6.FRAGMENT_FIELD))
    more = 1 if not last or field & 1 else 0
    store16(data, header + ipv6.FRAGMENT_FIELD, swap16(((field & 0xFFF8) + offset) | more))
    l3 = target + np.int64(packet["l3"])
    store16(data, l3 + ipv6.PAYLOAD_LENGTH, swap16(FRAGMENT_HEADER + length))
    number = frame.meta[META_COUNT]
    frame.meta[META_COUNT] = number + 1
    frame.packets[number] = packet
    appended = frame.packets[number]
    appended["start"] = target
    appended["vnet"] = target - VNET_BYTES
    appended["length"] = front + length
    appended["end"] = front + length
    appended["room"] = HOLD_BYTES - HOLD_HEADROOM
    appended["flags"] = np.int64(packet["flags"]) | _FRAGMENT | _LATER
    appended["outcome"] = _TRANSMIT


@kernel
def _split(frame, state, packet, node, reason):
    """Cut a translated packet, which has a fragment header already, into pieces of at most 1280 bytes."""
    data = frame.data
    if np.int64(packet["flags"]) & _PARTIAL:
        _complete(data, packet)
    forget_offloads(data, packet)
    packet["reason"] = reason
    front = np.int64(packet["l4"])
    payload = np.int64(packet["end"]) - front
    pieces = 0
    for offset in range(_PIECE, payload, _PIECE):
        _piece(frame, state, packet, offset, min(_PIECE, payload - offset), offset + _PIECE >= payload)
        pieces += 1
    at = np.int64(packet["start"]) + front - FRAGMENT_HEADER + ipv6.FRAGMENT_FIELD
    store16(data, at, load16(data, at) | 0x0100)  # more fragments
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    store16(data, l3 + ipv6.PAYLOAD_LENGTH, swap16(FRAGMENT_HEADER + _PIECE))
    packet["end"] = front + _PIECE
    packet["length"] = front + _PIECE
    packet["flags"] = np.int64(packet["flags"]) | _FRAGMENT
    count(state, node, Reason.FRAGMENTED.value, pieces)


@kernel
def _ports_are_fixed(packet, src_port, dst_port):
    protocol, flags = packet["protocol"], np.int64(packet["flags"])
    return port_is_fixed(protocol, flags, np.int64(packet["src_port"]), src_port) or port_is_fixed(
        protocol, flags, np.int64(packet["dst_port"]), dst_port
    )


@kernel
def cross_to_6(frame, tables, state, index, src_hi, src_lo, dst_hi, dst_lo, src_port, dst_port, node, reason):
    """Translate IPv4 packet `index` and send it, whole or in fragments; or say why not."""
    packet = frame.packets[index]
    data = frame.data
    if _ports_are_fixed(packet, src_port, dst_port):
        finish(packet, state, node, _DROP, Reason.SCTP_FRAGMENT.value)
        return
    flags = np.int64(packet["flags"])
    l3 = np.int64(packet["start"]) + np.int64(packet["l3"])
    payload = np.int64(packet["end"]) - np.int64(packet["l4"])
    size = payload + ipv6.HEADER + (FRAGMENT_HEADER if flags & _FRAGMENT else 0)
    splits = False
    if flags & _GSO == 0:
        if swap16(load16(data, l3 + ipv4.FRAGMENT)) & ipv4.DONT_FRAGMENT:
            mtu = np.int64(tables.header[T_TRANSLATION_MTU])
            if mtu != 0 and size > mtu:
                answer(frame, index, SEND_TOO_BIG, mtu - (size - payload - ipv4.HEADER))
                return
        elif size > LARGEST_SAFE6 and not (
            flags & _PARTIAL and (flags & _FRAGMENT or packet["protocol"] == Protocol.SCTP.value)
        ):
            splits = True
            if (payload - 1) // _PIECE > _free_places(state):
                finish(packet, state, node, _DROP, Reason.FRAGMENT_HOLD_FULL.value)
                return
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    to_ipv6(data, packet, src_hi, src_lo, dst_hi, dst_lo, src_port, dst_port, decrement, splits)
    if splits:
        _split(frame, state, packet, node, reason)
    finish(packet, state, node, _TRANSMIT, reason)


@kernel
def cross_to_4(frame, tables, state, index, src_lo, dst_lo, src_port, dst_port, node, reason):
    """Translate IPv6 packet `index` and send it; or say why not."""
    packet = frame.packets[index]
    if _ports_are_fixed(packet, src_port, dst_port):
        finish(packet, state, node, _DROP, Reason.SCTP_FRAGMENT.value)
        return
    flags = np.int64(packet["flags"])
    size = np.int64(packet["end"]) - np.int64(packet["l4"]) + ipv4.HEADER
    mtu = np.int64(tables.header[T_TRANSLATION_MTU])
    if mtu == 0 or flags & _GSO:
        mtu = np.int64(0xFFFF)
    if size > mtu:
        more = FRAGMENT_HEADER if flags & _FRAGMENT else 0
        answer(frame, index, SEND_TOO_BIG, mtu + ipv6.HEADER - ipv4.HEADER + more)
        return
    identification = np.int64(0)
    if flags & _FRAGMENT == 0:
        identification = next_identification(tables, state, W_IDENTIFICATION)
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    to_ipv4(frame.data, packet, src_lo, dst_lo, src_port, dst_port, decrement, identification)
    finish(packet, state, node, _TRANSMIT, reason)
