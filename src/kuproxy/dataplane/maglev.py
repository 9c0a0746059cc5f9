"""The new-flow table: Maglev's consistent hashing (Eisenbud et al., NSDI 2016, section 3.4) in VPP's variant.

VPP takes a power of two as the table's size and an odd skip, which is coprime to it, where the paper takes a prime.
The filling is the paper's: pods in turn take the next free slot of their own walk through the table.
"""

from typing import NamedTuple

import numpy as np

from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.hash import pod_seed

_LOW = np.uint64(0xFFFFFFFF)

# Below, a table is filled in less time than the quicker ways take to begin. Above the second it outgrows the cache, and
# looking at slots that turn out not to be needed costs more than the wrongly predicted branches that it saves.
_AHEAD_FROM, _AHEAD_TO = 1 << 13, 1 << 17
# Looking for the last `last` slots costs last^2 / 2 multiplications, walking to them slots * ln(last) steps.
_LAST_SQUARED = 8  # in slots
_MOST_LAST = 1 << 14  # for the largest table there may be


class Scratch(NamedTuple):
    """What filling works with; the contents do not matter before, and mean nothing after."""

    walk: np.ndarray  # uint32[2, pods]: next place and step of each pod's walk
    taken: np.ndarray  # uint8[slots]: whether a slot has an owner; in a quarter of the ring's cache lines
    free: np.ndarray  # uint32[_MOST_LAST]: the last free slots


def scratch(pods: int, slots: int) -> Scratch:
    """For tables of at most so many pods and slots."""
    return Scratch(np.empty((2, pods), np.uint32), np.empty(slots, np.uint8), np.empty(_MOST_LAST, np.uint32))


@helper
def _begin_walk(position, skip, pod, seed, mask):
    """Where the pod's walk through the table begins, and its step."""
    skip[pod] = np.uint32((seed & _LOW) | np.uint64(1)) & mask
    position[pod] = np.uint32(seed >> np.uint64(32)) & mask


@helper
def _take_slot(position, skip, pod, owner, ring, mask):
    """Give the pod the next free slot of its walk; there must be one."""
    slot = position[pod]
    step = skip[pod]
    while ring[slot] != 0:
        slot = (slot + step) & mask
    ring[slot] = owner
    position[pod] = (slot + step) & mask


@helper
def _take_known(position, skip, pod, owner, ring, taken, mask):
    """The same, where `taken` tells what is free."""
    slot = position[pod]
    step = skip[pod]
    while taken[slot] != 0:
        slot = (slot + step) & mask
    taken[slot] = 1
    ring[slot] = owner
    position[pod] = (slot + step) & mask


@helper
def _take_of_four(position, skip, pod, owner, ring, taken, mask):
    """The same, four slots at a time: how many of them are taken before the first free one is a sum, not a branch."""
    slot = position[pod]
    step = skip[pod]
    while True:
        second = (slot + step) & mask
        third = (second + step) & mask
        fourth = (third + step) & mask
        one = taken[slot]
        two = one & taken[second]
        three = two & taken[third]
        four = three & taken[fourth]
        slot = (slot + step * np.uint32(one + two + three + four)) & mask
        if four == 0:
            break
    taken[slot] = 1
    ring[slot] = owner
    position[pod] = (slot + step) & mask


@helper
def _take_of_eight(position, skip, pod, owner, ring, taken, mask):
    """The same, eight at a time."""
    slot = position[pod]
    step = skip[pod]
    while True:
        place = slot
        before = np.uint8(1)
        steps = np.uint32(0)
        for _ in range(8):
            before = before & taken[place]
            steps += np.uint32(before)
            place = (place + step) & mask
        slot = (slot + step * steps) & mask
        if before == 0:
            break
    taken[slot] = 1
    ring[slot] = owner
    position[pod] = (slot + step) & mask


@helper
def _fill_last(position, skip, first, owners, ring, taken, free, mask):
    """Give away the slots that are still free, pod `first` being next.

    A pod reaches slot s after (s - position) / skip steps, the inverse of an odd number being one modulo 2^n: the slot
    that comes first is a minimum over the free ones, where the walk would pass nearly all of the taken ones.
    """
    slots = len(ring)
    pods = len(owners)
    all_bits = np.uint64(mask)
    count = 0
    for slot in range(slots):
        if taken[slot] == 0:
            free[count] = slot
            ring[slot] = count  # its place in `free`, until it has an owner
            count += 1
    pod = first
    while count > 0:
        step = np.uint64(skip[pod])
        # Newton's iteration doubles the number of right bits, which are three to begin with: 3, 6, 12, 24.
        inverse = step
        for _ in range(3):
            wrong = (step * inverse) & all_bits
            inverse = (inverse * (np.uint64(slots) + np.uint64(2) - wrong)) & all_bits
        back = np.uint64(slots) - np.uint64(position[pod])
        steps = all_bits
        for place in range(count):
            steps = min(steps, ((np.uint64(free[place]) + back) * inverse) & all_bits)
        slot = (np.uint64(position[pod]) + steps * step) & all_bits
        place = ring[slot]
        count -= 1
        moved = free[count]
        free[place] = moved
        ring[moved] = place
        ring[slot] = owners[pod]
        position[pod] = np.uint32((slot + step) & all_bits)
        pod += 1
        if pod == pods:
            pod = 0


@kernel
def fill_ring(hi, lo, owners, work, ring):
    """Fill `ring` (uint32[2^n]) with `owners` (uint32[p]) of the pods with addresses `hi`, `lo` (uint64[p]).

    The pods must come sorted by their 16 address bytes (then port): the table is then the same on every node.
    `work` is a Scratch for so many pods and slots; `ring` must be zeroed; `owners` must not contain 0. Without pods the
    ring stays zero.
    """
    pods = len(owners)
    slots = len(ring)
    if pods == 0:
        return
    mask = np.uint32(slots - 1)
    position = work.walk[0]
    skip = work.walk[1]
    taken = work.taken
    for pod in range(pods):
        _begin_walk(position, skip, pod, pod_seed(hi[pod], lo[pod]), mask)
    # With one slot the masked skip is 0, which is right: there is nowhere to go.
    if slots < _AHEAD_FROM:
        filled = 0
        while True:
            for pod in range(pods):
                _take_slot(position, skip, pod, owners[pod], ring, mask)
                filled += 1
                if filled == slots:
                    return
    for slot in range(slots):
        taken[slot] = 0
    last = 1
    while last * last < _LAST_SQUARED * slots:
        last *= 2
    last = min(last, len(work.free))
    left = slots
    turn = 0
    while left > last:
        turn = min(pods, left - last)
        if slots > _AHEAD_TO or left * 8 > slots * 7:  # while nearly every slot is free, that is a safe prediction
            for pod in range(turn):
                _take_known(position, skip, pod, owners[pod], ring, taken, mask)
        elif left * 2 > slots:
            for pod in range(turn):
                _take_of_four(position, skip, pod, owners[pod], ring, taken, mask)
        else:
            for pod in range(turn):
                _take_of_eight(position, skip, pod, owners[pod], ring, taken, mask)
        left -= turn
    _fill_last(position, skip, 0 if turn == pods else turn, owners, ring, taken, work.free, mask)


@kernel
def fill_weighted(hi, lo, weights, owners, work, ring):
    """The same for pods of different weights (uint32[p], above 0).

    The heaviest pod takes a slot in every turn, the others in so many turns as their weight says, evenly spread:
    in turn t, when floor(t * weight / heaviest) grows. With equal weights this is `fill_ring`.
    """
    pods = len(owners)
    slots = len(ring)
    if pods == 0:
        return
    mask = np.uint32(slots - 1)
    position = work.walk[0]
    skip = work.walk[1]
    heaviest = np.int64(0)
    for pod in range(pods):
        _begin_walk(position, skip, pod, pod_seed(hi[pod], lo[pod]), mask)
        heaviest = max(heaviest, np.int64(weights[pod]))
    filled = 0
    turn = np.int64(0)
    while True:
        for pod in range(pods):
            weight = np.int64(weights[pod])
            if (turn + 1) * weight // heaviest == turn * weight // heaviest:
                continue
            _take_slot(position, skip, pod, owners[pod], ring, mask)
            filled += 1
            if filled == slots:
                return
        turn += 1


@kernel
def fill_rings(hi, lo, owners, ends, work, rings, offsets, sizes):
    """`fill_ring` for many tables at once: the n-th, `rings[offsets[n] : offsets[n] + sizes[n]]`, is zeroed and filled.

    `hi`, `lo` and `owners` hold the pods of all tables, one after the other; those of the n-th end at `ends[n]`
    (int64). `work` is large enough for each of them.
    """
    begin = np.int64(0)
    for number in range(len(ends)):
        end = ends[number]
        offset = offsets[number]
        ring = rings[offset : offset + sizes[number]]
        for slot in range(len(ring)):
            ring[slot] = 0
        fill_ring(hi[begin:end], lo[begin:end], owners[begin:end], work, ring)
        begin = end
