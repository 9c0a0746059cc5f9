"""Which ICMP error is which ICMPv6 error (RFC 7915 sections 4.2 and 5.2). Numbers only, no packets."""

import numpy as np

from kuproxy.dataplane._jit import kernel

NO_COUNTERPART = -1
_LEAST_MTU6 = 1280  # RFC 8200 section 5
_MOST_MTU = 0xFFFF
_GROWTH = 20  # an IPv6 header is longer by this


@kernel
def _plateau(length):
    """RFC 1191 section 7.1: for routers that do not tell the MTU, the next lower one in use."""
    for mtu in (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296):
        if mtu < length:
            return np.int64(mtu)
    return np.int64(68)


@kernel
def _pointer_to_6(pointer):
    """RFC 7915 figure 3."""
    if pointer <= 1:
        return np.int64(pointer)
    if pointer == 2 or pointer == 3:
        return np.int64(4)  # total length: payload length
    if pointer == 8:
        return np.int64(7)
    if pointer == 9:
        return np.int64(6)
    if pointer >= 12 and pointer <= 15:
        return np.int64(8)
    if pointer >= 16 and pointer <= 19:
        return np.int64(24)
    return np.int64(NO_COUNTERPART)


@kernel
def _pointer_to_4(pointer):
    """RFC 7915 figure 6."""
    if pointer <= 1:
        return np.int64(pointer)
    if pointer == 4 or pointer == 5:
        return np.int64(2)
    if pointer == 6:
        return np.int64(9)
    if pointer == 7:
        return np.int64(8)
    if pointer >= 8 and pointer <= 23:
        return np.int64(12)
    if pointer >= 24 and pointer <= 39:
        return np.int64(16)
    return np.int64(NO_COUNTERPART)


@kernel
def _unreachable_to_6(code, rest, length, limit):
    if code == 2:  # protocol: parameter problem, unrecognised next header, which is byte 6
        return np.int64(4), np.int64(1), np.int64(6)
    if code == 3:
        return np.int64(1), np.int64(4), np.int64(0)
    if code == 4:
        mtu = np.int64(rest & 0xFFFF)
        if mtu == 0:
            mtu = _plateau(length)
        mtu = np.int64(mtu + _GROWTH)
        if limit != 0:
            mtu = np.int64(min(mtu, limit))
        return np.int64(2), np.int64(0), np.int64(max(mtu, _LEAST_MTU6))
    if code == 9 or code == 10 or code == 13 or code == 15:
        return np.int64(1), np.int64(1), np.int64(0)
    if code <= 12:
        return np.int64(1), np.int64(0), np.int64(0)
    return np.int64(NO_COUNTERPART), np.int64(0), np.int64(0)


@kernel
def error_to_6(kind, code, rest, length, limit):
    """(type, code, second word in host order) of the ICMPv6 error; type -1 if there is none.

    `length` is the total length of the embedded packet, `limit` our links' MTU or 0: no larger one is told.
    """
    if kind == 3:
        return _unreachable_to_6(code, rest, length, limit)
    if kind == 11 and code <= 1:
        return np.int64(3), np.int64(code), np.int64(0)
    if kind == 12 and (code == 0 or code == 2):
        pointer = _pointer_to_6(rest >> 24)
        if pointer >= 0:
            return np.int64(4), np.int64(0), pointer
    return np.int64(NO_COUNTERPART), np.int64(0), np.int64(0)


@kernel
def error_to_4(kind, code, rest, limit):
    """(type, code, second word in host order) of the ICMP error; type -1 if there is none. `limit` as above."""
    if kind == 1:
        if code == 0 or code == 2 or code == 3:
            return np.int64(3), np.int64(1), np.int64(0)
        if code == 1:
            return np.int64(3), np.int64(10), np.int64(0)
        if code == 4:
            return np.int64(3), np.int64(3), np.int64(0)
    elif kind == 2:
        mtu = np.int64(rest)
        if limit != 0:
            mtu = np.int64(min(mtu, limit))
        mtu -= _GROWTH
        return np.int64(3), np.int64(4), np.int64(max(0, min(mtu, _MOST_MTU)))
    elif kind == 3 and code <= 1:
        return np.int64(11), np.int64(code), np.int64(0)
    elif kind == 4:
        if code == 1:
            return np.int64(3), np.int64(2), np.int64(0)
        if code == 0:
            pointer = _pointer_to_4(rest)
            if pointer >= 0:
                return np.int64(12), np.int64(0), pointer << 24
    return np.int64(NO_COUNTERPART), np.int64(0), np.int64(0)
