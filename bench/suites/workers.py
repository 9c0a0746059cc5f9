"""One worker and two at once, each in a process of its own: what they cost each other.

Rates are packets a second of processor time, so that what else the machine does counts only as far as it takes the
caches; a ratio of 2 means that two workers do not disturb each other at all.  Accepted: 1.7.
"""

import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

from bench import traffic
from bench.harness import Case, Sample, Scale
from bench.suites.graph import PODS, RING, count_name, fitting_log2
from bench.world import World, make_vip
from kuproxy.dataplane.layout import BATCH

WORKERS = 2
_ROUND_S = 0.5
_PATIENCE_S = 300.0  # compiling


def _work(pipe: Connection, flows: int) -> None:
    """Forward established flows for as many seconds as asked; answer with packets and processor time."""
    world = World(fitting_log2(flows), [make_vip(4, 1, range(1, PODS + 1), RING)])
    rows = traffic.udp_rows(4, flows)
    world.drive(rows, flows, vector=BATCH)
    pipe.send(None)
    while (seconds := pipe.recv()) is not None:
        begin, until, packets = time.thread_time(), time.monotonic() + seconds, 0
        while time.monotonic() < until:
            packets += max(flows, 50_000)
            world.drive(rows, max(flows, 50_000), vector=BATCH)
        pipe.send((packets, time.thread_time() - begin))


class WorkersCase(Case):
    """nat44, established flows, in a table at most half full each."""

    unit = "Mpps"
    units = {"two to one": "x"}  # noqa: RUF012

    def __init__(self, flows: int, seconds: float):
        super().__init__(f"ip4udp64-nat44-1vip-{PODS}pod-{count_name(flows)}flow-{WORKERS}worker")
        self._flows, self._seconds = flows, seconds
        self._started: list[tuple[Any, Connection]] = []

    def prepare(self) -> None:
        context = multiprocessing.get_context("spawn")
        for _ in range(WORKERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self._flows), daemon=True)
            process.start()
            theirs.close()
            self._started.append((process, ours))
        for _, pipe in self._started:
            self._answer(pipe)

    @staticmethod
    def _answer(pipe: Connection) -> Any:
        if not pipe.poll(_PATIENCE_S):
            raise TimeoutError("a worker does not answer")
        return pipe.recv()

    def _rates(self, pipes: list[Connection]) -> float:
        """Millions of packets a second, of all that run at once."""
        for pipe in pipes:
            pipe.send(self._seconds)
        return sum(packets / seconds / 1e6 for packets, seconds in map(self._answer, pipes))

    def sample(self) -> Sample:
        pipes = [pipe for _, pipe in self._started]
        alone = [self._rates([pipe]) for pipe in pipes]
        together = self._rates(pipes)
        one = sum(alone) / len(alone)
        return {"one worker": one, "two workers": together, "two to one": together / one}

    def finish(self) -> None:
        for process, pipe in self._started:
            pipe.close()
            process.terminate()
            process.join()
        self._started.clear()


def cases(scale: Scale) -> list[Case]:
    """All numbers of flows."""
    return [WorkersCase(flows, _ROUND_S if scale.name != "tiny" else 0.02) for flows in scale.flows]
