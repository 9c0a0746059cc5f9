"""kp-icmp: what we say ourselves: time exceeded, packet too big, echo replies of VIPs.

docs/forwarding.md, "kp-icmp". Which message it shall be stands in the packet's `new_port` (graph_queue.answer).
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Protocol, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.answers import TTL, may_be_told, swap_ethernet, take_token, turn_back, write_error
from kuproxy.dataplane.checksum import change16, fold, sum_bytes, update
from kuproxy.dataplane.graph_queue import (
    SEND_ECHO_REPLY,
    SEND_TIME_EXCEEDED,
    SEND_TOO_BIG,
    finish,
)
from kuproxy.dataplane.layout import T_OWN4, T_OWN6_HI, T_OWN6_LO
from kuproxy.dataplane.memory import load16, load32, load64, store16, store32, store64
from kuproxy.wire import icmp, ipv4, ipv6

_NODE = int(Node.ICMP)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_ZERO = np.uint64(0)


@kernel
def _may_be_error(data, packet):
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): no error about a later fragment, or about an error."""
    if np.int64(packet["flags"]) & _LATER:
        return False
    family = np.int64(packet["family"])
    protocol = np.int64(packet["protocol"])
    if protocol == Protocol.ICMP.value or protocol == Protocol.ICMP6.value:
        kind = int(data[np.int64(packet["start"]) + np.int64(packet["l4"])])
        if icmp.is_error(family, protocol, kind):
            return False
    return may_be_told(data, packet)


@kernel
def _send_error(data, tables, packet, what):
    """Write the error; returns its IP length (0: no room) and the reason to count."""
    value = np.int64(packet["slot"])
    kind, code = 0, 0
    if packet["family"] == 4:
        own_hi, own_lo = _ZERO, tables.header[T_OWN4]
        kind = icmp.UNREACHABLE4
        if what == SEND_TIME_EXCEEDED:
            kind, reason = icmp.TIME_EXCEEDED4, Reason.TIME_EXCEEDED_SENT.value
        elif what == SEND_TOO_BIG:
            code, reason = icmp.FRAGMENTATION_NEEDED4, Reason.PACKET_TOO_BIG_SENT.value
        else:
            code, reason = icmp.SOURCE_ROUTE_FAILED4, Reason.SOURCE_ROUTE_SENT.value
    else:
        own_hi, own_lo = tables.header[T_OWN6_HI], tables.header[T_OWN6_LO]
        if what == SEND_TIME_EXCEEDED:
            kind, reason = icmp.TIME_EXCEEDED6, Reason.TIME_EXCEEDED_SENT.value
        elif what == SEND_TOO_BIG:
            kind, reason = icmp.TOO_BIG6, Reason.PACKET_TOO_BIG_SENT.value
        else:
            kind, reason = icmp.PARAMETER_PROBLEM6, Reason.PARAMETER_PROBLEM_SENT.value
    return write_error(data, packet, kind, code, value, own_hi, own_lo), reason


@kernel
def _echo_reply(data, packet):
    """The request turned round (RFC 792, RFC 4443 section 4.2); a damaged one stays as damaged as it was."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    at = start + np.int64(packet["l4"])
    swap_ethernet(data, start)
    if packet["family"] == 4:
        address = load32(data, l3 + ipv4.SOURCE)
        store32(data, l3 + ipv4.SOURCE, load32(data, l3 + ipv4.DESTINATION))
        store32(data, l3 + ipv4.DESTINATION, address)
        data[l3 + ipv4.TTL] = TTL
        store16(data, l3 + ipv4.CHECKSUM, 0)
        header = ipv4.header_length(data, l3)
        store16(data, l3 + ipv4.CHECKSUM, fold(sum_bytes(data, l3, header)) ^ 0xFFFF)
        kind = icmp.ECHO_REPLY4
    else:
        for offset in (0, 8):
            word = load64(data, l3 + ipv6.SOURCE + offset)
            store64(data, l3 + ipv6.SOURCE + offset, load64(data, l3 + ipv6.DESTINATION + offset))
            store64(data, l3 + ipv6.DESTINATION + offset, word)
        data[l3 + ipv6.HOP_LIMIT] = TTL
        kind = icmp.ECHO_REPLY6
    word = load16(data, at)
    new = (word & 0xFF00) | kind
    store16(data, at, new)
    if np.int64(packet["flags"]) & _PARTIAL == 0:
        update(data, at + icmp.CHECKSUM, change16(word, new))


@kernel
def kp_icmp(frame, tables, state, now):
    """Say it, or drop with the reason why not."""
    data = frame.data
    for position in range(frame.queued[_NODE]):
        packet = frame.packets[frame.queue[_NODE, position]]
        what = np.int64(packet["new_port"])
        if what == SEND_ECHO_REPLY:
            if may_be_told(data, packet):
                _echo_reply(data, packet)
                finish(packet, state, _NODE, Outcome.TRANSMIT.value, Reason.ECHO_ANSWERED.value)
            else:
                finish(packet, state, _NODE, Outcome.DROP.value, Reason.ERROR_SUPPRESSED.value)
            continue
        if not _may_be_error(data, packet):
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.ERROR_SUPPRESSED.value)
            continue
        if not take_token(tables, state, now):
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.ERROR_RATE_LIMITED.value)
            continue
        length, reason = _send_error(data, tables, packet, what)
        if length == 0:
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.ERROR_SUPPRESSED.value)
            continue
        turn_back(data, packet, length)
        finish(packet, state, _NODE, Outcome.TRANSMIT.value, reason)
