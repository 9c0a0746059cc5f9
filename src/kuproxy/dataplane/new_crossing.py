"""kp-balance for VIPs whose pods are of the other family: what may cross, and how such a flow begins."""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Protocol, Reason, VipCounter, VipType
from kuproxy.dataplane import affinity, choice, flow_table, translated
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import source
from kuproxy.dataplane.entry import enter, port_at_pod
from kuproxy.dataplane.graph_queue import SEND_PARAMETER_PROBLEM, SEND_SOURCE_ROUTE, answer, count, finish
from kuproxy.dataplane.layout import T_NAT46_HI
from kuproxy.dataplane.origin import origin_for

_NODE = int(Node.BALANCE)
_DROP = int(Outcome.DROP)
_CLASH = int(PacketFlag.CLASH_AVOIDED)
_TCP = int(Protocol.TCP)
_NAT46 = int(VipType.IP4_NAT46)
_NO_SERVER = int(VipCounter.NO_SERVER)
_ONE = np.uint64(1)
_CLASH_TRIES = 64  # further ring slots that are looked at when a reply would be ambiguous


@kernel
def cannot_cross(frame, state, packet, number):
    """End a packet that has no form in the other family; True if so."""
    refusal = translated.must_not_cross(frame.data, packet)
    if refusal == 0:
        return False
    if refusal == translated.SOURCE_ROUTE:
        answer(frame, number, SEND_SOURCE_ROUTE, 0)
    elif refusal == translated.ROUTING_HEADER:
        start = np.int64(packet["start"])
        l3 = start + np.int64(packet["l3"])
        left = translated.routing_header_left(frame.data, l3, start + np.int64(packet["end"]))
        answer(frame, number, SEND_PARAMETER_PROBLEM, left)
    else:
        finish(packet, state, _NODE, _DROP, refusal)
    return True


@kernel
def _choose_of_ipv4(tables, state, frame, packet, candidate, origin, now):
    """(pod, line hash) of a new flow of an IPv4 client to IPv6 pods; pod 0 if every reply would be ambiguous."""
    vip = tables.vips[packet["vip"]]
    ring, mask = choice.ring_of(vip, origin)
    first = np.int64(packet["hash"])
    _, client_lo = source(frame.data, packet)
    far_hi, far_lo = tables.header[T_NAT46_HI], translated.mapped_lo(tables, client_lo)
    client_port = np.int64(packet["src_port"])
    protocol = np.int64(packet["protocol"])
    index = candidate
    for step in range((0 if choice.is_bound(vip) else min(mask, _CLASH_TRIES)) + 1):
        if step != 0:
            index = np.int64(tables.rings[ring + ((first + step) & mask)])
        pod = tables.pods[index]
        pod_port = port_at_pod(pod, packet)
        hi, lo = pod["hi"], pod["lo"]
        line_hash = flow_table.reply_hash(state, 6, hi, lo, pod_port, far_hi, far_lo, client_port)
        taken = translated.find_reply(
            tables, state, line_hash, hi, lo, pod_port, client_lo, client_port, protocol, 4, now
        )
        if taken < 0:
            if step != 0:
                packet["flags"] = np.int64(packet["flags"]) | _CLASH
                count(state, _NODE, Reason.CLASH_AVOIDED.value, 1)
            return index, line_hash
    return np.int64(0), np.int64(0)


@kernel
def new_crossing_flow(tables, state, frame, packet, now):
    """Like kp-balance's own, towards pods of the other family; such a flow cannot do without its entry.

    Returns the reason that describes what happened, and fills the record.
    """
    vip_index = np.int64(packet["vip"])
    vip = tables.vips[vip_index]
    flow_hash = np.int64(packet["hash"])
    family = np.int64(packet["family"])
    client_hi, client_lo = source(frame.data, packet)
    origin = origin_for(tables, vip, family, client_hi, client_lo)
    if choice.ring_of(vip, origin)[0] == 0:
        state.vip_counters[vip_index, _NO_SERVER] += _ONE
        return Reason.NO_POD.value
    cap = np.int64(vip["session_cap"])
    if cap != 0 and np.int64(state.vip_flows[vip_index]) >= cap:
        return Reason.SESSION_CAP.value
    slot = flow_table.way_for(tables, state, flow_hash, packet["protocol"] == _TCP, now)
    if slot < 0:
        return Reason.FLOW_TABLE_FULL.value
    index, kept = choice.candidate(
        tables, state, vip_index, origin, flow_hash, family, client_hi, client_lo, now
    )
    if kept:
        count(state, _NODE, Reason.AFFINITY.value, 1)
    address = np.int64(0)
    port = np.int64(packet["src_port"])
    if vip["type"] == _NAT46:
        index, line_hash = _choose_of_ipv4(tables, state, frame, packet, index, origin, now)
        if index == 0:
            return Reason.FLOW_CLASH.value
        back = flow_table.free_reverse(tables, state, line_hash, now)
        if back < 0:
            return Reason.FLOW_TABLE_FULL.value
    else:
        pod = tables.pods[index]
        address, port, line_hash, back = translated.allocate_source(
            tables, state, flow_hash, np.int64(packet["protocol"]), pod, port_at_pod(pod, packet), now
        )
        if back < 0:
            return Reason.PORTS_EXHAUSTED.value
    enter(tables, state, frame, packet, slot, back, line_hash, index, address, port, now)
    if vip["affinity"] != 0:
        affinity.remember(tables, state, vip_index, client_hi, client_lo, index, now)
    return Reason.FIRST_PACKET.value
