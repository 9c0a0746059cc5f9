"""Flows whose pods are of the other family: the client's address there, and what a packet must be to cross.

IPv4 clients appear to IPv6 pods as a /96 prefix followed by their address (RFC 6052 section 2.2). IPv6 clients appear
to IPv4 pods as an address and port of a pool; the flow remembers which. docs/forwarding.md, "Translation".
"""

import numpy as np

from kuproxy.codes import PacketFlag, Protocol, Reason
from kuproxy.dataplane import flow_table
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.layout import (
    REVERSE_WAYS,
    T_NAT46_HI,
    T_NAT46_LO,
    T_NAT64_BASE,
    T_NAT64_COUNT,
    T_NAT64_PORTS,
    T_WORKERS,
)
from kuproxy.dataplane.memory import load16, swap32
from kuproxy.dataplane.worker_choice import comes_back
from kuproxy.wire import icmp, ipv4, ipv6, l4

_FRAGMENT = int(PacketFlag.FRAGMENT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_ICMP = int(Protocol.ICMP)
_ICMP6 = int(Protocol.ICMP6)
_LOW = np.uint64(0xFFFFFFFF)
_PORT_TRIES = 1024  # addresses and ports of the pool that are looked at for a new flow, times the workers

SOURCE_ROUTE = -1  # what must_not_cross returns beside reasons: kp-icmp has something to say
ROUTING_HEADER = -2


@helper
def is_mapped(tables, hi, lo):
    """Is the IPv6 address that of an IPv4 client?"""
    return hi == tables.header[T_NAT46_HI] and lo & _LOW == tables.header[T_NAT46_LO]


@helper
def mapped_lo(tables, lo):
    """Second word of the IPv6 address of the IPv4 address `lo`; the first is header[T_NAT46_HI]."""
    return tables.header[T_NAT46_LO] | (lo & ~_LOW)


@helper
def in_pool(tables, lo):
    """Is the IPv4 address one of the pool's?"""
    number = swap32(np.int64(lo >> np.uint64(32)))
    base = np.int64(tables.header[T_NAT64_BASE])
    return number >= base and number < base + np.int64(tables.header[T_NAT64_COUNT])


@helper
def other_protocol(protocol):
    """ICMP and ICMPv6 stand for each other."""
    if protocol == _ICMP:
        return np.int64(_ICMP6)
    if protocol == _ICMP6:
        return np.int64(_ICMP)
    return np.int64(protocol)


@helper
def crosses(protocol):
    """Is the protocol translated between the families? TCP, UDP, SCTP, ICMP (RFC 6146 has no more; SCTP: RFC 7915)."""
    return l4.has_ports(protocol) or protocol == _ICMP or protocol == _ICMP6


@kernel
def find_reply(tables, state, line_hash, pod_hi, pod_lo, pod_port, far_lo, far_port, protocol, family, now):
    """The slot of the live flow of a client of `family` whose pod, of the other one, sends this reply; or -1.

    `far_lo` is the IPv4 address of the client (46) or of the pool (64); `protocol` the client's side's.
    """
    lines = len(state.reverse) // REVERSE_WAYS
    base = (line_hash & (lines - 1)) * REVERSE_WAYS
    for way in range(REVERSE_WAYS):
        back = state.reverse[base + way]
        if np.int64(back["hash"]) != line_hash or back["slot"] == 0:
            continue
        slot = np.int64(back["slot"]) - 1
        flow = state.flows[slot]
        if (
            np.int64(flow["pod_port"]) != pod_port
            or np.int64(flow["protocol"]) != protocol
            or np.int64(flow["family"]) != family
        ):
            continue
        if family == 4:
            if flow["client_lo"] != far_lo or np.int64(flow["client_port"]) != far_port:
                continue
        elif (
            np.int64(flow["source"]) != np.int64(far_lo >> np.uint64(32))
            or np.int64(flow["source_port"]) != far_port
        ):
            continue
        pod = tables.pods[state.entries[slot]["pod"]]
        if (
            pod["lo"] == pod_lo
            and pod["hi"] == pod_hi
            and np.int64(pod["family"]) != family
            and flow_table.is_occupied(tables, state, slot, now)
        ):
            return slot
    return np.int64(-1)


@kernel
def find_any_reply(
    tables,
    state,
    line_hash,
    pod_hi,
    pod_lo,
    pod_port,
    seen_hi,
    seen_lo,
    seen_port,
    protocol,
    family,
    now,
):
    """The slot of the live flow whose pod sends this to the source that it saw, of either family; or -1."""
    if family == 6 and is_mapped(tables, seen_hi, seen_lo):
        client_lo = seen_lo & ~_LOW
        inner = other_protocol(protocol)
        return find_reply(
            tables, state, line_hash, pod_hi, pod_lo, pod_port, client_lo, seen_port, inner, 4, now
        )
    if family == 4 and in_pool(tables, seen_lo):
        inner = other_protocol(protocol)
        return find_reply(
            tables, state, line_hash, pod_hi, pod_lo, pod_port, seen_lo, seen_port, inner, 6, now
        )
    return flow_table.find_reply(
        tables,
        state,
        np.int64(-1),
        line_hash,
        pod_hi,
        pod_lo,
        pod_port,
        seen_hi,
        seen_lo,
        seen_port,
        protocol,
        family,
        now,
    )


@kernel
def find_flow(
    tables,
    state,
    flow_hash,
    client_hi,
    client_lo,
    client_port,
    vip_hi,
    vip_lo,
    vip_port,
    protocol,
    vip_index,
    now,
):
    """The slot of the live flow of this client through this VIP, or -1: kp-balance's search, without a packet."""
    base = (flow_hash & (len(state.entries) // flow_table.WAYS - 1)) * flow_table.WAYS
    for slot in range(base, base + flow_table.WAYS):
        entry = state.entries[slot]
        if np.int64(entry["hash"]) != flow_hash or np.int64(entry["vip"]) != vip_index:
            continue
        flow = state.flows[slot]
        if (
            np.int64(flow["client_port"]) == client_port
            and np.int64(flow["vip_port"]) == vip_port
            and np.int64(flow["protocol"]) == protocol
            and flow["client_lo"] == client_lo
            and flow["vip_lo"] == vip_lo
            and flow["client_hi"] == client_hi
            and flow["vip_hi"] == vip_hi
            and entry["pod"] != 0
            and flow_table.is_occupied(tables, state, slot, now)
        ):
            return slot
    return np.int64(-1)


@kernel
def allocate_source(tables, state, own_hash, protocol, pod, pod_port, now):
    """An address and port of the pool towards this pod that no live flow has: (address, port, line hash, line entry).

    The search starts where the flow's hash (int64) says. Line entry -1: none was free.
    """
    low = np.int64(tables.header[T_NAT64_PORTS]) >> 16
    ports = np.int64(tables.header[T_NAT64_PORTS]) & 0xFFFF
    space = np.int64(tables.header[T_NAT64_COUNT]) * ports
    base = np.int64(tables.header[T_NAT64_BASE])
    workers = max(np.int64(1), np.int64(tables.header[T_WORKERS]))
    for step in range(min(space, _PORT_TRIES * workers)):
        index = (own_hash + step) % space
        address = swap32(base + index // ports)
        port = low + index % ports
        far_lo = np.uint64(address) << np.uint64(32)
        if not comes_back(tables, state, far_lo, port, protocol):
            continue
        line_hash = flow_table.reply_hash(state, 4, pod["hi"], pod["lo"], pod_port, np.uint64(0), far_lo, port)
        if (
            find_reply(
                tables, state, line_hash, pod["hi"], pod["lo"], pod_port, far_lo, port, protocol, 6, now
            )
            >= 0
        ):
            continue
        back = flow_table.free_reverse(tables, state, line_hash, now)
        if back >= 0:
            return address, port, line_hash, back
    return np.int64(0), np.int64(0), np.int64(0), np.int64(-1)


@kernel
def _has_source_route(data, l3, l4_at):
    """An unexpired loose or strict source route (RFC 791 section 3.1) among the options?"""
    at = l3 + ipv4.HEADER
    while at < l4_at:
        kind = int(data[at])
        if kind == 0:
            return False
        if kind == 1:
            at += 1
            continue
        if at + 1 >= l4_at:
            return False
        length = int(data[at + 1])
        if length < 2:
            return False
        if (kind == 131 or kind == 137) and at + 2 < l4_at:
            return int(data[at + 2]) <= length
        at += length
    return False


@kernel
def routing_header_left(data, l3, end):
    """Offset from the IPv6 header of the "segments left" of a routing header with any left, or 0."""
    protocol = int(data[l3 + ipv6.NEXT_HEADER])
    at = l3 + ipv6.HEADER
    for _ in range(ipv6.MAX_EXTENSIONS):
        if protocol == ipv6.ROUTING:
            if int(data[at + 3]) != 0:
                return at + 3 - l3
        elif protocol == ipv6.FRAGMENT:
            if load16(data, at + ipv6.FRAGMENT_FIELD) & 0xF8FF != 0:  # 0xfff8 as loaded: a later fragment
                return np.int64(0)
        elif protocol != ipv6.HOP_BY_HOP and protocol != ipv6.DESTINATION_OPTIONS:
            return np.int64(0)
        size = 8 if protocol == ipv6.FRAGMENT else (int(data[at + 1]) + 1) << 3
        protocol = int(data[at])
        at += size
        if at + 8 > end:
            return np.int64(0)
    return np.int64(0)


@kernel
def must_not_cross(data, packet):
    """Why the packet has no form in the other family: a reason, SOURCE_ROUTE or ROUTING_HEADER; 0 if it has one."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    at = start + np.int64(packet["l4"])
    flags = np.int64(packet["flags"])
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    if family == 4:
        if np.int64(packet["l4"]) - np.int64(packet["l3"]) > ipv4.HEADER and _has_source_route(data, l3, at):
            return np.int64(SOURCE_ROUTE)
    elif routing_header_left(data, l3, start + np.int64(packet["end"])) != 0:
        return np.int64(ROUTING_HEADER)
    if protocol == (_ICMP if family == 4 else _ICMP6):
        if flags & _FRAGMENT:
            return np.int64(Reason.UNTRANSLATABLE_FRAGMENT.value)
        if not icmp.is_echo(family, int(data[at])):
            return np.int64(Reason.UNTRANSLATABLE_ICMP.value)
    elif not l4.has_ports(protocol):
        return np.int64(Reason.UNTRANSLATABLE_PROTOCOL.value)
    elif (
        family == 4
        and protocol == Protocol.UDP.value
        and flags & _FRAGMENT
        and flags & (_LATER | _PARTIAL) == 0
        and load16(data, at + l4.UDP_CHECKSUM) == 0
    ):
        return np.int64(Reason.ZERO_CHECKSUM_FRAGMENT.value)
    return np.int64(0)
