"""Finding packets whose checksum was left to a network card, where nobody says which they are.

A socket that sends over a virtual device leaves the pseudo-header's sum in the checksum field, for the hardware that
never comes (`CHECKSUM_PARTIAL`, include/linux/skbuff.h).  A packet socket tells; AF_XDP cannot.  But the field then
*is* that sum, which one packet in 65,536 has by chance: for those few the whole sum decides.  A packet whose checksum
is wrong in any other way stays wrong, for its receiver to drop.
"""

import numpy as np

from kuproxy.codes import Protocol, Reason
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.checksum import fold, sum_bytes
from kuproxy.dataplane.memory import load16, load32, store16, swap16
from kuproxy.drivers._records import SCTP_CHECKSUM, fill_in_crc32c
from kuproxy.wire import ethernet, ipv4, ipv6, l4

__all__ = ["complete_partial"]

_NONE = Reason.NONE.value
_SCTP = Protocol.SCTP.value


@kernel
def _find_transport(data, start, length):
    """(protocol, transport header, end of packet, sum of the addresses, family) of a whole packet; else protocol -1."""
    kind, offset = ethernet.network_offset(data, start, length)
    l3, left = start + offset, length - offset
    if kind == ethernet.IPV4_LE and ipv4.check(data, l3, left) == _NONE:
        fragment = swap16(load16(data, l3 + ipv4.FRAGMENT))
        if fragment & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK) == 0:
            end = l3 + swap16(load16(data, l3 + ipv4.TOTAL_LENGTH))
            addresses = sum_bytes(data, l3 + ipv4.SOURCE, 8)
            return np.int64(data[l3 + ipv4.PROTOCOL]), l3 + ipv4.header_length(data, l3), end, addresses, 4
    elif kind == ethernet.IPV6_LE and ipv6.check(data, l3, left) == _NONE:
        end = l3 + ipv6.HEADER + swap16(load16(data, l3 + ipv6.PAYLOAD_LENGTH))
        reason, protocol, header, fragment = ipv6.skip_extensions(data, l3, end)
        if reason == _NONE and fragment == 0:
            return np.int64(protocol), header, end, sum_bytes(data, l3 + ipv6.SOURCE, 32), 6
    return np.int64(-1), np.int64(0), np.int64(0), np.int64(0), 0


@kernel
def complete_partial(data, start, length):
    """If the packet at data[start:start + length] has a partial checksum, write the whole one. Returns whether it had.

    SCTP leaves zero where its CRC32C belongs.
    """
    protocol, header, end, total, family = _find_transport(data, start, length)
    if protocol < 0 or l4.check(data, header, end, family, protocol, False) != _NONE:
        return False
    if protocol == _SCTP:
        if load32(data, header + SCTP_CHECKSUM) != 0:
            return False
        fill_in_crc32c(data, header, end)
        return True
    offset = l4.checksum_offset(family, protocol)
    if offset == 0:
        return False
    # RFC 9293 section 3.1, RFC 8200 section 8.1; in words as loaded, so numbers are swapped.
    total += swap16(end - header & 0xFFFF) + swap16(protocol)
    if load16(data, header + offset) != fold(total):
        return False
    whole = sum_bytes(data, header, end - header)
    if fold(whole + total) == 0xFFFF:
        return False
    checksum = fold(whole) ^ 0xFFFF  # the field holds the pseudo-header's sum, and is summed with the rest
    if checksum == 0 and protocol == Protocol.UDP.value:
        checksum = 0xFFFF
    store16(data, header + offset, checksum)
    return True
