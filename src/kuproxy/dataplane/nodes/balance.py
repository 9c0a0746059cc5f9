"""kp-balance: the flow's pod if the flow is known, else the ring's choice, remembered.

docs/forwarding.md, "kp-balance". Two passes, so that the cache misses of a vector overlap: the first finds the way
whose hash fits and fetches the flow's record (or the ring's slot), the second decides.
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Reason, VipCounter, VipFlag, VipType
from kuproxy.dataplane import flow_table, translated
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.addresses import destination, source, ttl_of
from kuproxy.dataplane.graph_queue import (
    SEND_PARAMETER_PROBLEM,
    SEND_SOURCE_ROUTE,
    SEND_TIME_EXCEEDED,
    answer,
    count,
    enqueue,
    finish,
)
from kuproxy.dataplane.layout import T_FLOW_TIMEOUT, T_NAT46_HI, W_FLOWS, WAYS
from kuproxy.dataplane.memory import prefetch
from kuproxy.wire import l4

_NODE = int(Node.BALANCE)
_DROP = int(Outcome.DROP)
_UNTRACKED = int(PacketFlag.UNTRACKED)
_REJECT = int(VipFlag.REJECT)
_NEXT = int(VipCounter.NEXT_PACKET)
_FIRST = int(VipCounter.FIRST_PACKET)
_UNTRACKED_PACKET = int(VipCounter.UNTRACKED_PACKET)
_NO_SERVER = int(VipCounter.NO_SERVER)
_NAT44 = int(VipType.IP4_NAT44)
_NAT46 = int(VipType.IP4_NAT46)
_NAT64 = int(VipType.IP6_NAT64)
_ONE = np.uint64(1)
_CLASH_TRIES = 64  # further ring slots that are looked at when a reply would be ambiguous


@helper
def _same_flow(tables, state, slot, frame, packet, now):
    """Is the flow in `slot` live and exactly this packet's?"""
    entry = state.entries[slot]
    if entry["hash"] != packet["hash"] or entry["vip"] != packet["vip"] or entry["pod"] == 0:
        return False
    if not flow_table.is_live(entry["expires"], now):
        return False
    flow = state.flows[slot]
    if (
        flow["client_port"] != packet["src_port"]
        or flow["vip_port"] != packet["dst_port"]
        or flow["protocol"] != packet["protocol"]
        or flow["generation"] != tables.vips[entry["vip"]]["generation"]
    ):
        return False
    src_hi, src_lo = source(frame.data, packet)
    dst_hi, dst_lo = destination(frame.data, packet)
    return (
        flow["client_lo"] == src_lo
        and flow["vip_lo"] == dst_lo
        and flow["client_hi"] == src_hi
        and flow["vip_hi"] == dst_hi
    )


@helper
def _find(tables, state, frame, packet, hint, now):
    """The slot of the packet's flow, or -1. `hint` is the first pass's guess."""
    if hint >= 0 and _same_flow(tables, state, hint, frame, packet, now):
        return hint
    base = (np.int64(packet["hash"]) & (len(state.entries) // WAYS - 1)) * WAYS
    for way in range(WAYS):
        if _same_flow(tables, state, base + way, frame, packet, now):
            return base + way
    return np.int64(-1)


@helper
def port_at_pod(pod, packet):
    """The port that the pod listens on, for a flow that begins with this packet; 0 for protocols without ports."""
    if not l4.has_ports(packet["protocol"]):
        return np.int64(0)
    port = np.int64(pod["port"])
    return port if port != 0 else np.int64(packet["dst_port"])


@helper
def _reply_is_taken(tables, state, frame, packet, pod, line_hash, client_hi, client_lo, now):
    """Does another live flow already own the reply that this pod would send?"""
    slot = flow_table.find_reply(
        tables,
        state,
        line_hash,
        pod["hi"],
        pod["lo"],
        port_at_pod(pod, packet),
        client_hi,
        client_lo,
        np.int64(packet["src_port"]),
        np.int64(packet["protocol"]),
        np.int64(packet["family"]),
        now,
    )
    return slot >= 0


@helper
def _line_hash(packet, pod, client_hi, client_lo):
    return flow_table.reply_hash(
        np.int64(packet["family"]),
        pod["hi"],
        pod["lo"],
        port_at_pod(pod, packet),
        client_hi,
        client_lo,
        np.int64(packet["src_port"]),
    )


@kernel
def _choose(tables, state, frame, packet, now):
    """(pod, line hash) of a new flow; pod 0 if every reply would be ambiguous."""
    vip = tables.vips[packet["vip"]]
    ring = np.int64(vip["ring"] >> np.uint64(8))
    mask = (np.int64(1) << np.int64(vip["ring"] & np.uint64(0xFF))) - 1
    first = np.int64(packet["hash"]) & mask
    client_hi, client_lo = source(frame.data, packet)
    tries = min(mask, _CLASH_TRIES)
    for step in range(tries + 1):
        index = np.int64(tables.rings[ring + ((first + step) & mask)])
        pod = tables.pods[index]
        line_hash = _line_hash(packet, pod, client_hi, client_lo)
        if not _reply_is_taken(tables, state, frame, packet, pod, line_hash, client_hi, client_lo, now):
            if step != 0:
                count(state, _NODE, Reason.CLASH_AVOIDED.value, 1)
            return index, line_hash
    return np.int64(0), np.int64(0)


@kernel
def _enter(tables, state, frame, packet, slot, back, index, line_hash, now):
    """Write the new flow into its slot."""
    entry = state.entries[slot]
    flow = state.flows[slot]
    client_hi, client_lo = source(frame.data, packet)
    vip_hi, vip_lo = destination(frame.data, packet)
    flow["client_hi"] = client_hi
    flow["client_lo"] = client_lo
    flow["vip_hi"] = vip_hi
    flow["vip_lo"] = vip_lo
    flow["client_port"] = packet["src_port"]
    flow["vip_port"] = packet["dst_port"]
    flow["pod_port"] = port_at_pod(tables.pods[index], packet)
    flow["protocol"] = packet["protocol"]
    flow["family"] = packet["family"]
    flow["generation"] = tables.vips[packet["vip"]]["generation"]
    flow["reverse"] = back
    flow["reverse_hash"] = line_hash
    flow["created"] = now
    entry["hash"] = packet["hash"]
    entry["expires"] = (now + np.int64(tables.header[T_FLOW_TIMEOUT])) & 0xFFFFFFFF
    entry["vip"] = packet["vip"]
    entry["pod"] = index
    state.reverse[back]["hash"] = line_hash
    state.reverse[back]["slot"] = slot + 1
    state.pod_refs[index] += 1
    state.header[W_FLOWS] += 1


@kernel
def _new_flow(tables, state, frame, packet, now):
    """Choose a pod and enter the flow; returns the reason that describes what happened, and fills the record."""
    vip_index = packet["vip"]
    vip = tables.vips[vip_index]
    flow_hash = np.int64(packet["hash"])
    if vip["ring"] == 0:
        state.vip_counters[vip_index, _NO_SERVER] += _ONE
        return Reason.NO_POD.value
    slot = flow_table.free_way(tables, state, flow_hash, now)
    back = np.int64(-1)
    if slot >= 0:
        index, line_hash = _choose(tables, state, frame, packet, now)
        if index == 0:
            return Reason.FLOW_CLASH.value
        back = flow_table.free_reverse(tables, state, line_hash, now)
    if slot < 0 or back < 0:
        if slot < 0:
            mask = (np.int64(1) << np.int64(vip["ring"] & np.uint64(0xFF))) - 1
            index = np.int64(tables.rings[np.int64(vip["ring"] >> np.uint64(8)) + (flow_hash & mask)])
        packet["flags"] = np.int64(packet["flags"]) | _UNTRACKED
        packet["new_port"] = port_at_pod(tables.pods[index], packet)
        packet["pod"] = index
        state.vip_counters[vip_index, _UNTRACKED_PACKET] += _ONE
        return Reason.UNTRACKED.value
    _enter(tables, state, frame, packet, slot, back, index, line_hash, now)
    packet["slot"] = slot
    packet["pod"] = index
    packet["new_port"] = state.flows[slot]["pod_port"]
    state.vip_counters[vip_index, _FIRST] += _ONE
    return Reason.FIRST_PACKET.value


@kernel
def _choose_crossing(tables, state, frame, packet, now):
    """(pod, line hash) of a new flow of an IPv4 client to IPv6 pods; pod 0 if every reply would be ambiguous."""
    vip = tables.vips[packet["vip"]]
    ring = np.int64(vip["ring"] >> np.uint64(8))
    mask = (np.int64(1) << np.int64(vip["ring"] & np.uint64(0xFF))) - 1
    first = np.int64(packet["hash"]) & mask
    _, client_lo = source(frame.data, packet)
    far_hi, far_lo = tables.header[T_NAT46_HI], translated.mapped_lo(tables, client_lo)
    client_port = np.int64(packet["src_port"])
    protocol = np.int64(packet["protocol"])
    for step in range(min(mask, _CLASH_TRIES) + 1):
        index = np.int64(tables.rings[ring + ((first + step) & mask)])
        pod = tables.pods[index]
        pod_port = port_at_pod(pod, packet)
        hi, lo = pod["hi"], pod["lo"]
        line_hash = flow_table.reply_hash(6, hi, lo, pod_port, far_hi, far_lo, client_port)
        taken = translated.find_reply(
            tables, state, line_hash, hi, lo, pod_port, client_lo, client_port, protocol, 4, now
        )
        if taken < 0:
            if step != 0:
                count(state, _NODE, Reason.CLASH_AVOIDED.value, 1)
            return index, line_hash
    return np.int64(0), np.int64(0)


@kernel
def _new_crossing_flow(tables, state, frame, packet, vip_type, now):
    """Like _new_flow, towards pods of the other family; such a flow cannot do without its entry."""
    vip_index = packet["vip"]
    vip = tables.vips[vip_index]
    flow_hash = np.int64(packet["hash"])
    if vip["ring"] == 0:
        state.vip_counters[vip_index, _NO_SERVER] += _ONE
        return Reason.NO_POD.value
    slot = flow_table.free_way(tables, state, flow_hash, now)
    if slot < 0:
        return Reason.FLOW_TABLE_FULL.value
    address = np.int64(0)
    port = np.int64(0)
    if vip_type == _NAT46:
        index, line_hash = _choose_crossing(tables, state, frame, packet, now)
        if index == 0:
            return Reason.FLOW_CLASH.value
        back = flow_table.free_reverse(tables, state, line_hash, now)
        if back < 0:
            return Reason.FLOW_TABLE_FULL.value
    else:
        mask = (np.int64(1) << np.int64(vip["ring"] & np.uint64(0xFF))) - 1
        index = np.int64(tables.rings[np.int64(vip["ring"] >> np.uint64(8)) + (flow_hash & mask)])
        pod = tables.pods[index]
        address, port, line_hash, back = translated.allocate_source(
            tables, state, packet, pod, port_at_pod(pod, packet), now
        )
        if back < 0:
            return Reason.PORTS_EXHAUSTED.value
    _enter(tables, state, frame, packet, slot, back, index, line_hash, now)
    state.flows[slot]["source"] = address
    state.flows[slot]["source_port"] = port
    packet["slot"] = slot
    packet["pod"] = index
    packet["new_port"] = state.flows[slot]["pod_port"]
    state.vip_counters[vip_index, _FIRST] += _ONE
    return Reason.FIRST_PACKET.value


@kernel
def _cannot_cross(frame, state, packet, number):
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


@helper
def _prepare(frame, tables, state):
    """First pass: guess each packet's slot by its hash alone, fetch what the second pass will read."""
    bucket_mask = len(state.entries) // WAYS - 1
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        flow_hash = packet["hash"]
        base = (np.int64(flow_hash) & bucket_mask) * WAYS
        guess = np.int64(-1)
        for way in range(WAYS):
            entry = state.entries[base + way]
            if entry["hash"] == flow_hash and entry["pod"] != 0:
                guess = base + way
                break
        if guess >= 0:
            prefetch(state.flows, guess)
            prefetch(tables.pods, np.int64(state.entries[guess]["pod"]))
        else:
            prefetch(state.flows, base)
        packet["slot"] = guess + 1


@kernel
def kp_balance(frame, tables, state, now):
    """Decide for every waiting packet."""
    _prepare(frame, tables, state)
    expires = np.uint32((now + np.int64(tables.header[T_FLOW_TIMEOUT])) & 0xFFFFFFFF)
    existing = 0
    first = 0
    for position in range(frame.queued[_NODE]):
        number = frame.queue[_NODE, position]
        packet = frame.packets[number]
        vip_index = packet["vip"]
        vip_type = np.int64(tables.vips[vip_index]["type"])
        if ttl_of(frame.data, packet) <= 1:
            count(state, _NODE, Reason.TTL_EXPIRED.value, 1)
            answer(frame, np.int64(number), SEND_TIME_EXCEEDED, 0)
            continue
        crossing = vip_type == _NAT46 or vip_type == _NAT64
        if crossing and _cannot_cross(frame, state, packet, np.int64(number)):
            continue
        slot = _find(tables, state, frame, packet, np.int64(packet["slot"]) - 1, now)
        if slot >= 0:
            entry = state.entries[slot]
            if entry["expires"] != expires:  # once a tick: most packets leave the line clean
                entry["expires"] = expires
            packet["slot"] = slot
            packet["pod"] = entry["pod"]
            packet["new_port"] = state.flows[slot]["pod_port"]
            state.vip_counters[vip_index, _NEXT] += _ONE
            existing += 1
        else:
            if crossing:
                reason = _new_crossing_flow(tables, state, frame, packet, vip_type, now)
            else:
                reason = _new_flow(tables, state, frame, packet, now)
            if reason == Reason.FIRST_PACKET.value:
                first += 1
            elif reason == Reason.UNTRACKED.value:
                count(state, _NODE, reason, 1)
            elif reason == Reason.NO_POD.value and np.int64(tables.vips[vip_index]["flags"]) & _REJECT:
                enqueue(frame, Node.REJECT.value, number)
                continue
            else:
                finish(packet, state, _NODE, _DROP, reason)
                continue
        if crossing:
            enqueue(frame, Node.NAT46.value if vip_type == _NAT46 else Node.NAT64.value, number)
        else:
            enqueue(frame, Node.NAT44.value if vip_type == _NAT44 else Node.NAT66.value, number)
    if existing != 0:
        count(state, _NODE, Reason.EXISTING_SESSION.value, existing)
    if first != 0:
        count(state, _NODE, Reason.FIRST_PACKET.value, first)
