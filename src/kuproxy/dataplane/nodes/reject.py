"""kp-reject: a VIP without pods answers for itself, so that clients fail at once instead of waiting.

TCP gets a reset (RFC 9293 section 3.10.7.1), the rest ICMP port unreachable (RFC 792, RFC 4443 section 3.1), built in
the packet's own buffer. docs/forwarding.md, "kp-reject".
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Protocol, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.answers import (
    may_be_told,
    pseudo_sum,
    take_token,
    turn_back,
    write_error,
    write_ipv4,
    write_ipv6,
)
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.graph_queue import count, finish
from kuproxy.dataplane.layout import W_OUTCOMES
from kuproxy.dataplane.memory import load32, store16, store32, swap16, swap32
from kuproxy.wire import icmp, ipv4, ipv6, l4

_NODE = int(Node.REJECT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_ZERO = np.uint64(0)


@kernel
def _may_answer(data, packet):
    """RFC 1122 section 3.2.2 and RFC 4443 section 2.4 (e): what must never be answered."""
    flags = np.int64(packet["flags"])
    if flags & _LATER:
        return False
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    at = np.int64(packet["start"]) + np.int64(packet["l4"])
    if protocol == Protocol.TCP.value and int(data[at + l4.TCP_FLAGS]) & l4.TCP_RST:
        return False
    if family == 4 and protocol == Protocol.ICMP.value and int(data[at]) != icmp.ECHO_REQUEST4:
        return False
    if family == 6 and protocol == Protocol.ICMP6.value and int(data[at]) != icmp.ECHO_REQUEST6:
        return False
    return may_be_told(data, packet)


@kernel
def _reset(data, packet):
    """Turn a TCP segment into its reset; returns the new IP length."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    at = start + np.int64(packet["l4"])
    family = np.int64(packet["family"])
    flags = int(data[at + l4.TCP_FLAGS])
    header = (int(data[at + l4.TCP_OFFSET]) >> 4) << 2
    length = start + np.int64(packet["end"]) - at - header
    if flags & l4.TCP_SYN:
        length += 1
    if flags & l4.TCP_FIN:
        length += 1
    if flags & l4.TCP_ACK:
        sequence = load32(data, at + l4.TCP_ACKNOWLEDGEMENT)
        acknowledgement = 0
        answer = l4.TCP_RST
    else:
        sequence = 0
        acknowledgement = swap32((swap32(load32(data, at + l4.TCP_SEQUENCE)) + length) & 0xFFFFFFFF)
        answer = l4.TCP_RST | l4.TCP_ACK
    src_hi, src_lo = source(data, packet)
    dst_hi, dst_lo = destination(data, packet)
    if family == 4:
        size = ipv4.HEADER
        write_ipv4(
            data,
            l3,
            Protocol.TCP.value,
            size + l4.TCP_HEADER,
            np.int64(dst_lo >> np.uint64(32)),
            np.int64(src_lo >> np.uint64(32)),
        )
    else:
        size = ipv6.HEADER
        write_ipv6(data, l3, Protocol.TCP.value, l4.TCP_HEADER, dst_hi, dst_lo, src_hi, src_lo)
    tcp = l3 + size
    store16(data, tcp + l4.SOURCE_PORT, swap16(np.int64(packet["dst_port"])))
    store16(data, tcp + l4.DESTINATION_PORT, swap16(np.int64(packet["src_port"])))
    store32(data, tcp + l4.TCP_SEQUENCE, sequence)
    store32(data, tcp + l4.TCP_ACKNOWLEDGEMENT, acknowledgement)
    store32(data, tcp + l4.TCP_OFFSET, (5 << 4) | (answer << 8))  # data offset, flags, window 0
    store32(data, tcp + l4.TCP_CHECKSUM, 0)
    total = sum_bytes(data, tcp, l4.TCP_HEADER) + pseudo_sum(
        data, l3, family, Protocol.TCP.value, l4.TCP_HEADER
    )
    store16(data, tcp + l4.TCP_CHECKSUM, fold(total) ^ 0xFFFF)
    return size + l4.TCP_HEADER


@kernel
def kp_reject(frame, tables, state, now):
    """Answer, or drop with the reason why not."""
    data = frame.data
    answered = 0
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        if not _may_answer(data, packet):
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.REJECT_SUPPRESSED.value)
            continue
        if packet["protocol"] == Protocol.TCP.value:
            length = _reset(data, packet)
        elif take_token(tables, state, now):
            kind, code = icmp.UNREACHABLE4, icmp.PORT_UNREACHABLE4
            if packet["family"] == 6:
                kind, code = icmp.UNREACHABLE6, icmp.PORT_UNREACHABLE6
            length = write_error(data, packet, kind, code, 0, _ZERO, _ZERO)
        else:
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.REJECT_RATE_LIMITED.value)
            continue
        if length == 0:
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.REJECT_SUPPRESSED.value)
            continue
        turn_back(data, packet, length)
        packet["outcome"] = Outcome.TRANSMIT.value
        packet["reason"] = Reason.REJECT_SENT.value
        answered += 1
    if answered != 0:
        state.header[W_OUTCOMES + Outcome.TRANSMIT.value] += answered
        count(state, _NODE, Reason.REJECT_SENT.value, answered)
