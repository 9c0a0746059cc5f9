"""What answers of our own are made of: headers, ICMP errors about a packet in its own buffer, the rate limit.

Shared by kp-reject and kp-icmp. docs/forwarding.md, "kp-reject" and "kp-icmp".
"""

import numpy as np

from kuproxy.codes import PacketFlag, Protocol
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.addresses import destination, source
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.layout import (
    T_REJECT_RATE,
    TICKS_PER_SECOND,
    VNET_BYTES,
    W_REJECT_TIME,
    W_REJECT_TOKENS,
)
from kuproxy.dataplane.memory import clear_bytes, load16, load32, store16, store32, store64, swap16, swap32
from kuproxy.wire import icmp, ipv4, ipv6

_VNET = int(PacketFlag.VNET)
_OFFLOADS = int(PacketFlag.PARTIAL_CHECKSUM | PacketFlag.GSO)
_ZERO = np.uint64(0)

TTL = 64
# An ICMP error is at most 576 bytes (RFC 1812 section 4.3.2.3), an ICMPv6 error 1280 (RFC 4443 section 2.4).
_ERROR4 = 576
_ERROR6 = 1280
# Bytes of the embedded packet without which the answer would say nothing: its header and 8 bytes of L4.
_EMBED4 = ipv4.HEADER + 8
_EMBED6 = ipv6.HEADER + 8


@kernel
def is_unicast(family, hi, lo):
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
def take_token(tables, state, now):
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
def swap_ethernet(data, start):
    first = load32(data, start)
    second = load16(data, start + 4)
    store32(data, start, load32(data, start + 6))
    store16(data, start + 4, load16(data, start + 10))
    store32(data, start + 6, first)
    store16(data, start + 10, second)



@kernel
def write_ipv4(data, l3, protocol, total, source_address, destination_address):
    store16(data, l3, 0x0045)  # version 4, five words; TOS 0
    store16(data, l3 + ipv4.TOTAL_LENGTH, swap16(total))
    store16(data, l3 + ipv4.IDENTIFICATION, 0)
    store16(data, l3 + ipv4.FRAGMENT, swap16(ipv4.DONT_FRAGMENT))
    data[l3 + ipv4.TTL] = TTL
    data[l3 + ipv4.PROTOCOL] = protocol
    store16(data, l3 + ipv4.CHECKSUM, 0)
    store32(data, l3 + ipv4.SOURCE, source_address)
    store32(data, l3 + ipv4.DESTINATION, destination_address)
    store16(data, l3 + ipv4.CHECKSUM, fold(sum_bytes(data, l3, ipv4.HEADER)) ^ 0xFFFF)



@kernel
def write_ipv6(data, l3, protocol, payload, src_hi, src_lo, dst_hi, dst_lo):
    store32(data, l3, 0x60)
    store16(data, l3 + ipv6.PAYLOAD_LENGTH, swap16(payload))
    data[l3 + ipv6.NEXT_HEADER] = protocol
    data[l3 + ipv6.HOP_LIMIT] = TTL
    store64(data, l3 + ipv6.SOURCE, src_hi)
    store64(data, l3 + ipv6.SOURCE + 8, src_lo)
    store64(data, l3 + ipv6.DESTINATION, dst_hi)
    store64(data, l3 + ipv6.DESTINATION + 8, dst_lo)



@kernel
def pseudo_sum(data, l3, family, protocol, length):
    """Sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    addresses = sum_bytes(data, l3 + ipv4.SOURCE, 8) if family == 4 else sum_bytes(data, l3 + ipv6.SOURCE, 32)
    return addresses + swap16(protocol) + swap16(length)



@kernel
def may_be_told(data, packet):
    """May anything at all be sent back to this packet's source? RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)."""
    family = np.int64(packet["family"])
    hi, lo = source(data, packet)
    if not is_unicast(family, hi, lo):
        return False
    hi, lo = destination(data, packet)
    if family == 4:
        return (lo >> np.uint64(32)) & np.uint64(0xFF) < np.uint64(224)
    return hi & np.uint64(0xFF) != np.uint64(0xFF)


@kernel
def write_error(data, packet, kind, code, rest, own_hi, own_lo):
    """Turn a packet into an ICMP error about itself, from `own` or, if that is zero, from the packet's destination.

    `rest` is the message's second word in host order (an MTU, a pointer). Returns the new IP length, or 0 without room
    for the embedded packet.
    """
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
    if own_hi != _ZERO or own_lo != _ZERO:
        dst_hi, dst_lo = own_hi, own_lo
    message = l3 + header
    for position in range(embedded - 1, -1, -1):
        data[message + icmp.BODY + position] = data[l3 + position]
    size = embedded + icmp.BODY
    store32(data, message, kind | (code << 8))
    store32(data, message + 4, swap32(rest))
    if family == 4:
        write_ipv4(
            data,
            l3,
            Protocol.ICMP.value,
            header + size,
            np.int64(dst_lo >> np.uint64(32)),
            np.int64(src_lo >> np.uint64(32)),
        )
        total = sum_bytes(data, message, size)
    else:
        write_ipv6(data, l3, Protocol.ICMP6.value, size, dst_hi, dst_lo, src_hi, src_lo)
        total = sum_bytes(data, message, size) + pseudo_sum(data, l3, 6, Protocol.ICMP6.value, size)
    store16(data, message + icmp.CHECKSUM, fold(total) ^ 0xFFFF)
    return header + size


@kernel
def turn_back(data, packet, length):
    """The buffer now holds an answer of `length` IP bytes: swap the Ethernet addresses, forget offloads."""
    start = np.int64(packet["start"])
    swap_ethernet(data, start)
    packet["length"] = np.int64(packet["l3"]) + length
    packet["end"] = packet["length"]
    forget_offloads(data, packet)


@kernel
def forget_offloads(data, packet):
    """The packet is one whole packet with complete checksums: say so in its vnet header."""
    flags = np.int64(packet["flags"])
    if flags & _VNET:
        clear_bytes(data, np.int64(packet["vnet"]), VNET_BYTES)
        packet["flags"] = flags & ~_OFFLOADS
