"""Cases, rounds and figures.

A case is measured once a round, and the rounds of all cases of a suite are interleaved (A B C A B C ...), so that a
neighbour's load spoils a round of everything rather than every round of one case. Times are processor time of the
measuring thread: being preempted costs nothing, but a neighbour's traffic in the shared cache still does. Read minimum
and median together.
"""

import fnmatch
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Scale:
    """How much work a run does."""

    name: str
    rounds: int
    packets: int  # a timed round sends at least as many
    flows: tuple[int, ...]  # in the table, in the cases of `graph` and `memory`
    most_vips: int
    cycles: int  # of adding and deleting
    pods: int  # of the Maglev tables of `maglev` and `properties`
    slots: int
    trials: int  # of the disruption


FULL = Scale("full", 9, 500_000, (1_000, 100_000, 1_000_000), 100_000, 10_000, 1000, 65536, 5)
QUICK = Scale("quick", 7, 200_000, (1_000, 100_000), 10_000, 1_000, 1000, 65536, 5)
TINY = Scale("tiny", 2, 500, (64,), 16, 5, 20, 256, 2)  # what the tests run

Sample = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One line of a result file."""

    case: str
    metric: str
    unit: str
    min: float
    median: float
    max: float
    rounds: int
    note: str = ""


class Case:
    """Something that can be measured again and again."""

    unit = "ns"
    units: ClassVar[dict[str, str]] = {}  # of metrics that have another one

    def __init__(self, name: str, note: str = ""):
        self.name = name
        self.note = note
        self.samples: list[Sample] = []

    def prepare(self) -> None:
        """Once, before the first round."""

    def sample(self) -> Sample:
        """One round: value by metric, in `unit`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Once, after the last case's last round: give memory back."""

    def rounds(self, scale: Scale) -> int:
        """How many; not more than the scale says."""
        return scale.rounds

    def figures(self) -> list[Figure]:
        """What the rounds amount to."""
        metrics = dict.fromkeys(metric for sample in self.samples for metric in sample)
        return [self.figure(metric, [s[metric] for s in self.samples if metric in s]) for metric in metrics]

    def figure(self, metric: str, values: list[float], note: str = "") -> Figure:
        """Minimum, median and maximum of a metric."""
        unit = self.units.get(metric, self.unit)
        spread = (min(values), statistics.median(values), max(values))
        return Figure(self.name, metric, unit, *spread, len(values), note or self.note)


class Count(Case):
    """A case that is counted rather than timed: one round."""

    def rounds(self, scale: Scale) -> int:
        return 1


class Apart(Count):
    """One that counts memory, in a process of its own, where nothing was freed before."""

    def __init__(self, name: str, function: Callable[[], Sample], unit: str, units: dict[str, str] | None = None):
        super().__init__(name)
        self._function = function
        self.unit = unit
        self.units = units or {}

    def sample(self) -> Sample:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(self._function).result()


def chosen(cases: Iterable[Case], pattern: str) -> list[Case]:
    """Cases whose name contains the pattern, or matches it as a shell would."""
    return [c for c in cases if not pattern or pattern in c.name or fnmatch.fnmatchcase(c.name, pattern)]


def measure(cases: list[Case], scale: Scale) -> list[Figure]:
    """All rounds of all cases, interleaved."""
    progress = sys.stderr.isatty()
    try:
        for case in cases:
            case.prepare()
        for number in range(max((case.rounds(scale) for case in cases), default=0)):
            for case in cases:
                if number < case.rounds(scale):
                    case.samples.append(case.sample())
                if progress:
                    print(f"\r\033[Kround {number + 1}: {case.name}", end="", file=sys.stderr, flush=True)
    finally:
        for case in cases:
            case.finish()
    if progress:
        print("\r\033[K", end="", file=sys.stderr)
    return [figure for case in cases for figure in case.figures()]
