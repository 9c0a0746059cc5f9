"""Compiled, so that millions of packets can be tried: takes real frames, knows their headers, and damages them.

Each packet begins as one that a client sent, a neighbour of the one before (the next fragment, say), or something that
the graph has sent on just now. Some stay as they are, so that there are flows to disturb. The others are changed in
one to six places: a field takes a telling value or one from the dictionary, headers are opened and inserted, bytes
vanish, the packet becomes a reply, an error about itself, or the load of a tunnel. At the end lengths and checksums are
mended, or are not.

Offsets are from the array's beginning unless they are called otherwise. All draws come from one word of state.
"""

import numpy as np

from fuzz.packets.frames import address_at, close_gap, mend, open_gap, swap_ends, walk
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.memory import copy_bytes

LONGEST = 9300  # a slot's packet; above what the hold takes (layout.HOLD_LONGEST)
MEND_LENGTHS, MEND_HEADER, MEND_L4 = 1, 2, 4

_SHIFT_A, _SHIFT_B, _SHIFT_C = np.uint64(12), np.uint64(25), np.uint64(27)
_MULTIPLIER = np.uint64(0x2545F4914F6CDD1D)
_DOWN = np.uint64(33)
_INTERESTING = np.array([0, 1, 2, 7, 8, 15, 16, 20, 40, 43, 44, 60, 64, 127, 128, 254, 255], np.uint8)
_PROTOCOLS = np.array(
    [0, 1, 1, 4, 6, 6, 6, 17, 17, 17, 33, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 136], np.uint8
)
_ERRORS4 = np.array([3, 3, 3, 4, 5, 11, 12], np.uint8)
_ERRORS6 = np.array([1, 1, 2, 3, 4, 4, 137], np.uint8)
_OPTIONS = np.array([0, 1, 7, 68, 130, 131, 137, 148], np.uint8)
_CHAINED = np.array([0, 43, 44, 60, 60, 135], np.uint8)
_TUNNELS = np.array([4, 41, 47, 17], np.uint8)


@kernel
def draw(random, n):
    """A number below n (int64); `random` is uint64[1], never 0: xorshift64* (Vigna, 2016)."""
    word = random[0]
    word ^= word >> _SHIFT_A
    word ^= word << _SHIFT_B
    word ^= word >> _SHIFT_C
    random[0] = word
    return np.int64((word * _MULTIPLIER) >> _DOWN) % n


@kernel
def _put16(data, at, end, value):
    if at >= 0 and at + 2 <= end:
        data[at] = (value >> 8) & 0xFF
        data[at + 1] = value & 0xFF


@kernel
def _get16(data, at, end):
    return (np.int64(data[at]) << 8) | np.int64(data[at + 1]) if at + 2 <= end else np.int64(0)


@kernel
def _change_length(data, random, at, end):
    """A length field, one off or telling."""
    value = _get16(data, at, end)
    kind = draw(random, 8)
    if kind < 3:
        value += draw(random, 17) - 8
    elif kind == 3:
        value = draw(random, 64)
    elif kind == 4:
        value = 0xFFFF - draw(random, 2) * 0x8000
    elif kind == 5:
        value = end - at + draw(random, 5) - 2
    elif kind == 6:
        value = 0
    else:
        value = draw(random, 65536)
    _put16(data, at, end, value)


@kernel
def _change_ip(data, random, start, end, l3, family, words):
    """One field of the IP header at l3."""
    kind = draw(random, 9)
    if l3 + (20 if family == 4 else 40) > end:
        return
    if kind == 0:
        _change_length(data, random, l3 + (2 if family == 4 else 4), end)
    elif kind == 1:
        data[l3] = (data[l3] & 0xF0) | draw(random, 16) if draw(random, 4) else draw(random, 256)
    elif kind == 2:
        data[l3 + (9 if family == 4 else 6)] = _PROTOCOLS[draw(random, len(_PROTOCOLS))]
    elif kind == 3:
        data[l3 + (8 if family == 4 else 7)] = draw(random, 4) if draw(random, 2) else draw(random, 256)
    elif kind == 4 and family == 4:  # flags and offset
        value = draw(random, 8) << 13 | (draw(random, 4) if draw(random, 2) else draw(random, 8192))
        _put16(data, l3 + 6, end, value)
    elif kind == 5 and family == 4:
        _put16(data, l3 + 4, end, draw(random, 4))  # identification: datagrams meet
    elif kind <= 7:
        which = l3 + (12 + 4 * draw(random, 2) if family == 4 else 8 + 16 * draw(random, 2))
        address_at(data, which, family, words, draw(random, 1 << 20))
    else:
        data[l3 + 1] = draw(random, 256)


@kernel
def _change_l4(data, random, l4, end, protocol, words):
    """One field of what is behind the IP header."""
    kind = draw(random, 6)
    if l4 + 4 > end:
        return
    if kind <= 1:
        at = l4 + 2 * draw(random, 2)
        ports = words.ports
        _put16(data, at, end, ports[draw(random, len(ports))] if draw(random, 4) else draw(random, 65536))
    elif protocol == 6 and l4 + 14 <= end:
        if kind == 2:
            data[l4 + 12] = draw(random, 16) << 4
        else:
            data[l4 + 13] = 1 << draw(random, 6) if draw(random, 2) else draw(random, 256)
    elif protocol == 17:
        _change_length(data, random, l4 + (4 if kind < 5 else 6), end)
    elif protocol == 1 or protocol == 58:
        if kind == 2:
            data[l4] = (
                _ERRORS4[draw(random, len(_ERRORS4))]
                if protocol == 1
                else _ERRORS6[draw(random, len(_ERRORS6))]
            )
        elif kind == 3:
            data[l4] = draw(random, 256)
        elif kind == 4:
            data[l4 + 1] = draw(random, 16)
        elif l4 + 8 <= end:
            data[l4 + 4 + draw(random, 4)] = _INTERESTING[draw(random, len(_INTERESTING))]
    else:
        data[l4 + draw(random, min(16, end - l4))] = _INTERESTING[draw(random, len(_INTERESTING))]


@kernel
def _wrap(data, random, start, length, l3, family, extra, protocol, about, words):
    """Put the packet behind another IP header and `extra` bytes; as an error it goes back. Returns the length."""
    header = 20 if family == 4 else 40
    if length + header + extra > LONGEST or l3 - start + header > length:
        return length
    open_gap(data, start, length, l3, header + extra)
    length += header + extra
    inner = l3 + header + extra
    for n in range(header):  # the outer one begins as the inner one
        data[l3 + n] = data[inner + n]
    if family == 4:
        data[l3] = 0x45
        data[l3 + 6] = data[l3 + 7] = 0
        data[l3 + 8] = 64
        data[l3 + 9] = protocol
    else:
        data[l3 + 6] = protocol
        data[l3 + 7] = 64
    width = 4 if family == 4 else 16
    first = l3 + (12 if family == 4 else 8)
    if about:
        for n in range(width):
            data[first + width + n] = data[first + n]
        if draw(random, 2):
            for n in range(width):
                data[first + n] = data[inner + (first - l3) + width + n]
        else:
            address_at(data, first, family, words, draw(random, 1 << 20))
    return length


@kernel
def _reshape(data, random, start, length, l3, l4, family, protocol, words):
    """What changes the packet as a whole. Returns its length."""
    kind = draw(random, 11)
    end = start + length
    if kind == 0 and length > 1:  # cut, mostly near a header's end
        near = draw(random, 6)
        at = l3 if near == 0 else l4 if near == 1 else l4 + 8 if near == 2 else l4 + 20 if near == 3 else end
        at += draw(random, 9) - 4 if near < 5 else -draw(random, length)
        return max(1, min(length, at - start))
    if kind == 1:  # trailing bytes
        more = min(draw(random, 64) if draw(random, 8) else draw(random, 9000), LONGEST - length)
        value = draw(random, 256)
        for n in range(more):
            data[end + n] = value
        return length + more
    if kind == 2 and length + 4 <= LONGEST and length >= 14:  # a VLAN tag
        open_gap(data, start, length, start + 12, 4)
        data[start + 12], data[start + 13] = (0x81, 0) if draw(random, 2) else (0x88, 0xA8)
        _put16(data, start + 14, end, draw(random, 65536))
        return length + 4
    if kind == 3 and length > 20:  # bytes vanish
        at = start + draw(random, length - 8)
        many = min(1 + draw(random, 24), end - at - 1)
        close_gap(data, start, length, at, many)
        return length - many
    if kind == 4 and family == 4 and l4 + 4 <= end:  # an IPv4 option
        many = 4 * (1 + draw(random, 3))
        if np.int64(data[l3] & 15) * 4 + many <= 60 and length + many <= LONGEST:
            open_gap(data, start, length, l3 + 20, many)
            for n in range(many):
                data[l3 + 20 + n] = draw(random, 12)
            data[l3 + 20] = _OPTIONS[draw(random, len(_OPTIONS))]
            data[l3] += many // 4
            return length + many
    elif kind == 4 and family == 6 and l3 + 40 <= end and length + 8 <= LONGEST:  # an extension header
        many = 8 * (1 + draw(random, 2))
        open_gap(data, start, length, l3 + 40, many)
        for n in range(many):
            data[l3 + 40 + n] = draw(random, 3)
        data[l3 + 40] = data[l3 + 6]
        data[l3 + 41] = many // 8 - 1 if draw(random, 4) else draw(random, 256)
        data[l3 + 6] = _CHAINED[draw(random, len(_CHAINED))]
        return length + many
    if kind == 5 or kind == 6:
        swap_ends(data, end, l3, l4, family, protocol)
        return length
    if kind == 7 or kind == 8:  # an error about it
        at_once = 1 if family == 4 else 58
        length = _wrap(data, random, start, length, l3, family, 8, at_once, True, words)
        at = l3 + (20 if family == 4 else 40)
        if at + 8 <= start + length:
            for n in range(8):
                data[at + n] = 0
            data[at] = (
                _ERRORS4[draw(random, len(_ERRORS4))]
                if family == 4
                else _ERRORS6[draw(random, len(_ERRORS6))]
            )
            data[at + 1] = draw(random, 6)
            _put16(data, at + 6, start + length, draw(random, 1600))
            if draw(random, 3) == 0:
                length = min(length, at - start + 8 + 20 + draw(random, 60))
        return length
    if kind == 9:  # a tunnel of some kind
        protocol = np.int64(_TUNNELS[draw(random, len(_TUNNELS))])
        extra = 0 if protocol == 4 or protocol == 41 else 4 if protocol == 47 else 8
        return _wrap(data, random, start, length, l3, family, extra, protocol, False, words)
    return length


@kernel
def _change(data, random, start, length, words):
    """One change. Returns the length."""
    end = start + length
    l3, l4, family, protocol = walk(data, start, end)
    kind = draw(random, 12)
    if family == 0 or kind == 0:
        data[start + draw(random, length)] = draw(random, 256)
    elif kind == 1:
        data[start + draw(random, length)] ^= 1 << draw(random, 8)
    elif kind == 2:
        data[start + draw(random, min(length, 128))] = _INTERESTING[draw(random, len(_INTERESTING))]
    elif kind <= 5:
        _change_ip(data, random, start, end, l3, family, words)
    elif kind <= 8:
        is_error = (protocol == 1 and 3 <= data[l4] <= 12 and data[l4] != 8 if l4 < end else False) or (
            protocol == 58 and data[l4] < 128 if l4 < end else False
        )
        inner = l4 + 8
        if is_error and inner + 20 <= end and draw(random, 2):  # the packet that is complained of
            if draw(random, 2):
                _change_ip(data, random, start, end, inner, family, words)
            elif inner + 48 <= end:
                _change_l4(data, random, inner + (20 if family == 4 else 40), end, 17, words)
        else:
            _change_l4(data, random, l4, end, protocol, words)
    else:
        return _reshape(data, random, start, length, l3, l4, family, protocol, words)
    return length


@kernel
def make_packet(data, start, random, pool, seen, words, last):
    """Write a packet to data[start:]. Returns (its length, which of the pool it was or -1, flags).

    `pool` and `seen` are `Pool`s; from the second some packets come back as replies or complaints. Flags: 1 partial
    checksum, 2 GSO, 4 from the pods' side.
    """
    chosen = np.int64(-1)
    back = draw(random, 4) == 0
    which = draw(random, len(seen.lengths)) if back else draw(random, len(pool.lengths))
    if not back and last >= 0 and draw(random, 3) == 0:
        which = (last + 1) % len(pool.lengths)
    if back and seen.lengths[which] == 0:
        back = False
        which = draw(random, len(pool.lengths))
    flags = np.int64(0)
    if back:
        length = seen.lengths[which]
        copy_bytes(data, start, seen.data, seen.offsets[which], length)
        flags = 4 if draw(random, 4) else 0
        l3, l4, family, protocol = walk(data, start, start + length)
        if family != 0 and draw(random, 4):
            swap_ends(data, start + length, l3, l4, family, protocol)
    else:
        chosen = which
        length = pool.lengths[which]
        copy_bytes(data, start, pool.data, pool.offsets[which], length)
        flags = 4 if draw(random, 8) == 0 else 0
    changes = draw(random, 8)
    if changes > 6 or (not back and changes > 4):
        changes = 0
    for _ in range(changes):
        length = _change(data, random, start, length, words)
    if changes or back:
        how = draw(random, 8)
        what = (
            MEND_LENGTHS | MEND_HEADER | MEND_L4 if how < 4 else MEND_HEADER if how < 6 else draw(random, 8)
        )
        mend(data, start, start + length, what & MEND_LENGTHS, what & MEND_HEADER, what & MEND_L4)
    if draw(random, 10) == 0:
        flags |= 1
    if draw(random, 12) == 0:
        flags |= 2
    return length, chosen, flags
