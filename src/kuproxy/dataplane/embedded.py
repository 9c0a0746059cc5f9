"""The packet that an ICMP error embeds: what can be read of it, and how its addresses and ports are put right.

docs/forwarding.md, "kp-icmp-error". Rules: RFC 5508 section 4, RFC 7915 sections 4.2, 4.3, 5.2 and 5.3.
"""

import numpy as np

from kuproxy.codes import Protocol
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.answers import forget_offloads, pseudo_sum
from kuproxy.dataplane.checksum import change16, change64, fold, sum_bytes, update, update_nonzero, update_udp
from kuproxy.dataplane.icmp_types import error_to_4, error_to_6
from kuproxy.dataplane.memory import load16, load32, load64, store16, store32, store64, swap16, swap32
from kuproxy.dataplane.translate import (
    FRAGMENT_HEADER,
    LARGEST_SAFE6,
    LARGEST_WITHOUT_DF,
    move_front,
    sum_words,
    translate_l4,
    write_fragment_header,
    write_ipv4_header,
    write_ipv6_header,
)
from kuproxy.wire import ethernet, icmp, ipv4, ipv6, l4

_ICMP = int(Protocol.ICMP)
_ICMP6 = int(Protocol.ICMP6)
_SCTP = int(Protocol.SCTP)
_UDP = int(Protocol.UDP)
_ZERO = np.uint64(0)


@kernel
def read(data, at, end, family):
    """(offset of its L4 header or 0 if it cannot be read, protocol, ports, echo identifier or 0).

    Later fragments, and messages that no error may be about (ICMP errors), count as unreadable.
    """
    unreadable = (np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0))
    if family == 4:
        if end - at < ipv4.HEADER or int(data[at]) >> 4 != 4:
            return unreadable
        length = ipv4.header_length(data, at)
        if length < ipv4.HEADER or length > end - at:
            return unreadable
        if swap16(load16(data, at + ipv4.FRAGMENT)) & ipv4.OFFSET_MASK:
            return unreadable
        if swap16(load16(data, at + ipv4.TOTAL_LENGTH)) < length:
            return unreadable
        l4_at = np.int64(at + length)
        protocol = np.int64(data[at + ipv4.PROTOCOL])
    else:
        if end - at < ipv6.HEADER or int(data[at]) >> 4 != 6:
            return unreadable
        reason, inner, l4_at, fragment = ipv6.skip_extensions(data, at, end)
        if reason != 0:
            return unreadable
        if fragment != 0 and swap16(load16(data, fragment + ipv6.FRAGMENT_FIELD)) & 0xFFF8:
            return unreadable
        if swap16(load16(data, at + ipv6.PAYLOAD_LENGTH)) + ipv6.HEADER < l4_at - at:
            return unreadable
        protocol = np.int64(inner)
    if l4.has_ports(protocol):
        if end - l4_at < 8:
            return unreadable
        src = swap16(load16(data, l4_at + l4.SOURCE_PORT))
        return l4_at, protocol, src, swap16(load16(data, l4_at + l4.DESTINATION_PORT)), np.int64(0)
    identifier = np.int64(0)
    if protocol == (_ICMP if family == 4 else _ICMP6):
        if end - l4_at < icmp.BODY or icmp.is_error(family, protocol, int(data[l4_at])):
            return unreadable
        identifier = swap16(load16(data, l4_at + icmp.IDENTIFIER))
    return l4_at, protocol, np.int64(0), np.int64(0), identifier


@kernel
def source_of(data, at, family):
    """Its source address in table form."""
    if family == 4:
        return _ZERO, np.uint64(load32(data, at + ipv4.SOURCE)) << np.uint64(32)
    return load64(data, at + ipv6.SOURCE), load64(data, at + ipv6.SOURCE + 8)


@kernel
def destination_of(data, at, family):
    """Its destination address in table form."""
    if family == 4:
        return _ZERO, np.uint64(load32(data, at + ipv4.DESTINATION)) << np.uint64(32)
    return load64(data, at + ipv6.DESTINATION), load64(data, at + ipv6.DESTINATION + 8)


@kernel
def has_good_checksum(data, packet):
    """Is the ICMP message of the packet undamaged? (RFC 5508 REQ-3: else it is dropped)"""
    start = np.int64(packet["start"])
    at = start + np.int64(packet["l4"])
    size = start + np.int64(packet["end"]) - at
    total = sum_bytes(data, at, size)
    if packet["family"] == 6:
        total += pseudo_sum(data, start + np.int64(packet["l3"]), 6, _ICMP6, size)
    return fold(total) == 0xFFFF


@kernel
def _change_address(data, at, hi, lo, family):
    """Overwrite an address; returns what that adds to a checksum's complement."""
    if family == 4:
        old = load32(data, at)
        new = np.int64(lo >> np.uint64(32))
        store32(data, at, new)
        return (old ^ 0xFFFFFFFF) + new
    change = change64(load64(data, at), hi) + change64(load64(data, at + 8), lo)
    store64(data, at, hi)
    store64(data, at + 8, lo)
    return fold(change)


@kernel
def rewrite(data, at, l4_at, end, family, protocol, is_source, hi, lo, port):
    """Give the embedded packet another source or destination, within its family."""
    if family == 4:
        where = ipv4.SOURCE if is_source else ipv4.DESTINATION
    else:
        where = ipv6.SOURCE if is_source else ipv6.DESTINATION
    change = _change_address(data, at + where, hi, lo, family)
    if family == 4:
        update(data, at + ipv4.CHECKSUM, change)
    if l4.has_ports(protocol):
        place = l4_at + (l4.SOURCE_PORT if is_source else l4.DESTINATION_PORT)
        change += change16(load16(data, place), swap16(port))
        store16(data, place, swap16(port))
        if protocol == _SCTP:
            return  # its CRC32C covers more than what is quoted; nobody can check it
    offset = l4.checksum_offset(family, protocol)
    if offset == 0 or l4_at + offset + 2 > end:
        return
    if protocol == _UDP:
        update_udp(data, l4_at + offset, change)
    elif protocol == l4.UDP_LITE:
        update_nonzero(data, l4_at + offset, change)
    else:
        update(data, l4_at + offset, change)


@kernel
def rewrite_outer(data, packet, is_source, hi, lo, decrement):
    """Another source or destination for the error itself, its TTL, its checksums: complete ones."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    if packet["family"] == 4:
        change = _change_address(data, l3 + (ipv4.SOURCE if is_source else ipv4.DESTINATION), hi, lo, 4)
        if decrement != 0:
            word = load16(data, l3 + ipv4.TTL)
            store16(data, l3 + ipv4.TTL, word - 1)
            change += change16(word, word - 1)
        update(data, l3 + ipv4.CHECKSUM, change)
    else:
        _change_address(data, l3 + (ipv6.SOURCE if is_source else ipv6.DESTINATION), hi, lo, 6)
        if decrement != 0:
            data[l3 + ipv6.HOP_LIMIT] -= 1
    write_checksum(data, packet)
    forget_offloads(data, packet)


@kernel
def write_checksum(data, packet):
    """The ICMP checksum over the whole message."""
    start = np.int64(packet["start"])
    at = start + np.int64(packet["l4"])
    size = start + np.int64(packet["end"]) - at
    store16(data, at + icmp.CHECKSUM, 0)
    total = sum_bytes(data, at, size)
    if packet["family"] == 6:
        total += pseudo_sum(data, start + np.int64(packet["l3"]), 6, _ICMP6, size)
    store16(data, at + icmp.CHECKSUM, fold(total) ^ 0xFFFF)


@kernel
def counterpart(data, packet, limit):
    """(type or -1, code, second word) of the error in the other family; `limit`: the MTU of our links, or 0."""
    start = np.int64(packet["start"])
    at = start + np.int64(packet["l4"])
    kind = int(data[at + icmp.TYPE])
    code = int(data[at + icmp.CODE])
    rest = swap32(load32(data, at + 4))
    if packet["family"] == 4:
        length = swap16(load16(data, at + icmp.BODY + ipv4.TOTAL_LENGTH))
        return error_to_6(kind, code, rest, length, limit)
    return error_to_4(kind, code, rest, limit)


@kernel
def error_4to6(
    data, packet, l4_at, kind, code, rest, outer_src, outer_dst, inner_src, inner_dst, ports, decrement
):
    """Turn an ICMP error into an ICMPv6 one. Addresses are (hi, lo), `ports` those of the embedded packet.

    Like a packet's, the embedded L4 header stays where it is, and everything before it is written anew.
    """
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    message = start + np.int64(packet["l4"])
    end = start + np.int64(packet["end"])
    inner = message + icmp.BODY
    protocol = np.int64(data[inner + ipv4.PROTOCOL])
    inner_ttl = int(data[inner + ipv4.TTL])
    inner_tos = int(data[inner + 1])
    field = swap16(load16(data, inner + ipv4.FRAGMENT))
    identification = swap16(load16(data, inner + ipv4.IDENTIFICATION))
    length = swap16(load16(data, inner + ipv4.TOTAL_LENGTH)) - (l4_at - inner)
    old_sum = load32(data, inner + ipv4.SOURCE) + load32(data, inner + ipv4.DESTINATION)
    tos = int(data[l3 + 1])
    hop_limit = int(data[l3 + ipv4.TTL]) - decrement
    new_sum = sum_words(inner_src[0], inner_src[1], inner_dst[0], inner_dst[1])
    translate_l4(
        data, l4_at, end, length, protocol, 6, old_sum, new_sum, ports[0], ports[1], False, False
    )
    size = ipv6.HEADER
    if field & ipv4.MORE_FRAGMENTS:
        size += FRAGMENT_HEADER
    delta = l4_at - size - icmp.BODY - ipv6.HEADER - l3
    move_front(data, packet, delta)
    following = _ICMP6 if protocol == _ICMP else protocol
    inner = l4_at - size
    write_ipv6_header(
        data,
        inner,
        inner_tos,
        (length + size - ipv6.HEADER) & 0xFFFF,
        ipv6.FRAGMENT if size != ipv6.HEADER else following,
        inner_ttl,
        inner_src[0],
        inner_src[1],
        inner_dst[0],
        inner_dst[1],
    )
    if size != ipv6.HEADER:
        write_fragment_header(data, inner + ipv6.HEADER, following, 0, 1, identification)
    message = inner - icmp.BODY
    l3 = message - ipv6.HEADER
    end = min(end, l3 + LARGEST_SAFE6)  # RFC 4443 section 2.4 (c)
    store16(data, message, kind | (code << 8))
    store32(data, message + 4, swap32(rest))
    write_ipv6_header(
        data, l3, tos, end - message, _ICMP6, hop_limit, outer_src[0], outer_src[1], outer_dst[0], outer_dst[1]
    )
    store16(data, l3 - 2, ethernet.IPV6_LE)
    packet["family"] = 6
    packet["protocol"] = _ICMP6
    packet["l4"] = np.int64(packet["l3"]) + ipv6.HEADER
    packet["end"] = end - np.int64(packet["start"])
    packet["length"] = packet["end"]
    write_checksum(data, packet)
    forget_offloads(data, packet)


@kernel
def error_6to4(
    data, packet, l4_at, protocol, kind, code, rest, outer_src, outer_dst, inner_src, inner_dst, ports,
    decrement, identification,
):  # fmt: skip
    """Turn an ICMPv6 error into an ICMP one. Addresses are second words of their table form."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    message = start + np.int64(packet["l4"])
    end = start + np.int64(packet["end"])
    inner = message + icmp.BODY
    inner_ttl = int(data[inner + ipv6.HOP_LIMIT])
    inner_tos = (int(data[inner]) & 0x0F) << 4 | int(data[inner + 1]) >> 4
    payload = swap16(load16(data, inner + ipv6.PAYLOAD_LENGTH)) + ipv6.HEADER - (l4_at - inner)
    total = payload + ipv4.HEADER
    field = ipv4.DONT_FRAGMENT if total > LARGEST_WITHOUT_DF else 0
    inner_identification = 0
    _, _, _, fragment = ipv6.skip_extensions(data, inner, end)
    if fragment != 0:
        field = ipv4.MORE_FRAGMENTS
        inner_identification = swap32(load32(data, fragment + ipv6.FRAGMENT_IDENTIFICATION)) & 0xFFFF
    old_sum = fold(sum_bytes(data, inner + ipv6.SOURCE, 32))
    tos = (int(data[l3]) & 0x0F) << 4 | int(data[l3 + 1]) >> 4
    ttl = int(data[l3 + ipv6.HOP_LIMIT]) - decrement
    new_sum = sum_words(_ZERO, inner_src, _ZERO, inner_dst)
    translate_l4(
        data, l4_at, end, payload, protocol, 4, old_sum, new_sum, ports[0], ports[1], False, False
    )
    delta = l4_at - ipv4.HEADER - icmp.BODY - ipv4.HEADER - l3
    move_front(data, packet, delta)
    following = _ICMP if protocol == _ICMP6 else protocol
    inner = l4_at - ipv4.HEADER
    write_ipv4_header(
        data, inner, inner_tos, total & 0xFFFF, inner_identification, field, inner_ttl, following, inner_src, inner_dst
    )  # fmt: skip
    message = inner - icmp.BODY
    store16(data, message, kind | (code << 8))
    store32(data, message + 4, swap32(rest))
    l3 = message - ipv4.HEADER
    total = end - l3
    field = ipv4.DONT_FRAGMENT if total > LARGEST_WITHOUT_DF else 0
    write_ipv4_header(data, l3, tos, total, identification, field, ttl, _ICMP, outer_src, outer_dst)
    store16(data, l3 - 2, ethernet.IPV4_LE)
    packet["family"] = 4
    packet["protocol"] = _ICMP
    packet["l4"] = np.int64(packet["l3"]) + ipv4.HEADER
    packet["length"] = packet["end"]
    write_checksum(data, packet)
    forget_offloads(data, packet)
