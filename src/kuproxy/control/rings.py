"""What the last change of a VIP's pods did to its new-flow table: the owners before beside the owners now.

The former ring's place in the tables is soon used again, so a copy is kept, a word a slot, of the VIPs that changed
last.  Pods are compared by address and port: indices are used again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kuproxy.control.places import Places
from kuproxy.model.vip import Pod, VipKey

__all__ = ["MOST_SLOTS", "FormerRing", "RingHistory", "RingReport", "RingShare", "compare_rings"]

MOST_SLOTS = 1 << 22  # of all former rings together: 16 MiB, or the last 4,096 changes of the usual size


@dataclass(frozen=True, slots=True)
class FormerRing:
    """The owners before the last change; `owners` is uint32[slots] of pod indices as of then."""

    owners: np.ndarray
    indices: Mapping[Pod, int]

    @property
    def pods(self) -> dict[int, Pod]:
        """By index. Turned round only when somebody asks, which is rare; changes are not."""
        return {index: pod for pod, index in self.indices.items()}


class RingHistory:
    """Former rings by VIP, the longest unchanged forgotten first."""

    def __init__(self, most_slots: int = MOST_SLOTS) -> None:
        self._most = most_slots
        self._rings: OrderedDict[VipKey, FormerRing] = OrderedDict()
        self._slots = 0

    def __len__(self) -> int:
        return len(self._rings)

    def note(self, key: VipKey, owners: np.ndarray | None, pods: Places) -> None:
        """The VIP is about to get another ring; `owners`: its present one or None, `pods`: their indices."""
        self.forget(key)
        if owners is None or len(owners) > self._most:
            return
        # Of all pods, though some may own nothing: whose index it was must still be known.
        self._rings[key] = FormerRing(owners.copy(), pods.copy())
        self._slots += len(owners)
        while self._slots > self._most:
            self.forget(next(iter(self._rings)))

    def forget(self, key: VipKey) -> None:
        former = self._rings.pop(key, None)
        if former is not None:
            self._slots -= len(former.owners)

    def former(self, key: VipKey) -> FormerRing | None:
        """None: the VIP's first ring, or a change too long ago."""
        return self._rings.get(key)


@dataclass(frozen=True, slots=True)
class RingShare:
    """A pod's part of the ring: slots now and before, how many it got from others and lost to others."""

    pod: Pod
    slots: int
    slots_before: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class RingReport:
    """Owners are positions in `shares`, -1: nobody.  `before` is None when there is nothing to compare with."""

    shares: tuple[RingShare, ...]
    owners: np.ndarray  # int32[slots]
    before: np.ndarray | None
    moved: int  # slots with another owner than before

    def svg(self, title: str = "new-flow table") -> str:
        """The ring as a picture; slots that moved stand out."""
        from kuproxy.pictures.ring import MOST_CELLS, ring_svg

        every = max(1, len(self.owners) // MOST_CELLS)
        return ring_svg(
            self.owners[::every].tolist(),
            [str(share.pod) for share in self.shares],
            None if self.before is None else self.before[::every].tolist(),
            total=len(self.owners),
            moved=self.moved,
            title=title,
        )

    _repr_svg_ = svg  # what a notebook asks for


def _positions(owners: np.ndarray, places: Mapping[int, int]) -> np.ndarray:
    """int32[slots]: positions for pod indices, -1 for what is not in `places`."""
    known = np.full(int(owners.max(initial=0)) + 1, -1, np.int32)
    for index, position in places.items():
        if index < len(known):
            known[index] = position
    return known[owners]


def compare_rings(owners: np.ndarray, pods: Mapping[int, Pod], former: FormerRing | None) -> RingReport:
    """`owners` is uint32[slots] of pod indices, `pods` the names of all of them.

    A former ring of another size is not compared: nearly every flow may have moved.
    """
    compared = former is not None and len(former.owners) == len(owners)
    before_pods = former.pods if former is not None and compared else {}
    names = sorted({*pods.values(), *before_pods.values()})
    place = {pod: position for position, pod in enumerate(names)}
    now = _positions(owners, {index: place[pod] for index, pod in pods.items()})
    had = now
    if former is not None and compared:
        had = _positions(former.owners, {index: place[pod] for index, pod in before_pods.items()})
    moved = now != had
    counts = [np.bincount(each + 1, minlength=len(names) + 1) for each in (now, had, now[moved], had[moved])]
    shares = tuple(
        RingShare(pod, *(int(count[position + 1]) for count in counts)) for position, pod in enumerate(names)
    )
    return RingReport(shares, now, had if compared else None, int(moved.sum()))
