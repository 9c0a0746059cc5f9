"""kp-balance: the flow's pod if the flow is known, else the ring's choice, remembered.

docs/forwarding.md, "kp-balance". Two passes, so that the cache misses of a vector overlap: the first finds the way
whose hash fits and fetches the flow's record (or the ring's slot), the second decides.
"""

import numpy as np

from kuproxy.codes import (
    Node,
    Outcome,
    PacketFlag,
    Protocol,
    Reason,
    VipCounter,
    VipFlag,
)
from kuproxy.dataplane import addresses, affinity, choice, flow_table
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.addresses import destination, ttl_of
from kuproxy.dataplane.entry import enter, port_at_pod
from kuproxy.dataplane.flow_state import tcp_bits, touch
from kuproxy.dataplane.graph_queue import SEND_TIME_EXCEEDED, answer, count, enqueue, finish
from kuproxy.dataplane.layout import (
    REVERSE_WAYS,
    RING_FORMER,
    RING_LOG2,
    T_MASQUERADE4,
    T_MASQUERADE6,
    WAY_GUARDED,
    WAYS,
)
from kuproxy.dataplane.memory import prefetch
from kuproxy.dataplane.new_crossing import cannot_cross, new_crossing_flow
from kuproxy.dataplane.origin import origin_for
from kuproxy.dataplane.over import is_over, may_be_over
from kuproxy.dataplane.ports import allocate
from kuproxy.dataplane.rewrite import port_is_fixed
from kuproxy.dataplane.second_chance import try_out
from kuproxy.dataplane.source_ranges import is_allowed
from kuproxy.dataplane.tally import tally_to_pod
from kuproxy.wire import l4

_NODE = int(Node.BALANCE)
_DROP = int(Outcome.DROP)
_UNTRACKED = int(PacketFlag.UNTRACKED)
_CLASH = int(PacketFlag.CLASH_AVOIDED)
_REJECT = int(VipFlag.REJECT)
_NEXT = int(VipCounter.NEXT_PACKET)
_UNTRACKED_PACKET = int(VipCounter.UNTRACKED_PACKET)
_NO_SERVER = int(VipCounter.NO_SERVER)
_NAT46 = int(Node.NAT46)
_NAT64 = int(Node.NAT64)
_TRANSLATED = int(PacketFlag.TRANSLATED)
_NODEPORT = int(PacketFlag.NODEPORT)
_TCP = int(Protocol.TCP)
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
    src_hi, src_lo = addresses.source(frame.data, packet)
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
def _reply_is_taken(tables, state, frame, packet, pod, line_hash, client_hi, client_lo, now):
    """Does another live flow already own the reply that this pod would send?"""
    slot = flow_table.find_reply(
        tables,
        state,
        np.int64(-1),
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
def _line_hash(state, packet, pod, source_hi, source_lo, source_port):
    """Hash of the pod's replies to this source."""
    return flow_table.reply_hash(
        state, np.int64(packet["family"]),
        pod["hi"],
        pod["lo"],
        port_at_pod(pod, packet),
        source_hi,
        source_lo,
        source_port,
    )


@kernel
def _translate(tables, state, frame, packet, index, source, now):
    """(source port with which the pod's reply is unambiguous or -1, the reply's hash). `source` as in FLOW."""
    pod = tables.pods[index]
    family = np.int64(packet["family"])
    client_hi, client_lo = addresses.source(frame.data, packet)
    hi, lo = flow_table.source_words(tables, family, source, client_hi, client_lo)
    port = allocate(
        tables,
        state,
        family,
        pod["hi"],
        pod["lo"],
        port_at_pod(pod, packet),
        hi,
        lo,
        np.int64(packet["protocol"]),
        np.int64(packet["src_port"]),
        np.int64(packet["hash"]),
        now,
    )
    return port, _line_hash(state, packet, pod, hi, lo, port)


@kernel
def _choose_translated(tables, state, frame, packet, index, origin, now):
    """(reason or 0, source, source port, line hash): pod `index` must not see the client's address and port."""
    client_hi, client_lo = addresses.source(frame.data, packet)
    if choice.must_masquerade(tables.vips[packet["vip"]], tables.pods[index], origin, client_hi, client_lo):
        source = np.int64(tables.header[T_MASQUERADE4 if packet["family"] == 4 else T_MASQUERADE6])
        if source == 0:
            return Reason.NO_MASQUERADE_ADDRESS.value, source, np.int64(0), np.int64(0)
        port, line_hash = _translate(tables, state, frame, packet, index, source, now)
        if port < 0:
            return Reason.MASQUERADE_EXHAUSTED.value, source, port, line_hash
        return 0, source, port, line_hash
    port, line_hash = _translate(tables, state, frame, packet, index, np.int64(0), now)
    if port < 0 or not l4.has_ports(packet["protocol"]):
        return Reason.FLOW_CLASH.value, np.int64(0), port, line_hash
    count(state, _NODE, Reason.PORT_TRANSLATED.value, 1)
    return 0, np.int64(0), port, line_hash


@helper
def _choose(tables, state, frame, packet, origin, now):
    """(reason or 0, pod, source, source port, line hash) of a new flow; a reason says why there is none."""
    vip = tables.vips[packet["vip"]]
    ring, mask = choice.ring_of(vip, origin)
    flow_hash = np.int64(packet["hash"])
    family = np.int64(packet["family"])
    port = np.int64(packet["src_port"])
    client_hi, client_lo = addresses.source(frame.data, packet)
    candidate, kept = choice.candidate(
        tables, state, np.int64(packet["vip"]), origin, flow_hash, family, client_hi, client_lo, now
    )
    if kept:
        count(state, _NODE, Reason.AFFINITY.value, 1)
    if not choice.must_masquerade(vip, tables.pods[candidate], origin, client_hi, client_lo):
        tries = 0 if choice.is_bound(vip) else min(mask, _CLASH_TRIES)
        index = candidate
        for step in range(tries + 1):
            if step != 0:
                index = np.int64(tables.rings[ring + ((flow_hash + step) & mask)])
            pod = tables.pods[index]
            if step != 0 and pod["lo"] == client_lo and pod["hi"] == client_hi:
                continue
            line_hash = _line_hash(state, packet, pod, client_hi, client_lo, port)
            if not _reply_is_taken(tables, state, frame, packet, pod, line_hash, client_hi, client_lo, now):
                if step != 0:
                    packet["flags"] = np.int64(packet["flags"]) | _CLASH
                    count(state, _NODE, Reason.CLASH_AVOIDED.value, 1)
                return 0, index, np.int64(0), port, line_hash
    reason, source, port, line_hash = _choose_translated(tables, state, frame, packet, candidate, origin, now)
    return reason, candidate, source, port, line_hash


@kernel
def _serve_untracked(tables, state, frame, packet, index, origin):
    """Send the packet to the pod without remembering its flow; returns the reason."""
    vip_index = np.int64(packet["vip"])
    client_hi, client_lo = addresses.source(frame.data, packet)
    pod = tables.pods[index]
    vip = tables.vips[vip_index]
    if vip["encap"] == 0 and choice.must_masquerade(vip, pod, origin, client_hi, client_lo):
        return Reason.FLOW_TABLE_FULL.value
    packet["flags"] = np.int64(packet["flags"]) | _UNTRACKED
    packet["new_port"] = port_at_pod(pod, packet)
    packet["pod"] = index
    state.vip_counters[vip_index, _UNTRACKED_PACKET] += _ONE
    return Reason.UNTRACKED.value


@helper
def _new_flow(tables, state, frame, packet, now):
    """Choose a pod and enter the flow; returns the reason that describes what happened, and fills the record."""
    vip_index = np.int64(packet["vip"])
    vip = tables.vips[vip_index]
    family = np.int64(packet["family"])
    client_hi, client_lo = addresses.source(frame.data, packet)
    origin = origin_for(tables, vip, family, client_hi, client_lo)
    if choice.ring_of(vip, origin)[0] == 0:
        state.vip_counters[vip_index, _NO_SERVER] += _ONE
        return Reason.NO_POD.value
    cap = np.int64(vip["session_cap"])
    if cap != 0 and np.int64(state.vip_flows[vip_index]) >= cap:
        return Reason.SESSION_CAP.value
    slot = flow_table.way_for(tables, state, np.int64(packet["hash"]), packet["protocol"] == _TCP, now)
    if slot < 0 or vip["encap"] != 0:
        index, kept = choice.candidate(
            tables, state, vip_index, origin, np.int64(packet["hash"]), family, client_hi, client_lo, now
        )
        if slot < 0:
            return _serve_untracked(tables, state, frame, packet, index, origin)
        if kept:
            count(state, _NODE, Reason.AFFINITY.value, 1)
        # Direct return: no reply comes by here that could be ambiguous.
        source, port = np.int64(0), np.int64(packet["src_port"])
        line_hash, back = np.int64(0), np.int64(-1)
    else:
        reason, index, source, port, line_hash = _choose(tables, state, frame, packet, origin, now)
        if reason != 0:
            return reason
        back = flow_table.free_reverse(tables, state, line_hash, now)
        if back < 0:
            return _serve_untracked(tables, state, frame, packet, index, origin)
    enter(tables, state, frame, packet, slot, back, line_hash, index, source, port, now)
    if vip["affinity"] != 0:
        affinity.remember(tables, state, vip_index, client_hi, client_lo, index, now)
    return Reason.FIRST_PACKET.value


@kernel
def _is_stopped(frame, tables, state, packet, number, target):
    """End a packet that cannot be translated for its VIP, or that its VIP does not let in; True if so."""
    if (target == _NAT46 or target == _NAT64) and cannot_cross(frame, state, packet, number):
        return True
    ranges = np.int64(tables.vips[packet["vip"]]["ranges"])
    if ranges == 0 or np.int64(packet["flags"]) & _NODEPORT:
        return False
    hi, lo = addresses.source(frame.data, packet)
    if is_allowed(tables, ranges, hi, lo):
        return False
    finish(packet, state, _NODE, _DROP, Reason.SOURCE_RANGE.value)
    return True


@helper
def _prepare(frame, tables, state):
    """First pass: guess each packet's slot by its hash alone, fetch what the second pass will read."""
    bucket_mask = len(state.entries) // WAYS - 1
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        flow_hash = packet["hash"]
        base = (np.int64(flow_hash) & bucket_mask) * WAYS
        # A sum of comparisons, without branches whose outcomes nobody could predict. Free entries have hash 0.
        guess = np.int64(-1)
        for way in range(WAYS):
            guess = max(
                guess, np.int64(state.entries[base + way]["hash"] == flow_hash) * (base + way + 1) - 1
            )
        if guess >= 0:
            prefetch(state.flows, guess)
            prefetch(tables.pods, np.int64(state.entries[guess]["pod"]))
        else:
            for way in range(WAYS):
                if state.entries[base + way]["pod"] == 0:
                    prefetch(state.flows, base + way)
                    break
            vip = tables.vips[packet["vip"]]
            if vip["ring"] != 0:
                # Of two rings it may be the wrong one: no harm in a guess.
                mask = (np.int64(1) << (np.int64(vip["ring"]) & RING_LOG2)) - 1
                index = np.int64(
                    tables.rings[np.int64(vip["ring"] >> np.uint64(8)) + (np.int64(flow_hash) & mask)]
                )
                client_hi, client_lo = addresses.source(frame.data, packet)
                port = np.int64(packet["src_port"])
                back = _line_hash(state, packet, tables.pods[index], client_hi, client_lo, port)
                prefetch(state.reverse, (back & (len(state.reverse) // REVERSE_WAYS - 1)) * REVERSE_WAYS)
        packet["slot"] = guess + 1


@helper
def kp_balance(frame, tables, state, now):
    """Decide for every waiting packet."""
    _prepare(frame, tables, state)
    existing = 0
    first = 0
    for position in range(frame.queued[_NODE]):
        number = frame.queue[_NODE, position]
        packet = frame.packets[number]
        vip_index = packet["vip"]
        way = np.int64(tables.vips[vip_index]["way"])
        if ttl_of(frame.data, packet) <= 1:
            count(state, _NODE, Reason.TTL_EXPIRED.value, 1)
            answer(frame, np.int64(number), SEND_TIME_EXCEEDED, 0)
            continue
        target = way & ~WAY_GUARDED
        if way & WAY_GUARDED and _is_stopped(frame, tables, state, packet, np.int64(number), target):
            continue
        slot = _find(tables, state, frame, packet, np.int64(packet["slot"]) - 1, now)
        bits = tcp_bits(frame.data, packet)
        if slot >= 0 and may_be_over(tables, state, slot, bits):
            verdict = is_over(tables, state, frame, packet, slot, bits)
            if verdict != 0:
                slot = np.int64(-1)
            if verdict == 2:
                enqueue(frame, Node.REJECT.value, number)
                continue
        if slot >= 0:
            touch(tables, state, slot, bits, True, now)
            packet["slot"] = slot
            packet["pod"] = state.entries[slot]["pod"]
            packet["new_port"] = state.flows[slot]["pod_port"]
            state.vip_counters[vip_index, _NEXT] += _ONE
            existing += 1
        else:
            if target == _NAT46 or target == _NAT64:
                reason = new_crossing_flow(tables, state, frame, packet, now)
            else:
                reason = _new_flow(tables, state, frame, packet, now)
            if reason == Reason.FIRST_PACKET.value:
                first += 1
                slot = np.int64(packet["slot"])
                if np.int64(tables.vips[vip_index]["ring"]) & RING_FORMER:
                    try_out(tables, state, frame, packet, slot, bits)
            elif reason == Reason.UNTRACKED.value:
                count(state, _NODE, reason, 1)
            elif reason == Reason.NO_POD.value and np.int64(tables.vips[vip_index]["flags"]) & _REJECT:
                enqueue(frame, Node.REJECT.value, number)
                continue
            else:
                finish(packet, state, _NODE, _DROP, reason)
                continue
        if slot >= 0:
            flow = state.flows[slot]
            if flow["source_port"] != packet["src_port"] or flow["source"] != 0:
                # Not left to the flow: a later packet of the vector may take its place.
                port = np.int64(flow["source_port"])
                if target == _NAT64:
                    packet["source_port"] = port
                elif port_is_fixed(
                    packet["protocol"], np.int64(packet["flags"]), np.int64(packet["src_port"]), port
                ):
                    finish(packet, state, _NODE, _DROP, Reason.SCTP_FRAGMENT.value)
                    continue
                else:
                    packet["flags"] = np.int64(packet["flags"]) | _TRANSLATED
                    packet["src_port"] = port
                    target = Node.MASQUERADE.value
                packet["slot"] = flow["source"]
        tally_to_pod(state, packet)
        enqueue(frame, target, number)
    if existing != 0:
        count(state, _NODE, Reason.EXISTING_SESSION.value, existing)
    if first != 0:
        count(state, _NODE, Reason.FIRST_PACKET.value, first)
