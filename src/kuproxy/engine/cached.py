"""The flow cache's book: which flows of the workers' tables the kernel carries, read and judged while workers go on.

A cached flow still belongs to its worker, which knows nothing of the cache: its entry must go on living, and end when
it would have ended. This module finds flows worth caching, tells whether a cached one is still what it was when it was
entered, what its packets have to be counted for, and until when its worker should remember it. It decides nothing and
writes no worker's memory; the book itself lies in shared memory, so that a successor goes on with it.

Everything is done for many flows at once: arrays of pairs (the cache's indices, from 1) or of slots (a worker's).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kuproxy.codes import FlowFlag, FlowState, PodCounter, PodFlag, Protocol, VipCounter
from kuproxy.dataplane.layout import (
    ENTRY,
    FLOW,
    MAX_PODS,
    MAX_SOURCES,
    MAX_VIPS,
    T_FLOW_TIMEOUT,
    TICK_MASK,
    TICKS_PER_SECOND,
    W_POLLS,
    W_RECEIVED,
    W_TRACE_LEFT,
    Region,
    Tables,
    WorkerState,
)
from kuproxy.engine.touch import TOUCH
from kuproxy.keeper.vault import Vault

__all__ = [
    "BOOK_LAYOUT", "NS_PER_TICK", "Book", "Counts", "Ends", "Found", "Progress", "Stage", "ends_of", "kept_counts",
    "left_packets", "make_counts", "precedence", "seconds_left", "tick_of",
]  # fmt: skip

NS_PER_TICK = 1_000_000_000 // TICKS_PER_SECOND
BOOK_LAYOUT = 1  # to be raised with every change of BOOK, and of the meaning of what is in it


class Stage:
    """What is done with a pair."""

    FREE, ARMED, LIVE, LEAVING = 0, 1, 2, 3


BOOK = np.dtype(
    [
        ("flow", FLOW),  # as it was when it was entered
        ("entry", ENTRY),
        ("counted", "<u8", (2, 2)),  # packets and bytes to the pod, and from it, that counters have already
        ("allowed_ns", "<u8"),  # CLOCK_MONOTONIC: when its packets were first rewritten
        ("generation", "<u4"),  # of the pair; never 0 once it was used
        ("turn", "<u4"),  # in which it was armed
        ("slot", "<u4"),
        ("worker", "<u2"),
        ("by_node_port", "u1"),  # the client addressed the node, not the VIP
        ("spare", "u1"),
    ]
)
_COUNTS = "cache-counts"  # in the vault
# What is looked through often, apart from the rest: Stage; what entry and record say; of the VIP's row then.
_OFTEN = (
    ("stages", "u1"), ("states", "u1"), ("vips", "<u4"), ("pods", "<u4"), ("generations", "<u4"), ("digests", "<u8"),
)  # fmt: skip
_SPEC_OF_COUNTS = (("vip_counters", "<u8", (MAX_VIPS, 8)), ("pod_counters", "<u8", (MAX_PODS, 8)))

_STATES = (int(FlowState.TCP_ESTABLISHED), int(FlowState.UDP))
_UNSTEADY = int(FlowFlag.CLIENT_FIN | FlowFlag.POD_FIN | FlowFlag.TENTATIVE)
_FLUSHED = int(PodFlag.FLUSHED)
_CHUNK = 1 << 18  # entries looked at together



def _fixed_bits() -> np.ndarray:
    """uint64[8]: the bits of a flow's record that make it the flow it is: not state, flags, and its reply's place."""
    record = np.zeros(1, FLOW)
    record.view(np.uint8)[:] = 0xFF
    for name in ("state", "flags", "reverse"):
        record[name] = 0
    return record.view(np.uint64)


_FIXED = _fixed_bits()


class Counts(NamedTuple):
    """What cached packets have to be added to: like the fields of these names in WorkerState."""

    vip_counters: np.ndarray  # uint64[MAX_VIPS, 8]
    pod_counters: np.ndarray  # uint64[MAX_PODS, 8]


class Found(NamedTuple):
    """Flows of one worker's, copied."""

    worker: int
    slots: np.ndarray
    entries: np.ndarray
    flows: np.ndarray

    def some(self, wanted: np.ndarray) -> "Found":
        return Found(self.worker, self.slots[wanted], self.entries[wanted], self.flows[wanted])


class Progress(NamedTuple):
    """How far a worker has come: turns without a packet, and packets."""

    polls: int
    received: int

    @classmethod
    def of(cls, state: WorkerState) -> "Progress":
        return cls(int(state.header[W_POLLS]), int(state.header[W_RECEIVED]))

    def has_passed(self, before: "Progress") -> bool:
        """Has it taken everything that was on its way to it then?

        It has, when it has found its ring empty since, twice, for the first time may have been on its way; or when it
        has taken more packets than a ring (512) and a veth's queues (256, and 1,000 of a CPU's backlog) hold.
        """
        return self.polls >= before.polls + 2 or self.received >= before.received + 4096


def _ahead(expires: np.ndarray, now: int) -> np.ndarray:
    """int64: ticks until then, below 0 if it has passed (wrap-safe)."""
    ahead = (expires.astype(np.int64) - now) & TICK_MASK
    return np.where(ahead > TICK_MASK >> 1, ahead - (TICK_MASK + 1), ahead)


def stretch(pairs: np.ndarray) -> np.ndarray | slice:
    """The same places, as a slice where they follow one another: that is read and written at a fraction of the cost."""
    if len(pairs) and int(pairs[-1]) - int(pairs[0]) + 1 == len(pairs) and (np.diff(pairs) == 1).all():
        return slice(int(pairs[0]), int(pairs[-1]) + 1)
    return pairs


def _words(records: np.ndarray) -> np.ndarray:
    """uint64[n, words]"""
    return records.view(np.uint64).reshape(len(records), records.dtype.itemsize // 8)


def tick_of(ns: int) -> int:
    """CLOCK_MONOTONIC as the workers' clock."""
    return ns // NS_PER_TICK & TICK_MASK


def digests(tables: Tables, vips: np.ndarray) -> np.ndarray:
    """uint64: of VIPs' rows, but for their rings: which pods new flows get is no affair of flows that run."""
    rows = tables.vips[vips]
    rows["ring"] = 0
    words = _words(rows)
    result = np.zeros(len(rows), np.uint64)
    for column in range(words.shape[1]):
        result = (result ^ words[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        result ^= result >> np.uint64(29)
    return result


def _digest_of_each(tables: Tables, vips: np.ndarray) -> np.ndarray:
    """The same where few VIPs occur often."""
    if not len(vips):
        return np.zeros(0, np.uint64)
    some = np.flatnonzero(np.bincount(vips))
    found = np.zeros(int(some[-1]) + 1, np.uint64)
    found[some] = digests(tables, some)
    return found[vips]


class Book:
    """Of `pairs` flows; `fds` are those of a predecessor's regions, None: there is none."""

    def __init__(self, pairs: int, fd: int | None = None) -> None:
        """Raises ValueError if the descriptor's memory has another layout."""
        spec = [(name, dtype, (pairs + 1,)) for name, dtype in (("pairs", BOOK), *_OFTEN)]
        self.region = Region(spec, fd, name="cache")
        self.rows: np.ndarray = self.region.arrays["pairs"]
        self.stages: np.ndarray = self.region.arrays["stages"]
        self._often = {name: self.region.arrays[name] for name, _ in _OFTEN}

    def at(self, stage: int) -> np.ndarray:
        """Pairs at this stage."""
        return np.flatnonzero(self.stages == stage)

    def note(
        self, pairs: np.ndarray, found: Found, by_node_port: np.ndarray, tables: Tables, turn: int
    ) -> np.ndarray:
        """Enter flows as armed; returns the pairs' new generations, uint32.  `by_node_port`: see `precedence`."""
        place = stretch(pairs)
        rows = self.rows[place]
        generations = rows["generation"] + np.uint32(1)
        generations[generations == 0] = 1
        rows["generation"] = generations
        rows["flow"], rows["entry"] = found.flows, found.entries
        rows["slot"], rows["worker"] = found.slots, found.worker
        for name, values in (
            ("states", found.flows["state"]),
            ("vips", found.entries["vip"]),
            ("pods", found.entries["pod"]),
            ("generations", found.flows["generation"]),
            ("digests", _digest_of_each(tables, found.entries["vip"])),
        ):
            self._often[name][place] = values
        rows["counted"], rows["turn"] = 0, turn & TICK_MASK
        rows["by_node_port"] = by_node_port
        self.rows[place] = rows
        self.stages[place] = Stage.ARMED
        return np.asarray(generations)

    def move(self, pairs: np.ndarray, stage: int) -> None:
        self.stages[pairs] = stage

    # ---------------------------------------------------------------------------------------------- judging

    def allowed(self, pairs: np.ndarray, tables: Tables, shortest: int) -> np.ndarray:
        """bool: do the tables still say of these flows what they said?  `shortest`: ticks that a timeout must have."""
        often = {name: values[pairs] for name, values in self._often.items()}
        vips = often["vips"]
        good = tables.vips["generation"][vips] == often["generations"]
        good &= _digest_of_each(tables, vips) == often["digests"]
        good &= tables.pods["flags"][often["pods"]] & _FLUSHED == 0
        timeouts = tables.header[T_FLOW_TIMEOUT : T_FLOW_TIMEOUT + 8]
        return np.asarray(good & (timeouts >= shortest)[often["states"]])

    def held(self, pairs: np.ndarray, states: Sequence[WorkerState], now: int) -> np.ndarray:
        """bool: are they, in their workers' tables, the flows that they were, alive and not about to end?"""
        good = np.zeros(len(pairs), bool)
        rows = self.rows[pairs]
        for worker, state in enumerate(states):
            mine = np.flatnonzero((rows["worker"] == worker) & (rows["slot"] < len(state.entries)))
            slots = rows["slot"][mine]
            entries, flows = state.entries[slots], state.flows[slots]
            same = _ahead(entries["expires"], now) > 0
            for name in ("hash", "vip", "pod"):
                same &= entries[name] == rows["entry"][name][mine]
            before = np.ascontiguousarray(rows["flow"][mine])
            different = (_words(flows) ^ _words(before)) & _FIXED
            good[mine] = same & ~different.any(axis=1) & _is_steady(flows)
        return good

    def candidates(
        self,
        worker: int,
        tables: Tables,
        state: WorkerState,
        first: int,
        taken: np.ndarray,
        now: int,
        within: int,
        age: int,
        shortest: int,
    ) -> Found:
        """Flows from slot `first` on, in one stretch, that may be cached: whole, steady, and neither new nor idle.

        `taken`: int32 of the worker's slots, not 0 where the flow is cached already.
        `within`: ticks since their last packet, at most; `age`: ticks that this came after their first, at least;
        `shortest`: see `allowed`.
        """
        entries = state.entries[first : first + _CHUNK]
        there = np.flatnonzero((entries["pod"] != 0) & (taken[first : first + _CHUNK] == 0))
        slots = there + first
        kinds = state.flows["state"][slots].astype(np.int64) & 7
        timeouts = tables.header[T_FLOW_TIMEOUT + kinds].astype(np.int64)
        used = timeouts - _ahead(entries["expires"][there], now)
        wanted = np.isin(kinds, _STATES) & (used >= 0) & (used <= within) & (timeouts >= shortest)
        slots, used = slots[wanted], used[wanted]
        copied, flows, again = state.entries[slots], state.flows[slots], state.entries[slots]
        good = (copied == again) & _is_steady(flows) & (copied["pod"] != 0)
        good &= ((now - flows["created"].astype(np.int64)) & TICK_MASK) - used >= age
        found = Found(worker, slots[good], copied[good], flows[good])
        return found.some(_is_translated_alone(tables, found))

    def by_worker(self, pairs: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(worker, slots, pairs) of those that have some."""
        workers = self.rows["worker"][pairs]
        for worker in np.unique(workers).tolist():
            mine = pairs[workers == worker]
            yield worker, self.rows["slot"][mine], mine

    def strays(self, pairs: np.ndarray, states: Sequence[WorkerState]) -> np.ndarray:
        """bool: of workers or slots that there are not."""
        sizes = np.array([len(state.entries) for state in states])
        rows = self.rows[pairs]
        known = rows["worker"] < len(sizes)
        return np.asarray(~known | (rows["slot"] >= sizes[np.where(known, rows["worker"], 0)]))

    @staticmethod
    def stretches(state: WorkerState) -> range:
        """Where `candidates` may begin."""
        return range(0, len(state.entries), _CHUNK)

    # ------------------------------------------------------------------------------------------- the flows' lives

    def touches(
        self,
        pairs: np.ndarray,
        last_seen_ns: np.ndarray,
        tables: Tables,
        states: Sequence[WorkerState],
        now: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """TOUCH[n]: until when each worker should remember its flow, whose last packet was then.

        Beside them, in ticks: how much later that is than it would (0 or less: not at all), how much is left, and the
        flow's timeout.
        """
        rows = self.rows[pairs]
        touches = np.zeros(len(pairs), TOUCH)
        later, left = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
        timeouts = tables.header[T_FLOW_TIMEOUT + rows["flow"]["state"].astype(np.int64)].astype(np.int64)
        seen = (last_seen_ns // NS_PER_TICK).astype(np.int64) & TICK_MASK
        touches["slot"] = rows["slot"]
        touches["expires"] = (seen + timeouts) & TICK_MASK
        touches["hash"], touches["pod"] = rows["entry"]["hash"], rows["entry"]["pod"]
        touches["created"], touches["reverse_hash"] = rows["flow"]["created"], rows["flow"]["reverse_hash"]
        for worker, state in enumerate(states):
            mine = np.flatnonzero((rows["worker"] == worker) & (rows["slot"] < len(state.entries)))
            expires = state.entries["expires"][rows["slot"][mine]]
            left[mine] = _ahead(expires, now)
            later[mine] = _ahead(touches["expires"][mine], now) - left[mine]
        later[last_seen_ns == 0] = 0
        return touches, later, left, timeouts

    def tally(self, pairs: np.ndarray, packets: np.ndarray, sizes: np.ndarray, counts: Counts) -> None:
        """Count what has come since the last time; uint64[n, 2] since the pair was entered: to the pod, from it."""
        counted = self.rows["counted"][pairs]
        new_packets = packets - counted[:, :, 0]
        new_bytes = sizes - counted[:, :, 1]
        some = np.flatnonzero(new_packets.any(axis=1))
        if not len(some):
            return
        vips, pods = self._often["vips"][pairs[some]], self._often["pods"][pairs[some]]
        for way, new, of_vip, of_pod in (
            (0, new_packets, VipCounter.NEXT_PACKET, PodCounter.TO_POD_PACKETS),
            (0, new_bytes, VipCounter.TO_POD_BYTES, PodCounter.TO_POD_BYTES),
            (1, new_packets, VipCounter.FROM_POD_PACKETS, PodCounter.FROM_POD_PACKETS),
            (1, new_bytes, VipCounter.FROM_POD_BYTES, PodCounter.FROM_POD_BYTES),
        ):
            np.add.at(counts.vip_counters[:, of_vip], vips, new[some, way])
            np.add.at(counts.pod_counters[:, of_pod], pods, new[some, way])
        self.rows["counted"][pairs[some], :, 0] = packets[some]
        self.rows["counted"][pairs[some], :, 1] = sizes[some]


def make_counts(vault: Vault) -> Counts:
    """Counters of cached packets, a predecessor's if it has left some, to be left to a successor."""
    counts = kept_counts(vault)
    if counts is None:
        region = Region(_SPEC_OF_COUNTS, name="cache-counts")
        vault.keep({_COUNTS: region.fd})
        counts = Counts(**region.arrays)
    return counts


def kept_counts(vault: Vault) -> Counts | None:
    """What a predecessor has counted and still counts, even if nothing is cached any more."""
    if _COUNTS not in vault.names():
        return None
    try:
        return Counts(**Region(_SPEC_OF_COUNTS, vault.take(_COUNTS), name="cache-counts").arrays)
    except ValueError:  # of another layout
        return None


def left_packets(states: Sequence[WorkerState]) -> int:
    """How many packets are still to be traced."""
    return sum(int(state.header[W_TRACE_LEFT]) for state in states)


def seconds_left(later: np.ndarray, left: np.ndarray) -> float:
    """Of one flow, from what `Book.touches` says."""
    return max(0.0, float(left[0] + max(0, int(later[0]))) / TICKS_PER_SECOND)


def address_bytes(hi: np.ndarray, lo: np.ndarray) -> np.ndarray:
    """uint8[n, 16]: addresses as they lie in packets, IPv4 in the last four bytes."""
    return np.stack([hi, lo], axis=1).astype("<u8").view(np.uint8).reshape(-1, 16)


class Ends(NamedTuple):
    """A flow's four ends (uint8[n, 16]), with their ports (uint16[n], host order): client, VIP, pod, what it sees."""

    addresses: dict[str, np.ndarray]
    ports: dict[str, np.ndarray]
    protocol: np.ndarray
    family: np.ndarray


def ends_of(tables: Tables, found: Found) -> Ends:
    """Everything that the rewrite of these flows' packets needs, both ways."""
    flows, pods = found.flows, tables.pods[found.entries["pod"]]
    source = flows["source"].astype(np.uint64)
    own = source == 0
    named = tables.sources[(flows["source"] & (MAX_SOURCES - 1)).astype(np.int64)]
    four = flows["family"] == 4
    seen_hi = np.where(own, flows["client_hi"], np.where(four, np.uint64(0), named["hi"]))
    seen_lo = np.where(own, flows["client_lo"], np.where(four, source << np.uint64(32), named["lo"]))
    return Ends(
        {
            "client": address_bytes(flows["client_hi"], flows["client_lo"]),
            "vip": address_bytes(flows["vip_hi"], flows["vip_lo"]),
            "pod": address_bytes(pods["hi"], pods["lo"]),
            "seen": address_bytes(seen_hi, seen_lo),
        },
        {
            "client": flows["client_port"],
            "vip": flows["vip_port"],
            "pod": flows["pod_port"],
            "seen": flows["source_port"],
        },
        flows["protocol"],
        flows["family"],
    )


def precedence(tables: Tables, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """bool each: are their VIPs so specific that none can be more so; did they come by a node port?"""
    vips = tables.vips[found.entries["vip"]]
    whole = vips["plen"] == 128
    elsewhere = (vips["hi"] != found.flows["vip_hi"]) | (vips["lo"] != found.flows["vip_lo"])
    by_node_port = (whole & elsewhere) | (~whole & (vips["node_port"] != 0))
    return whole & (vips["port"] != 0) & (vips["protocol"] != 0) & ~by_node_port, by_node_port


def _is_steady(flows: np.ndarray) -> np.ndarray:
    """UDP, or TCP that is established with a pod that has spoken, and that neither side has begun to end."""
    udp = (flows["state"] == int(FlowState.UDP)) & (flows["protocol"] == int(Protocol.UDP))
    tcp = (flows["state"] == int(FlowState.TCP_ESTABLISHED)) & (flows["flags"] & _UNSTEADY == 0)
    return np.asarray(udp | (tcp & (flows["protocol"] == int(Protocol.TCP))))


def _is_translated_alone(tables: Tables, found: Found) -> np.ndarray:
    """Addresses and ports change, and nothing else: no encapsulation, no other family, a pod that keeps its flows."""
    vips, pods = tables.vips[found.entries["vip"]], tables.pods[found.entries["pod"]]
    good = (vips["encap"] == 0) & (vips["generation"] == found.flows["generation"])
    good &= (pods["family"] == found.flows["family"]) & (pods["flags"] & _FLUSHED == 0)
    return np.asarray(good & (pods["vip"] == found.entries["vip"]) & _is_let_in(tables, found))


def _is_let_in(tables: Tables, found: Found) -> np.ndarray:
    """A VIP with source ranges asks for them with every packet: a flow may be older than they are."""
    good = np.ones(len(found.slots), bool)
    blocks = tables.vips["ranges"][found.entries["vip"]]
    for block in np.unique(blocks[blocks != 0]).tolist():
        mine = np.flatnonzero(blocks == block)
        hi, lo = found.flows["client_hi"][mine], found.flows["client_lo"][mine]
        let_in = np.zeros(len(mine), bool)
        for row in tables.ranges[block + 1 : block + 1 + int(tables.ranges["hi"][block])]:
            let_in |= (hi & row["mask_hi"] == row["hi"]) & (lo & row["mask_lo"] == row["lo"])
        good[mine] = let_in
    return good
