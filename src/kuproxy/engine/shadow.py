"""A worker's memory as it is now, to be tried out: one packet goes through the real graph, and nothing has happened.

The regions are mapped once more, private and copied on write. What the graph reads is what the worker reads; what it
writes (flows, counters, tokens, affinity) stays with us and goes with the mapping. So nothing needs to be copied
beforehand, whatever the size of the flow table, and no second way of forwarding exists that could differ.

What a shadow lacks is the worker's frame: fragments that wait there are known by their records, not by their bytes.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kuproxy.codes import PROTOCOLS_WITH_PORTS, FlowState, Outcome, PacketFlag, Protocol, Reason
from kuproxy.dataplane.affinity import pod_of
from kuproxy.dataplane.graph import run_graph
from kuproxy.dataplane.layout import (
    HEADROOM,
    HOLD_ROOM,
    META_COUNT,
    REVERSE_WAYS,
    T_ANY_NODE_ADDRESS,
    T_DECREMENT_TTL,
    T_GENERATION,
    T_REJECT_RATE,
    T_WORKERS,
    TICK_MASK,
    TICKS_PER_SECOND,
    W_HELD_NOW,
    W_TRACE_LEFT,
    W_TRACE_NEXT,
    WAYS,
    Region,
    Tables,
    WorkerState,
    make_frame,
)
from kuproxy.dataplane.origin import origin_of
from kuproxy.dataplane.worker_choice import worker_of
from kuproxy.engine.contract import Engine
from kuproxy.engine.flow_key import flow_hash_of
from kuproxy.engine.flows import Address
from kuproxy.engine.memory import BaselinesMemory, WorkerMemory, ticks
from kuproxy.engine.packets import LONGEST, PacketIn, bytes_of, put
from kuproxy.engine.trace import address_of, trace_rows

__all__ = [
    "Run",
    "ShadowEngine",
    "affinity_pod",
    "bucket_rows",
    "flow_at",
    "origin_at",
    "present_tick",
    "reply_slots",
    "run_once",
    "shadow_state",
    "source_hash",
    "worker_for",
]


@dataclass(frozen=True, slots=True)
class Run:
    """What the graph did to one packet."""

    outcome: Outcome
    reason: Reason
    data: bytes  # as it would leave
    partial_checksum: bool
    vip: int  # index, 0: none
    pod: int
    rows: tuple[dict[str, Any], ...]  # a row for each node, as engine.trace gives them
    pieces: tuple[bytes, ...] = field(default=())  # further frames that it became


def _private(region: Region) -> dict[str, np.ndarray]:
    """The arrays of a region over a mapping of our own: what is written to them nobody else sees."""
    size = os.fstat(region.fd).st_size
    mapping = mmap.mmap(region.fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    places = {name: array.__array_interface__["data"][0] for name, array in region.arrays.items()}
    base = min(places.values())  # the first array lies at the region's beginning
    return {
        name: np.frombuffer(mapping, array.dtype, array.size, places[name] - base).reshape(array.shape)
        for name, array in region.arrays.items()
    }


def shadow_state(memory: WorkerMemory) -> WorkerState:
    """The worker's state, private."""
    regions = (memory.fixed, memory.flows, memory.shared.region)
    return WorkerState(**{name: array for region in regions for name, array in _private(region).items()})


class ShadowEngine:
    """An engine whose tables are private: for what would be if the configuration were another.

    A `Plane` over it adopts what it finds, indices included, and changes what it likes.  The workers' states are the
    engine's own, to be read.
    """

    def __init__(self, engine: Engine) -> None:
        self.tables_memory = engine.tables_memory  # whose contents ours began with
        self.tables = Tables(**_private(engine.tables_memory.region))
        self.baselines = BaselinesMemory().baselines
        self.memories: Sequence[WorkerMemory] = engine.memories
        self.states: Sequence[WorkerState] = engine.states
        header = engine.tables.header
        self.decrement_ttl = bool(header[T_DECREMENT_TTL])
        self.any_node_address = bool(header[T_ANY_NODE_ADDRESS])
        self._reject_rate = int(header[T_REJECT_RATE])

    def keep_settings(self) -> None:
        """What a new compiler sets to its default is as the engine has it."""
        self.tables.header[T_REJECT_RATE] = self._reject_rate

    def acknowledged(self) -> int:
        """Nobody else looks at these tables."""
        return int(self.tables.header[T_GENERATION])


def run_once(tables: Tables, state: WorkerState, packet: PacketIn, now: int) -> Run:
    """Send the packet through the graph at `now` (ticks). `state` is a shadow, and no use afterwards."""
    length = len(packet.data)
    if length > LONGEST:
        raise ValueError(f"a frame of {length} bytes is longer than any")
    room = max(length, packet.room)
    frame = make_frame(np.zeros(HEADROOM + room + HOLD_ROOM, np.uint8))
    put(frame, 0, HEADROOM, room, packet)
    record = frame.packets[0]
    frame.meta[META_COUNT] = 1
    waiting = int(state.header[W_HELD_NOW])
    state.header[W_TRACE_LEFT], state.header[W_TRACE_NEXT] = 1, 0
    run_graph(frame, tables, state, now)
    # Whatever came out behind while fragments were waiting may be one of those, whose bytes we do not have.
    others = range(1, 1 if waiting else int(frame.meta[META_COUNT]))
    return Run(
        Outcome(int(record["outcome"])),
        Reason(int(record["reason"])),
        bytes_of(frame, record),
        bool(record["flags"] & PacketFlag.PARTIAL_CHECKSUM),
        int(record["vip"]),
        int(record["pod"]),
        tuple(row for row in trace_rows([state]) if row["number"] == int(state.trace[0]["packet"])),
        tuple(bytes_of(frame, frame.packets[place]) for place in others),
    )


def present_tick() -> int:
    """Now, by the workers' clock (CLOCK_MONOTONIC in ticks of 32 bits)."""
    return ticks(time.monotonic())


# ------------------------------------------------------------------------------------------- what the tables say


def words_of(address: Address) -> tuple[np.uint64, np.uint64]:
    """(hi, lo) as the tables hold an address."""
    raw = address.packed.rjust(16, b"\0")
    return np.uint64(int.from_bytes(raw[:8], "little")), np.uint64(int.from_bytes(raw[8:], "little"))


def worker_for(tables: Tables, client: Address, port: int, protocol: int) -> int:
    """Number of the worker that steering gives this client's packets and the replies to it."""
    workers = int(tables.header[T_WORKERS])
    if workers <= 1 or protocol in (Protocol.ICMP, Protocol.ICMP6):
        return 0
    counted = port if protocol in PROTOCOLS_WITH_PORTS else 0
    lo = words_of(client)[1]
    return int(worker_of(lo, np.int64(counted), np.int64(protocol), np.int64(workers)))


def source_hash(state: WorkerState, client: Address) -> int:
    """The worker's hash of the client's address alone, for VIPs whose `hash` is that."""
    zero = np.uint64(0)
    return flow_hash_of(state, client.version, words_of(client), (zero, zero))


def origin_at(tables: Tables, client: Address) -> int:
    """Bit of codes.Origin: where this client is."""
    return int(origin_of(tables, np.int64(client.version), *words_of(client)))


def affinity_pod(tables: Tables, state: WorkerState, vip: int, client: Address, now: int) -> int:
    """Index of the pod that the client had last and may have again, 0: none."""
    return int(pod_of(tables, state, np.int64(vip), *words_of(client), np.int64(now)))


def bucket_rows(tables: Tables, state: WorkerState, flow_hash: int, now: int) -> list[dict[str, Any]]:
    """The ways of the bucket that a flow with this hash belongs to, one row each; `live` false: it is free."""
    base = (flow_hash & (len(state.entries) // WAYS - 1)) * WAYS
    return [flow_at(tables, state, base + way, now) for way in range(WAYS)]


def reply_slots(state: WorkerState, reply_hash: int) -> list[int]:
    """Places of the flows whose replies have this hash."""
    base = (reply_hash & (len(state.reverse) // REVERSE_WAYS - 1)) * REVERSE_WAYS
    line = state.reverse[base : base + REVERSE_WAYS]
    return [int(each["slot"]) - 1 for each in line if each["slot"] and int(each["hash"]) == reply_hash]


def flow_at(tables: Tables, state: WorkerState, slot: int, now: int) -> dict[str, Any]:
    """What one place of the flow table holds."""
    entry, flow = state.entries[slot].copy(), state.flows[slot].copy()
    left = (int(entry["expires"]) - now) & TICK_MASK
    vip = tables.vips[int(entry["vip"])]
    live = bool(entry["pod"]) and 0 < left < 1 << 31 and int(vip["generation"]) == int(flow["generation"])
    row: dict[str, Any] = {"slot": slot, "live": live}
    if not live:
        return row
    family = int(flow["family"])
    pod = tables.pods[int(entry["pod"])]
    return row | {
        "hash": int(entry["hash"]),
        "vip_index": int(entry["vip"]),
        "pod_index": int(entry["pod"]),
        "protocol": int(flow["protocol"]),
        "client": address_of(family, flow["client_hi"], flow["client_lo"]),
        "client_port": int(flow["client_port"]),
        "destination": address_of(family, flow["vip_hi"], flow["vip_lo"]),
        "destination_port": int(flow["vip_port"]),
        "pod": address_of(int(pod["family"]), pod["hi"], pod["lo"]),
        "pod_port": int(flow["pod_port"]),
        "source_port": int(flow["source_port"]),
        "state": FlowState(int(flow["state"])),
        "age_s": ((now - int(flow["created"])) & TICK_MASK) / TICKS_PER_SECOND,
        "expires_in_s": left / TICKS_PER_SECOND,
    }
