"""What must hold of a worker's memory between vectors, asked one flow at a time."""

from __future__ import annotations

import numpy as np

from kuproxy.codes import Outcome
from kuproxy.dataplane.layout import (
    MAX_PODS,
    MAX_VIPS,
    REVERSE_WAYS,
    W_FLOWS,
    W_OUTCOMES,
    W_RECEIVED,
    W_STATES,
    WAYS,
    Tables,
    WorkerState,
)


def check(tables: Tables, state: WorkerState, *, counts: bool = True) -> int:
    """Raises AssertionError.  Returns the number of flows.  Without `counts` those of packets may be anything."""
    refs, per_vip, states = np.zeros(MAX_PODS, int), np.zeros(MAX_VIPS, int), [0] * 8
    buckets = len(state.entries) // WAYS
    for slot in np.flatnonzero(state.entries["pod"]).tolist():
        entry, flow = state.entries[slot], state.flows[slot]
        refs[entry["pod"]] += 1
        per_vip[entry["vip"]] += 1
        states[flow["state"]] += 1
        assert int(entry["hash"]) & (buckets - 1) == slot // WAYS
        if tables.vips[entry["vip"]]["encap"] == 0:
            assert int(state.reverse[flow["reverse"]]["slot"]) == slot + 1
            line = int(flow["reverse_hash"]) & (len(state.reverse) // REVERSE_WAYS - 1)
            assert int(flow["reverse"]) // REVERSE_WAYS == line
    for place in np.flatnonzero(state.reverse["slot"]).tolist():
        slot = int(state.reverse[place]["slot"]) - 1
        assert state.entries[slot]["pod"] != 0
        assert int(state.flows[slot]["reverse"]) == place
    assert (state.pod_refs == refs).all()
    assert (state.vip_flows == per_vip).all()
    header = state.header
    assert header[W_STATES : W_STATES + 8].tolist() == states
    assert int(header[W_FLOWS]) == sum(states)
    assert not counts or int(header[W_RECEIVED]) == sum(int(header[W_OUTCOMES + each]) for each in Outcome)
    return sum(states)
