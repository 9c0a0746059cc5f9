"""kp6-nat4 and kp-nat64-in2out: IPv6 clients of IPv4 pods. The client becomes an address and port of a pool."""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Protocol, Reason
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.addresses import destination, source, ttl_of
from kuproxy.dataplane.crossing import cross_to_4, cross_to_6
from kuproxy.dataplane.flow_state import refuses, tcp_bits, touch
from kuproxy.dataplane.flow_table import reply_hash
from kuproxy.dataplane.graph_queue import SEND_SOURCE_ROUTE, SEND_TIME_EXCEEDED, answer, count, finish
from kuproxy.dataplane.memory import load16, swap16
from kuproxy.dataplane.second_chance import second_chance
from kuproxy.dataplane.tally import tally_from_pod
from kuproxy.dataplane.translated import SOURCE_ROUTE, find_reply, must_not_cross, other_protocol
from kuproxy.wire import icmp

_FORWARD = int(Node.NAT64)
_BACK = int(Node.NAT64_IN2OUT)
_FRAGMENT = int(PacketFlag.FRAGMENT)


@kernel
def kp6_nat4(frame, tables, state, now):
    """To the pod; kp-balance has seen that it can be translated, and found it an address and port."""
    for position in range(frame.queued[_FORWARD]):
        index = np.int64(frame.queue[_FORWARD, position])
        packet = frame.packets[index]
        cross_to_4(
            frame,
            tables,
            state,
            index,
            np.uint64(packet["slot"]) << np.uint64(32),
            tables.pods[packet["pod"]]["lo"],
            np.int64(packet["source_port"]),
            np.int64(packet["new_port"]),
            _FORWARD,
            Reason.FORWARDED.value,
        )


@helper
def _is_echo(data, packet):
    """What else has an identifier or something else in its place is nobody's reply."""
    return icmp.is_echo(4, int(data[np.int64(packet["start"]) + np.int64(packet["l4"])]))


@kernel
def _echo_identifier(state, data, packet, pod_lo, far_lo):
    """An echo's identifier stands for the port: (identifier, flow hash)."""
    at = np.int64(packet["start"]) + np.int64(packet["l4"])
    identifier = swap16(load16(data, at + icmp.IDENTIFIER))
    return identifier, reply_hash(state, 4, np.uint64(0), pod_lo, 0, np.uint64(0), far_lo, identifier)


@kernel
def kp_nat64_in2out(frame, tables, state, now):
    """The pod's reply, to the client."""
    for position in range(frame.queued[_BACK]):
        index = np.int64(frame.queue[_BACK, position])
        packet = frame.packets[index]
        pod_hi, pod_lo = source(frame.data, packet)
        _, far_lo = destination(frame.data, packet)
        far_port = np.int64(packet["dst_port"])
        line_hash = np.int64(packet["hash"])
        is_icmp = packet["protocol"] == Protocol.ICMP.value
        if is_icmp and np.int64(packet["flags"]) & _FRAGMENT == 0 and _is_echo(frame.data, packet):
            far_port, line_hash = _echo_identifier(state, frame.data, packet, pod_lo, far_lo)
        slot = find_reply(
            tables,
            state,
            line_hash,
            pod_hi,
            pod_lo,
            np.int64(packet["src_port"]),
            far_lo,
            far_port,
            other_protocol(packet["protocol"]),
            6,
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
        if refusal == SOURCE_ROUTE:
            answer(frame, index, SEND_SOURCE_ROUTE, 0)
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
        client_port = np.int64(flow["client_port"])
        cross_to_6(
            frame,
            tables,
            state,
            index,
            flow["vip_hi"],
            flow["vip_lo"],
            flow["client_hi"],
            flow["client_lo"],
            client_port if is_icmp else np.int64(flow["vip_port"]),
            client_port,
            _BACK,
            Reason.IN2OUT.value,
        )
