"""The workers' flow tables, read while they work: nothing is stopped, and nothing is written.

A row is copied entry, record, entry; if its entry changed meanwhile the row is left out, so that no row mixes
two flows.
"""

from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np

from kuproxy.codes import FlowFlag, FlowState
from kuproxy.dataplane.choice import former_owner
from kuproxy.dataplane.layout import TICK_MASK, TICKS_PER_SECOND, W_NOW, Tables, WorkerState
from kuproxy.dataplane.origin import origin_for
from kuproxy.engine.trace import address_of

__all__ = ["flow_rows", "former_of"]

Address = IPv4Address | IPv6Address

_STATES = frozenset(map(int, FlowState))
_CHUNK = 65536  # entries looked at together: 1 MiB


def _sixteen(address: Address) -> bytes:
    """As the tables hold it: IPv4 in the last four bytes."""
    return address.packed.rjust(16, b"\0")


def _matching(
    state: WorkerState,
    first: int,
    end: int,
    vips: Collection[int] | None,
    pods: Collection[int] | None,
    clients: Collection[Address] | None,
    states: Collection[FlowState] | None,
) -> np.ndarray:
    """Slots in [first, end) that may be wanted."""
    entries = state.entries[first:end]
    wanted = entries["pod"] != 0
    if vips is not None:
        wanted &= np.isin(entries["vip"], list(vips))
    if pods is not None:
        wanted &= np.isin(entries["pod"], list(pods))
    if clients is not None:
        # An IPv4 address and the IPv6 one of the same bits have the same words: the rows tell them apart.
        low = [int.from_bytes(_sixteen(each)[8:], "little") for each in clients]
        wanted &= np.isin(state.flows["client_lo"][first:end], np.array(low, np.uint64))
    if states is not None:
        wanted &= np.isin(state.flows["state"][first:end], [int(each) for each in states])
    return np.flatnonzero(wanted) + first


def flow_rows(
    tables: Tables,
    states: Sequence[WorkerState],
    *,
    worker: int = 0,
    slot: int = 0,
    vips: Collection[int] | None = None,
    pods: Collection[int] | None = None,
    clients: Collection[Address] | None = None,
    flow_states: Collection[FlowState] | None = None,
) -> Iterator[dict[str, Any]]:
    """Live flows from this worker and slot on; None stands for all. `vips` and `pods` are indices."""
    for number in range(worker, len(states)):
        state = states[number]
        for first in range(slot if number == worker else 0, len(state.entries), _CHUNK):
            end = min(first + _CHUNK, len(state.entries))
            for place in _matching(state, first, end, vips, pods, clients, flow_states):
                row = _row(tables, state, int(place))
                if row is not None and (clients is None or row["client"] in clients):
                    yield {"worker": number, "slot": int(place), **row}


def former_of(tables: Tables, state: WorkerState, entry: np.void, flow: np.void) -> int:
    """Index of the pod that the flow moves to if its pod refuses it; 0: it is not tentative, or there is none."""
    if not int(flow["flags"]) & FlowFlag.TENTATIVE:
        return 0
    vip, family = np.int64(entry["vip"]), np.int64(flow["family"])
    client = flow["client_hi"], flow["client_lo"]
    origin = origin_for(tables, tables.vips[vip], family, *client)
    index = int(former_owner(tables, state, vip, origin, np.int64(entry["hash"]), family, *client))
    return 0 if index == int(entry["pod"]) else index


def _row(tables: Tables, state: WorkerState, slot: int) -> dict[str, Any] | None:
    entry = state.entries[slot].copy()
    flow = state.flows[slot].copy()
    # The memory is a worker's to write, and may be half written: what cannot be is no flow.
    if entry["pod"] >= len(tables.pods) or entry["vip"] >= len(tables.vips) or int(flow["state"]) not in _STATES:
        return None
    pod = tables.pods[int(entry["pod"])].copy()
    if state.entries[slot] != entry or entry["pod"] == 0:
        return None
    now = int(state.header[W_NOW])
    left = (int(entry["expires"]) - now) & TICK_MASK
    if left > TICK_MASK >> 1:  # expired, not swept yet
        return None
    if int(tables.vips[int(entry["vip"])]["generation"]) != int(flow["generation"]):
        return None
    family = int(flow["family"])
    return {
        "protocol": int(flow["protocol"]),
        "client": address_of(family, flow["client_hi"], flow["client_lo"]),
        "client_port": int(flow["client_port"]),
        "destination": address_of(family, flow["vip_hi"], flow["vip_lo"]),
        "destination_port": int(flow["vip_port"]),
        "vip_index": int(entry["vip"]),
        "pod_index": int(entry["pod"]),
        "pod": address_of(int(pod["family"]), pod["hi"], pod["lo"]),
        "pod_port": int(flow["pod_port"]),
        "state": FlowState(int(flow["state"])),
        "otherwise_index": former_of(tables, state, entry, flow),
        "source_port": int(flow["source_port"]),
        "age_s": ((now - int(flow["created"])) & TICK_MASK) / TICKS_PER_SECOND,
        "expires_in_s": left / TICKS_PER_SECOND,
    }
