"""Two candidates for a connection that began elsewhere: whoever knows it keeps it (docs/adr/036).

For a while after a change of a VIP's pods the owners before it are published beside the present ones. A segment from
the midst of a connection that no flow is known for goes to the slot's present pod on trial, if the slot had another
one: its flow is tentative. If the first that this pod says is that it knows no such connection, the flow moves to the
former pod, and the client hears nothing of it: its next transmission of the segment reaches the pod that knows it.

Nothing is remembered of the former pod: the ring is asked again when it is needed. If it is gone by then, or tells the
present pod, there is no second chance, and the refusal is a reply like any other.
"""

import numpy as np

from kuproxy.codes import FlowFlag, FlowState, Node, Reason
from kuproxy.dataplane import addresses, affinity, choice, flow_table, translated
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.flow_state import goes_on
from kuproxy.dataplane.graph_queue import count
from kuproxy.dataplane.layout import T_FLOW_TIMEOUT, T_MASQUERADE4, T_MASQUERADE6, T_NAT46_HI
from kuproxy.dataplane.origin import origin_for
from kuproxy.dataplane.ports import allocate

_BALANCE = int(Node.BALANCE)
_TENTATIVE = int(FlowFlag.TENTATIVE)
_CLOSING = int(FlowState.TCP_CLOSING)
_ZERO = np.uint64(0)


@kernel
def try_out(tables, state, frame, packet, slot, bits):
    """The packet has begun the flow in `slot`: mark it as tentative if it may belong to the slot's former pod."""
    vip_index = np.int64(packet["vip"])
    # Direct return: no refusal would come by.
    vip = tables.vips[vip_index]
    if vip["encap"] != 0 or not goes_on(bits):
        return
    hi, lo = addresses.source(frame.data, packet)
    family = np.int64(packet["family"])
    origin = origin_for(tables, vip, family, hi, lo)
    former = choice.former_owner(tables, state, vip_index, origin, np.int64(packet["hash"]), family, hi, lo)
    if former != 0 and former != np.int64(packet["pod"]):
        state.flows[slot]["flags"] = np.int64(state.flows[slot]["flags"]) | _TENTATIVE
        count(state, _BALANCE, Reason.TENTATIVE.value, 1)


@kernel
def _way_to(tables, state, slot, index, pod_port, origin, now):
    """How the client of the flow in `slot` would get to pod `index`: (source, source port, line hash, line entry).

    As for a flow that begins there, but with no other source port than what it would get by itself: only with that
    does the pod know the connection. Line entry -1: not at all, because another live flow has that reply.
    """
    flow, pod = state.flows[slot], tables.pods[index]
    vip = tables.vips[state.entries[slot]["vip"]]
    own_hash = np.int64(state.entries[slot]["hash"])
    family, protocol = np.int64(flow["family"]), np.int64(flow["protocol"])
    port = np.int64(flow["client_port"])
    hi, lo = pod["hi"], pod["lo"]
    client_hi, client_lo = flow["client_hi"], flow["client_lo"]
    source = np.int64(0)
    if np.int64(pod["family"]) != family:
        if family == 6:
            return translated.allocate_source(tables, state, own_hash, protocol, pod, pod_port, now)
        far_hi, far_lo = tables.header[T_NAT46_HI], translated.mapped_lo(tables, client_lo)
        line_hash = flow_table.reply_hash(state, 6, hi, lo, pod_port, far_hi, far_lo, port)
        taken = translated.find_reply(
            tables, state, line_hash, hi, lo, pod_port, client_lo, port, protocol, 4, now
        )
    elif choice.must_masquerade(vip, pod, origin, client_hi, client_lo):
        source = np.int64(tables.header[T_MASQUERADE4 if family == 4 else T_MASQUERADE6])
        if source == 0:
            return source, port, np.int64(0), np.int64(-1)
        seen_hi, seen_lo = flow_table.source_words(tables, family, source, client_hi, client_lo)
        port = allocate(
            tables, state, family, hi, lo, pod_port, seen_hi, seen_lo, protocol, port, own_hash, now
        )
        taken = np.int64(0) if port < 0 else np.int64(-1)
        line_hash = flow_table.reply_hash(state, family, hi, lo, pod_port, seen_hi, seen_lo, max(port, 0))
    else:
        line_hash = flow_table.reply_hash(state, family, hi, lo, pod_port, client_hi, client_lo, port)
        taken = flow_table.find_reply(
            tables,
            state,
            np.int64(-1),
            line_hash,
            hi,
            lo,
            pod_port,
            client_hi,
            client_lo,
            port,
            protocol,
            family,
            now,
        )
    if taken >= 0:
        return source, port, line_hash, np.int64(-1)
    return source, port, line_hash, flow_table.free_reverse(tables, state, line_hash, now)


@kernel
def second_chance(tables, state, slot, now):
    """The pod of the live flow in `slot` refuses it: True if the flow has moved to the slot's former pod."""
    flow, entry = state.flows[slot], state.entries[slot]
    if np.int64(flow["flags"]) & _TENTATIVE == 0:
        return False
    vip_index = np.int64(entry["vip"])
    vip = tables.vips[vip_index]
    client_hi, client_lo = flow["client_hi"], flow["client_lo"]
    family = np.int64(flow["family"])
    origin = origin_for(tables, vip, family, client_hi, client_lo)
    own_hash = np.int64(entry["hash"])
    index = choice.former_owner(tables, state, vip_index, origin, own_hash, family, client_hi, client_lo)
    if index == 0 or index == np.int64(entry["pod"]):
        return False
    pod = tables.pods[index]
    pod_port = np.int64(pod["port"])
    if pod_port == 0:
        pod_port = np.int64(flow["vip_port"])
    source, port, line_hash, back = _way_to(tables, state, slot, index, pod_port, origin, now)
    if back < 0:
        return False
    _move(tables, state, slot, index, pod_port, source, port, line_hash, back, now)
    if vip["affinity"] != 0 and choice.serves(np.int64(pod["flags"]), origin):
        affinity.remember(tables, state, vip_index, client_hi, client_lo, index, now)
    return True


@kernel
def _move(tables, state, slot, index, pod_port, source, source_port, line_hash, back, now):
    """Let the flow in `slot` be one to pod `index`, whose replies are found by way of entry `back`."""
    flow, entry = state.flows[slot], state.entries[slot]
    before = state.reverse[flow["reverse"]]
    if np.int64(before["slot"]) == slot + 1:
        before["slot"] = 0
        before["hash"] = 0
    # First the one, then the other: control must not see the pod without any flow.
    state.pod_refs[index] += 1
    state.pod_refs[entry["pod"]] -= 1
    entry["pod"] = index
    flow["pod_port"] = pod_port
    flow["source"] = source
    flow["source_port"] = source_port
    flow["reverse"] = back
    flow["reverse_hash"] = line_hash
    flow["flags"] = np.int64(flow["flags"]) & ~_TENTATIVE
    state.reverse[back]["hash"] = line_hash
    state.reverse[back]["slot"] = slot + 1
    kind = np.int64(flow["state"])
    if kind != _CLOSING:
        entry["expires"] = (now + np.int64(tables.header[T_FLOW_TIMEOUT + kind])) & 0xFFFFFFFF
