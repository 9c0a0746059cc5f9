"""Addresses and keys in the form in which the tables hold them (layout.py)."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from kuproxy.codes import Family
from kuproxy.model.vip import Address, Pod, VipKey

HOST = 128
_LOW = (1 << 64) - 1

Words = tuple[np.uint64, np.uint64]


def address_words(address: Address) -> Words:
    """(hi, lo) of an address as layout.py defines them."""
    raw = address.packed.rjust(16, b"\0")
    return np.uint64(int.from_bytes(raw[:8], "little")), np.uint64(int.from_bytes(raw[8:], "little"))


def words_address(family: int, hi: int, lo: int) -> Address:
    """The inverse of address_words."""
    raw = hi.to_bytes(8, "little") + lo.to_bytes(8, "little")
    return IPv4Address(raw[12:]) if family == Family.IPV4 else IPv6Address(raw)


def key_word(kind: int, family: int, plen: int, protocol: int, port: int) -> np.uint64:
    """The same as dataplane.match.match_key, without a crossing into compiled code."""
    return np.uint64(kind << 56 | family << 48 | plen << 32 | protocol << 16 | port)


def prefix_length(key: VipKey) -> int:
    """In the 128-bit form."""
    version, _, length, _, _ = key.id
    return length + (96 if version == Family.IPV4 else 0)


def word_columns(pods: Iterable[Pod]) -> tuple[np.ndarray, np.ndarray]:
    """`address_words` of many pods' addresses: two uint64[n]."""
    return number_columns([pod.id[0] for pod in pods])


def number_columns(numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same of addresses as integers, which are to be read from their other end."""
    if max(numbers, default=0) <= _LOW:
        return np.zeros(len(numbers), np.uint64), np.array(numbers, np.uint64).byteswap()
    hi = np.array([number >> 64 for number in numbers], np.uint64)
    return hi.byteswap(), np.array([number & _LOW for number in numbers], np.uint64).byteswap()
