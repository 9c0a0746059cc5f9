"""IPv4 (RFC 791): field offsets from the header's start, and the checks a router owes (RFC 1812 section 5.2.2)."""

import numpy as np

from kuproxy.codes import Reason
from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.checksum import sum_bytes
from kuproxy.dataplane.memory import load8, load16, load32, swap16

HEADER = 20
TOS = 1
TOTAL_LENGTH = 2
IDENTIFICATION = 4
FRAGMENT = 6
TTL = 8
PROTOCOL = 9
CHECKSUM = 10
SOURCE = 12
DESTINATION = 16

_ALL_ONES = np.uint64(0xFFFF)

MORE_FRAGMENTS = 0x2000
DONT_FRAGMENT = 0x4000
OFFSET_MASK = 0x1FFF


@helper
def header_length(data, l3):
    """Bytes of header, as the header tells."""
    return (load8(data, l3) & 0x0F) << 2


@helper
def check(data, l3, left):
    """Reason.NONE, or why the `left` bytes at `l3` are no IPv4 packet."""
    if left < HEADER:
        return Reason.TRUNCATED_IPV4.value
    first = load8(data, l3)
    if first >> 4 != 4:
        return Reason.BAD_VERSION.value
    length = (first & 0x0F) << 2
    if length < HEADER:
        return Reason.BAD_HEADER_LENGTH.value
    if left < length:
        return Reason.TRUNCATED_IPV4.value
    total = swap16(load16(data, l3 + TOTAL_LENGTH))
    if total < length or total > left:
        return Reason.BAD_TOTAL_LENGTH.value
    if length == HEADER:
        words = load32(data, l3) + load32(data, l3 + 4) + load32(data, l3 + 8) + load32(data, l3 + 12)
        words += load32(data, l3 + 16)
    else:
        words = sum_bytes(data, l3, length)
    # The sum folds to 0xffff exactly if that divides it: it is not 0.
    if np.uint64(words) % _ALL_ONES != 0:
        return Reason.BAD_IPV4_CHECKSUM.value
    return Reason.NONE.value
