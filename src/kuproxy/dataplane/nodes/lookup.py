"""kp-lookup: whose packet is it? A VIP's, a node port's, perhaps a pod's reply, or not ours.

docs/forwarding.md, "kp-lookup". Fills `vip`, and fetches the cache line that the next node will read.
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Reason
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.graph_queue import count, enqueue, finish
from kuproxy.dataplane.layout import KIND_NODEPORT, REVERSE_WAYS, T_MATCH, T_N_NODEPORTS, T_VIP_MATCH, WAYS
from kuproxy.dataplane.match import HOST, find_vip, match_find, match_key, prepare_vip, vip_address
from kuproxy.dataplane.membership import is_marked, is_node_address, is_pod_address
from kuproxy.dataplane.memory import prefetch
from kuproxy.dataplane.source import is_reply
from kuproxy.wire import icmp, l4

_NODE = int(Node.LOOKUP)
_DROP = int(Outcome.DROP)
_PASS = int(Outcome.PASS)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_NODEPORT = int(PacketFlag.NODEPORT)
_ZERO = np.uint64(0)


@helper
def _find_nodeport(tables, packet, hi, lo):
    """The VIP that owns this node port, or 0."""
    protocol = np.int64(packet["protocol"])
    if tables.header[T_N_NODEPORTS] == _ZERO or not l4.has_ports(protocol):
        return np.int64(0)
    family = np.int64(packet["family"])
    key = match_key(KIND_NODEPORT, family, HOST, protocol, np.int64(packet["dst_port"]))
    vip = match_find(tables.match, tables.header[T_MATCH], _ZERO, _ZERO, key)
    if vip != 0 and not is_node_address(tables, family, hi, lo):
        return np.int64(0)
    return vip


@kernel
def _icmp_verdict(frame, tables, packet):
    """Reason for which an ICMP packet ends here, or 0."""
    flags = np.int64(packet["flags"])
    if flags & _LATER:
        return Reason.NONE.value
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    kind = int(frame.data[np.int64(packet["start"]) + np.int64(packet["l4"])])
    if icmp.is_link_local_control(family, protocol, kind):
        return Reason.UNSUPPORTED_PROTOCOL.value
    if icmp.is_error(family, protocol, kind):
        hi, lo = destination(frame.data, packet)
        if vip_address(tables, hi, lo, family):
            return Reason.ICMP_ERROR_NOT_SUPPORTED.value
        hi, lo = source(frame.data, packet)
        if is_marked(tables, packet) and is_pod_address(tables, packet, hi, lo):
            return Reason.ICMP_ERROR_NOT_SUPPORTED.value
        return Reason.NO_VIP.value
    return Reason.NONE.value


@helper
def _prepare(frame, tables, location):
    """First pass: fetch the entries that the second will read; `slot` keeps their places until then."""
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        hi, lo = destination(frame.data, packet)
        packet["slot"] = prepare_vip(
            tables,
            location,
            hi,
            lo,
            np.int64(packet["family"]),
            np.int64(packet["protocol"]),
            np.int64(packet["dst_port"]),
        )


@kernel
def kp_lookup(frame, tables, state, now):
    """Classify every waiting packet."""
    packets = frame.packets
    waiting = frame.queued[_NODE]
    bucket_mask = len(state.entries) // WAYS - 1
    line_mask = len(state.reverse) // REVERSE_WAYS - 1
    matched = 0
    location = tables.header[T_VIP_MATCH]
    _prepare(frame, tables, location)
    for position in range(waiting):
        index = frame.queue[_NODE, position]
        packet = packets[index]
        family = np.int64(packet["family"])
        protocol = np.int64(packet["protocol"])
        if protocol == 1 or protocol == 58:
            reason = _icmp_verdict(frame, tables, packet)
            if reason != 0:
                dropped = reason == Reason.ICMP_ERROR_NOT_SUPPORTED.value
                finish(packet, state, _NODE, _DROP if dropped else _PASS, reason)
                continue
        hi, lo = destination(frame.data, packet)
        place = np.int64(packet["slot"])
        packet["slot"] = 0
        vip = find_vip(tables, location, place, hi, lo, family, protocol, np.int64(packet["dst_port"]))
        if vip != 0:
            packet["vip"] = vip
            prefetch(state.entries, (np.int64(packet["hash"]) & bucket_mask) * WAYS)
            prefetch(tables.vips, vip)
            prefetch(state.vip_counters, vip * 8)
            enqueue(frame, Node.BALANCE.value, index)
            matched += 1
            continue
        vip = _find_nodeport(tables, packet, hi, lo)
        if vip != 0 and not (is_marked(tables, packet) and is_reply(frame, tables, state, packet, now)):
            packet["vip"] = vip
            packet["flags"] = np.int64(packet["flags"]) | _NODEPORT
            enqueue(frame, Node.NODEPORT4.value if family == 4 else Node.NODEPORT6.value, index)
        elif is_marked(tables, packet):
            prefetch(state.reverse, (np.int64(packet["hash"]) & line_mask) * REVERSE_WAYS)
            enqueue(frame, Node.NAT4_IN2OUT.value if family == 4 else Node.NAT6_IN2OUT.value, index)
        else:
            finish(packet, state, _NODE, _PASS, Reason.NO_VIP.value)
    if matched != 0:
        count(state, _NODE, Reason.VIP_MATCHED.value, matched)
