"""Per-packet path records: what `show trace` tells.

Nodes know nothing of it. While packets are asked for (`W_TRACE_LEFT`), run_graph calls `trace_node` after each node. It
reads the records and bytes of the marked packets in that node's queue and writes what it finds into a ring. Most of the
time nobody asks for packets: then it costs one comparison a node and vector.
"""

import numpy as np

from kuproxy.codes import Node, PacketFlag, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.choice import ring_hash
from kuproxy.dataplane.layout import (
    META_COUNT,
    RING_LOG2,
    TRACE_SLOTS,
    W_TRACE_LEFT,
    W_TRACE_NEXT,
    W_TRACE_PACKETS,
    W_TRACE_RECEIVED,
)
from kuproxy.dataplane.memory import load16, swap16
from kuproxy.wire import ipv4, ipv6, l4

_INPUT = int(Node.INPUT)
_FRAGMENT = int(Node.FRAGMENT)
_BALANCE = int(Node.BALANCE)
_REJECT = int(Node.REJECT)
_ICMP = int(Node.ICMP)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_TRACED = int(PacketFlag.TRACED)
_ZERO = np.uint64(0)


@kernel
def _mark(frame, state, index):
    """Give the packet a number."""
    state.header[W_TRACE_PACKETS] += 1
    state.trace_numbers[index] = state.header[W_TRACE_PACKETS]
    packet = frame.packets[index]
    packet["flags"] = np.int64(packet["flags"]) | _TRACED


@kernel
def begin_trace(frame, state):
    """Mark the first packets of the vector, as many as are still asked for. Returns whether there are any."""
    left = state.header[W_TRACE_LEFT]
    if left == 0:
        return False
    received = frame.meta[META_COUNT]
    marked = min(left, received)
    for index in range(marked):
        _mark(frame, state, index)
    state.header[W_TRACE_LEFT] = left - marked
    state.header[W_TRACE_RECEIVED] = received
    return True


@kernel
def _headers(frame, row, packet, node):
    """Addresses, protocol and ports as they lie in the packet now."""
    data = frame.data
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    at = start + np.int64(packet["l4"])
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    if node == _REJECT or node == _ICMP:  # the answer has no options, and perhaps another protocol
        protocol = int(data[l3 + (ipv4.PROTOCOL if family == 4 else ipv6.NEXT_HEADER)])
        at = l3 + (ipv4.HEADER if family == 4 else ipv6.HEADER)
    hi, lo = source(data, packet)
    row["source_hi"] = hi
    row["source_lo"] = lo
    hi, lo = destination(data, packet)
    row["destination_hi"] = hi
    row["destination_lo"] = lo
    row["family"] = family
    row["protocol"] = protocol
    row["length"] = np.int64(packet["end"]) - np.int64(packet["l3"])
    if l4.has_ports(protocol) and np.int64(packet["flags"]) & _LATER == 0:
        row["source_port"] = swap16(load16(data, at + l4.SOURCE_PORT))
        row["destination_port"] = swap16(load16(data, at + l4.DESTINATION_PORT))
    else:
        row["source_port"] = packet["src_port"]
        row["destination_port"] = packet["dst_port"]


@kernel
def _write(frame, tables, state, now, node, index):
    packet = frame.packets[index]
    row = state.trace[state.header[W_TRACE_NEXT] & (TRACE_SLOTS - 1)]
    state.header[W_TRACE_NEXT] += 1
    row["packet"] = state.trace_numbers[index]
    row["now"] = now
    row["node"] = node
    row["outcome"] = packet["outcome"]
    row["reason"] = packet["reason"]
    row["interface"] = packet["interface"]
    row["flags"] = packet["flags"]
    row["hash"] = packet["hash"]
    row["slot"] = packet["slot"]
    row["bytes"] = packet["length"]
    row["family"] = 0
    if packet["family"] != 0:
        _headers(frame, row, packet, node)
    vip = tables.vips[packet["vip"]]
    row["vip"] = packet["vip"]
    row["vip_generation"] = vip["generation"]
    row["ring_slots"] = 0
    if node == _BALANCE and vip["ring"] != _ZERO and packet["reason"] != Reason.NO_POD.value:
        slots = np.int64(1) << (np.int64(vip["ring"]) & RING_LOG2)
        row["ring_slots"] = slots
        hashed = ring_hash(state, vip, np.int64(packet["hash"]), packet["family"], row["source_hi"], row["source_lo"])
        row["ring_slot"] = hashed & (slots - 1)
    pod = tables.pods[packet["pod"]]
    row["pod"] = packet["pod"]
    row["pod_hi"] = pod["hi"]
    row["pod_lo"] = pod["lo"]
    row["pod_family"] = pod["family"]
    row["pod_port"] = packet["new_port"]


@kernel
def trace_node(frame, tables, state, now, node):
    """Write a record for each marked packet that `node` has just looked at."""
    count = frame.meta[META_COUNT]
    waiting = count if node == _INPUT else frame.queued[node]
    for position in range(waiting):
        index = position if node == _INPUT else np.int64(frame.queue[node, position])
        if np.int64(frame.packets[index]["flags"]) & _TRACED:
            _write(frame, tables, state, now, node, index)
    if node == _FRAGMENT:  # marked fragments that were held come back as new packets behind the received ones
        for index in range(state.header[W_TRACE_RECEIVED], count):
            if np.int64(frame.packets[index]["flags"]) & _TRACED:
                _mark(frame, state, index)
                _write(frame, tables, state, now, node, index)
