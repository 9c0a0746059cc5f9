"""kp-input: Ethernet, VLAN, IPv4, IPv6 and L4 headers are checked once; what follows trusts the record.

Fills family, protocol, l3, l4, end, ports, hash and the fragment flags (docs/forwarding.md, "kp-input").
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.graph_queue import enqueue, finish
from kuproxy.dataplane.hash import hash_ipv4, hash_ipv6, ports_word_at, rekey
from kuproxy.dataplane.layout import FLOW_HASH_VPP, META_COUNT, W_FLOW_HASH, W_RECEIVED
from kuproxy.dataplane.memory import load8, load16, prefetch, swap16
from kuproxy.wire import ethernet, ipv4, ipv6, l4

_NODE = int(Node.INPUT)
_DROP = int(Outcome.DROP)
_PASS = int(Outcome.PASS)
_FRAGMENT = int(PacketFlag.FRAGMENT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_ZERO = np.uint64(0)
_AHEAD = 6  # packets whose first cache line is fetched in advance


@helper
def _parse_ipv4(data, packet, start, l3, left):
    """Reason, protocol, offset of the payload, end of the packet, fragment flags."""
    reason = ipv4.check(data, l3, left)
    if reason != 0:
        return reason, 0, 0, 0, 0
    field = swap16(load16(data, l3 + ipv4.FRAGMENT))
    flags = 0
    if field & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK):
        flags = _FRAGMENT
        if field & ipv4.OFFSET_MASK:
            flags |= _LATER
    end = l3 + swap16(load16(data, l3 + ipv4.TOTAL_LENGTH))
    return reason, load8(data, l3 + ipv4.PROTOCOL), l3 + ipv4.header_length(data, l3), end, flags


@helper
def _parse_ipv6(data, packet, start, l3, left):
    """The same for IPv6."""
    reason = ipv6.check(data, l3, left)
    if reason != 0:
        return reason, 0, 0, 0, 0
    end = l3 + ipv6.HEADER + swap16(load16(data, l3 + ipv6.PAYLOAD_LENGTH))
    reason, protocol, l4_at, fragment = ipv6.skip_extensions(data, l3, end)
    flags = 0
    if fragment != 0:
        flags = _FRAGMENT
        if swap16(load16(data, fragment + ipv6.FRAGMENT_FIELD)) & 0xFFF8:
            flags |= _LATER
    return reason, protocol, l4_at, end, flags


@helper
def _parse(data, packet):
    """Fill the record; returns the reason for which the packet ends here, or 0."""
    start = np.int64(packet["start"])
    length = np.int64(packet["length"])
    kind, offset = ethernet.network_offset(data, start, length)
    l3 = start + offset
    if kind == ethernet.IPV4_LE:
        family = 4
        reason, protocol, l4_at, end, flags = _parse_ipv4(data, packet, start, l3, length - offset)
    elif kind == ethernet.IPV6_LE:
        family = 6
        reason, protocol, l4_at, end, flags = _parse_ipv6(data, packet, start, l3, length - offset)
    elif kind < 0:
        return Reason.TRUNCATED_ETHERNET.value
    else:
        return Reason.NOT_IP.value
    if reason != 0:
        return reason
    word = _ZERO
    if flags & _LATER == 0:
        reason = l4.check(data, l4_at, end, family, protocol, flags != 0)
        if reason != 0:
            return reason
        if l4.has_ports(protocol):
            word = ports_word_at(data, l4_at)
            packet["src_port"] = swap16(np.int64(word >> np.uint64(16)))
            packet["dst_port"] = swap16(np.int64(word & np.uint64(0xFFFF)))
    packet["family"] = family
    packet["protocol"] = protocol
    packet["l3"] = offset
    packet["l4"] = l4_at - start
    packet["end"] = end - start
    packet["flags"] = np.int64(packet["flags"]) | flags
    packet["hash"] = (
        np.uint32(hash_ipv4(data, l3, word)) if family == 4 else np.uint32(hash_ipv6(data, l3, word))
    )
    return Reason.NONE.value


@helper
def kp_input(frame, tables, state, now):
    """Parse every packet of the frame."""
    data = frame.data
    packets = frame.packets
    received = frame.meta[META_COUNT]
    state.header[W_RECEIVED] += received
    for index in range(received):
        if index + _AHEAD < received:
            prefetch(data, np.int64(packets[index + _AHEAD]["start"]))
        packet = packets[index]
        reason = _parse(data, packet)
        if reason != 0:
            finish(packet, state, _NODE, _PASS if reason == Reason.NOT_IP.value else _DROP, reason)
        elif np.int64(packet["flags"]) & _FRAGMENT:
            enqueue(frame, Node.FRAGMENT.value, index)
        else:
            enqueue(frame, Node.LOOKUP.value, index)
    if state.header[W_FLOW_HASH] != FLOW_HASH_VPP:
        rekey(frame, state)
