"""The established-flow ("sticky") table of one worker.

A bucket is one cache line of four 16-byte entries (hash, expiry, VIP, pod), as in VPP; a fifth live flow of a bucket
is not tracked. At the same index as the entry lies the flow's record, which says exactly whose flow it is and what its
client addressed; a second small hash, keyed by the reply as it leaves the pod, leads back to it.

Nothing is moved while a flow lives: its index (`slot`) is its name. Recycling is lazy: an expired entry, or one whose
VIP was deleted, counts as free wherever it is met; `sweep` releases the rest, so that pods lose their last reference
in time.
"""

import numpy as np

from kuproxy.codes import FlowState
from kuproxy.dataplane._jit import helper, kernel
from kuproxy.dataplane.hash import flow_hash, ports_word
from kuproxy.dataplane.layout import MAX_SOURCES, REVERSE_WAYS, W_FLOWS, W_STATES, W_SWEEP, W_SWEEPS, WAYS

_HALF_OPEN = int(FlowState.TCP_HALF_OPEN)
HALF_OPEN_WAYS = 2  # of a bucket: what a flood of first packets can fill


@helper
def is_live(expires, now):
    """Wrap-safe: expires lies less than half the 32-bit circle ahead of now."""
    ahead = (np.int64(expires) - now) & 0xFFFFFFFF
    return 0 < ahead and ahead < 0x80000000


@helper
def is_occupied(tables, state, slot, now):
    """Does a flow that still counts hold this slot?"""
    entry = state.entries[slot]
    if entry["pod"] == 0 or not is_live(entry["expires"], now):
        return False
    return tables.vips[entry["vip"]]["generation"] == state.flows[slot]["generation"]


@kernel
def release(state, slot):
    """Forget the flow in `slot`: its entry, its way back and its hold on the pod."""
    entry = state.entries[slot]
    back = state.reverse[state.flows[slot]["reverse"]]
    if np.int64(back["slot"]) == slot + 1:
        back["slot"] = 0
        back["hash"] = 0
    state.pod_refs[entry["pod"]] -= 1
    state.vip_flows[entry["vip"]] -= 1
    state.header[W_STATES + np.int64(state.flows[slot]["state"])] -= 1
    entry["pod"] = 0
    entry["hash"] = 0
    state.header[W_FLOWS] -= 1


@kernel
def _gives_way(state, one, other, now):
    """Of two half-open flows, is `one` the first to be given up? The older; of one age, any rule that all share."""
    age = (now - np.int64(state.flows[one]["created"])) & 0xFFFFFFFF
    other_age = (now - np.int64(state.flows[other]["created"])) & 0xFFFFFFFF
    if age != other_age:
        return age > other_age
    if state.entries[one]["hash"] != state.entries[other]["hash"]:
        return state.entries[one]["hash"] < state.entries[other]["hash"]
    return state.flows[one]["reverse_hash"] < state.flows[other]["reverse_hash"]


@helper
def way_for(tables, state, own_hash, half_open, now):
    """A slot of the bucket for a new flow, or -1 if there is none.

    It may be held by a half-open flow (entry's pod not 0), which then has to give way: the oldest one, when the new
    flow is half-open too and finds as many as may be, or when the bucket is full.
    """
    base = (own_hash & (len(state.entries) // WAYS - 1)) * WAYS
    free = np.int64(-1)
    oldest = np.int64(-1)
    waiting = 0
    for slot in range(base, base + WAYS):
        if state.entries[slot]["pod"] != 0 and not is_occupied(tables, state, slot, now):
            release(state, slot)
        if state.entries[slot]["pod"] == 0:
            if free < 0:
                free = slot
        elif state.flows[slot]["state"] == _HALF_OPEN:
            waiting += 1
            if oldest < 0 or _gives_way(state, slot, oldest, now):
                oldest = slot
    if free < 0 or (half_open and waiting >= HALF_OPEN_WAYS):
        return oldest
    return free


@helper
def reply_hash(state, family, pod_hi, pod_lo, pod_port, client_hi, client_lo, client_port):
    """Flow hash of the packets that come back from the pod; "client" is the source that the pod saw."""
    word = ports_word(pod_port, client_port)
    return np.int64(flow_hash(state, family, pod_hi, pod_lo, client_hi, client_lo, word))


@helper
def source_words(tables, family, source, client_hi, client_lo):
    """(hi, lo) of what `source` names (as in FLOW["source"]), the client's own address if 0."""
    if source == 0:
        return client_hi, client_lo
    if family == 4:
        return np.uint64(0), np.uint64(source) << np.uint64(32)
    index = source & (MAX_SOURCES - 1)  # a flow to a pod of the other family has an IPv4 address here
    return tables.sources[index]["hi"], tables.sources[index]["lo"]


@helper
def source_seen(tables, flow):
    """(hi, lo) of the source that the flow's pod sees, if the pod is of the client's family."""
    source = np.int64(flow["source"])
    return source_words(tables, np.int64(flow["family"]), source, flow["client_hi"], flow["client_lo"])


@helper
def _is_reply(
    tables, state, slot, pod_hi, pod_lo, pod_port, client_hi, client_lo, client_port, protocol, family, now
):
    """Is this packet from a pod the reply of the live flow in `slot`? "client" is the source that the pod saw."""
    flow = state.flows[slot]
    seen_hi, seen_lo = source_seen(tables, flow)
    if (
        seen_lo != client_lo
        or seen_hi != client_hi
        or np.int64(flow["source_port"]) != client_port
        or np.int64(flow["pod_port"]) != pod_port
        or np.int64(flow["protocol"]) != protocol
        or np.int64(flow["family"]) != family
    ):
        return False
    pod = tables.pods[state.entries[slot]["pod"]]
    return pod["lo"] == pod_lo and pod["hi"] == pod_hi and is_occupied(tables, state, slot, now)


@helper
def find_reply(
    tables,
    state,
    hint,
    line_hash,
    pod_hi,
    pod_lo,
    pod_port,
    client_hi,
    client_lo,
    client_port,
    protocol,
    family,
    now,
):
    """The slot of the live flow whose reply this is, or -1. `hint` is a slot to look at first, or -1."""
    if hint >= 0 and _is_reply(
        tables,
        state,
        hint,
        pod_hi,
        pod_lo,
        pod_port,
        client_hi,
        client_lo,
        client_port,
        protocol,
        family,
        now,
    ):
        return hint
    lines = len(state.reverse) // REVERSE_WAYS
    base = (line_hash & (lines - 1)) * REVERSE_WAYS
    for way in range(REVERSE_WAYS):
        back = state.reverse[base + way]
        if np.int64(back["hash"]) == line_hash and back["slot"] != 0:
            slot = np.int64(back["slot"]) - 1
            if _is_reply(
                tables,
                state,
                slot,
                pod_hi,
                pod_lo,
                pod_port,
                client_hi,
                client_lo,
                client_port,
                protocol,
                family,
                now,
            ):
                return slot
    return np.int64(-1)


@helper
def free_reverse(tables, state, line_hash, now):
    """Index of a writable reverse entry of the line, or -1 if eight live flows hold it."""
    lines = len(state.reverse) // REVERSE_WAYS
    base = (line_hash & (lines - 1)) * REVERSE_WAYS
    for way in range(REVERSE_WAYS):
        if state.reverse[base + way]["slot"] == 0:
            return base + way
    for way in range(REVERSE_WAYS):
        slot = np.int64(state.reverse[base + way]["slot"]) - 1
        if not is_occupied(tables, state, slot, now):
            release(state, slot)
            return base + way
    return np.int64(-1)


@kernel
def sweep(tables, state, now, buckets):
    """Look at the next `buckets` buckets and release what no longer counts."""
    total = len(state.entries) // WAYS
    position = state.header[W_SWEEP]
    if buckets > total:
        buckets = total
    for _ in range(buckets):
        base = position * WAYS
        for slot in range(base, base + WAYS):
            if state.entries[slot]["pod"] != 0 and not is_occupied(tables, state, slot, now):
                release(state, slot)
        position += 1
        if position >= total:
            position = 0
            state.header[W_SWEEPS] += 1
    state.header[W_SWEEP] = position


@kernel
def flush(state):
    """Forget every flow; returns how many there were."""
    released = 0
    for slot in range(len(state.entries)):
        if state.entries[slot]["pod"] != 0:
            release(state, slot)
            released += 1
    return released
