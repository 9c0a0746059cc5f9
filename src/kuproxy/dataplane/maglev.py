"""The new-flow table: Maglev's consistent hashing (Eisenbud et al., NSDI 2016, section 3.4) in VPP's variant.

VPP takes a power of two as the table's size and an odd skip, which is coprime to it, where the paper takes a prime.
The filling is the paper's: pods in turn take the next free slot of their own walk through the table.
"""

import numpy as np

from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.hash import pod_seed

_LOW = np.uint64(0xFFFFFFFF)


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


@kernel
def fill_ring(hi, lo, owners, walk, ring):
    """Fill `ring` (uint32[2^n]) with `owners` (uint32[p]) of the pods with addresses `hi`, `lo` (uint64[p]).

    The pods must come sorted by their 16 address bytes (then port): the table is then the same on every node.
    `walk` (uint32[2, p]) is scratch; `ring` must be zeroed; `owners` must not contain 0. Without pods the ring stays
    zero.
    """
    pods = len(owners)
    slots = len(ring)
    if pods == 0:
        return
    mask = np.uint32(slots - 1)
    position = walk[0]
    skip = walk[1]
    for pod in range(pods):
        _begin_walk(position, skip, pod, pod_seed(hi[pod], lo[pod]), mask)
    # With one slot the masked skip is 0, which is right: there is nowhere to go.
    filled = 0
    while True:
        for pod in range(pods):
            _take_slot(position, skip, pod, owners[pod], ring, mask)
            filled += 1
            if filled == slots:
                return


@kernel
def fill_weighted(hi, lo, weights, owners, walk, ring):
    """The same for pods of different weights (uint32[p], above 0).

    The heaviest pod takes a slot in every turn, the others in so many turns as their weight says, evenly spread:
    in turn t, when floor(t * weight / heaviest) grows. With equal weights this is `fill_ring`.
    """
    pods = len(owners)
    slots = len(ring)
    if pods == 0:
        return
    mask = np.uint32(slots - 1)
    position = walk[0]
    skip = walk[1]
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
def fill_rings(hi, lo, owners, ends, walk, rings, offsets, sizes):
    """`fill_ring` for many tables at once: the n-th, `rings[offsets[n] : offsets[n] + sizes[n]]`, is zeroed and filled.

    `hi`, `lo` and `owners` hold the pods of all tables, one after the other; those of the n-th end at `ends[n]`
    (int64). `walk` (uint32[2, p]) is as wide as the largest table has pods.
    """
    begin = np.int64(0)
    for number in range(len(ends)):
        end = ends[number]
        offset = offsets[number]
        ring = rings[offset : offset + sizes[number]]
        for slot in range(len(ring)):
            ring[slot] = 0
        fill_ring(hi[begin:end], lo[begin:end], owners[begin:end], walk, ring)
        begin = end
