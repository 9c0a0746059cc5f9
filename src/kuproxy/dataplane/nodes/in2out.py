"""kp-nat4-in2out and kp-nat6-in2out: a pod's reply leaves with the address and port that its client addressed.

docs/forwarding.md, "kp-nat4-in2out". Two passes, like kp-balance.
"""

import numpy as np

from kuproxy.codes import Node, Outcome, Reason
from kuproxy.dataplane import flow_table
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.addresses import destination, source, ttl_of
from kuproxy.dataplane.flow_state import refuses, tcp_bits, touch
from kuproxy.dataplane.graph_queue import SEND_TIME_EXCEEDED, answer, count, finish
from kuproxy.dataplane.layout import REVERSE_WAYS, T_DECREMENT_TTL, W_OUTCOMES
from kuproxy.dataplane.memory import prefetch
from kuproxy.dataplane.rewrite import port_is_fixed, rewrite_ipv4, rewrite_ipv6
from kuproxy.dataplane.second_chance import second_chance
from kuproxy.dataplane.source import restore_client
from kuproxy.dataplane.tally import tally_from_pod
from kuproxy.dataplane.untracked import find_untracked
from kuproxy.wire import ipv4, ipv6, l4

_TRANSMIT = int(Outcome.TRANSMIT)
_IN2OUT = int(Reason.IN2OUT)


@helper
def _prepare(frame, state, node):
    """First pass: guess each packet's flow by the hash of its reply, fetch entry and record."""
    line_mask = len(state.reverse) // REVERSE_WAYS - 1
    for position in range(frame.queued[node]):
        packet = frame.packets[frame.queue[node, position]]
        base = (np.int64(packet["hash"]) & line_mask) * REVERSE_WAYS
        slot = np.int64(-1)
        for way in range(REVERSE_WAYS):
            back = state.reverse[base + way]
            slot = max(slot, np.int64(back["hash"] == packet["hash"]) * np.int64(back["slot"]) - 1)
        if slot >= 0:
            prefetch(state.flows, slot)
            prefetch(state.entries, slot)
            packet["slot"] = slot + 1


@helper
def _in2out(frame, tables, state, now, node):
    _prepare(frame, state, node)
    decrement = np.int64(tables.header[T_DECREMENT_TTL])
    restored = 0
    for position in range(frame.queued[node]):
        packet = frame.packets[frame.queue[node, position]]
        pod_hi, pod_lo = source(frame.data, packet)
        client_hi, client_lo = destination(frame.data, packet)
        slot = flow_table.find_reply(
            tables,
            state,
            np.int64(packet["slot"]) - 1,
            np.int64(packet["hash"]),
            pod_hi,
            pod_lo,
            np.int64(packet["src_port"]),
            client_hi,
            client_lo,
            np.int64(packet["dst_port"]),
            np.int64(packet["protocol"]),
            np.int64(packet["family"]),
            now,
        )
        if slot >= 0:
            flow = state.flows[slot]
            new_hi, new_lo, new_port = flow["vip_hi"], flow["vip_lo"], np.int64(flow["vip_port"])
            packet["vip"] = state.entries[slot]["vip"]
            packet["pod"] = state.entries[slot]["pod"]
        else:
            vip_index, pod, new_port = find_untracked(
                tables, state, packet, pod_hi, pod_lo, client_hi, client_lo, now
            )
            if vip_index == 0:
                finish(packet, state, node, Outcome.PASS.value, Reason.NO_TRANSLATION.value)
                continue
            new_hi, new_lo = tables.vips[vip_index]["hi"], tables.vips[vip_index]["lo"]
            packet["vip"] = vip_index
            packet["pod"] = pod
        if ttl_of(frame.data, packet) <= 1:
            count(state, node, Reason.TTL_EXPIRED.value, 1)
            answer(frame, np.int64(frame.queue[node, position]), SEND_TIME_EXCEEDED, 0)
            continue
        fixed = False
        if slot >= 0:
            bits = tcp_bits(frame.data, packet)
            if refuses(bits) and second_chance(tables, state, slot, now):
                finish(packet, state, node, Outcome.DROP.value, Reason.SECOND_CHANCE.value)
                continue
            touch(tables, state, slot, bits, False, now)
            flow = state.flows[slot]
            if flow["source"] != 0 or flow["source_port"] != flow["client_port"]:
                fixed = not restore_client(frame, packet, flow)
        else:
            count(state, node, Reason.IN2OUT_UNTRACKED.value, 1)
        if fixed or port_is_fixed(
            packet["protocol"], np.int64(packet["flags"]), np.int64(packet["src_port"]), new_port
        ):
            finish(packet, state, node, Outcome.DROP.value, Reason.SCTP_FRAGMENT.value)
            continue
        tally_from_pod(state, packet)
        if packet["family"] == 4:
            address = np.int64(new_lo >> np.uint64(32))
            rewrite_ipv4(frame.data, packet, ipv4.SOURCE, address, l4.SOURCE_PORT, new_port, decrement)
        else:
            rewrite_ipv6(frame.data, packet, ipv6.SOURCE, new_hi, new_lo, l4.SOURCE_PORT, new_port, decrement)
        packet["outcome"] = _TRANSMIT
        packet["reason"] = _IN2OUT
        restored += 1
    state.header[W_OUTCOMES + _TRANSMIT] += restored
    if restored != 0:
        count(state, node, _IN2OUT, restored)


@helper
def kp_nat4_in2out(frame, tables, state, now):
    """IPv4 replies."""
    _in2out(frame, tables, state, now, Node.NAT4_IN2OUT.value)


@helper
def kp_nat6_in2out(frame, tables, state, now):
    """IPv6 replies."""
    _in2out(frame, tables, state, now, Node.NAT6_IN2OUT.value)
