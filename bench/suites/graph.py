"""The graph in memory on one core: nanoseconds a packet, for the whole graph and for each node.

Each stage of the graph is timed with everything before it, and the generator alone; a node's figure is the difference
between two stages. Whatever time the generator's copy saves the next node (the packet is in the cache) is the same
for every case, and for VPP's packet generator, whose figures stand beside these.
"""

import functools
import itertools
import time

import numpy as np

from bench import loops, traffic
from bench.harness import Case, Figure, Sample, Scale
from bench.world import KINDS, POD_INTERFACE, World, make_vip
from kuproxy.codes import NODE_NAMES, Node
from kuproxy.dataplane.layout import BATCH, WAYS

PODS = 64
RING = 65536
VPP_LOG2 = 20  # the sticky table of VPP's figures
MOST_FLOWS = 10_000_000  # in a table of 2^22 buckets, 1.5 GiB
MOST_LOG2 = 22
MOST_ROUNDS = 3
CHURN = 9  # established packets to one of a new flow
_REWRITE = {"nat44": Node.NAT44, "nat66": Node.NAT66, "nat64": Node.NAT64, "gre4": Node.GRE}
_RESTORE = {"nat44": Node.NAT4_IN2OUT, "nat66": Node.NAT6_IN2OUT, "nat64": Node.NAT64_IN2OUT}


def fitting_log2(flows: int) -> int:
    """Buckets of a table that is at most half full, at least the default: 2^10, 2^16, 2^19 for 1k, 100k, 1M flows."""
    return max(10, (2 * flows // WAYS).bit_length())


def count_name(number: int) -> str:
    """1000 as 1k, a million as 1M."""
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{letter}"
    return str(number)


class Setting:
    """A world with its packets, shared by the cases that need the same."""

    def __init__(self, kind: str, flows: int, log2: int, payload: int):
        self.family, self.flows, self.size = KINDS[kind][0], flows, payload
        self.world = World(log2, [make_vip(self.family, 1, range(1, PODS + 1), RING, kind)])
        self.rows = traffic.udp_rows(self.family, flows, payload=payload)
        self.payload = np.zeros(payload, np.uint8)

    @functools.cached_property
    def back(self) -> np.ndarray:
        """What pods answer."""
        return traffic.replies(self.world.forwarded(self.rows))

    @functools.cached_property
    def foreign(self) -> np.ndarray:
        """What is for no VIP."""
        return traffic.udp_rows(self.family, self.flows, first_vip=2)

    @functools.cached_property
    def mixed(self) -> tuple[np.ndarray, np.ndarray]:
        """Flows to establish; the same with one packet in CHURN + 1 of a flow that nobody has seen."""
        rows = traffic.udp_rows(self.family, 2 * self.flows, payload=self.size)
        old, fresh = rows[: self.flows], rows[self.flows :][: self.flows // CHURN]
        return old, np.insert(old, np.arange(len(fresh)) * CHURN, fresh, axis=0)


@functools.cache
def setting(kind: str, flows: int, log2: int, payload: int = 0) -> Setting:
    return Setting(kind, flows, log2, payload)


class GraphCase(Case):
    """One kind of traffic, measured stage by stage."""

    def __init__(
        self,
        scale: Scale,
        kind: str,
        work: str,
        flows: int,
        log2: int,
        *,
        size: int = loops.ROW,
        vector: int = BATCH,
        stages: bool = True,
        suffix: str = "",
        most_rounds: int | None = None,
    ):
        traffic_name = f"ip{KINDS[kind][0]}udp{size}-{kind}-1vip-{PODS}pod-{count_name(flows)}flow"
        name = f"{traffic_name}-2e{log2}bucket-{work}{suffix}"
        super().__init__(name, f"vector {vector}")
        self._key = (kind, flows, log2, size - loops.ROW)
        self._kind, self._work, self._vector = kind, work, vector
        self._packets = max(scale.packets, flows)
        self._most_rounds = most_rounds or scale.rounds
        self._stages: dict[int, str] = {loops.GENERATOR: "generator", loops.WHOLE: "graph"}
        if stages:
            self._stages = self._nodes()

    def _nodes(self) -> dict[int, str]:
        names = {loops.GENERATOR: "generator", loops.INPUT: NODE_NAMES[Node.INPUT]}
        if self._work == "pass":
            return names | {loops.WHOLE: NODE_NAMES[Node.LOOKUP]}
        names |= {loops.LOOKUP: NODE_NAMES[Node.LOOKUP]}
        if self._work == "in2out":
            return names | {loops.WHOLE: NODE_NAMES[_RESTORE[self._kind]]}
        return names | {loops.BALANCE: NODE_NAMES[Node.BALANCE], loops.WHOLE: NODE_NAMES[_REWRITE[self._kind]]}

    def prepare(self) -> None:
        s = setting(*self._key)
        match self._work:
            case "in2out":
                self._rows = s.back
            case "pass":
                self._rows = s.foreign
            case "churn":
                self._established, self._rows = s.mixed
            case _:
                self._rows = s.rows

    def rounds(self, scale: Scale) -> int:
        return min(self._most_rounds, scale.rounds)

    def _send(self, packets: int, stage: int, rows: np.ndarray | None = None) -> float:
        s = setting(*self._key)
        interface = POD_INTERFACE if self._work == "in2out" else 0
        begin = time.thread_time()
        s.world.drive(
            self._rows if rows is None else rows,
            packets,
            stage=stage,
            vector=self._vector,
            interface=interface,
            payload=s.payload,
        )
        return time.thread_time() - begin

    def _timed(self, stage: int) -> float:
        """ns a packet up to and including a stage."""
        flows = len(self._rows)
        if self._work not in ("miss", "churn"):
            self._send(flows, loops.WHOLE)  # warm what a former case has pushed out
            return self._send(self._packets, stage) / self._packets * 1e9
        world = setting(*self._key).world
        repeats = max(1, min(20, self._packets // flows))
        seconds = 0.0
        for _ in range(repeats):
            world.flush()
            if self._work == "churn":
                self._send(len(self._established), loops.WHOLE, self._established)
            seconds += self._send(flows, stage)
        return seconds / (repeats * flows) * 1e9

    def sample(self) -> Sample:
        # The whole graph comes last: it leaves the flow table filled for the next case.
        return {name: self._timed(stage) for stage, name in self._stages.items()}

    def finish(self) -> None:
        setting.cache_clear()

    def figures(self) -> list[Figure]:
        values = {stage: [sample[stage] for sample in self.samples] for stage in self._stages.values()}
        # Noise only ever adds time: taking off the generator's minimum leaves all of it to the graph.
        generator = min(values["generator"])
        last = list(self._stages.values())[-1]
        figures = [self.figure("graph", [value - generator for value in values[last]])]
        for before, stage in itertools.pairwise(values):
            if stage != "graph":
                steps = [b - a for a, b in zip(values[before], values[stage], strict=True)]
                figures.append(self.figure(stage, steps, "difference of two stages: read the median"))
        return [*figures, self.figure("generator", values["generator"], "its minimum is subtracted from the others")]


def cases(scale: Scale) -> list[Case]:
    """Both families, all numbers of flows, a fitting table and VPP's; then other kinds and sizes, one of each."""
    vpp_log2 = VPP_LOG2 if scale.packets > 10_000 else 11
    found: list[Case] = []
    for kind in ("nat44", "nat66"):
        for flows in scale.flows:
            for log2 in dict.fromkeys((fitting_log2(flows), vpp_log2)):
                # A thousand first packets after the flush of a large table would measure cold caches alone.
                cold = flows < 10_000 and log2 == VPP_LOG2
                for work in ("hit", "in2out") if cold else ("hit", "in2out", "miss"):
                    found.append(GraphCase(scale, kind, work, flows, log2))
        found.append(GraphCase(scale, kind, "pass", scale.flows[0], fitting_log2(scale.flows[0])))
    middle = scale.flows[min(1, len(scale.flows) - 1)]
    for kind in ("nat64", "gre4"):
        for flows in scale.flows:
            for work in ("hit", "miss") if kind == "gre4" else ("hit", "in2out", "miss"):
                found.append(GraphCase(scale, kind, work, flows, fitting_log2(flows)))
    for kind in KINDS:
        found.append(GraphCase(scale, kind, "hit", middle, fitting_log2(middle), size=1500))
        found.append(GraphCase(scale, kind, "churn", middle, fitting_log2(middle), stages=False))
    if scale.name == "full":
        for work in ("hit", "miss"):
            found.append(
                GraphCase(scale, "nat44", work, MOST_FLOWS, MOST_LOG2, stages=False, most_rounds=MOST_ROUNDS)
            )
    # At least sixteen times as many flows as the table has entries: nearly every packet finds its bucket full.
    found.append(GraphCase(scale, "nat44", "full", middle, (middle // (16 * WAYS)).bit_length() - 1))
    return found
