"""kp4-nat6 and kp-nat46-in2out: IPv4 clients of IPv6 pods. The client becomes prefix::client (RFC 6052)."""

import numpy as np

from kuproxy.codes import Node, Outcome, Protocol, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source, ttl_of
from kuproxy.dataplane.crossing import cross_to_4, cross_to_6
from kuproxy.dataplane.flow_state import refuses, tcp_bits, touch
from kuproxy.dataplane.graph_queue import SEND_PARAMETER_PROBLEM, SEND_TIME_EXCEEDED, answer, count, finish
from kuproxy.dataplane.layout import T_NAT46_HI
from kuproxy.dataplane.second_chance import second_chance
from kuproxy.dataplane.tally import tally_from_pod
from kuproxy.dataplane.translated import (
    ROUTING_HEADER,
    find_reply,
    mapped_lo,
    must_not_cross,
    other_protocol,
    routing_header_left,
)

_FORWARD = int(Node.NAT46)
_BACK = int(Node.NAT46_IN2OUT)
_LOW = np.uint64(0xFFFFFFFF)


@kernel
def kp4_nat6(frame, tables, state, now):
    """To the pod; kp-balance has seen that it can be translated."""
    for position in range(frame.queued[_FORWARD]):
        index = np.int64(frame.queue[_FORWARD, position])
        packet = frame.packets[index]
        _, client_lo = source(frame.data, packet)
        pod = tables.pods[packet["pod"]]
        ported = packet["protocol"] != Protocol.ICMP.value
        cross_to_6(
            frame,
            tables,
            state,
            index,
            tables.header[T_NAT46_HI],
            mapped_lo(tables, client_lo),
            pod["hi"],
            pod["lo"],
            np.int64(packet["src_port"]) if ported else np.int64(-1),
            np.int64(packet["new_port"]),
            _FORWARD,
            Reason.FORWARDED.value,
        )


@kernel
def kp_nat46_in2out(frame, tables, state, now):
    """The pod's reply, to the client."""
    for position in range(frame.queued[_BACK]):
        index = np.int64(frame.queue[_BACK, position])
        packet = frame.packets[index]
        pod_hi, pod_lo = source(frame.data, packet)
        _, far_lo = destination(frame.data, packet)
        client_lo = far_lo & ~_LOW
        slot = find_reply(
            tables,
            state,
            np.int64(packet["hash"]),
            pod_hi,
            pod_lo,
            np.int64(packet["src_port"]),
            client_lo,
            np.int64(packet["dst_port"]),
            other_protocol(packet["protocol"]),
            4,
            now,
        )
        if slot < 0:
            finish(packet, state, _BACK, Outcome.PASS.value, Reason.NO_TRANSLATION.value)
            continue
        flow = state.flows[slot]
        packet["vip"] = state.entries[slot]["vip"]
        packet["pod"] = state.entries[slot]["pod"]
        if ttl_of(frame.data, packet) <= 1:
            count(state, _BACK, Reason.TTL_EXPIRED.value, 1)
            answer(frame, index, SEND_TIME_EXCEEDED, 0)
            continue
        refusal = must_not_cross(frame.data, packet)
        if refusal == ROUTING_HEADER:
            start = np.int64(packet["start"])
            l3 = start + np.int64(packet["l3"])
            left = routing_header_left(frame.data, l3, start + np.int64(packet["end"]))
            answer(frame, index, SEND_PARAMETER_PROBLEM, left)
            continue
        if refusal != 0:
            finish(packet, state, _BACK, Outcome.DROP.value, refusal)
            continue
        bits = tcp_bits(frame.data, packet)
        if refuses(bits) and second_chance(tables, state, slot, now):
            finish(packet, state, _BACK, Outcome.DROP.value, Reason.SECOND_CHANCE.value)
            continue
        touch(tables, state, slot, bits, False, now)
        tally_from_pod(state, packet)
        ported = packet["protocol"] != Protocol.ICMP6.value
        cross_to_4(
            frame,
            tables,
            state,
            index,
            flow["vip_lo"],
            client_lo,
            np.int64(flow["vip_port"]) if ported else np.int64(-1),
            np.int64(packet["dst_port"]),
            _BACK,
            Reason.IN2OUT.value,
        )
