"""What a packet pays for the number of VIPs: the same number of flows, spread evenly over few VIPs or many.

Accepted: the lookup node with 100,000 VIPs takes at most twice its time with 10.
"""

import itertools
import time

from bench import loops, traffic
from bench.harness import Case, Sample, Scale
from bench.suites.graph import count_name, fitting_log2
from bench.world import World, many_vips
from kuproxy.dataplane.layout import BATCH

PODS_EACH = 1  # the tables hold 100,000 VIPs with a pod of their own each, but not yet with two
RING = 16


class LookupCase(Case):
    """`lookup` is the node's own time, `graph` the whole graph's, generator subtracted in the same round."""

    def __init__(self, scale: Scale, vips: int, flows: int):
        name = f"ip4udp64-nat44-{count_name(vips)}vip-{PODS_EACH}pod-{count_name(flows)}flow-hit"
        super().__init__(name, f"vector {BATCH}, ring {RING}")
        self._vips, self._flows = vips, flows
        self._packets = max(scale.packets, flows)

    def prepare(self) -> None:
        self._world = World(fitting_log2(self._flows), many_vips(self._vips, PODS_EACH, RING))
        self._rows = traffic.udp_rows(4, self._flows, vips=self._vips)

    def _timed(self, stage: int) -> float:
        """The best of three, because the lookup's figure is the small difference of two large ones."""
        self._world.drive(self._rows, self._flows, vector=BATCH)
        times = [time.thread_time()]
        for _ in range(3):
            self._world.drive(self._rows, self._packets, stage=stage, vector=BATCH)
            times.append(time.thread_time())
        return min(b - a for a, b in itertools.pairwise(times)) / self._packets * 1e9

    def sample(self) -> Sample:
        at = {s: self._timed(s) for s in (loops.GENERATOR, loops.INPUT, loops.LOOKUP, loops.WHOLE)}
        return {"lookup": at[loops.LOOKUP] - at[loops.INPUT], "graph": at[loops.WHOLE] - at[loops.GENERATOR]}


def cases(scale: Scale) -> list[Case]:
    """10 to the most VIPs, by powers of ten."""
    flows = min(100_000, scale.packets)
    return [LookupCase(scale, n, flows) for n in (10, 1000, 10_000, 100_000) if n <= scale.most_vips]
