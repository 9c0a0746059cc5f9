"""What the mutator knows of frames, compiled: where headers lie, how bytes move, how sums are mended.

Written for damaged frames: every function stays within data[start:end], whatever lies there. The arithmetic is the
fuzzer's own; only the CRC's table is shared with the product.
"""

import numpy as np

from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.memory import crc32c_byte

_ONES = np.uint64(0xFFFFFFFF)


@kernel
def walk(data, start, end):
    """(l3, l4, family, protocol) of the frame; family 0 if it is too short for IP. l4 may lie at the end."""
    at = start + 12
    for _ in range(3):
        if at + 6 > end or not (
            (data[at] == 0x81 and data[at + 1] == 0) or (data[at] == 0x88 and data[at + 1] == 0xA8)
        ):
            break
        at += 4
    l3 = at + 2
    if l3 + 20 > end:
        return l3, l3, np.int64(0), np.int64(0)
    if data[at] == 0x08:
        return l3, min(end, l3 + np.int64(data[l3] & 15) * 4), np.int64(4), np.int64(data[l3 + 9])
    if data[at] != 0x86 or l3 + 40 > end:
        return l3, l3, np.int64(0), np.int64(0)
    protocol = np.int64(data[l3 + 6])
    l4 = l3 + 40
    for _ in range(8):
        if l4 + 8 > end or not (protocol == 0 or protocol == 43 or protocol == 44 or protocol == 60):
            break
        size = 8 if protocol == 44 else (np.int64(data[l4 + 1]) + 1) * 8
        protocol = np.int64(data[l4])
        l4 = min(end, l4 + size)
    return l3, l4, np.int64(6), protocol


@kernel
def open_gap(data, start, length, at, many):
    """Move data[at : start + length] up by `many` bytes, whose place keeps what it held."""
    for n in range(start + length - 1, at - 1, -1):
        data[n + many] = data[n]


@kernel
def close_gap(data, start, length, at, many):
    """Remove `many` bytes at `at`."""
    for n in range(at, start + length - many):
        data[n] = data[n + many]


@kernel
def address_at(data, at, family, words, number):
    """Write an address of the dictionary."""
    if family == 4:
        row = number % len(words.addresses4)
        for n in range(4):
            data[at + n] = words.addresses4[row, n]
    else:
        row = number % len(words.addresses6)
        for n in range(16):
            data[at + n] = words.addresses6[row, n]


@kernel
def swap_ends(data, end, l3, l4, family, protocol):
    """Source and destination, address and port, as in an answer; an echo request becomes a reply."""
    first, width = (l3 + 12, 4) if family == 4 else (l3 + 8, 16)
    if first + 2 * width > end:
        return
    for n in range(first, first + width):
        data[n], data[n + width] = data[n + width], data[n]
    if (protocol == 6 or protocol == 17 or protocol == 132) and l4 + 4 <= end:
        for n in range(l4, l4 + 2):
            data[n], data[n + 2] = data[n + 2], data[n]
    if l4 + 8 <= end and ((protocol == 1 and data[l4] == 8) or (protocol == 58 and data[l4] == 128)):
        data[l4] = 0 if protocol == 1 else 129
    data[l3 + (8 if family == 4 else 7)] = 64


@kernel
def _sum(data, first, end):
    """Of big-endian 16-bit words, not folded."""
    total = np.int64(0)
    for n in range(first, end - 1, 2):
        total += (np.int64(data[n]) << 8) | np.int64(data[n + 1])
    if (end - first) & 1:
        total += np.int64(data[end - 1]) << 8
    return total


@kernel
def _put_checksum(data, at, total):
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF - total
    data[at] = total >> 8
    data[at + 1] = total & 0xFF


@kernel
def mend(data, start, end, lengths, header, l4_sum):
    """Make lengths, the IPv4 header's checksum, and the checksum behind it right: whichever of them is asked for."""
    l3, l4, family, protocol = walk(data, start, end)
    if family == 0:
        return
    if lengths:
        size = min(0xFFFF, end - l3 if family == 4 else end - l3 - 40)
        at = l3 + (2 if family == 4 else 4)
        data[at], data[at + 1] = size >> 8, size & 0xFF
        if protocol == 17 and l4 + 8 <= end:
            size = min(0xFFFF, end - l4)
            data[l4 + 4], data[l4 + 5] = size >> 8, size & 0xFF
    if l4_sum:
        _mend_l4(data, end, l3, l4, family, protocol)
    if header and family == 4 and l4 - l3 >= 20:
        data[l3 + 10] = data[l3 + 11] = 0
        _put_checksum(data, l3 + 10, _sum(data, l3, l4))


@kernel
def _mend_l4(data, end, l3, l4, family, protocol):
    if protocol == 132 and l4 + 12 <= end:
        for n in range(l4 + 8, l4 + 12):
            data[n] = 0
        crc = np.uint64(0xFFFFFFFF)
        for n in range(l4, end):
            crc = crc32c_byte(crc, np.int64(data[n]))
        word = np.int64(crc ^ _ONES)
        for n in range(4):
            data[l4 + 8 + n] = (word >> 8 * n) & 0xFF
        return
    offset = np.int64(-1)
    if protocol == 6:
        offset = 16
    elif protocol == 17:
        offset = 6
    elif protocol == 1 or protocol == 58:
        offset = 2
    if offset < 0 or l4 + offset + 2 > end:
        return
    data[l4 + offset] = data[l4 + offset + 1] = 0
    total = _sum(data, l4, end)
    if protocol != 1:
        total += protocol + (end - l4)
        total += _sum(data, l3 + 12, l3 + 20) if family == 4 else _sum(data, l3 + 8, l3 + 40)
    _put_checksum(data, l4 + offset, total)
