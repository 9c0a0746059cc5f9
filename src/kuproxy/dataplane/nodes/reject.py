"""kp-reject: a VIP without pods answers for itself, so that clients fail at once instead of waiting.

TCP gets a reset (RFC 9293 section 3.10.7.1), the rest ICMP port unreachable (RFC 792, RFC 4443 section 3.1), built in
the packet's own buffer. docs/forwarding.md, "kp-reject".
"""

import numpy as np

from kuproxy.codes import Node, Outcome, PacketFlag, Protocol, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.graph_queue import count, finish
from kuproxy.dataplane.layout import (
    T_REJECT_RATE,
    TICKS_PER_SECOND,
    VNET_BYTES,
    W_OUTCOMES,
    W_REJECT_TIME,
    W_REJECT_TOKENS,
)
from kuproxy.dataplane.memory import (
    clear_bytes,
    load16,
    load32,
    store16,
    store32,
    store64,
    swap16,
    swap32,
)
from kuproxy.wire import icmp, ipv4, ipv6, l4

_NODE = int(Node.REJECT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_VNET = int(PacketFlag.VNET)
_OFFLOADS = int(PacketFlag.PARTIAL_CHECKSUM | PacketFlag.GSO)
_ZERO = np.uint64(0)

_TTL = 64
# An ICMP error is at most 576 bytes (RFC 1812 section 4.3.2.3), an ICMPv6 error 1280 (RFC 4443 section 2.4).
_ERROR4 = 576
_ERROR6 = 1280
# Bytes of the embedded packet without which the answer would say nothing: its header and 8 bytes of L4.
_EMBED4 = ipv4.HEADER + 8
_EMBED6 = ipv6.HEADER + 8


@kernel
def _is_unicast(family, hi, lo):
    """Not unspecified, loopback or multicast (and not IPv4's limited broadcast)."""
    if family == 4:
        first = (lo >> np.uint64(32)) & np.uint64(0xFF)
        if lo == _ZERO or first == np.uint64(127) or first >= np.uint64(224):
            return False
        return True
    if hi == _ZERO and (lo == _ZERO or lo == np.uint64(1 << 56)):
        return False
    return hi & np.uint64(0xFF) != np.uint64(0xFF)


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
    hi, lo = source(data, packet)
    if not _is_unicast(family, hi, lo):
        return False
    hi, lo = destination(data, packet)
    if family == 4:
        return (lo >> np.uint64(32)) & np.uint64(0xFF) < np.uint64(224)
    return hi & np.uint64(0xFF) != np.uint64(0xFF)


@kernel
def _take_token(tables, state, now):
    """One ICMP answer of the rate limit's bucket, which holds one second's worth.

    It is counted in fractions of an answer, one a tick for a rate of one a second, so that slow rates refill too.
    """
    rate = np.int64(tables.header[T_REJECT_RATE])
    full = rate * TICKS_PER_SECOND
    last = state.header[W_REJECT_TIME] - 1  # 0: never used
    if last < 0:
        state.header[W_REJECT_TOKENS] = full
    else:
        tokens = state.header[W_REJECT_TOKENS] + ((now - last) & 0xFFFFFFFF) * rate
        state.header[W_REJECT_TOKENS] = min(tokens, full)
    state.header[W_REJECT_TIME] = now + 1
    if state.header[W_REJECT_TOKENS] < TICKS_PER_SECOND:
        return False
    state.header[W_REJECT_TOKENS] -= TICKS_PER_SECOND
    return True


@kernel
def _swap_ethernet(data, start):
    first = load32(data, start)
    second = load16(data, start + 4)
    store32(data, start, load32(data, start + 6))
    store16(data, start + 4, load16(data, start + 10))
    store32(data, start + 6, first)
    store16(data, start + 10, second)


@kernel
def _write_ipv4(data, l3, protocol, total, source_address, destination_address):
    store16(data, l3, 0x0045)  # version 4, five words; TOS 0
    store16(data, l3 + ipv4.TOTAL_LENGTH, swap16(total))
    store16(data, l3 + ipv4.IDENTIFICATION, 0)
    store16(data, l3 + ipv4.FRAGMENT, swap16(ipv4.DONT_FRAGMENT))
    data[l3 + ipv4.TTL] = _TTL
    data[l3 + ipv4.PROTOCOL] = protocol
    store16(data, l3 + ipv4.CHECKSUM, 0)
    store32(data, l3 + ipv4.SOURCE, source_address)
    store32(data, l3 + ipv4.DESTINATION, destination_address)
    store16(data, l3 + ipv4.CHECKSUM, fold(sum_bytes(data, l3, ipv4.HEADER)) ^ 0xFFFF)


@kernel
def _write_ipv6(data, l3, protocol, payload, src_hi, src_lo, dst_hi, dst_lo):
    store32(data, l3, 0x60)
    store16(data, l3 + ipv6.PAYLOAD_LENGTH, swap16(payload))
    data[l3 + ipv6.NEXT_HEADER] = protocol
    data[l3 + ipv6.HOP_LIMIT] = _TTL
    store64(data, l3 + ipv6.SOURCE, src_hi)
    store64(data, l3 + ipv6.SOURCE + 8, src_lo)
    store64(data, l3 + ipv6.DESTINATION, dst_hi)
    store64(data, l3 + ipv6.DESTINATION + 8, dst_lo)


@kernel
def _pseudo_sum(data, l3, family, protocol, length):
    """Sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    addresses = sum_bytes(data, l3 + ipv4.SOURCE, 8) if family == 4 else sum_bytes(data, l3 + ipv6.SOURCE, 32)
    return addresses + swap16(protocol) + swap16(length)


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
        _write_ipv4(
            data,
            l3,
            Protocol.TCP.value,
            size + l4.TCP_HEADER,
            np.int64(dst_lo >> np.uint64(32)),
            np.int64(src_lo >> np.uint64(32)),
        )
    else:
        size = ipv6.HEADER
        _write_ipv6(data, l3, Protocol.TCP.value, l4.TCP_HEADER, dst_hi, dst_lo, src_hi, src_lo)
    tcp = l3 + size
    store16(data, tcp + l4.SOURCE_PORT, swap16(np.int64(packet["dst_port"])))
    store16(data, tcp + l4.DESTINATION_PORT, swap16(np.int64(packet["src_port"])))
    store32(data, tcp + l4.TCP_SEQUENCE, sequence)
    store32(data, tcp + l4.TCP_ACKNOWLEDGEMENT, acknowledgement)
    store32(data, tcp + l4.TCP_OFFSET, (5 << 4) | (answer << 8))  # data offset, flags, window 0
    store32(data, tcp + l4.TCP_CHECKSUM, 0)
    total = sum_bytes(data, tcp, l4.TCP_HEADER) + _pseudo_sum(
        data, l3, family, Protocol.TCP.value, l4.TCP_HEADER
    )
    store16(data, tcp + l4.TCP_CHECKSUM, fold(total) ^ 0xFFFF)
    return size + l4.TCP_HEADER


@kernel
def _unreachable(data, packet):
    """Turn a packet into a port unreachable about itself; returns the new IP length, or 0 without room for it."""
    start = np.int64(packet["start"])
    offset = np.int64(packet["l3"])
    l3 = start + offset
    family = np.int64(packet["family"])
    header = ipv4.HEADER if family == 4 else ipv6.HEADER
    limit = _ERROR4 if family == 4 else _ERROR6
    embedded = np.int64(packet["end"]) - offset
    embedded = min(embedded, limit - header - icmp.BODY)
    embedded = min(embedded, np.int64(packet["room"]) - offset - header - icmp.BODY)
    if embedded < (_EMBED4 if family == 4 else _EMBED6):
        return 0
    src_hi, src_lo = source(data, packet)
    dst_hi, dst_lo = destination(data, packet)
    message = l3 + header
    for position in range(embedded - 1, -1, -1):
        data[message + icmp.BODY + position] = data[l3 + position]
    size = embedded + icmp.BODY
    if family == 4:
        _write_ipv4(
            data,
            l3,
            Protocol.ICMP.value,
            header + size,
            np.int64(dst_lo >> np.uint64(32)),
            np.int64(src_lo >> np.uint64(32)),
        )
        store64(data, message, np.uint64(icmp.UNREACHABLE4 | (icmp.PORT_UNREACHABLE4 << 8)))
        total = sum_bytes(data, message, size)
    else:
        _write_ipv6(data, l3, Protocol.ICMP6.value, size, dst_hi, dst_lo, src_hi, src_lo)
        store64(data, message, np.uint64(icmp.UNREACHABLE6 | (icmp.PORT_UNREACHABLE6 << 8)))
        total = sum_bytes(data, message, size) + _pseudo_sum(data, l3, 6, Protocol.ICMP6.value, size)
    store16(data, message + icmp.CHECKSUM, fold(total) ^ 0xFFFF)
    return header + size


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
        elif _take_token(tables, state, now):
            length = _unreachable(data, packet)
        else:
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.REJECT_RATE_LIMITED.value)
            continue
        if length == 0:
            finish(packet, state, _NODE, Outcome.DROP.value, Reason.REJECT_SUPPRESSED.value)
            continue
        start = np.int64(packet["start"])
        _swap_ethernet(data, start)
        packet["length"] = np.int64(packet["l3"]) + length
        packet["end"] = packet["length"]
        flags = np.int64(packet["flags"])
        if flags & _VNET:
            # The answer is one whole packet with complete checksums.
            clear_bytes(data, np.int64(packet["vnet"]), VNET_BYTES)
            packet["flags"] = flags & ~_OFFLOADS
        packet["outcome"] = Outcome.TRANSMIT.value
        packet["reason"] = Reason.REJECT_SENT.value
        answered += 1
    if answered != 0:
        state.header[W_OUTCOMES + Outcome.TRANSMIT.value] += answered
        count(state, _NODE, Reason.REJECT_SENT.value, answered)
