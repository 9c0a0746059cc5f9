"""The hash functions, over Python's integers: CRC32C or SipHash-1-3 for flows, XXH64 for the Maglev table.

CRC32C and XXH64 agree bit for bit with VPP's `clib_crc32c` and `clib_xxhash`; the golden values are in the tests.
"""

from __future__ import annotations

from kuproxy.model.vip import Address

_CRC32C_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected: that of SCTP (RFC 9260, appendix A) and of SSE 4.2

_MASK64 = (1 << 64) - 1
_PRIME1 = 0x9E3779B185EBCA87
_PRIME2 = 0xC2B2AE3D27D4EB4F
_PRIME3 = 0x165667B19E3779F9
_PRIME4 = 0x85EBCA77C2B2AE63
_PRIME5 = 0x27D4EB2F165667C5
_VPP_SEED = 0x9E3779B97F4A7C13


def _crc32c_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CRC32C_POLYNOMIAL if value & 1 else 0)
    return value


_CRC32C_TABLE = [_crc32c_of_byte(value) for value in range(256)]


def crc32c(data: bytes | bytearray, crc: int = 0) -> int:
    """The register after `data`: neither preset nor inverted, as the processor's instruction does it."""
    for byte in data:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc


def flow_hash(
    source: Address, destination: Address, source_port: int = 0, destination_port: int = 0, key: bytes = b""
) -> int:
    """CRC32C over five words of eight bytes: the addresses as they lie in the packet, the ports, zeros.

    With a key, SipHash-1-3 over the same without the zeros, its low 32 bits.

    VPP loads the ports on a little-endian machine and makes `source << 16 | destination` of them: in memory the
    destination's two bytes, in network order, are followed by the source's.
    """
    ports = destination_port.to_bytes(2, "big") + source_port.to_bytes(2, "big")
    message = source.packed + destination.packed + ports
    if key:
        return siphash13(message, key) & 0xFFFFFFFF
    return crc32c(message.ljust(40, b"\0"))


def siphash13(message: bytes, key: bytes) -> int:
    """SipHash with one round a word and three at the end, 64 bits: Aumasson and Bernstein, 2012, section 2."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:16], "little")
    state = (
        k0 ^ int.from_bytes(b"somepseu", "big"),
        k1 ^ int.from_bytes(b"dorandom", "big"),
        k0 ^ int.from_bytes(b"lygenera", "big"),
        k1 ^ int.from_bytes(b"tedbytes", "big"),
    )
    length = len(message)
    padded = message + bytes(7 - length % 8) + bytes([length % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3 ^ word)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    state = (v0, v1, v2 ^ 0xFF, v3)
    for _ in range(3):
        state = _sip_round(*state)
    v0, v1, v2, v3 = state
    return v0 ^ v1 ^ v2 ^ v3


def _sip_round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = v0 + v1 & _MASK64
    v1 = _rotate_left(v1, 13) ^ v0
    v0 = _rotate_left(v0, 32)
    v2 = v2 + v3 & _MASK64
    v3 = _rotate_left(v3, 16) ^ v2
    v0 = v0 + v3 & _MASK64
    v3 = _rotate_left(v3, 21) ^ v0
    v2 = v2 + v1 & _MASK64
    v1 = _rotate_left(v1, 17) ^ v2
    v2 = _rotate_left(v2, 32)
    return v0, v1, v2, v3


def xxh64_word(word: int) -> int:
    """XXH64 of the eight bytes of `word`, little-endian, with the seed that VPP uses.

    This is the whole algorithm for an input of exactly eight bytes: no stripes, one round, no rest.
    """
    accumulator = (_VPP_SEED + _PRIME5 + 8) & _MASK64
    accumulator ^= _rotate_left(word * _PRIME2 & _MASK64, 31) * _PRIME1 & _MASK64
    accumulator = (_rotate_left(accumulator, 27) * _PRIME1 + _PRIME4) & _MASK64
    accumulator = (accumulator ^ accumulator >> 33) * _PRIME2 & _MASK64
    accumulator = (accumulator ^ accumulator >> 29) * _PRIME3 & _MASK64
    return accumulator ^ accumulator >> 32


def _rotate_left(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & _MASK64
