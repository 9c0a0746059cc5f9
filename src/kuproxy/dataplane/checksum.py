"""Internet checksums: incremental changes by RFC 1624, whole sums by RFC 1071.

Sums are taken over 16-bit words as the machine loads them (little-endian): RFC 1071 section 2(B) shows that the
one's complement sum does not care, as long as the result is stored the same way.  All values are int64 below 2^48.
"""

import numpy as np

from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.memory import load16, load32, store16

_LOW = np.uint64(0xFFFFFFFF)


@helper
def fold(total):
    """One's complement sum of up to 2^32 words, folded to 16 bits."""
    total = (total & 0xFFFFFFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@helper
def sum64(word):
    """A 64-bit word as the sum of its two 32-bit halves: congruent modulo 0xffff, folded later."""
    return np.int64(word & _LOW) + np.int64(word >> np.uint64(32))


@helper
def change64(old, new):
    """What replacing one 64-bit word by another adds to a checksum's complement: ~old + new (RFC 1624, eq. 3)."""
    return sum64(~old) + sum64(new)


@helper
def change16(old, new):
    """The same for 16-bit words (int64 below 2^16)."""
    return (old ^ 0xFFFF) + new


@helper
def update(data, offset, change):
    """HC' = ~(~HC + ~m + m') at data[offset:offset + 2]; `change` is a sum of change64 and change16."""
    store16(data, offset, fold((load16(data, offset) ^ 0xFFFF) + change) ^ 0xFFFF)


@helper
def update_nonzero(data, offset, change):
    """The same where a computed 0 is sent as 0xffff (RFC 768, RFC 3828 section 3.1)."""
    new = fold((load16(data, offset) ^ 0xFFFF) + change) ^ 0xFFFF
    store16(data, offset, new if new != 0 else 0xFFFF)


@helper
def update_udp(data, offset, change):
    """The same for UDP, where moreover 0 means "no checksum" and stays."""
    if load16(data, offset) != 0:
        update_nonzero(data, offset, change)


@helper
def update_partial(data, offset, change):
    """A partial checksum is the pseudo-header's sum itself, not inverted: it moves the other way."""
    store16(data, offset, fold(load16(data, offset) + change))


@kernel
def sum_bytes(data, start, length):
    """Sum of `length` bytes at `start`, the last odd one padded with zero (RFC 1071 section 1)."""
    total = 0
    whole = length & ~3
    for offset in range(0, whole, 4):
        total += load32(data, start + offset)
    position = whole
    if length - position >= 2:
        total += load16(data, start + position)
        position += 2
    if position < length:
        total += np.int64(data[start + position])
    return total
