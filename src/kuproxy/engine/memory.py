"""The shared memory of a data plane: one region of tables, one that all workers write, and per worker one of state
and one of flows.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kuproxy.codes import FlowState, Outcome
from kuproxy.dataplane import migration
from kuproxy.dataplane.layout import (
    BASELINES_SPEC,
    SHARED_SPEC,
    STATE_SPEC,
    TABLES_SPEC,
    TICK_MASK,
    TICKS_PER_SECOND,
    W_FLOWS,
    W_IDLE_NS,
    W_LOG2_BUCKETS,
    W_NOW,
    W_NUMBER,
    W_OUTCOMES,
    W_POLLS,
    W_RECEIVE_DROPPED,
    W_RECEIVED,
    W_STATES,
    W_TRANSMIT_FAILED,
    W_TRANSMITTED,
    W_VECTORS,
    WAYS,
    Baselines,
    Region,
    Tables,
    WorkerState,
    as_state,
    as_tables,
    flow_spec,
    spec_bytes,
)
from kuproxy.engine.flow_key import VPP, FlowKey
from kuproxy.errors import TableFullError

if TYPE_CHECKING:  # which needs this module
    from kuproxy.engine.contract import Counted

MAX_LOG2_BUCKETS = 28  # 2^30 flows


def ticks(seconds: float) -> int:
    """A time in seconds as the data plane's clock (ticks, wrapped to 32 bits)."""
    return int(seconds * TICKS_PER_SECOND) & TICK_MASK


def log2_of(flows_fd: int) -> int:
    """The size of a flow table, from that of its memory.  Raises ValueError if it has another layout."""
    size = os.fstat(flows_fd).st_size
    for log2 in range(MAX_LOG2_BUCKETS + 1):
        if spec_bytes(flow_spec(log2)) == size:
            return log2
    raise ValueError(f"{size} bytes are no flow table of this layout")


class TablesMemory:
    """The one region that control writes and workers read."""

    def __init__(self, fd: int | None = None):
        self.region = Region(TABLES_SPEC, fd, name="tables")
        self.tables: Tables = as_tables(self.region)


class BaselinesMemory:
    """What control remembers about counters, and must not forget when it is replaced."""

    def __init__(self, fd: int | None = None):
        self.region = Region(BASELINES_SPEC, fd, name="baselines")
        self.baselines = Baselines(**self.region.arrays)


def last_tick(states: Sequence[WorkerState]) -> int:
    """The latest time that any of the workers has seen: theirs is the only clock of packets, live or from a capture."""
    latest = int(states[0].header[W_NOW])
    for state in states[1:]:
        now = int(state.header[W_NOW])
        if (now - latest) & TICK_MASK <= TICK_MASK >> 1:
            latest = now
    return latest


class SharedMemory:
    """The one region that every worker writes: whom a client had last. See docs/adr/017."""

    def __init__(self, fd: int | None = None):
        self.region = Region(SHARED_SPEC, fd, name="shared")


class WorkerMemory:
    """What one worker writes: counters and references stay, the flow table is replaced when it is resized.

    `number` is the worker's; it and `flow_key` are written into memory that is new. Without `shared` the worker is
    alone.
    """

    def __init__(
        self,
        log2_buckets: int,
        fd: int | None = None,
        flows_fd: int | None = None,
        shared: SharedMemory | None = None,
        number: int = 0,
        flow_key: FlowKey = VPP,
    ):
        self.fixed = Region(STATE_SPEC, fd, name="state")
        self.flows = Region(flow_spec(log2_buckets), flows_fd, name="flows")
        self.shared = shared or SharedMemory()
        self.state: WorkerState = as_state(self.fixed, self.flows, self.shared.region)
        self.state.header[W_LOG2_BUCKETS] = log2_buckets
        if fd is None:
            self.state.header[W_NUMBER] = number
            flow_key.write(self.state)

    @classmethod
    def of(cls, fd: int, flows_fd: int, shared: SharedMemory) -> "WorkerMemory":
        """Over memory that exists.  Raises ValueError if it has another layout."""
        return cls(log2_of(flows_fd), fd, flows_fd, shared)

    def take_flows(self, fd: int) -> None:
        """The worker has moved its flows there.  Raises ValueError, changing nothing, if that is no flow table."""
        flows = Region(flow_spec(log2_of(fd)), fd, name="flows")
        self.flows.close()
        self.flows = flows
        self.state = as_state(self.fixed, self.flows, self.shared.region)

    @property
    def log2_buckets(self) -> int:
        """Of the table that is here; what the header says is a worker's to write."""
        return (len(self.state.entries) // WAYS).bit_length() - 1

    def resize(self, tables: Tables, log2_buckets: int, now: int) -> None:
        """Move every live flow into a table of 2^log2_buckets buckets.

        Only the worker itself, between vectors, may do so. Raises TableFullError, changing nothing, if some bucket of
        the new table would have to hold more than four live flows.
        """
        if log2_buckets != self.log2_buckets:
            self._move(tables, log2_buckets, FlowKey.read(self.state), now)

    def rehash(self, tables: Tables, flow_key: FlowKey, now: int) -> None:
        """Find every live flow by another hash from now on. The same rules hold as for `resize`."""
        if flow_key != FlowKey.read(self.state):
            self._move(tables, self.log2_buckets, flow_key, now)
            flow_key.write(self.state)

    def _move(self, tables: Tables, log2_buckets: int, flow_key: FlowKey, now: int) -> None:
        flows = Region(flow_spec(log2_buckets), name="flows")
        state = as_state(self.fixed, flows, self.shared.region)
        lost = migration.migrate(tables, self.state, state, *flow_key.words, np.int64(now))
        if lost:
            flows.close()
            kept = f"the table keeps its {1 << self.log2_buckets}"
            if log2_buckets == self.log2_buckets:
                kept = "flows are found as before; give it more buckets"
            raise TableFullError(
                f"{lost} live flows would find no place in {1 << log2_buckets} buckets; {kept}"
            )
        self.flows.close()
        self.flows, self.state = flows, state
        self.state.header[W_LOG2_BUCKETS] = log2_buckets


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over workers."""

    counters: np.ndarray  # uint64[nodes, reasons]
    outcomes: tuple[int, ...]  # by Outcome; their sum is `received`
    received: int
    flows: tuple[int, ...]  # flows in each worker's table, expired ones that were not swept yet included
    capacity: tuple[int, ...]  # entries of each worker's table


def _sum(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.add.reduce(list(arrays), axis=0, dtype=np.uint64)


def totals(states: Sequence[WorkerState]) -> Totals:
    """Add up what the workers have counted."""
    headers = [state.header for state in states]
    return Totals(
        counters=_sum(state.counters for state in states),
        outcomes=tuple(sum(int(h[W_OUTCOMES + outcome]) for h in headers) for outcome in Outcome),
        received=sum(int(h[W_RECEIVED]) for h in headers),
        flows=tuple(int(h[W_FLOWS]) for h in headers),
        capacity=tuple(len(state.entries) for state in states),
    )


def vip_counters(states: Sequence["Counted"], index: int) -> np.ndarray:
    """uint64[8], columns VipCounter, since the index was first used."""
    return _sum(state.vip_counters[index] for state in states)


def pod_counters(states: Sequence["Counted"], index: int) -> np.ndarray:
    """uint64[8], columns PodCounter, since the index was first used."""
    return _sum(state.pod_counters[index] for state in states)


def many_pod_counters(states: Sequence["Counted"], indices: Sequence[int]) -> np.ndarray:
    """uint64[n, 8]: `pod_counters` of n pods."""
    return _sum(state.pod_counters[np.asarray(indices, np.int64)] for state in states)


def pod_flows(states: Sequence[WorkerState], index: int) -> int:
    """Flows that refer to the pod."""
    return sum(int(state.pod_refs[index]) for state in states)


def flows_by_state(state: WorkerState) -> dict[FlowState, int]:
    """Flows in a worker's table, expired ones that were not swept yet included."""
    return {kind: int(state.header[W_STATES + kind]) for kind in FlowState}


def worker_activity(state: WorkerState) -> dict[str, int]:
    """What a worker has done since its memory was made; one of `polls` is a turn of its loop without a packet,
    `idle_ns` what it has waited for packets.
    """
    words = {
        "vectors": W_VECTORS,
        "polls": W_POLLS,
        "idle_ns": W_IDLE_NS,
        "received_packets": W_RECEIVED,
        "transmitted_packets": W_TRANSMITTED,
        "transmit_failures": W_TRANSMIT_FAILED,
        "ring_drops": W_RECEIVE_DROPPED,
    }
    return {name: int(state.header[word]) for name, word in words.items()}
