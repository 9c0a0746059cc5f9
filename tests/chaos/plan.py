"""What a seed decides: which faults, in which order, when each begins and ends, and what changes meanwhile.

The same seed gives the same plan, in every run and on every machine.  What the kernel's scheduler makes of it is not
decided here: a fault that strikes a process strikes it at another instruction in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

KINDS = (
    "kill_worker",
    "kill_control",
    "stop_worker",
    "stop_control",
    "lose_netlink",
    "api_errors",
    "api_breaks",
    "api_away",
    "api_stalls",
    "flap_carrier",
    "flap_new",
    "few_files",
    "little_memory",
    "full_disk",
)
MOST_FAULTS = 3
LATEST_S = 0.3  # after the beginning, a fault begins
SHORTEST_S, LONGEST_S = 0.1, 0.5  # a fault lasts
CHANGES = 2  # of the endpoints, in the same time


@dataclass(frozen=True, slots=True)
class Step:
    """At this moment (s after the beginning): `kind` begins with a number of its own, ends, or endpoints change."""

    at_s: float
    act: str  # "begin", "end", "change"
    kind: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    faults: tuple[str, ...]
    steps: tuple[Step, ...]  # by time

    def __str__(self) -> str:
        lines = (f"  {step.at_s:.3f} s {step.act} {step.kind} {step.number}" for step in self.steps)
        return f"seed {self.seed}:\n" + "\n".join(lines)


def plan_of(seed: int) -> Plan:
    """Every kind has its turn as the first fault (seed modulo their number); the others are drawn."""
    rng = Random(seed)
    first = KINDS[seed % len(KINDS)]
    others = rng.sample([kind for kind in KINDS if kind != first], rng.randrange(MOST_FAULTS))
    steps = []
    for kind in (first, *others):
        begin = rng.uniform(0.0, LATEST_S)
        number = rng.randrange(1 << 16)
        steps.append(Step(begin, "begin", kind, number))
        steps.append(Step(begin + rng.uniform(SHORTEST_S, LONGEST_S), "end", kind, number))
    steps += [
        Step(rng.uniform(0.0, LATEST_S + LONGEST_S), "change", number=rng.randrange(1 << 16))
        for _ in range(CHANGES)
    ]
    return Plan(seed, (first, *others), tuple(sorted(steps, key=lambda step: step.at_s)))
