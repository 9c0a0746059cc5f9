"""Established flows while a flood shares their vectors: what a packet of theirs costs, and whether one is lost.

Three worlds of each kind: one with the established flows alone, one with their flows and the flood's packets alone,
and one in which behind each established packet follow one or ten of the flood. `quiet` and `flood` are what a packet
takes alone, `mixed` what an established packet takes together with its share of the flood. If neither disturbed the
other, `mixed` would be the sum; the rate at the same share of the processor is the sum by `mixed`. Strictly, if the
established flows had to pay for all of the disturbance, it is `quiet` by `mixed` less the flood's own. Each is taken
from runs of one round, which follow upon each other. Outcome and bytes of every established packet are compared with
those of the quiet world: `lost` and `moved` must be 0.
"""

import math
import time
from ipaddress import ip_address, ip_network
from typing import ClassVar

import numpy as np

from bench import loops as plain
from bench.floods import loops, traffic
from bench.floods.traffic import FLOODS, Traffic
from bench.harness import Case, Sample, Scale
from bench.suites.graph import PODS, count_name, fitting_log2
from bench.traffic import POD_PORT, VIP_PORT, replies, udp_rows
from bench.world import KINDS, NOW, World, _frame, make_vip, pod
from kuproxy.codes import Outcome, Protocol, VipType
from kuproxy.dataplane.layout import BATCH
from kuproxy.model.vip import Vip, VipKey

_KEY = bytes(range(16))  # a random one would make every run another
HASHES: dict[str, bytes | None] = {"vpp": None, "keyed": _KEY}
RATIOS = (1, 10)
_FLOOD_PACKETS = 100_000
RATE, STRICTLY = "rate at the same share", "the same, strictly"


def _vips() -> list[Vip]:
    net, pods = ip_network(traffic.VIP), tuple(pod(4, number) for number in range(1, PODS + 1))
    served = [
        Vip(VipKey(net, each, VIP_PORT), VipType.IP4_NAT44, POD_PORT, new_len=65536, pods=pods)
        for each in (Protocol.TCP, Protocol.UDP)
    ]
    key = VipKey(ip_network(traffic.VIP + 1), Protocol.TCP, VIP_PORT)
    return [
        *served,
        Vip(key, VipType.IP4_NAT44, POD_PORT, traffic.NODE_PORT, pods=pods, outside_pods=()),
    ]  # fmt: skip


class FloodWorld:
    """A world with established flows."""

    def __init__(self, flows: int, log2: int, flow_hash: bytes | None):
        self.world = World(log2, _vips())
        self.world.compiler.set_node_addresses([ip_address(traffic.NODE)])
        self.world.engine.rehash(flow_hash, NOW)
        self._frame, self._stride = _frame(traffic.ROW)
        opening, sent = traffic.openings(flows)
        answers = replies(self.collect(traffic.outside(opening))[0])
        tcp_answers = answers[: flows // 2]
        tcp_answers[:, 47] = traffic.SYN | traffic.ACK
        self.collect(Traffic(tcp_answers, np.full(len(tcp_answers), traffic.INSIDE, np.uint16)))
        back = replies(self.collect(traffic.outside(sent))[0])
        # The established mix: a client's packet, then a pod's, of flows in no order.
        inside = Traffic(back, np.full(len(back), traffic.INSIDE, np.uint16))
        self.established = traffic.interleaved(traffic.outside(sent), inside, 1)

    def collect(self, what: Traffic, vector: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
        """(rows as they leave, outcomes)."""
        out, outcomes = np.zeros_like(what.rows), np.zeros(len(what), np.uint8)
        tables, state = self.world.engine.tables, self.world.engine.state
        loops.collect(
            self._frame, tables, state, what.rows.reshape(-1), what.interfaces, out.reshape(-1), outcomes, vector,
            self._stride, NOW,
        )  # fmt: skip
        return out, outcomes

    def timed(self, what: Traffic, packets: int, whole: bool = True) -> float:
        """ns a packet."""
        passes = max(1, packets // len(what))
        tables, state = self.world.engine.tables, self.world.engine.state
        begin = time.thread_time()
        loops.drive(
            self._frame, tables, state, what.rows.reshape(-1), what.interfaces, passes, BATCH, self._stride,
            int(whole), NOW,
        )  # fmt: skip
        return (time.thread_time() - begin) / (passes * len(what)) * 1e9


class FloodCase(Case):
    """One flood at one ratio, by one hash."""

    units: ClassVar[dict[str, str]] = {"lost": "packets", "moved": "packets", RATE: "%", STRICTLY: "%"}

    def __init__(self, scale: Scale, flood: str, ratio: int, hash_name: str, most_flows: int = 10_000):
        flows = min(most_flows, scale.flows[min(1, len(scale.flows) - 1)])
        log2 = fitting_log2(flows)
        name = f"ip4-nat44-{PODS}pod-{count_name(flows)}flow-2e{log2}bucket-{flood}-1to{ratio}-{hash_name}"
        super().__init__(name, FLOODS[flood][0])
        self._sizes = flows, log2, HASHES[hash_name]
        self._flood, self._ratio, self._scale = flood, ratio, scale
        self._generator = math.inf

    def prepare(self) -> None:
        self._quiet, self._alone, self._mixed = (FloodWorld(*self._sizes) for _ in range(3))
        established = self._quiet.established
        # So many of the flood that it finds hardly anything of its former round, in the mix and alone.
        repeats = -(-min(_FLOOD_PACKETS, self._scale.packets) // (len(established) * self._ratio))
        established = traffic.repeated(established, repeats)
        self._traffic = traffic.flood(self._flood, len(established) * self._ratio, self._sizes[1])
        self._mix = traffic.interleaved(established, self._traffic, self._ratio)
        self._expected = self._quiet.collect(established)
        self._alone.collect(self._traffic)  # the table as it is in the midst of it

    def _judged(self) -> tuple[int, int]:
        """(lost, moved) of the established packets."""
        rows, outcomes = self._mixed.collect(self._mix)
        step = 1 + self._ratio
        rows, outcomes = rows[::step], outcomes[::step]
        assert (self._expected[1] == Outcome.TRANSMIT).all(), "the quiet world forwards everything"
        lost = outcomes != Outcome.TRANSMIT
        moved = (rows != self._expected[0]).any(axis=1) & ~lost
        return int(lost.sum()), int(moved.sum())

    def sample(self) -> Sample:
        lost, moved = self._judged()
        packets = self._scale.packets
        # Noise only ever adds time: taking off the generator's minimum leaves all of it to the graph.
        generator = self._quiet.timed(self._quiet.established, packets, whole=False)
        generator = self._generator = min(generator, self._generator)
        quiet = self._quiet.timed(self._quiet.established, packets)
        flood = self._alone.timed(self._traffic, packets)
        mixed = self._mixed.timed(self._mix, packets)
        quiet, flood = quiet - generator, flood - generator
        mixed = (mixed - generator) * (1 + self._ratio)
        its_own = self._ratio * flood
        return {
            "quiet": quiet,
            "flood": flood,
            "mixed": mixed,
            RATE: 100 * (quiet + its_own) / mixed,
            STRICTLY: 100 * quiet / max(mixed - its_own, quiet / 10),  # a tenth: noise is no miracle
            "lost": lost,
            "moved": moved,
        }

    def finish(self) -> None:
        for name in ("_quiet", "_alone", "_mixed", "_mix", "_traffic", "_expected"):
            self.__dict__.pop(name, None)


class HashCase(Case):
    """What the hash costs established flows: the whole graph, and kp-input with the pass behind it."""

    def __init__(self, scale: Scale, kind: str, hash_name: str):
        self._family, self._flows, self._hash = KINDS[kind][0], scale.flows[0], HASHES[hash_name]
        log2 = fitting_log2(self._flows)
        flows = f"{count_name(self._flows)}flow-2e{log2}bucket"
        super().__init__(
            f"ip{self._family}udp64-{kind}-1vip-{PODS}pod-{flows}-hit-{hash_name}", f"vector {BATCH}"
        )
        self._kind, self._log2, self._packets = kind, log2, max(scale.packets, self._flows)

    def prepare(self) -> None:
        self._world = World(self._log2, [make_vip(self._family, 1, range(1, PODS + 1), 65536, self._kind)])
        self._world.engine.rehash(self._hash, NOW)
        self._rows = udp_rows(self._family, self._flows)

    def _timed(self, stage: int) -> float:
        self._world.drive(self._rows, self._flows, vector=BATCH)
        begin = time.thread_time()
        self._world.drive(self._rows, self._packets, stage=stage, vector=BATCH)
        return (time.thread_time() - begin) / self._packets * 1e9

    def sample(self) -> Sample:
        generator = self._timed(plain.GENERATOR)
        return {
            "graph": self._timed(plain.WHOLE) - generator,
            "kp-input": self._timed(plain.INPUT) - generator,
        }

    def finish(self) -> None:
        self.__dict__.pop("_world", None)


def cases(scale: Scale) -> list[Case]:
    """What both hashes cost; every flood at both ratios; those that the hash could matter to by the keyed one too."""
    found: list[Case] = [
        HashCase(scale, kind, hash_name) for kind in ("nat44", "nat66") for hash_name in HASHES
    ]
    for hash_name in HASHES:
        for name in FLOODS:
            for ratio in RATIOS:
                if hash_name == "vpp" or name in ("syn", "udp", "collision"):
                    found.append(FloodCase(scale, name, ratio, hash_name))
                # More than the second cache holds, with and without a flood.
                if hash_name == "vpp" and name in ("syn", "udp") and scale.flows[-1] > 10_000:
                    found.append(FloodCase(scale, name, ratio, hash_name, 100_000))
    return found
