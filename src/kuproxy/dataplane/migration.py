"""Moves a worker's flows into another table: of another size, or to be found there by another hash."""

import numpy as np

from kuproxy.dataplane import flow_table
from kuproxy.dataplane._jit import kernel
from kuproxy.dataplane.hash import hash_with, ports_word
from kuproxy.dataplane.layout import REVERSE_WAYS, T_NAT46_HI, W_FLOW_HASH, W_FLOW_KEY, WAYS
from kuproxy.dataplane.translated import mapped_lo


@kernel
def _hashes(tables, state, slot, mode, key0, key1):
    """(hash of the client's packets, hash of the pod's replies) of the flow in `slot`, by this hash and key."""
    flow = state.flows[slot]
    family = np.int64(flow["family"])
    word = ports_word(np.int64(flow["client_port"]), np.int64(flow["vip_port"]))
    forward = hash_with(
        mode, key0, key1, family, flow["client_hi"], flow["client_lo"], flow["vip_hi"], flow["vip_lo"], word
    )
    pod = tables.pods[state.entries[slot]["pod"]]
    pod_family = np.int64(pod["family"])
    if pod_family == family:
        hi, lo = flow_table.source_seen(tables, flow)
    elif family == 4:
        hi, lo = tables.header[T_NAT46_HI], mapped_lo(tables, flow["client_lo"])
    else:
        hi, lo = np.uint64(0), np.uint64(flow["source"]) << np.uint64(32)
    word = ports_word(np.int64(flow["pod_port"]), np.int64(flow["source_port"]))
    reply = hash_with(mode, key0, key1, pod_family, pod["hi"], pod["lo"], hi, lo, word)
    return np.int64(forward), np.int64(reply)


@kernel
def migrate(tables, old, new, mode, key0, key1, now):
    """Copy every live flow of `old` into the empty table of `new` (same header, counters and references otherwise).

    `mode` and the key say by which hash they shall be found there. Returns the number of flows that found no place;
    the caller then keeps `old`. Reference counts and W_FLOWS are left as they are: what was copied keeps its
    reference, and what was dead is released in `old` first.
    """
    lost = 0
    same_hash = (
        mode == old.header[W_FLOW_HASH]
        and key0 == np.uint64(old.header[W_FLOW_KEY])
        and key1 == np.uint64(old.header[W_FLOW_KEY + 1])
    )
    buckets = len(new.entries) // WAYS
    lines = len(new.reverse) // REVERSE_WAYS
    for slot in range(len(old.entries)):
        entry = old.entries[slot]
        if entry["pod"] == 0:
            continue
        if not flow_table.is_occupied(tables, old, slot, now):
            flow_table.release(old, slot)
            continue
        flow = old.flows[slot]
        direct = tables.vips[entry["vip"]]["encap"] != 0  # no way back to keep
        forward, reply = np.int64(entry["hash"]), np.int64(flow["reverse_hash"])
        if not same_hash:
            forward, reply = _hashes(tables, old, slot, mode, key0, key1)
        target = np.int64(-1)
        base = (forward & (buckets - 1)) * WAYS
        for way in range(WAYS):
            if new.entries[base + way]["pod"] == 0:
                target = base + way
                break
        back = np.int64(-1)
        line = (reply & (lines - 1)) * REVERSE_WAYS
        for way in range(REVERSE_WAYS):
            if new.reverse[line + way]["slot"] == 0:
                back = line + way
                break
        if target < 0 or (back < 0 and not direct):
            lost += 1
            continue
        new.entries[target] = entry
        new.entries[target]["hash"] = forward
        new.flows[target] = flow
        if direct:
            new.flows[target]["reverse"] = 0
            continue
        new.flows[target]["reverse"] = back
        new.flows[target]["reverse_hash"] = reply
        new.reverse[back]["hash"] = reply
        new.reverse[back]["slot"] = target + 1
    return lost
