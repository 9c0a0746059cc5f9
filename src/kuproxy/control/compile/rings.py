"""Filling new-flow tables: which pod owns which slot."""

from collections.abc import Iterable, Sequence

import numpy as np

from kuproxy.control.compile.words import address_words
from kuproxy.dataplane.maglev import fill_ring, fill_weighted
from kuproxy.model.vip import Pod


def fill(pods: Sequence[Pod], owners: np.ndarray, ring: np.ndarray) -> None:
    """Write the new-flow table of `pods` (in order, none of weight 0) into `ring`, as the numbers in `owners`."""
    words = [address_words(pod.address) for pod in pods]
    hi, lo = np.array([hi for hi, _ in words]), np.array([lo for _, lo in words])
    walk = np.empty((2, len(words)), np.uint32)
    ring[:] = 0
    weights = np.array([pod.weight for pod in pods], np.uint32)
    if len(pods) == 0 or (weights == weights[0]).all():
        fill_ring(hi, lo, owners, walk, ring)
    else:
        fill_weighted(hi, lo, weights, owners, walk, ring)


def ring_owners(pods: Iterable[Pod], new_len: int) -> list[Pod]:
    """The pod of each of `new_len` slots; empty without pods."""
    order = sorted(pod for pod in set(pods) if pod.weight)
    if not order:
        return []
    ring = np.empty(new_len, np.uint32)
    fill(order, np.arange(1, len(order) + 1, dtype=np.uint32), ring)
    return [order[owner - 1] for owner in ring.tolist()]
