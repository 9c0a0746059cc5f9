"""Filling new-flow tables: which pod owns which slot."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from kuproxy.control.compile.records import Ring
from kuproxy.control.compile.words import word_columns
from kuproxy.dataplane.maglev import fill_ring, fill_rings, fill_weighted
from kuproxy.model.vip import Pod


def fill(pods: Sequence[Pod], owners: np.ndarray, ring: np.ndarray) -> None:
    """Write the new-flow table of `pods` (in order, none of weight 0) into `ring`, as the numbers in `owners`."""
    hi, lo = word_columns(pods)
    walk = np.empty((2, len(pods)), np.uint32)
    ring[:] = 0
    weights = np.array([pod.weight for pod in pods], np.uint32)
    if len(pods) == 0 or (weights == weights[0]).all():
        fill_ring(hi, lo, owners, walk, ring)
    else:
        fill_weighted(hi, lo, weights, owners, walk, ring)


def fill_equal(
    pods: Sequence[Sequence[Pod]], owners: Sequence[Sequence[int]], rings: np.ndarray, places: Sequence[Ring]
) -> None:
    """Write many new-flow tables of pods that weigh the same, none of them empty: each into its place in `rings`."""
    hi, lo = word_columns(pod for each in pods for pod in each)
    sizes = [len(each) for each in pods]
    walk = np.empty((2, max(sizes, default=0)), np.uint32)
    fill_rings(
        hi,
        lo,
        np.fromiter(itertools.chain.from_iterable(owners), np.uint32),
        np.cumsum(sizes, dtype=np.int64),
        walk,
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
