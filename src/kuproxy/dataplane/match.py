"""The match tables: open-addressing hashes, one for VIPs, one for node ports, node addresses and pods.

Readers never wait. The writer fills an entry's address and value first and its key last, deletes by overwriting
the key with a tombstone, and never reuses a tombstone: growth and clean-up build a new table beside the old one in the
same arena and publish it with one store to a header word, T_VIP_MATCH or T_MATCH.
"""

import numpy as np

from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.layout import (
    CLASS_ANY,
    CLASS_PORT,
    CLASS_PROTOCOL,
    KIND_ADDRESS,
    KIND_DELETED,
    KIND_VIP,
    PREFIX_LENGTHS,
    T_MATCH,
    T_PREFIXES,
)
from kuproxy.dataplane.memory import crc32c, fence, leading_zeros, prefetch, swap64

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
TOMBSTONE = np.uint64(KIND_DELETED << 56)
HOST = 128  # prefix length of a single address, in the 128-bit form


@helper
def match_key(kind, family, plen, protocol, port):
    """The key word of an entry (uint64); all arguments int64."""
    return np.uint64((kind << 56) | (family << 48) | (plen << 32) | (protocol << 16) | port)


@helper
def _first(location, hi, lo, key):
    word = crc32c(crc32c(crc32c(_ZERO, hi), lo), key)
    mask = (np.int64(1) << np.int64(location & np.uint64(0xFF))) - 1
    return np.int64(location >> np.uint64(8)), np.int64(word) & mask, mask


@helper
def _find_from(match, base, index, mask, hi, lo, key):
    while True:
        entry = match[base + index]
        found = entry["key"]
        if found == key and entry["hi"] == hi and entry["lo"] == lo:
            return np.int64(entry["value"])
        if found == _ZERO:
            return np.int64(0)
        index = (index + 1) & mask


@helper
def match_find(match, location, hi, lo, key):
    """The entry's value (int64), or 0. `location` is the table's header word."""
    base, index, mask = _first(location, hi, lo, key)
    return _find_from(match, base, index, mask, hi, lo, key)


@kernel
def match_put(match, location, hi, lo, key, value):
    """Insert or change; returns 1 if a slot was newly taken. The table must have an empty slot."""
    base, index, mask = _first(location, hi, lo, key)
    while True:
        entry = match[base + index]
        found = entry["key"]
        if found == key and entry["hi"] == hi and entry["lo"] == lo:
            entry["value"] = value
            return 0
        if found == _ZERO:
            entry["hi"] = hi
            entry["lo"] = lo
            entry["value"] = value
            fence()
            entry["key"] = key
            return 1
        index = (index + 1) & mask


@kernel
def match_put_many(match, location, hi, lo, key, value):
    """`match_put` of n entries, uint64[n] each and `value` int64[n]; returns how many slots were newly taken."""
    taken = 0
    for index in range(len(hi)):
        taken += match_put(match, location, hi[index], lo[index], key[index], value[index])
    return taken


@kernel
def match_delete(match, location, hi, lo, key):
    """Turn the entry into a tombstone; returns 1 if it was there."""
    base, index, mask = _first(location, hi, lo, key)
    while True:
        entry = match[base + index]
        found = entry["key"]
        if found == key and entry["hi"] == hi and entry["lo"] == lo:
            entry["key"] = TOMBSTONE
            return 1
        if found == _ZERO:
            return 0
        index = (index + 1) & mask


@kernel
def match_copy(match, source, target):
    """Rebuild the table at `source` into the zeroed one at `target`, without tombstones; returns the entries."""
    base = np.int64(source >> np.uint64(8))
    size = np.int64(1) << np.int64(source & np.uint64(0xFF))
    copied = 0
    for index in range(base, base + size):
        entry = match[index]
        if entry["key"] != _ZERO and entry["key"] != TOMBSTONE:
            copied += match_put(match, target, entry["hi"], entry["lo"], entry["key"], entry["value"])
    return copied


@kernel
def match_clear(match, location):
    """Zero a table's slots."""
    base = np.int64(location >> np.uint64(8))
    size = np.int64(1) << np.int64(location & np.uint64(0xFF))
    for index in range(base, base + size):
        match[index]["key"] = _ZERO


@kernel
def mask_address(hi, lo, plen):
    """The network part of an address whose words were loaded little-endian; `plen` in the 128-bit form."""
    if plen >= 128:
        return hi, lo
    if plen > 64:
        return hi, lo & swap64(_ONES << np.uint64(128 - plen))
    if plen == 64:
        return hi, _ZERO
    if plen == 0:
        return _ZERO, _ZERO
    return hi & swap64(_ONES << np.uint64(64 - plen)), _ZERO


@helper
def _find_in_prefix(match, location, hi, lo, family, plen, classes, protocol, port):
    if classes & CLASS_PORT:
        vip = match_find(match, location, hi, lo, match_key(KIND_VIP, family, plen, protocol, port))
        if vip != 0:
            return vip
    if classes & CLASS_PROTOCOL:
        vip = match_find(match, location, hi, lo, match_key(KIND_VIP, family, plen, protocol, 0))
        if vip != 0:
            return vip
    if classes & CLASS_ANY:
        return match_find(match, location, hi, lo, match_key(KIND_VIP, family, plen, 0, 0))
    return np.int64(0)


@helper
def prepare_vip(tables, location, hi, lo, family, protocol, port):
    """Start loading the entry that an exact match reads first; returns its place in the table, for find_vip.

    `location` is header[T_VIP_MATCH], read once for the vector: control may publish another table at any time.
    """
    base, index, _ = _first(location, hi, lo, match_key(KIND_VIP, family, HOST, protocol, port))
    prefetch(tables.match, base + index)
    return index


@helper
def find_vip(tables, location, place, hi, lo, family, protocol, port):
    """Index of the most specific VIP that accepts this destination, or 0. `place` comes from prepare_vip."""
    side = 0 if family == 4 else 1
    lengths = side * PREFIX_LENGTHS
    classes = np.int64(tables.classes[lengths + HOST])
    if classes & CLASS_PORT:
        mask = (np.int64(1) << np.int64(location & np.uint64(0xFF))) - 1
        key = match_key(KIND_VIP, family, HOST, protocol, port)
        vip = _find_from(tables.match, np.int64(location >> np.uint64(8)), place, mask, hi, lo, key)
        if vip != 0:
            return vip
    if classes & ~CLASS_PORT:
        vip = _find_in_prefix(
            tables.match, location, hi, lo, family, HOST, classes & ~CLASS_PORT, protocol, port
        )
        if vip != 0:
            return vip
    for word in range(1, -1, -1):
        bits = tables.header[T_PREFIXES + 3 * side + word]
        while bits != _ZERO:
            bit = 63 - leading_zeros(bits)
            bits ^= _ONE << np.uint64(bit)
            plen = 64 * word + bit
            net_hi, net_lo = mask_address(hi, lo, plen)
            classes = np.int64(tables.classes[lengths + plen])
            vip = _find_in_prefix(
                tables.match, location, net_hi, net_lo, family, plen, classes, protocol, port
            )
            if vip != 0:
                return vip
    return np.int64(0)


@kernel
def vip_address(tables, hi, lo, family):
    """Does the address lie in the prefix of some VIP, whatever its port?"""
    location = tables.header[T_MATCH]
    side = 0 if family == 4 else 1
    for word in range(2, -1, -1):
        bits = tables.header[T_PREFIXES + 3 * side + word]
        while bits != _ZERO:
            bit = 63 - leading_zeros(bits)
            bits ^= _ONE << np.uint64(bit)
            plen = 64 * word + bit
            net_hi, net_lo = mask_address(hi, lo, plen)
            if (
                match_find(
                    tables.match, location, net_hi, net_lo, match_key(KIND_ADDRESS, family, plen, 0, 0)
                )
                != 0
            ):
                return True
    return False
