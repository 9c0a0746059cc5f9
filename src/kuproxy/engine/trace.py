"""The workers' trace rings, as plain values."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from kuproxy.codes import Node, Outcome, PacketFlag, Reason
from kuproxy.dataplane.layout import (
    MAX_TRACED,
    TICK_MASK,
    TICKS_PER_SECOND,
    TRACE_SLOTS,
    W_TRACE_LEFT,
    W_TRACE_NEXT,
    WorkerState,
)

# The memory is a worker's to write: a record with other codes is none.
_KINDS = (("node", Node), ("outcome", Outcome), ("reason", Reason))
_CODES = tuple((field, frozenset(map(int, kind))) for field, kind in _KINDS)


def start_trace(state: WorkerState, packets: int) -> None:
    """Ask for that many packets more. Only the worker itself may do so, or its owner while it stands still."""
    state.header[W_TRACE_LEFT] = min(int(state.header[W_TRACE_LEFT]) + packets, MAX_TRACED)


def address_of(family: int, hi: int, lo: int) -> IPv4Address | IPv6Address | None:
    """From two words as the tables hold them (big-endian bytes, read little-endian); None for family 0."""
    raw = int(hi).to_bytes(8, "little") + int(lo).to_bytes(8, "little")
    return None if family == 0 else IPv4Address(raw[12:]) if family == 4 else IPv6Address(raw)


def trace_rows(states: Sequence[WorkerState]) -> Iterator[dict[str, Any]]:
    """Every record that the rings still hold, oldest first, worker by worker; fields as in layout.TRACE.

    `time_s` counts from the worker's first record.
    """
    for worker, state in enumerate(states):
        end = int(state.header[W_TRACE_NEXT])
        first = max(0, end - TRACE_SLOTS)
        began = int(state.trace[first % TRACE_SLOTS]["now"])
        for number in range(first, end):
            row = state.trace[number % TRACE_SLOTS]
            if any(int(row[field]) not in known for field, known in _CODES):
                continue
            flags = int(row["flags"])
            family = int(row["family"])
            known = family != 0
            yield {
                "worker": worker,
                "number": int(row["packet"]),
                "time_s": ((int(row["now"]) - began) & TICK_MASK) / TICKS_PER_SECOND,
                "node": int(row["node"]),
                "outcome": int(row["outcome"]),
                "reason": int(row["reason"]),
                "interface": int(row["interface"]),
                "bytes": int(row["bytes"]),
                "family": family,
                "protocol": int(row["protocol"]) if known else 0,
                "source": address_of(family, row["source_hi"], row["source_lo"]),
                "source_port": int(row["source_port"]) if known else 0,
                "destination": address_of(family, row["destination_hi"], row["destination_lo"]),
                "destination_port": int(row["destination_port"]) if known else 0,
                "hash": int(row["hash"]),
                "fragment": bool(flags & PacketFlag.FRAGMENT),
                "vip_index": int(row["vip"]),
                "vip_generation": int(row["vip_generation"]),
                "pod": address_of(int(row["pod_family"]) if row["pod"] else 0, row["pod_hi"], row["pod_lo"]),
                "pod_port": int(row["pod_port"]),
                "new_flow": bool(flags & PacketFlag.NEW_FLOW),
                "untracked": bool(flags & PacketFlag.UNTRACKED),
                "clash_avoided": bool(flags & PacketFlag.CLASH_AVOIDED),
                "flow": int(row["slot"]),
                "ring_slot": int(row["ring_slot"]),
                "ring_slots": int(row["ring_slots"]),
            }
