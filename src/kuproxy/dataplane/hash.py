"""The hash functions: two that instances share with each other and with VPP, and one that nobody can foresee.

- Flow hash: CRC32C (initial 0, not inverted) over five 64-bit words, VPP's `lb_hash_hash`.
- Keyed flow hash, for those who ask for it: SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF",
  2012), its low 32 bits, as Linux' `hsiphash` on 64-bit machines. docs/adr/033 has the trade-off.
- Pod seed: XXH64 of one 8-byte word, VPP's `clib_xxhash`.
"""

import numpy as np

from kuproxy.dataplane import addresses
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.layout import FLOW_HASH_VPP, META_COUNT, W_FLOW_HASH, W_FLOW_KEY
from kuproxy.dataplane.memory import add64, crc32c, load16, load64

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


# SipHash's initial state is the key under these ("somepseudorandomlygeneratedbytes").
_SIP_0 = np.uint64(0x736F6D6570736575)
_SIP_1 = np.uint64(0x646F72616E646F6D)
_SIP_2 = np.uint64(0x6C7967656E657261)
_SIP_3 = np.uint64(0x7465646279746573)
_SIP_END = np.uint64(0xFF)
_LOW = np.uint64(0xFFFFFFFF)
# The last word of a message bears its length in the uppermost byte: two addresses and two ports.
_LENGTH4 = np.uint64(12 << 56)
_LENGTH6 = np.uint64(36 << 56)


@helper
def _sip_round(v0, v1, v2, v3):
    v0 = add64(v0, v1)
    v1 = _rotate_left(v1, 13) ^ v0
    v0 = _rotate_left(v0, 32)
    v2 = add64(v2, v3)
    v3 = _rotate_left(v3, 16) ^ v2
    v0 = add64(v0, v3)
    v3 = _rotate_left(v3, 21) ^ v0
    v2 = add64(v2, v1)
    v1 = _rotate_left(v1, 17) ^ v2
    v2 = _rotate_left(v2, 32)
    return v0, v1, v2, v3


@kernel
def keyed_words(key0, key1, family, src_hi, src_lo, dst_hi, dst_lo, ports_word):
    """SipHash-1-3 of source, destination, destination port and source port, as `hash_words` takes them.

    The message is what CRC32C gets, without its padding: 12 bytes in IPv4, 36 in IPv6. Returns uint64 below 2^32.
    """
    v0 = key0 ^ _SIP_0
    v1 = key1 ^ _SIP_1
    v2 = key0 ^ _SIP_2
    v3 = key1 ^ _SIP_3
    if family == 4:
        word = (src_lo >> np.uint64(32)) | (dst_lo & np.uint64(0xFFFFFFFF00000000))
        last = ports_word | _LENGTH4
    else:
        v3 = v3 ^ src_hi
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 = v0 ^ src_hi
        v3 = v3 ^ src_lo
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 = v0 ^ src_lo
        v3 = v3 ^ dst_hi
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 = v0 ^ dst_hi
        word = dst_lo
        last = ports_word | _LENGTH6
    v3 = v3 ^ word
    v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    v0 = v0 ^ word
    v3 = v3 ^ last
    v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    v0 = v0 ^ last
    v2 = v2 ^ _SIP_END
    v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    return (v0 ^ v1 ^ v2 ^ v3) & _LOW


@helper
def hash_with(mode, key0, key1, family, src_hi, src_lo, dst_hi, dst_lo, ports_word):
    """Flow hash by FLOW_HASH_* `mode` (int64) and key (uint64); addresses in their table form."""
    if mode != FLOW_HASH_VPP:
        return keyed_words(key0, key1, family, src_hi, src_lo, dst_hi, dst_lo, ports_word)
    return hash_words(family, src_hi, src_lo, dst_hi, dst_lo, ports_word)


@helper
def flow_hash(state, family, src_hi, src_lo, dst_hi, dst_lo, ports_word):
    """Flow hash as this worker has it."""
    key0, key1 = np.uint64(state.header[W_FLOW_KEY]), np.uint64(state.header[W_FLOW_KEY + 1])
    return hash_with(
        state.header[W_FLOW_HASH], key0, key1, family, src_hi, src_lo, dst_hi, dst_lo, ports_word
    )


@kernel
def rekey(frame, state):
    """Give every packet that kp-input understood its keyed hash. A pass of its own, so that who does not ask for keyed
    hashes pays one comparison a vector."""
    key0, key1 = np.uint64(state.header[W_FLOW_KEY]), np.uint64(state.header[W_FLOW_KEY + 1])
    for index in range(frame.meta[META_COUNT]):
        packet = frame.packets[index]
        family = np.int64(packet["family"])
        if family != 0:
            src_hi, src_lo = addresses.source(frame.data, packet)
            dst_hi, dst_lo = addresses.destination(frame.data, packet)
            word = ports_word(np.int64(packet["src_port"]), np.int64(packet["dst_port"]))
            packet["hash"] = np.uint32(
                keyed_words(key0, key1, family, src_hi, src_lo, dst_hi, dst_lo, word)
            )


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
