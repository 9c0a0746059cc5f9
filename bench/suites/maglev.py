"""Building a VIP's new-flow table, and publishing the change of one pod."""

import time

import numpy as np

from bench.harness import Case, Sample, Scale
from bench.suites.graph import count_name
from bench.world import World, make_vip, pod
from kuproxy.control.compile import address_words
from kuproxy.dataplane.maglev import fill_ring, scratch


def ring_of(numbers: range | list[int], slots: int) -> np.ndarray:
    """uint32[slots] of pod numbers, as the kernel fills it (numbers ascending and above 0)."""
    words = [address_words(pod(4, n).address) for n in numbers]
    hi = np.array([w[0] for w in words], np.uint64)
    lo = np.array([w[1] for w in words], np.uint64)
    ring = np.zeros(slots, np.uint32)
    fill_ring(hi, lo, np.array(numbers, np.uint32), scratch(len(words), slots), ring)
    return ring


class FillCase(Case):
    """The filling alone, pods' addresses being at hand as arrays."""

    unit = "ms"

    def __init__(self, pods: int, slots: int):
        super().__init__(f"maglev-{count_name(pods)}pod-{slots}slot-fill")
        self._pods, self._slots = pods, slots

    def prepare(self) -> None:
        words = [address_words(pod(4, n).address) for n in range(1, self._pods + 1)]
        self._hi = np.array([w[0] for w in words], np.uint64)
        self._lo = np.array([w[1] for w in words], np.uint64)
        self._owners = np.arange(1, self._pods + 1, dtype=np.uint32)
        self._work = scratch(self._pods, self._slots)
        self._ring = np.zeros(self._slots, np.uint32)

    def sample(self) -> Sample:
        self._ring[:] = 0
        begin = time.thread_time()
        fill_ring(self._hi, self._lo, self._owners, self._work, self._ring)
        return {"fill": (time.thread_time() - begin) * 1e3}


class ChangeCase(Case):
    """One pod leaves, one pod comes back: from the record in Python to the published table."""

    unit = "ms"

    def __init__(self, pods: int, slots: int):
        super().__init__(f"maglev-{count_name(pods)}pod-{slots}slot-change-1pod")
        self._pods, self._slots = pods, slots

    def prepare(self) -> None:
        self._all = make_vip(4, 1, range(1, self._pods + 1), self._slots)
        self._fewer = make_vip(4, 1, range(1, self._pods), self._slots)
        self._world = World(0, [self._all])

    def sample(self) -> Sample:
        values = {}
        for metric, vip in (("remove", self._fewer), ("add", self._all)):
            begin = time.thread_time()
            changes = self._world.store.replace("bench", [vip])
            self._world.compiler.apply(changes)
            values[metric] = (time.thread_time() - begin) * 1e3
            self._world.collect()
        return values


def cases(scale: Scale) -> list[Case]:
    """The table of the disruption's figures, and one sixteen times as large."""
    return [
        case
        for slots in (scale.slots, 16 * scale.slots)
        for case in (FillCase(scale.pods, slots), ChangeCase(scale.pods, slots))
    ]
