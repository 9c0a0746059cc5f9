"""One packet from IPv4 to IPv6 and back: headers, checksums, fragment header, and what lies before (RFC 7915).

The transport header stays where it is; the new IP header is written so that it ends there, and the Ethernet header
(with the virtio_net_hdr before it) moves along. A packet that becomes longer grows into the headroom before it.
"""

import numpy as np

from kuproxy.codes import PacketFlag, Protocol
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.checksum import change16, fold, sum64, sum_bytes, update, update_partial, update_udp
from kuproxy.dataplane.layout import VNET_BYTES
from kuproxy.dataplane.memory import load16, load32, store16, store32, store64, swap16, swap32
from kuproxy.dataplane.rewrite import _update_sctp as update_sctp
from kuproxy.wire import ethernet, icmp, ipv4, ipv6, l4

_FRAGMENT = int(PacketFlag.FRAGMENT)
_LATER = int(PacketFlag.LATER_FRAGMENT)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_GSO = int(PacketFlag.GSO)
_VNET = int(PacketFlag.VNET)
_TCP = int(Protocol.TCP)
_UDP = int(Protocol.UDP)
_SCTP = int(Protocol.SCTP)
_ICMP = int(Protocol.ICMP)
_ICMP6 = int(Protocol.ICMP6)

LARGEST_SAFE6 = 1280  # every IPv6 link carries it (RFC 8200 section 5)
LARGEST_WITHOUT_DF = 1260  # what becomes of 1280 bytes of IPv6 (RFC 7915 section 5.1)
FRAGMENT_HEADER = 8

# struct virtio_net_hdr, little-endian
_GSO_TYPE, _HDR_LEN, _CSUM_START = 1, 2, 6
_GSO_TCP4, _GSO_TCP6 = 1, 4
_GSO_ECN = 0x80


@helper
def sum_words(src_hi, src_lo, dst_hi, dst_lo):
    """The addresses' part of a pseudo-header's sum; zeros (of IPv4's table form) do not count."""
    return fold(sum64(src_hi) + sum64(src_lo)) + fold(sum64(dst_hi) + sum64(dst_lo))


@kernel
def translate_l4(
    data, at, end, length, protocol, to_family, old_sum, new_sum, src_port, dst_port, partial, whole
):
    """Ports and checksum of the transport header at `at`, of which the bytes up to `end` are there.

    `length` is what its packet says; `protocol` the old one; the sums are those of the addresses before and after. For
    an echo, `src_port` is the new identifier, if not negative. `whole`: not merely quoted in an ICMP error.
    """
    if protocol == _ICMP or protocol == _ICMP6:
        _translate_echo(data, at, end, length, to_family, old_sum, new_sum, src_port, partial)
        return
    old_src = load16(data, at + l4.SOURCE_PORT)
    old_dst = load16(data, at + l4.DESTINATION_PORT)
    new_src = swap16(src_port)
    new_dst = swap16(dst_port)
    store16(data, at + l4.SOURCE_PORT, new_src)
    store16(data, at + l4.DESTINATION_PORT, new_dst)
    if protocol == _SCTP:
        if whole and not partial:
            update_sctp(data, at, end, l4.SOURCE_PORT, old_src ^ new_src)
            update_sctp(data, at, end, l4.DESTINATION_PORT, old_dst ^ new_dst)
        return
    offset = l4.checksum_offset(4, protocol)
    if at + offset + 2 > end:
        return
    change = (fold(old_sum) ^ 0xFFFF) + new_sum
    if partial:
        update_partial(data, at + offset, change)
        return
    change += change16(old_src, new_src) + change16(old_dst, new_dst)
    if protocol == _UDP:
        update_udp(data, at + offset, change)
    else:
        update(data, at + offset, change)


@kernel
def _translate_echo(data, at, end, length, to_family, old_sum, new_sum, identifier, partial):
    """RFC 7915 sections 4.2 and 5.2; ICMPv6's checksum covers a pseudo-header, ICMP's does not."""
    word = load16(data, at)
    kind = word & 0xFF
    request = kind == icmp.ECHO_REQUEST4 or kind == icmp.ECHO_REQUEST6
    if to_family == 6:
        new_kind = icmp.ECHO_REQUEST6 if request else icmp.ECHO_REPLY6
    else:
        new_kind = icmp.ECHO_REQUEST4 if request else icmp.ECHO_REPLY4
    new_word = (word & 0xFF00) | new_kind
    store16(data, at, new_word)
    old_id = load16(data, at + icmp.IDENTIFIER)
    new_id = old_id
    if identifier >= 0:
        new_id = swap16(identifier)
    store16(data, at + icmp.IDENTIFIER, new_id)
    pseudo = swap16(length & 0xFFFF) + swap16(length >> 16) + swap16(_ICMP6)
    if partial:
        # Nothing that the hardware could complete: ICMP has no pseudo-header whose sum might be there.
        store16(data, at + icmp.CHECKSUM, 0)
        total = sum_bytes(data, at, end - at)
        if to_family == 6:
            total += new_sum + pseudo
        store16(data, at + icmp.CHECKSUM, fold(total) ^ 0xFFFF)
        return
    change = change16(word, new_word) + change16(old_id, new_id)
    if to_family == 6:
        change += new_sum + pseudo
    else:
        change += fold(old_sum + pseudo) ^ 0xFFFF
    update(data, at + icmp.CHECKSUM, change)


@kernel
def complete_udp(data, at, length, address_sum):
    """A UDP checksum where IPv4 had none and IPv6 demands one (RFC 7915 section 4.5)."""
    total = address_sum + swap16(length) + swap16(_UDP) + sum_bytes(data, at, length)
    new = fold(total) ^ 0xFFFF
    store16(data, at + l4.UDP_CHECKSUM, new if new != 0 else 0xFFFF)


@kernel
def move_front(data, packet, delta):
    """Move what lies before the IP header by `delta` bytes (negative: into the headroom), and the record with it."""
    start = np.int64(packet["start"])
    vnet = np.int64(packet["vnet"])
    first = start
    count = np.int64(packet["l3"])
    if np.int64(packet["flags"]) & _VNET and vnet + VNET_BYTES == start:
        first = vnet
        count += VNET_BYTES
        packet["vnet"] = vnet + delta
    if delta < 0:
        for position in range(first, first + count):
            data[position + delta] = data[position]
    elif delta > 0:
        for position in range(first + count - 1, first - 1, -1):
            data[position + delta] = data[position]
    packet["start"] = start + delta
    packet["length"] = np.int64(packet["length"]) - delta
    packet["room"] = np.int64(packet["room"]) - delta
    packet["end"] = np.int64(packet["end"]) - delta


@kernel
def _adjust_vnet(data, packet, delta):
    """Offsets and segment kind in the virtio_net_hdr, after the packet's front moved by `delta`."""
    flags = np.int64(packet["flags"])
    if flags & _VNET == 0:
        return
    at = np.int64(packet["vnet"])
    if flags & _PARTIAL:
        store16(data, at + _CSUM_START, load16(data, at + _CSUM_START) - delta)
    if flags & _GSO:
        store16(data, at + _HDR_LEN, load16(data, at + _HDR_LEN) - delta)
        kind = int(data[at + _GSO_TYPE])
        bare = kind & ~_GSO_ECN
        if bare == _GSO_TCP4:
            data[at + _GSO_TYPE] = (kind & _GSO_ECN) | _GSO_TCP6
        elif bare == _GSO_TCP6:
            data[at + _GSO_TYPE] = (kind & _GSO_ECN) | _GSO_TCP4


@kernel
def forget_partial_icmp(data, packet, protocol):
    """An echo leaves with a complete checksum, whatever it came with."""
    flags = np.int64(packet["flags"])
    if flags & _PARTIAL and (protocol == _ICMP or protocol == _ICMP6) and flags & _LATER == 0:
        at = np.int64(packet["vnet"])
        data[at] = 0
        packet["flags"] = flags & ~_PARTIAL


@kernel
def write_ipv6_header(
    data, at, traffic_class, payload, next_header, hop_limit, src_hi, src_lo, dst_hi, dst_lo
):
    """40 bytes with flow label 0 (RFC 7915 section 4.1)."""
    data[at] = 0x60 | (traffic_class >> 4)
    data[at + 1] = (traffic_class & 0x0F) << 4
    store16(data, at + 2, 0)
    store16(data, at + ipv6.PAYLOAD_LENGTH, swap16(payload))
    data[at + ipv6.NEXT_HEADER] = next_header
    data[at + ipv6.HOP_LIMIT] = hop_limit
    store64(data, at + ipv6.SOURCE, src_hi)
    store64(data, at + ipv6.SOURCE + 8, src_lo)
    store64(data, at + ipv6.DESTINATION, dst_hi)
    store64(data, at + ipv6.DESTINATION + 8, dst_lo)


@kernel
def write_fragment_header(data, at, next_header, offset, more, identification):
    """8 bytes; `offset` in units of 8 bytes (RFC 8200 section 4.5)."""
    data[at] = next_header
    data[at + 1] = 0
    store16(data, at + ipv6.FRAGMENT_FIELD, swap16((offset << 3) | more))
    store32(data, at + ipv6.FRAGMENT_IDENTIFICATION, swap32(identification))


@kernel
def write_ipv4_header(data, at, tos, total, identification, fragment, ttl, protocol, src_lo, dst_lo):
    """20 bytes; addresses in their table form."""
    data[at] = 0x45
    data[at + 1] = tos
    store16(data, at + ipv4.TOTAL_LENGTH, swap16(total))
    store16(data, at + ipv4.IDENTIFICATION, swap16(identification))
    store16(data, at + ipv4.FRAGMENT, swap16(fragment))
    data[at + ipv4.TTL] = ttl
    data[at + ipv4.PROTOCOL] = protocol
    store16(data, at + ipv4.CHECKSUM, 0)
    store32(data, at + ipv4.SOURCE, np.int64(src_lo >> np.uint64(32)))
    store32(data, at + ipv4.DESTINATION, np.int64(dst_lo >> np.uint64(32)))
    store16(data, at + ipv4.CHECKSUM, fold(sum_bytes(data, at, ipv4.HEADER)) ^ 0xFFFF)


@kernel
def to_ipv6(
    data, packet, src_hi, src_lo, dst_hi, dst_lo, src_port, dst_port, decrement, needs_fragment_header
):
    """An IPv4 packet becomes IPv6, with these addresses and ports (RFC 7915 section 4)."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    at = start + np.int64(packet["l4"])
    end = start + np.int64(packet["end"])
    flags = np.int64(packet["flags"])
    protocol = np.int64(packet["protocol"])
    tos = int(data[l3 + 1])
    hop_limit = int(data[l3 + ipv4.TTL]) - decrement
    identification = swap16(load16(data, l3 + ipv4.IDENTIFICATION))
    field = swap16(load16(data, l3 + ipv4.FRAGMENT))
    size = ipv6.HEADER
    if flags & _FRAGMENT or needs_fragment_header:
        size += FRAGMENT_HEADER
    if flags & _LATER == 0:
        old_sum = load32(data, l3 + ipv4.SOURCE) + load32(data, l3 + ipv4.DESTINATION)
        new_sum = sum_words(src_hi, src_lo, dst_hi, dst_lo)
        partial = flags & _PARTIAL != 0
        without = (
            protocol == _UDP
            and not partial
            and flags & _FRAGMENT == 0
            and load16(data, at + l4.UDP_CHECKSUM) == 0
        )
        translate_l4(
            data, at, end, end - at, protocol, 6, old_sum, new_sum, src_port, dst_port, partial, True
        )
        if without:
            complete_udp(data, at, swap16(load16(data, at + l4.UDP_LENGTH)), new_sum)
        forget_partial_icmp(data, packet, protocol)
    next_header = _ICMP6 if protocol == _ICMP else protocol
    delta = at - l3 - size
    move_front(data, packet, delta)
    l3 = at - size
    following = ipv6.FRAGMENT if size != ipv6.HEADER else next_header
    payload = end - at + size - ipv6.HEADER
    write_ipv6_header(data, l3, tos, payload, following, hop_limit, src_hi, src_lo, dst_hi, dst_lo)
    if size != ipv6.HEADER:
        more = 1 if field & ipv4.MORE_FRAGMENTS else 0
        write_fragment_header(
            data, l3 + ipv6.HEADER, next_header, field & ipv4.OFFSET_MASK, more, identification
        )
    store16(data, l3 - 2, ethernet.IPV6_LE)
    packet["family"] = 6
    packet["protocol"] = next_header
    packet["l4"] = np.int64(packet["l3"]) + size
    packet["length"] = packet["end"]
    _adjust_vnet(data, packet, delta)


@kernel
def to_ipv4(data, packet, src_lo, dst_lo, src_port, dst_port, decrement, identification):
    """An IPv6 packet becomes IPv4 (RFC 7915 section 5). `identification` is for packets that are no fragments."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    at = start + np.int64(packet["l4"])
    end = start + np.int64(packet["end"])
    flags = np.int64(packet["flags"])
    protocol = np.int64(packet["protocol"])
    traffic_class = (int(data[l3]) & 0x0F) << 4 | int(data[l3 + 1]) >> 4
    ttl = int(data[l3 + ipv6.HOP_LIMIT]) - decrement
    total = end - at + ipv4.HEADER
    field = ipv4.DONT_FRAGMENT if total > LARGEST_WITHOUT_DF else 0
    if flags & _FRAGMENT:
        _, _, _, header = ipv6.skip_extensions(data, l3, end)
        identification = swap32(load32(data, header + ipv6.FRAGMENT_IDENTIFICATION)) & 0xFFFF
        field = swap16(load16(data, header + ipv6.FRAGMENT_FIELD))
        field = (field >> 3) | (ipv4.MORE_FRAGMENTS if field & 1 else 0)
    if flags & _LATER == 0:
        old_sum = fold(sum_bytes(data, l3 + ipv6.SOURCE, 32))
        new_sum = sum_words(np.uint64(0), src_lo, np.uint64(0), dst_lo)
        partial = flags & _PARTIAL != 0
        translate_l4(
            data, at, end, end - at, protocol, 4, old_sum, new_sum, src_port, dst_port, partial, True
        )
        forget_partial_icmp(data, packet, protocol)
    delta = at - l3 - ipv4.HEADER
    move_front(data, packet, delta)
    l3 = at - ipv4.HEADER
    header_protocol = _ICMP if protocol == _ICMP6 else protocol
    write_ipv4_header(
        data, l3, traffic_class, total, identification, field, ttl, header_protocol, src_lo, dst_lo
    )
    store16(data, l3 - 2, ethernet.IPV4_LE)
    packet["family"] = 4
    packet["protocol"] = header_protocol
    packet["l4"] = np.int64(packet["l3"]) + ipv4.HEADER
    packet["length"] = packet["end"]
    _adjust_vnet(data, packet, delta)
