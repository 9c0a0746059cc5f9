"""No packet crashes the graph or leaves its own bytes; each has exactly one outcome, and the outcomes add up.

Real packets of every kind, for VIPs of every kind, damaged by a compiled mutator that knows headers
(`fuzz/packets`); some ten thousand at a time through one world, in a process of its own. The first packets of
each world, and of every eighth many more, are held against the plain-Python reference: each outcome, reason and
byte, the counters and the flows.

With NUMBA_BOUNDSCHECK=1 every access to an array is checked too.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from fuzz.packets.run import SharedLog, replay, run
from fuzz.target import Batch, Finding, Parts, Target, described, in_child
from kuproxy.codes import Node, Reason
from kuproxy.dataplane._jit import BOUNDS_CHECKED

PACKETS = 60_000  # of a world
TWIN_PACKETS = 300  # of these, beside the reference
MANY = 8  # every so manyth world, ten times as many


class Packets(Target):
    keeps = 1
    isolated = True

    def __init__(self, packets: int = PACKETS, twin: int = TWIN_PACKETS) -> None:
        self.packets, self.twin = packets, twin
        self.compared = 0
        self.reached: Counter[tuple[Node, Reason]] = Counter()  # worlds in which it was counted
        self._log: SharedLog | None = None

    def _prepared(self) -> SharedLog:
        """Whatever must be compiled is, before there are children with little time."""
        if self._log is None:
            self._log = SharedLog()
            run(0, 1, self._log.log)
        return self._log

    def batch(self, seed: int) -> Batch:
        log = self._prepared()
        log.clear()
        answer = in_child(lambda: self._run(seed, log))
        if answer[0] is not None and not isinstance(answer[0], int):
            return Batch(0, Finding(log.parts(seed), *answer))
        done, reached = answer
        self.reached.update((Node(node), Reason(reason)) for node, reason in reached)
        parts = log.parts(seed, self.twin * (10 if seed % MANY == 0 else 1))
        self.compared += len(parts) - 1
        return Batch(done, self.judge(parts))

    def judge(self, parts: Parts) -> Finding | None:
        self._prepared()
        return super().judge(parts)

    def _run(self, seed: int, log: SharedLog) -> tuple[object, object]:
        try:
            return run(seed, self.packets, log.log)
        except Exception as error:
            return described(error)

    def draw(self, rng: Random) -> Parts:
        seed = rng.randrange(2**31)
        log = SharedLog(4 << 20)
        run(seed, self.twin, log.log)
        return log.parts(seed)

    def check(self, parts: Parts) -> None:
        replay(parts)

    def summary(self) -> list[str]:
        how = "every access checked" if BOUNDS_CHECKED else "compiled"
        return [
            f"{how}; {self.compared:,} packets and changes held against the reference",
            f"{len(self.reached)} pairs of node and reason were reached",
        ]
