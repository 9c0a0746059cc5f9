"""The pods of a large ring as columns, kept up to date: a change of one among a thousand costs one, not a thousand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import attrgetter, ne

import numpy as np

from kuproxy.control.compile.words import word_columns
from kuproxy.model.vip import DEFAULT_WEIGHT, Pod

__all__ = ["FROM", "Members", "difference"]

FROM = 64  # pods; below, columns would cost more memory than they save time

_ID = attrgetter("id")


@dataclass(slots=True)
class Members:
    """Pods of one port and of weight 1, in the ring's order, which is that of their addresses."""

    addresses: list[int]
    hi: np.ndarray  # uint64[n]
    lo: np.ndarray  # uint64[n]
    owners: np.ndarray  # uint32[n]: pod indices

    @classmethod
    def of(cls, pods: Sequence[Pod], owners: Sequence[int]) -> Members | None:
        """Of a ring's pods (their ports resolved) in its order; None if they are few or not alike."""
        if len(pods) < FROM:
            return None
        _, port, _, _ = pods[0].id
        if any(each[1] != port or each[3] != DEFAULT_WEIGHT for each in map(_ID, pods)):
            return None
        return cls([pod.id[0] for pod in pods], *word_columns(pods), np.array(owners, np.uint32))

    def leave(self, pod: Pod) -> None:
        """One that is there."""
        place = bisect_left(self.addresses, pod.id[0])
        del self.addresses[place]
        self.hi, self.lo, self.owners = (np.delete(each, place) for each in (self.hi, self.lo, self.owners))

    def join(self, pod: Pod, owner: int) -> None:
        """One that is not there."""
        place = bisect_left(self.addresses, pod.id[0])
        self.addresses.insert(place, pod.id[0])
        hi, lo = word_columns([pod])
        self.hi, self.lo = np.insert(self.hi, place, hi), np.insert(self.lo, place, lo)
        self.owners = np.insert(self.owners, place, np.uint32(owner))


def difference(before: Sequence[Pod], after: Sequence[Pod]) -> tuple[list[Pod], list[Pod]]:
    """Of two sequences in order, the pods that only the first has, and those that only the second has."""
    old, new = list(map(_ID, before)), list(map(_ID, after))
    shorter = min(len(old), len(new))
    head = next(compress(count(), map(ne, old, new)), shorter)
    tail = next(compress(count(), map(ne, reversed(old), reversed(new))), shorter)
    tail = min(tail, shorter - head)
    gone = before[head : len(old) - tail]
    come = after[head : len(new) - tail]
    there, here = set(gone), set(come)
    return [pod for pod in gone if pod not in here], [pod for pod in come if pod not in there]
