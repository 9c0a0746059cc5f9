"""Internet checksums over Python's integers (RFC 1071), and their incremental change (RFC 1624)."""

from __future__ import annotations

from collections.abc import Iterator

Bytes = bytes | bytearray


def words(data: Bytes) -> Iterator[int]:
    """16 bits each, in network order; an odd byte at the end is the upper half of a word."""
    for at in range(0, len(data), 2):
        yield int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")


def fold(total: int) -> int:
    """The one's complement sum: carries are added back in until there are none."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def difference(old: Bytes, new: Bytes) -> int:
    """What equation 3 adds for the words that changed: the sum of all ~m + m'."""
    return sum(0xFFFF - word for word in words(old)) + sum(words(new))


def changed(checksum: int, old: Bytes, new: Bytes) -> int:
    """RFC 1624, equation 3: HC' = ~(~HC + ~m + m').  A wrong checksum stays wrong by the same difference."""
    return 0xFFFF - fold(0xFFFF - checksum + difference(old, new))


def changed_sum(total: int, old: Bytes, new: Bytes) -> int:
    """The same for a sum that is not inverted, as a partial checksum holds it."""
    return fold(total + difference(old, new))


def complete(data: bytes) -> int:
    """The checksum over `data` from nothing (RFC 1071)."""
    return 0xFFFF - fold(sum(words(data)))
