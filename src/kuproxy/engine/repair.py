"""Puts a worker's memory in order after the process that wrote it was killed between any two instructions.

A flow that was half written is forgotten; every sum is taken anew from the flows that are left; packets that had been
received and had no outcome yet count as dropped.  The cost follows the flow table: 2 ms for 65,536 buckets.
"""

from __future__ import annotations

import numpy as np

from kuproxy.codes import FlowState, Node, Outcome, Reason
from kuproxy.dataplane import affinity
from kuproxy.dataplane.layout import (
    MAX_PODS,
    MAX_VIPS,
    REVERSE_WAYS,
    W_FLOWS,
    W_HELD_NOW,
    W_NUMBER,
    W_OUTCOMES,
    W_RECEIVED,
    W_STATES,
    W_SWEEP,
    WAYS,
    Tables,
    WorkerState,
)

__all__ = ["repair"]


def _links(state: WorkerState) -> tuple[np.ndarray, np.ndarray]:
    """For each slot, whether the reverse entry that it names leads back to it; and the line that it should lie in."""
    lines = len(state.reverse) // REVERSE_WAYS
    place = state.flows["reverse"].astype(np.int64)
    inside = place < len(state.reverse)
    entry = state.reverse[np.where(inside, place, 0)]
    own = np.arange(1, len(state.entries) + 1)
    linked = inside & (entry["slot"] == own) & (entry["hash"] == state.flows["reverse_hash"])
    in_line = place // REVERSE_WAYS == (state.flows["reverse_hash"] & (lines - 1))
    return linked & in_line, place


def _forget_half_written(tables: Tables, state: WorkerState) -> np.ndarray:
    """Empty every entry that is no whole flow; returns the slots of those that are."""
    entries, flows = state.entries, state.flows
    buckets = len(entries) // WAYS
    used = entries["pod"] != 0
    sound = used & (entries["pod"] < MAX_PODS) & (entries["vip"] != 0) & (entries["vip"] < MAX_VIPS)
    sound &= (entries["hash"] & (buckets - 1)) == np.arange(len(entries)) // WAYS
    sound &= np.isin(flows["state"], [int(each) for each in FlowState])
    linked, place = _links(state)
    direct = tables.vips["encap"][np.where(sound, entries["vip"], 0)] != 0  # no reply comes by
    sound &= linked | (direct & (place < len(state.reverse)))  # whose place is looked at all the same
    entries[used & ~sound] = np.zeros((), entries.dtype)
    return np.flatnonzero(sound)


def _clear_stale_links(state: WorkerState) -> None:
    """Reverse entries that lead nowhere, or to a flow that names another."""
    target = state.reverse["slot"].astype(np.int64) - 1
    used = target >= 0
    inside = used & (target < len(state.entries))
    slot = np.where(inside, target, 0)
    good = inside & (state.entries["pod"][slot] != 0)
    good &= state.flows["reverse"][slot] == np.arange(len(state.reverse))
    state.reverse[used & ~good] = np.zeros((), state.reverse.dtype)


def _set(array: np.ndarray, wanted: np.ndarray) -> None:
    """Write only what differs: control reads these sums at the same time, and must see no flow's pod without it."""
    differs = np.flatnonzero(array != wanted)
    array[differs] = wanted[differs]


def _settle_packets(state: WorkerState) -> None:
    """Give an outcome to the packets that the process had in its hands, and to the fragments that it held."""
    header = state.header
    held = int(header[W_OUTCOMES + Outcome.HELD])
    seen = sum(int(header[W_OUTCOMES + each]) for each in Outcome)
    lost = held + max(0, int(header[W_RECEIVED]) - seen)
    header[W_OUTCOMES + Outcome.HELD] = 0
    header[W_OUTCOMES + Outcome.DROP] += lost
    header[W_HELD_NOW] = 0
    state.held["used"] = 0
    state.counters[Node.INPUT, Reason.WORKER_ENDED] += np.uint64(lost)


def repair(tables: Tables, state: WorkerState) -> None:
    """Make the memory one that no process has died over.  Its worker must not run."""
    slots = _forget_half_written(tables, state)
    _clear_stale_links(state)
    entries = state.entries[slots]
    _set(state.pod_refs, np.bincount(entries["pod"], minlength=MAX_PODS))
    _set(state.vip_flows, np.bincount(entries["vip"], minlength=MAX_VIPS))
    affinity.repair(state.affinity, int(state.header[W_NUMBER]))
    state.header[W_FLOWS] = len(slots)
    by_state = np.bincount(state.flows["state"][slots], minlength=8)
    state.header[W_STATES : W_STATES + 8] = by_state[:8]
    if not 0 <= state.header[W_SWEEP] < len(state.entries) // WAYS:
        state.header[W_SWEEP] = 0
    _settle_packets(state)
