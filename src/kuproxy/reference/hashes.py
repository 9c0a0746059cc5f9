"""The two hash functions, over Python's integers: CRC32C for flows, XXH64 for the Maglev table.

Both agree bit for bit with VPP's `clib_crc32c` and `clib_xxhash`; the golden values are in the tests.
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


def flow_hash(source: Address, destination: Address, source_port: int = 0, destination_port: int = 0) -> int:
    """CRC32C over five words of eight bytes: the addresses as they lie in the packet, the ports, zeros.

    VPP loads the ports on a little-endian machine and makes `source << 16 | destination` of them: in memory the
    destination's two bytes, in network order, are followed by the source's.
    """
    ports = destination_port.to_bytes(2, "big") + source_port.to_bytes(2, "big")
    return crc32c((source.packed + destination.packed + ports).ljust(40, b"\0"))


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
