"""kp-icmp-error: an ICMP error about a translated packet, translated so that its receiver knows the packet.

docs/forwarding.md, "kp-icmp-error". Towards the pod when it is about what we sent to a client, towards the
client when it is about what we sent to a pod.
"""

import numpy as np

from kuproxy.codes import Encap, Node, Outcome, PacketFlag, Protocol, Reason, VipType
from kuproxy.dataplane import embedded, flow_table, translated
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source, ttl_of
from kuproxy.dataplane.choice import candidate, must_masquerade, ring_of
from kuproxy.dataplane.graph_queue import enqueue, finish
from kuproxy.dataplane.hash import flow_hash, ports_word
from kuproxy.dataplane.layout import (
    T_DECREMENT_TTL,
    T_NAT46_HI,
    T_OWN4,
    T_TRANSLATION_MTU,
    T_VIP_MATCH,
    W_IDENTIFICATION,
)
from kuproxy.dataplane.match import find_vip, prepare_vip
from kuproxy.dataplane.membership import find_nodeport, is_marked
from kuproxy.dataplane.origin import origin_for
from kuproxy.dataplane.worker_choice import next_identification

_NODE = int(Node.ICMP_ERROR)
_PASS = int(Outcome.PASS)
_DROP = int(Outcome.DROP)
_NAT44 = int(VipType.IP4_NAT44)
_NAT46 = int(VipType.IP4_NAT46)
_NAT64 = int(VipType.IP6_NAT64)
_NAT66 = int(VipType.IP6_NAT66)
_ICMP6 = int(Protocol.ICMP6)
_FRAGMENT = int(PacketFlag.FRAGMENT)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_ONWARD = -1
_DIRECT = int(Node.GRE) - int(Encap.GRE)  # the nodes of direct return, in the order of Encap
_LOW = np.uint64(0xFFFFFFFF)
_ZERO = np.uint64(0)
_SENT = int(Reason.ICMP_ERROR_TRANSLATED)


@kernel
def _refusal(data, packet):
    """Why an error about a known packet cannot go on, or 0."""
    if np.int64(packet["flags"]) & _FRAGMENT:
        return Reason.UNTRANSLATABLE_FRAGMENT.value
    if np.int64(packet["flags"]) & _PARTIAL == 0 and not embedded.has_good_checksum(data, packet):
        return Reason.ICMP_BAD_CHECKSUM.value
    if ttl_of(data, packet) <= 1:
        return Reason.TTL_EXPIRED.value
    return Reason.NONE.value


@kernel
def _pod_of(tables, state, data, packet, vip_index, at, protocol, sport, dport, identifier, now):
    """(slot or -1, pod or 0, port at the pod) for an error about what the VIP sent to a client.

    A flow that this node never saw: the pod follows from the ring, unless the client's address on the pod's side is
    known to nobody but the node that chose it (NAT64, masquerade).
    """
    family = np.int64(packet["family"])
    vip = tables.vips[vip_index]
    vip_hi, vip_lo = embedded.source_of(data, at, family)
    client_hi, client_lo = embedded.destination_of(data, at, family)
    client_port, vip_port = dport, sport
    is_nat64 = vip["encap"] == 0 and vip["type"] == _NAT64
    if is_nat64 and protocol == _ICMP6:
        client_port = identifier
    word = ports_word(client_port, vip_port)
    its_hash = np.int64(flow_hash(state, family, client_hi, client_lo, vip_hi, vip_lo, word))
    slot = translated.find_flow(
        tables, state, its_hash, client_hi, client_lo, client_port, vip_hi, vip_lo, vip_port, protocol,
        vip_index, now,
    )  # fmt: skip
    if slot >= 0:
        return slot, np.int64(state.entries[slot]["pod"]), np.int64(state.flows[slot]["pod_port"])
    origin = origin_for(tables, vip, family, client_hi, client_lo)
    if is_nat64 or ring_of(vip, origin)[0] == 0:
        return np.int64(-1), np.int64(0), np.int64(0)
    pod, _ = candidate(tables, state, vip_index, origin, its_hash, family, client_hi, client_lo, now)
    hidden = vip["encap"] == 0 and vip["type"] != _NAT46
    if hidden and must_masquerade(vip, tables.pods[pod], origin, client_hi, client_lo):
        return np.int64(-1), np.int64(0), np.int64(0)
    port = np.int64(tables.pods[pod]["port"])
    return np.int64(-1), pod, port if port != 0 else vip_port


@kernel
def _towards_pod(
    tables, state, data, packet, vip_type, slot, pod_index, pod_port, at, l4_at, protocol, ports, identifier
):
    """Rewrite; returns the reason for which it cannot be, or 0. `ports` are those of the embedded packet."""
    start = np.int64(packet["start"])
    end = start + np.int64(packet["end"])
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    pod = tables.pods[pod_index]
    if vip_type == _NAT44 or vip_type == _NAT66:
        family = np.int64(packet["family"])
        embedded.rewrite(data, at, l4_at, end, family, protocol, True, pod["hi"], pod["lo"], pod_port)
        if slot >= 0:
            flow = state.flows[slot]
            if flow["source"] != 0 or flow["source_port"] != flow["client_port"]:
                hi, lo = flow_table.source_seen(tables, flow)
                port = np.int64(flow["source_port"])
                embedded.rewrite(data, at, l4_at, end, family, protocol, False, hi, lo, port)
        embedded.rewrite_outer(data, packet, False, pod["hi"], pod["lo"], decrement)
        return Reason.NONE.value
    kind, code, rest = embedded.counterpart(data, packet, np.int64(tables.header[T_TRANSLATION_MTU]))
    if kind < 0:
        return Reason.UNTRANSLATABLE_ICMP.value
    if not translated.crosses(protocol):
        return Reason.UNTRANSLATABLE_PROTOCOL.value
    is_icmp = protocol == Protocol.ICMP.value or protocol == _ICMP6
    if vip_type == _NAT46:
        prefix = tables.header[T_NAT46_HI]
        _, router = source(data, packet)
        _, client = embedded.destination_of(data, at, 4)
        embedded.error_4to6(
            data, packet, l4_at, kind, code, rest,
            (prefix, translated.mapped_lo(tables, router)), (pod["hi"], pod["lo"]),
            (pod["hi"], pod["lo"]), (prefix, translated.mapped_lo(tables, client)),
            (np.int64(-1) if is_icmp else pod_port, ports[1]), decrement,
        )  # fmt: skip
        return Reason.NONE.value
    flow = state.flows[slot]
    client = np.uint64(flow["source"]) << np.uint64(32)
    client_port = np.int64(flow["source_port"])
    embedded.error_6to4(
        data, packet, l4_at, protocol, kind, code, rest, client, pod["lo"], pod["lo"], client,
        (client_port if is_icmp else pod_port, client_port), decrement,
        next_identification(tables, state, W_IDENTIFICATION),
    )  # fmt: skip
    return Reason.NONE.value


@kernel
def _flow_of(tables, state, data, packet, at, protocol, sport, dport, identifier, now):
    """The slot of the flow of which the embedded packet is what we sent to a pod, or -1."""
    family = np.int64(packet["family"])
    src_hi, src_lo = embedded.source_of(data, at, family)
    pod_hi, pod_lo = embedded.destination_of(data, at, family)
    if protocol == Protocol.ICMP.value and family == 4 and translated.in_pool(tables, src_lo):
        sport = identifier
    line_hash = flow_table.reply_hash(state, family, pod_hi, pod_lo, dport, src_hi, src_lo, sport)
    return translated.find_any_reply(
        tables, state, line_hash, pod_hi, pod_lo, dport, src_hi, src_lo, sport, protocol, family, now
    )


@kernel
def _towards_client(tables, state, data, packet, slot, at, l4_at, protocol, sport):
    """Rewrite; returns the reason for which it cannot be, or 0."""
    start = np.int64(packet["start"])
    end = start + np.int64(packet["end"])
    family = np.int64(packet["family"])
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    flow = state.flows[slot]
    pod = tables.pods[state.entries[slot]["pod"]]
    src_hi, src_lo = source(data, packet)
    from_pod = src_hi == pod["hi"] and src_lo == pod["lo"]
    if pod["family"] == flow["family"]:
        vip_hi, vip_lo, vip_port = flow["vip_hi"], flow["vip_lo"], np.int64(flow["vip_port"])
        embedded.rewrite(data, at, l4_at, end, family, protocol, False, vip_hi, vip_lo, vip_port)
        if flow["source"] != 0 or flow["source_port"] != flow["client_port"]:
            hi, lo, port = flow["client_hi"], flow["client_lo"], np.int64(flow["client_port"])
            embedded.rewrite(data, at, l4_at, end, family, protocol, True, hi, lo, port)
            embedded.rewrite_outer(data, packet, False, hi, lo, 0)
        if from_pod:
            src_hi, src_lo = vip_hi, vip_lo
        embedded.rewrite_outer(data, packet, True, src_hi, src_lo, decrement)
        return Reason.NONE.value
    kind, code, rest = embedded.counterpart(data, packet, np.int64(tables.header[T_TRANSLATION_MTU]))
    if kind < 0:
        return Reason.UNTRANSLATABLE_ICMP.value
    client_port = np.int64(flow["client_port"])
    vip_port = np.int64(flow["vip_port"])
    is_icmp = protocol == Protocol.ICMP.value or protocol == _ICMP6
    if family == 6:
        # A router without an IPv4 address of its own speaks with ours (RFC 6791), or the VIP's.
        outer = tables.header[T_OWN4]
        if from_pod or outer == _ZERO:
            outer = flow["vip_lo"]
        if not from_pod and translated.is_mapped(tables, src_hi, src_lo):
            outer = src_lo & ~_LOW
        embedded.error_6to4(
            data, packet, l4_at, protocol, kind, code, rest, outer, flow["client_lo"], flow["client_lo"],
            flow["vip_lo"], (np.int64(-1) if is_icmp else client_port, vip_port), decrement,
            next_identification(tables, state, W_IDENTIFICATION),
        )  # fmt: skip
        return Reason.NONE.value
    outer6 = (tables.header[T_NAT46_HI], translated.mapped_lo(tables, src_lo))
    if from_pod:
        outer6 = (flow["vip_hi"], flow["vip_lo"])
    client6 = (flow["client_hi"], flow["client_lo"])
    embedded.error_4to6(
        data, packet, l4_at, kind, code, rest, outer6, client6, client6, (flow["vip_hi"], flow["vip_lo"]),
        (client_port, vip_port), decrement,
    )  # fmt: skip
    return Reason.NONE.value


@kernel
def _translate(frame, tables, state, packet, now):
    """(outcome, reason) of an ICMP error; or (_ONWARD, encapsulation) if another node sends it to the pod."""
    data = frame.data
    start = np.int64(packet["start"])
    family = np.int64(packet["family"])
    at = start + np.int64(packet["l4"]) + 8
    l4_at, protocol, sport, dport, identifier = embedded.read(
        data, at, start + np.int64(packet["end"]), family
    )
    if l4_at == 0:
        return _PASS, Reason.NO_TRANSLATION.value
    src_hi, src_lo = embedded.source_of(data, at, family)
    to_hi, to_lo = destination(data, packet)
    if to_hi != src_hi or to_lo != src_lo:
        return _PASS, Reason.NO_TRANSLATION.value  # not sent to whom it concerns
    location = tables.header[T_VIP_MATCH]
    place = prepare_vip(tables, location, src_hi, src_lo, family, protocol, sport)
    vip = find_vip(tables, location, place, src_hi, src_lo, family, protocol, sport)
    slot = np.int64(-1)
    marked = is_marked(tables, packet)
    if vip == 0:
        if marked:
            slot = _flow_of(tables, state, data, packet, at, protocol, sport, dport, identifier, now)
        if slot < 0:
            vip = find_nodeport(tables, family, protocol, sport, src_hi, src_lo)
    if vip != 0:
        slot, pod, pod_port = _pod_of(
            tables, state, data, packet, vip, at, protocol, sport, dport, identifier, now
        )
        packet["vip"] = vip
        if pod == 0:
            return _PASS, Reason.NO_TRANSLATION.value
        packet["pod"] = pod
        reason = _refusal(data, packet)
        encap = np.int64(tables.vips[vip]["encap"])
        if reason == 0 and encap != 0:  # direct return: to the pod as everything else, and untranslated
            return _ONWARD, encap
        if reason == 0:
            vip_type = np.int64(tables.vips[vip]["type"])
            reason = _towards_pod(
                tables, state, data, packet, vip_type, slot, pod, pod_port, at, l4_at, protocol, (sport, dport),
                identifier,
            )  # fmt: skip
    elif marked:
        if slot < 0:
            return _PASS, Reason.NO_TRANSLATION.value
        packet["vip"] = state.entries[slot]["vip"]
        packet["pod"] = state.entries[slot]["pod"]
        reason = _refusal(data, packet)
        if reason == 0:
            reason = _towards_client(tables, state, data, packet, slot, at, l4_at, protocol, sport)
    else:
        return _PASS, Reason.NO_VIP.value
    if reason != 0:
        return _DROP, reason
    return np.int64(Outcome.TRANSMIT.value), np.int64(_SENT)


@kernel
def kp_icmp_error(frame, tables, state, now):
    """Errors never refresh nor end a flow (RFC 5508 REQ-6, RFC 4787 section 9)."""
    for position in range(frame.queued[_NODE]):
        number = frame.queue[_NODE, position]
        packet = frame.packets[number]
        outcome, reason = _translate(frame, tables, state, packet, now)
        if outcome == _ONWARD:
            enqueue(frame, _DIRECT + reason, number)
        else:
            finish(packet, state, _NODE, outcome, reason)
