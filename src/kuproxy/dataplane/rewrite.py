"""Address, port and TTL rewriting with every checksum that covers them, shared by the NAT nodes."""

import numpy as np

from kuproxy.codes import PacketFlag, Protocol
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.checksum import (
    change16,
    change64,
    fold,
    update,
    update_nonzero,
    update_partial,
    update_udp,
)
from kuproxy.dataplane.memory import crc32c, load16, load32, load64, store16, store32, store64, swap16
from kuproxy.wire import ipv4, ipv6, l4

_LATER = int(PacketFlag.LATER_FRAGMENT)
_FRAGMENT = int(PacketFlag.FRAGMENT)
_PARTIAL = int(PacketFlag.PARTIAL_CHECKSUM)
_ZERO = np.uint64(0)


@helper
def port_is_fixed(protocol, flags, old_port, new_port):
    """True where the port would have to change but the checksum could not follow: a fragment of an SCTP packet."""
    return protocol == Protocol.SCTP.value and flags & _FRAGMENT != 0 and old_port != new_port


@kernel
def _update_sctp(data, l4_at, end, offset, change):
    """Change SCTP's CRC32C by the effect of `change` (XOR of old and new 16 bits) at `offset` 0 or 2 of the header.

    CRC is linear over XOR, so the difference is the CRC, from state 0, of a packet that is zero but for the change.
    CRC32C consumes whole words here: leading zeros have no effect on state 0, so the words are aligned at the end.
    """
    length = end - l4_at
    # Zero bytes put in front until the length is a multiple of 8 change nothing.
    lead = (-length) & 7
    position = lead + offset  # of the changed bytes in the padded packet
    word_index = position >> 3
    shift = (position & 7) << 3
    low = np.uint64(change) << np.uint64(shift)
    high = _ZERO
    if shift > 48:
        high = np.uint64(change) >> np.uint64(64 - shift)
    crc = crc32c(_ZERO, low)
    rest = ((length + lead) >> 3) - word_index - 1
    if rest > 0:
        crc = crc32c(crc, high)
        rest -= 1
    for _ in range(rest):
        crc = crc32c(crc, _ZERO)
    store32(data, l4_at + l4.SCTP_CHECKSUM, load32(data, l4_at + l4.SCTP_CHECKSUM) ^ np.int64(crc))


@helper
def _rewrite_l4(data, l4_at, end, family, protocol, flags, address_change, port_offset, new_port):
    """Port (host order) and checksum of the transport header; nothing for later fragments."""
    if flags & _LATER:
        return
    change = address_change
    if l4.has_ports(protocol):
        old = load16(data, l4_at + port_offset)
        new = swap16(new_port)
        if old != new:
            store16(data, l4_at + port_offset, new)
            if protocol == Protocol.SCTP.value:
                if flags & _PARTIAL == 0:
                    _update_sctp(data, l4_at, end, port_offset, old ^ new)
            elif flags & _PARTIAL == 0:
                change += change16(old, new)
    offset = l4.checksum_offset(family, protocol)
    if offset == 0 or l4_at + offset + 2 > end:
        return
    if flags & _PARTIAL:
        update_partial(data, l4_at + offset, change)
    elif protocol == Protocol.UDP.value:
        update_udp(data, l4_at + offset, change)
    elif protocol == l4.UDP_LITE:
        update_nonzero(data, l4_at + offset, change)
    else:
        update(data, l4_at + offset, change)


@helper
def rewrite_ipv4(data, packet, address_at, address, port_offset, new_port, decrement):
    """Write `address` (32 bits as they lie in the packet) at `address_at` of the header, and the rest that follows."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    old = load32(data, l3 + address_at)
    store32(data, l3 + address_at, address)
    address_change = (old ^ 0xFFFFFFFF) + address
    header_change = address_change
    if decrement != 0:
        word = load16(data, l3 + ipv4.TTL)  # TTL in the low byte, protocol in the high one
        store16(data, l3 + ipv4.TTL, word - 1)
        header_change += change16(word, word - 1)
    update(data, l3 + ipv4.CHECKSUM, header_change)
    _rewrite_l4(
        data,
        start + np.int64(packet["l4"]),
        start + np.int64(packet["end"]),
        4,
        np.int64(packet["protocol"]),
        np.int64(packet["flags"]),
        address_change,
        port_offset,
        new_port,
    )


@helper
def rewrite_ipv6(data, packet, address_at, hi, lo, port_offset, new_port, decrement):
    """The same for IPv6, whose header has no checksum."""
    start = np.int64(packet["start"])
    l3 = start + np.int64(packet["l3"])
    address_change = change64(load64(data, l3 + address_at), hi) + change64(
        load64(data, l3 + address_at + 8), lo
    )
    store64(data, l3 + address_at, hi)
    store64(data, l3 + address_at + 8, lo)
    if decrement != 0:
        data[l3 + ipv6.HOP_LIMIT] -= 1
    _rewrite_l4(
        data,
        start + np.int64(packet["l4"]),
        start + np.int64(packet["end"]),
        6,
        np.int64(packet["protocol"]),
        np.int64(packet["flags"]),
        fold(address_change),
        port_offset,
        new_port,
    )
