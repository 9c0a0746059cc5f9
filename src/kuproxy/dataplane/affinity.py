"""ClientIP affinity: which pod a client of a VIP had last (docs/forwarding.md, "Affinity").

One table for all workers, because the connections of a client spread over them (docs/adr/017); in sets of four. A full
set gives up the client whose time ends first. An entry whose pod no longer gets new flows counts as absent.

Nobody waits for anybody. The first word of an entry counts its changes and is odd while one is going on. A writer
claims the entry by exchanging this word for an odd one, writes, and lets go with the next even one; if another was
faster it gives up, for a client's pod is worth remembering, not worth waiting for. A reader whose entry was odd, or
has changed when it looks again, has seen nothing: the ring decides. While odd, the word tells the writer's number, so
that entries which a killed worker left so can be told from those at which another is writing just now.

The data words are loaded with acquire and stored with release, so none of them can be seen from outside the two looks
at the sequence (Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012).
"""

import numpy as np

from kuproxy.codes import PodFlag
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.flow_table import is_live
from kuproxy.dataplane.layout import AFFINITY_SLOTS, AFFINITY_WAYS, AFFINITY_WORDS, W_NUMBER
from kuproxy.dataplane.memory import acquire64, compare_and_swap64, crc32c, release64

# Words of an entry. The sequence: bit 0 set while somebody writes, bits 1 to 7 then the writer's number, above them
# the count of changes.
_SEQUENCE, _HI, _LO = 0, 1, 2  # the client's address
_VIP = 3  # index, 0 = empty; its generation in the upper half
_POD = 4  # the same of the pod
_EXPIRES = 5

_ZERO = np.uint64(0)
_ODD = np.uint64(1)
_CHANGE = np.uint64(0x100)
_WRITER = np.uint64(0xFF)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_USED = int(PodFlag.USED)


@helper
def _set_of(vip_index, hi, lo):
    """Where the entries of the client's set begin in the table."""
    word = crc32c(crc32c(crc32c(_ZERO, hi), lo), np.uint64(vip_index))
    return (np.int64(word) & (AFFINITY_SLOTS - AFFINITY_WAYS)) * AFFINITY_WORDS


@helper
def _pair(index, generation):
    return np.uint64(index) | (np.uint64(generation) << _HALF)


@helper
def _read(table, at):
    """(is it whole, sequence, hi, lo, vip, pod, expires) of the entry at `at`."""
    before = acquire64(table, at + _SEQUENCE)
    hi = acquire64(table, at + _HI)
    lo = acquire64(table, at + _LO)
    vip = acquire64(table, at + _VIP)
    pod = acquire64(table, at + _POD)
    expires = acquire64(table, at + _EXPIRES)
    whole = before & _ODD == _ZERO and acquire64(table, at + _SEQUENCE) == before
    return whole, before, hi, lo, vip, pod, np.int64(expires)


@helper
def _write(table, at, sequence, number, hi, lo, vip, pod, expires):
    """Replace the entry that was whole at `sequence`, unless another writer has been there."""
    stable = (sequence & ~_WRITER) + _CHANGE
    if compare_and_swap64(table, at + _SEQUENCE, sequence, stable | (np.uint64(number) << _ODD) | _ODD):
        release64(table, at + _HI, hi)
        release64(table, at + _LO, lo)
        release64(table, at + _VIP, vip)
        release64(table, at + _POD, pod)
        release64(table, at + _EXPIRES, np.uint64(expires))
        release64(table, at + _SEQUENCE, stable)


@kernel
def pod_of(tables, state, vip_index, hi, lo, now):
    """Index of the pod that this client had last and may have again, or 0."""
    vip = _pair(vip_index, tables.vips[vip_index]["generation"])
    base = _set_of(vip_index, hi, lo)
    for way in range(AFFINITY_WAYS):
        whole, _, its_hi, its_lo, its_vip, its_pod, expires = _read(
            state.affinity, base + way * AFFINITY_WORDS
        )
        if whole and its_vip == vip and its_lo == lo and its_hi == hi and is_live(expires, now):
            index = np.int64(its_pod & _LOW)
            pod = tables.pods[index]
            if np.uint64(pod["generation"]) == its_pod >> _HALF and np.int64(pod["flags"]) & _USED:
                return index
    return np.int64(0)


@kernel
def remember(tables, state, vip_index, hi, lo, pod_index, now):
    """This client has this pod, for the VIP's affinity time from now."""
    vip = _pair(vip_index, tables.vips[vip_index]["generation"])
    base = _set_of(vip_index, hi, lo)
    chosen = np.int64(-1)
    chosen_sequence = _ZERO
    least = np.int64(1) << 62
    for way in range(AFFINITY_WAYS):
        at = base + way * AFFINITY_WORDS
        whole, sequence, its_hi, its_lo, its_vip, _, expires = _read(state.affinity, at)
        if not whole:
            continue
        left = np.int64(-1)
        if its_vip != _ZERO and is_live(expires, now):
            left = (expires - now) & 0xFFFFFFFF
        same = its_vip == vip and its_lo == lo and its_hi == hi
        if same or left < least:
            chosen = at
            chosen_sequence = sequence
            least = left
        if same:
            break
    if chosen < 0:
        return
    pod = _pair(pod_index, tables.pods[pod_index]["generation"])
    expires = (now + np.int64(tables.vips[vip_index]["affinity"])) & 0xFFFFFFFF
    _write(state.affinity, chosen, chosen_sequence, state.header[W_NUMBER], hi, lo, vip, pod, expires)


def repair(table: np.ndarray, worker: int | None = None) -> int:
    """Empty the entries that a worker was writing when it was killed; returns how many.

    `table` is WorkerState.affinity, uint64[AFFINITY_SLOTS * AFFINITY_WORDS]; others may use it meanwhile. `worker` is
    the number of the one that is dead; None: none is alive.
    """
    entries = table.reshape(-1, AFFINITY_WORDS)
    sequences = entries[:, _SEQUENCE]
    broken = (sequences & _ODD) != 0
    if worker is not None:
        broken &= (sequences & _WRITER) >> _ODD == worker
    places = broken.nonzero()[0]
    for place in places:
        entries[place, _HI:] = 0
        entries[place, _SEQUENCE] &= ~_WRITER
    return len(places)
