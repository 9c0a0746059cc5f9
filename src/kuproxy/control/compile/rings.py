"""Filling new-flow tables: which pod owns which slot."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from kuproxy.control.compile.records import Ring
from kuproxy.control.compile.words import word_columns
from kuproxy.dataplane.maglev import fill_ring, fill_rings, fill_weighted, scratch
from kuproxy.model.vip import Pod


def fill(pods: Sequence[Pod], owners: np.ndarray, ring: np.ndarray) -> None:
    """Write the new-flow table of `pods` (in order, none of weight 0) into `ring`, as the numbers in `owners`."""
    hi, lo = word_columns(pods)
    work = scratch(len(pods), len(ring))
    ring[:] = 0
    weights = np.array([pod.weight for pod in pods], np.uint32)
    if len(pods) == 0 or (weights == weights[0]).all():
        fill_ring(hi, lo, owners, work, ring)
    else:
        fill_weighted(hi, lo, weights, owners, work, ring)


def fill_columns(hi: np.ndarray, lo: np.ndarray, owners: np.ndarray, ring: np.ndarray) -> None:
    """The same of pods that weigh the same, from their columns: `address_words`, uint64[n], and uint32[n]."""
    ring[:] = 0
    fill_ring(hi, lo, owners, scratch(len(owners), len(ring)), ring)


def fill_equal(
    hi: np.ndarray,
    lo: np.ndarray,
    owners: Sequence[Sequence[int]],
    rings: np.ndarray,
    places: Sequence[Ring],
) -> None:
    """Write many new-flow tables of pods that weigh the same, none of them empty: each into its place in `rings`.

    `owners`: the pod indices of each, in order; `hi` and `lo`: `address_words` of all of them, uint64[n].
    """
    sizes = [len(each) for each in owners]
    work = scratch(max(sizes, default=0), 1 << max((place.log2 for place in places), default=0))
    fill_rings(
        hi,
        lo,
        np.fromiter(itertools.chain.from_iterable(owners), np.uint32),
        np.cumsum(sizes, dtype=np.int64),
        work,
        rings,
        np.array([place.offset for place in places], np.int64),
        np.array([1 << place.log2 for place in places], np.int64),
    )


def ring_owners(pods: Iterable[Pod], new_len: int) -> list[Pod]:
    """The pod of each of `new_len` slots; empty without pods."""
    order = sorted(pod for pod in set(pods) if pod.weight)
    if not order:
        return []
    ring = np.empty(new_len, np.uint32)
    fill(order, np.arange(1, len(order) + 1, dtype=np.uint32), ring)
    return [order[owner - 1] for owner in ring.tolist()]
