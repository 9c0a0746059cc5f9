"""What is counted rather than timed: rows 1 to 5 of the feature list.

1 even shares; 2 little disruption; 3 independence of the order of adding; 4 the bucket's fifth flow, and expiry;
5 stickiness while pods come and go.
"""

import random
import subprocess
import sys

import numpy as np

from bench import traffic
from bench.harness import Case, Count, Sample, Scale
from bench.results import RESULTS
from bench.suites.graph import count_name
from bench.suites.maglev import ring_of
from bench.world import NOW, World, make_vip, pod
from kuproxy.codes import VipCounter
from kuproxy.control.compile.words import word_columns
from kuproxy.dataplane.layout import TICKS_PER_SECOND, W_FLOWS, WAYS
from kuproxy.sim.algorithms import next_prime
from kuproxy.sim.kernels import fill_prime

_EXPIRY_S = 40  # VPP's default timeout


def prime_ring(numbers: list[int], slots: int) -> np.ndarray:
    """uint32[slots] of pod numbers; `slots` must be a prime."""
    hi, lo = word_columns(pod(4, n) for n in numbers)
    places = np.full(slots, -1, np.int64)
    fill_prime(hi, lo, np.ones(len(numbers), np.int64), np.empty((2, len(numbers)), np.int64), places)
    return np.array(numbers, np.uint32)[places]


class Shares(Count):
    """Slots of the pod with most and of the one with fewest."""

    unit = "slots"

    def __init__(self, pods: int, slots: int):
        super().__init__(f"properties-1-shares-{count_name(pods)}pod-{slots}slot", "accepted: at most 1")
        self._pods, self._slots = pods, slots

    def sample(self) -> Sample:
        counts = np.bincount(ring_of(range(1, self._pods + 1), self._slots), minlength=self._pods + 1)[1:]
        return {"most minus fewest": float(counts.max() - counts.min())}


class Disruption(Case):
    """Percent of all slots whose owner changes when pods go, each trial with other pods and other ones gone."""

    unit = "% of slots"

    def __init__(self, pods: int, slots: int, gone: int):
        name = f"properties-2-disruption-{count_name(pods)}pod-{slots}slot-remove-{gone}"
        super().__init__(name, f"at least {100 * gone / pods:.1f} % must change")
        self._pods, self._slots, self._gone = pods, slots, gone
        self._trial = 0

    def rounds(self, scale: Scale) -> int:
        return scale.trials

    def sample(self) -> Sample:
        draw = random.Random(self._trial)
        self._trial += 1
        pods = sorted(draw.sample(range(1, 1 << 20), self._pods))
        gone = set(draw.sample(pods, self._gone))
        rest = [n for n in pods if n not in gone]
        prime = next_prime(self._slots)
        return {
            name: 100 * float(np.mean(fill(pods, slots) != fill(rest, slots)))
            for name, fill, slots in (
                (f"2^n table, {self._slots}", ring_of, self._slots),
                (f"prime table, {prime}", prime_ring, prime),
            )
        }


class Order(Count):
    """Different digests among tables of two processes (with other string hashing), added in other orders."""

    unit = "digests"

    def __init__(self, pods: int, slots: int):
        super().__init__(f"properties-3-order-{count_name(pods)}pod-{slots}slot-2process", "accepted: 1")
        self._pods, self._slots = pods, slots

    def sample(self) -> Sample:
        command = [sys.executable, "-m", "bench.digest"]
        found = set()
        for seed in (1, 2):
            words = [*command, str(seed), str(self._pods), str(self._slots)]
            run = subprocess.run(words, capture_output=True, text=True, check=True, cwd=RESULTS.parent.parent)
            found.add(run.stdout.strip())
        self.note = f"accepted: 1; {', '.join(sorted(found))}"
        return {"different digests": len(found)}


class Overflow(Count):
    """Eight flows for the four entries of one bucket, sent twice; then the age at which an idle flow goes."""

    unit = "flows"
    _AGE = f"age at expiry, timeout {_EXPIRY_S} s"

    def __init__(self) -> None:
        super().__init__("properties-4-bucket-overflow-8flow", "accepted: 4, 8, 0, timeout ± 1 s")
        self.units = {"untracked packets of 16": "packets", self._AGE: "s"}

    def sample(self) -> Sample:
        world = World(0, [make_vip(4, 1, range(1, 9), 1024)])
        world.compiler.set_timeout(_EXPIRY_S)
        rows = traffic.udp_rows(4, 2 * WAYS)
        once, again = world.forwarded(rows), world.forwarded(rows)
        counters = world.engine.state.vip_counters[1]
        age = 0
        while world.engine.state.header[W_FLOWS] and age <= 2 * _EXPIRY_S * TICKS_PER_SECOND:
            age += 1
            world.engine.maintain(NOW + age)
        return {
            "flows tracked": float(counters[int(VipCounter.FIRST_PACKET)]),
            "untracked packets of 16": float(counters[int(VipCounter.UNTRACKED_PACKET)]),
            "flows that changed pod": float(np.any(once != again, axis=1).sum()),
            self._AGE: age / TICKS_PER_SECOND,
        }


class Stickiness(Count):
    """Flows send a packet after each change of the pods; whose pod changed?"""

    unit = "flows"

    def __init__(self, flows: int, changes: int):
        super().__init__(f"properties-5-stickiness-{count_name(flows)}flow-{changes}change", "accepted: none moved")
        self._flows, self._changes = flows, changes

    def sample(self) -> Sample:
        draw = random.Random(5)
        present = set(range(1, 65))
        world = World(max(6, self._flows.bit_length() + 2), [make_vip(4, 1, sorted(present), 1024)])
        rows = traffic.udp_rows(4, self._flows)
        first = self._pods(world, rows)
        moved_of_present = moved_of_gone = 0
        ever_gone: set[int] = set()
        for change in range(self._changes):
            if change % 2 == 0:
                present.discard(draw.choice(sorted(present)))
            else:
                present.add(draw.choice([n for n in range(1, 97) if n not in present]))
            world.publish([make_vip(4, 1, sorted(present), 1024)])
            world.collect()
            now = self._pods(world, rows)
            ever_gone |= set(range(1, 97)) - present
            away = first != now
            served = np.isin(first, sorted(ever_gone))
            moved_of_present += int((away & ~served).sum())
            moved_of_gone += int((away & served).sum())
        untracked = int(world.engine.state.vip_counters[1][int(VipCounter.UNTRACKED_PACKET)])
        return {
            "moved, of pods that stayed": moved_of_present,
            "moved, of pods that were removed": moved_of_gone,
            "untracked packets": untracked,
        }

    @staticmethod
    def _pods(world: World, rows: np.ndarray) -> np.ndarray:
        """Number of the pod that each row was sent to."""
        address = np.ascontiguousarray(world.forwarded(rows)[:, 30:34]).view(">u4")[:, 0].astype(np.int64)
        return address - traffic.POD4


def cases(scale: Scale) -> list[Case]:
    """Rows 1 to 5."""
    flows, changes = (1000, 50) if scale.pods >= 1000 else (50, 4)
    gone = (1, 10, 20) if scale.pods >= 1000 else (1,)
    return [
        Shares(scale.pods, scale.slots),
        Shares(scale.pods - 3, scale.slots // 16),
        *(Disruption(scale.pods, scale.slots, n) for n in gone),
        Order(scale.pods, scale.slots),
        Overflow(),
        Stickiness(flows, changes),
    ]
