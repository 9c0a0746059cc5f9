"""One cell of a simulation: a trace, a plan, an algorithm and its sizes, to an Observation.

The data plane itself is not modelled: the trace goes through the very graph that a worker runs, and control publishes
the plan's changes between two vectors, as it does on a node.  The others choose by their own rules, behind the same
kind of flow table (buckets of four, one timeout), so that what differs is the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from kuproxy.control.compile.recover import pod_at
from kuproxy.dataplane.layout import TICK_MASK, TICKS_PER_SECOND, WAYS
from kuproxy.drivers.capture.driver import CaptureDriver
from kuproxy.drivers.capture.reader import Capture
from kuproxy.drivers.capture.writer import CaptureWriter
from kuproxy.errors import ConfigError
from kuproxy.model.config import Config
from kuproxy.model.vip import Address, Pod, VipKey
from kuproxy.replay import Replay
from kuproxy.sim import kernels
from kuproxy.sim.algorithms import Algorithm, choose
from kuproxy.sim.churn import Plan, State, states
from kuproxy.sim.trace import PACKET_DTYPE, Epochs, Observation

__all__ = ["Sizes", "Watched", "epochs_of", "modelled", "watch"]

_WINDOW_NS = 10_000_000  # the longest vector, as of CaptureDriver
_NS = 1_000_000_000
_NS_PER_TICK = _NS // TICKS_PER_SECOND
MOST_BINS = 10_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a cell may set; None: as the configuration says."""

    new_len: int | None = None  # slots of the new-flow table of every VIP
    buckets: int | None = None  # of four flows
    timeout_s: float | None = None  # of all flows

    def apply(self, config: Config) -> Config:
        """The configuration with these sizes.  Raises ConfigError if they are none."""
        settings = config.settings
        if self.buckets is not None:
            settings = replace(settings, buckets=self.buckets)
        if self.timeout_s is not None:
            settings = replace(settings, timeout_s=self.timeout_s, timeouts_s=())
        vips = config.vips
        if self.new_len is not None:
            vips = tuple(replace(vip, new_len=self.new_len) for vip in vips)
        return replace(config, settings=settings, vips=vips)


def epochs_of(course: Sequence[State], first_ns: int) -> Epochs:
    """The states as arrays; times count from `first_ns`, the first packet's."""
    numbers: dict[tuple[VipKey, Address, int], int] = {}
    pods: list[tuple[VipKey, Pod]] = []
    for state in course:
        for vip in state.vips:
            for pod in vip.pods:
                place = (vip.key, pod.address, pod.port or vip.target_port)
                if place not in numbers:
                    numbers[place] = len(pods)
                    pods.append((vip.key, pod))
    weights = np.zeros((len(course), len(pods)), np.int64)
    alive = np.ones((len(course), len(pods)), np.bool_)
    for row, state in enumerate(course):
        for vip in state.vips:
            for pod in vip.pods:
                weights[row, numbers[vip.key, pod.address, pod.port or vip.target_port]] = pod.weight
        for (key, address, _port), number in numbers.items():
            alive[row, number] = (key, address) not in state.lost
    starts = np.array([first_ns + round(state.at_s * _NS) for state in course], np.int64)
    starts[0] = np.iinfo(np.int64).min
    return Epochs(starts, tuple(pods), weights, alive)


def bin_edges(times_ns: np.ndarray, bins: int) -> np.ndarray:
    """int64[bins + 1] from the first to just behind the last time."""
    first, last = int(times_ns.min()), int(times_ns.max())
    return first + (np.arange(bins + 1, dtype=np.int64) * (last + 1 - first)) // bins


class Watched(Replay):
    """A replay with a plan, that writes down which pod each packet towards a VIP went to."""

    def __init__(self, config: Config, capture: Capture, plan: Plan, output: CaptureWriter | None, bins: int):
        if not len(capture):
            raise ConfigError(f"{capture.path}: no packets")
        super().__init__(config, CaptureDriver(capture, output))
        times = capture.packets["time_ns"]
        self.course = states(config.vips, plan)
        self.epochs = epochs_of(self.course, int(times[0]))
        self.edges_ns = bin_edges(times, bins)
        self._rows = np.zeros(len(capture), PACKET_DTYPE)
        self._numbers = {
            (key, pod.address, pod.port or self._target_port(key)): number
            for number, (key, pod) in enumerate(self.epochs.pods)
        }
        self._end = self._resolved = 0
        self._occupancy = np.zeros(bins, np.int64)
        size = len(self.driver.times_ns)
        self._keys = np.zeros(size, np.uint64)
        self._destinations = np.zeros((size, 16), np.uint8)
        self._kinds = np.zeros(size, np.uint8)
        # Plan before measure: what both fall on belongs to the bin that begins.
        self._stops = sorted(
            [(int(edge), 0, place) for place, edge in enumerate(self.edges_ns[1:])]
            + [(int(start), 1, place) for place, start in enumerate(self.epochs.starts_ns) if place]
        )

    def _target_port(self, key: VipKey) -> int:
        return next(vip.target_port for vip in self.course[0].vips if vip.key == key)

    def run(self) -> None:
        """All packets and all of the plan that falls between them."""
        stops = iter([*self._stops, None])
        stop = next(stops)
        while (next_ns := self.driver.next_ns) is not None:
            while stop is not None and stop[0] <= next_ns:
                self._reach(stop)
                stop = next(stops)
            self.driver.window_ns = _WINDOW_NS if stop is None else min(_WINDOW_NS, stop[0] - next_ns)
            self.step()
        while stop is not None:
            if stop[1] == 0:
                self._reach(stop)
            stop = next(stops)
        self._resolve()
        self.finish()

    def _reach(self, stop: tuple[int, int, int]) -> None:
        time_ns, kind, place = stop
        if kind == 0:
            self.engine.maintain(time_ns // _NS_PER_TICK & TICK_MASK)
            self._occupancy[place] = sum(self.plane.totals().flows)
            return
        self._resolve()
        state = self.course[place]
        self.plane.update("files", add=state.changed, flushed=state.flushed)
        self.plane.collect()

    def arrived(self, received: int) -> None:
        kernels.read_headers(self.driver.frame, self._keys, self._destinations, self._kinds)

    def processed(self, received: int) -> None:
        self._end = kernels.record(
            self.driver.frame, self.engine.tables, received, self._keys, self._destinations, self._kinds,
            self.driver.times_ns, self._rows, self._end,
        )  # fmt: skip

    def _resolve(self) -> None:
        """Indices of the tables into numbers, + 1, before control may use an index again."""
        rows = self._rows[self._resolved : self._end]
        self._resolved = self._end
        # A VIP's pods have indices of their own, so an index tells the VIP as well.
        indices, first, places = np.unique(rows["pod"], return_index=True, return_inverse=True)
        numbers = np.zeros(len(indices), np.uint32)
        for position, index in enumerate(indices.tolist()):
            record = self.plane.compiler.record_at(int(rows["vip"][first[position]]))
            if index and record is not None:
                pod = pod_at(self.engine.tables, index)
                key = record.vip.key
                port = pod.port or record.vip.target_port
                numbers[position] = self._numbers[key, pod.address, port] + 1
        rows["pod"] = numbers[places]

    def observation(self) -> Observation:
        """What was seen."""
        rows = self._rows[: self._end]
        _, first, flow = np.unique(rows["key"], return_index=True, return_inverse=True)
        indices, vips = np.unique(rows["vip"][first], return_inverse=True)
        records = [self.plane.compiler.record_at(index) for index in indices.tolist()]
        return Observation(
            time_ns=rows["time_ns"].copy(),
            flow=flow.astype(np.int64),
            epoch=np.searchsorted(self.epochs.starts_ns, rows["time_ns"], side="right") - 1,
            pod=rows["pod"].astype(np.int64) - 1,
            kind=rows["kind"].copy(),
            syn=rows["syn"].copy(),
            hashes=rows["hash"][first],
            vips=vips.astype(np.int64),
            keys=tuple(record.vip.key for record in records if record is not None),
            edges_ns=self.edges_ns,
            occupancy=self._occupancy,
            capacity=self.engine.state.entries.shape[0],
        )


def watch(
    config: Config, capture: Capture | Path, plan: Plan, *, output: Path | None = None, bins: int = 100
) -> tuple[Observation, Epochs, Watched]:
    """The trace through the real graph; `output` gets what it sends.  Raises ConfigError, DriverError."""
    capture = capture if isinstance(capture, Capture) else Capture(capture)
    writer = None if output is None else CaptureWriter(output, tuple(capture.interfaces) or ("pcap0",))
    try:
        run = Watched(config, capture, plan, writer, bins)
        run.run()
    finally:
        if writer is not None:
            writer.close()
    return run.observation(), run.epochs, run


def modelled(
    seen: Observation,
    epochs: Epochs,
    algorithm: Algorithm,
    new_lens: Mapping[VipKey, int],
    buckets: int,
    timeout_s: float,
) -> Observation:
    """The same packets with another choice of pods, behind a table of `buckets` (a power of two) of four flows.

    timeout_s 0: nothing is remembered, the hash alone decides.
    """
    choices = np.full((len(epochs.weights), len(seen.hashes)), -1, np.int64)
    for place, key in enumerate(seen.keys):
        flows = np.flatnonzero(seen.vips == place)
        members = [number for number, (owner, _pod) in enumerate(epochs.pods) if owner == key]
        numbers = np.array([*members, -1], np.int64)  # -1, nobody, finds the last
        for epoch, weights in enumerate(epochs.weights):
            pods = [epochs.pods[number][1].weighing(int(weights[number])) for number in members]
            choices[epoch, flows] = numbers[choose(algorithm, pods, new_lens[key], seen.hashes[flows])]
    ticks = seen.time_ns // _NS_PER_TICK
    timeout = max(1, round(timeout_s * TICKS_PER_SECOND)) if timeout_s else 0
    entries = buckets * WAYS
    expires, owner, pods_of = (
        np.zeros(entries, np.int64),
        np.full(entries, -1, np.int64),
        np.zeros(entries, np.int64),
    )
    pod, kind = np.empty(len(seen.flow), np.int64), np.empty(len(seen.flow), np.uint8)
    occupancy = np.zeros(len(seen.edges_ns) - 1, np.int64)
    # Runs of packets of one epoch and one bin; a trace that goes back in time makes more of them.
    change = np.flatnonzero(np.diff(seen.epoch) | np.diff(seen.bins)) + 1
    starts = [0, *change.tolist(), len(seen.flow)] if len(seen.flow) else []
    table = (expires, owner, pods_of)
    reached = 0

    def count(until: int) -> None:
        """At the ends of the bins before `until`."""
        nonlocal reached
        for place in range(reached, until):
            end = int(seen.edges_ns[place + 1]) // _NS_PER_TICK
            occupancy[place] = kernels.occupied(expires, owner, end)
        reached = max(reached, until)

    for first, last in pairwise(starts):
        count(int(seen.bins[first]))
        epoch = int(seen.epoch[first])
        kernels.model_table(
            ticks, seen.flow, seen.hashes, choices, epochs.alive, first, last, epoch, timeout,
            *table, pod, kind,
        )  # fmt: skip
    count(len(occupancy))
    return replace(seen, pod=pod, kind=kind, occupancy=occupancy, capacity=entries)
