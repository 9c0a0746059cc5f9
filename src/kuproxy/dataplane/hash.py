"""The two hash functions that instances must share with each other and with VPP.

- Flow hash: CRC32C (initial 0, not inverted) over five 64-bit words, VPP's `lb_hash_hash`.
- Pod seed: XXH64 of one 8-byte word, VPP's `clib_xxhash`.
"""

import numpy as np

from kuproxy.dataplane._jit import helper
from kuproxy.dataplane.memory import crc32c, load16, load64

_ZERO = np.uint64(0)

# XXH64's primes (xxHash specification, "XXH64 algorithm description").
_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_SEED = np.uint64(0x9E3779B97F4A7C13)


@helper
def hash_ipv4(data, l3, ports_word):
    """Flow hash of an IPv4 packet; `ports_word` from `ports_word_at`, or 0. Returns uint64 below 2^32."""
    crc = crc32c(_ZERO, load64(data, l3 + 12))
    crc = crc32c(crc, ports_word)
    crc = crc32c(crc, _ZERO)
    crc = crc32c(crc, _ZERO)
    return crc32c(crc, _ZERO)


@helper
def hash_ipv6(data, l3, ports_word):
    """Flow hash of an IPv6 packet."""
    crc = crc32c(_ZERO, load64(data, l3 + 8))
    crc = crc32c(crc, load64(data, l3 + 16))
    crc = crc32c(crc, load64(data, l3 + 24))
    crc = crc32c(crc, load64(data, l3 + 32))
    return crc32c(crc, ports_word)


@helper
def hash_words(family, src_hi, src_lo, dst_hi, dst_lo, ports_word):
    """Flow hash from addresses in their table form (IPv4 in the upper half of `lo`)."""
    if family == 4:
        addresses = (src_lo >> np.uint64(32)) | (dst_lo & np.uint64(0xFFFFFFFF00000000))
        crc = crc32c(_ZERO, addresses)
        crc = crc32c(crc, ports_word)
        crc = crc32c(crc, _ZERO)
        crc = crc32c(crc, _ZERO)
        return crc32c(crc, _ZERO)
    crc = crc32c(_ZERO, src_hi)
    crc = crc32c(crc, src_lo)
    crc = crc32c(crc, dst_hi)
    crc = crc32c(crc, dst_lo)
    return crc32c(crc, ports_word)


@helper
def ports_word_at(data, l4):
    """`source port << 16 | destination port`, each as a little-endian machine loads the field."""
    return np.uint64((load16(data, l4) << 16) | load16(data, l4 + 2))


@helper
def ports_word(src_port, dst_port):
    """The same word from ports in host order (int64)."""
    src = ((src_port & 0xFF) << 8) | (src_port >> 8)
    dst = ((dst_port & 0xFF) << 8) | (dst_port >> 8)
    return np.uint64((src << 16) | dst)


@helper
def _rotate_left(value, bits):
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@helper
def pod_seed(hi, lo):
    """Seed of a pod's walk through the ring: XXH64 of `hi ^ lo` (uint64, as loaded little-endian)."""
    word = _rotate_left((hi ^ lo) * _PRIME_2, 31) * _PRIME_1
    state = (_SEED + _PRIME_5 + np.uint64(8)) ^ word
    state = _rotate_left(state, 27) * _PRIME_1 + _PRIME_4
    state = (state ^ (state >> np.uint64(33))) * _PRIME_2
    state = (state ^ (state >> np.uint64(29))) * _PRIME_3
    return state ^ (state >> np.uint64(32))
