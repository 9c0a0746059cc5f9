"""The flow cache's maps, byte by byte: what user space writes, and what the program `ku_cache` reads and counts.

`flows` is a hash map: a packet's five-tuple → which row, and of which generation.  `rows` is an array that user space
has mapped into its memory: what to make of such a packet, and what has become of it.  So a flow is forbidden with one
store, whatever the number of entries: a row that does not bear the generation of the entry counts as no row.

Rows come in pairs, 2n for packets to the pod and 2n + 1 for its replies; pair 0 is none: row 0 holds the lease.

Ports are in network byte order.  Addresses are as they lie in packets: in keys 16 bytes each, IPv4 in the last four;
in rows both together, IPv4's in 8 bytes, IPv6's in 32.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = ["KEY", "LAYOUT", "LEASE_ROW", "ROW", "VALUE", "CountOf"]

LAYOUT = 1  # to be raised with every change of what follows: maps of another layout are not taken over

KEY = np.dtype(
    [
        ("source", "u1", 16),
        ("destination", "u1", 16),
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("protocol", "u1"),
        ("family", "u1"),  # 0 or KeyBit.IPV6
        ("spare", "u1", 2),
    ]
)
assert KEY.itemsize == 40

VALUE = np.dtype([("row", "<u4"), ("generation", "<u4")])
assert VALUE.itemsize == 8

# Two cache lines: the first is written by user space, the second by the program.
ROW = np.dtype(
    [
        ("armed", "<u4"),  # the generation that the row is used in; 0: it is free
        ("live", "<u4"),  # the same once packets may be rewritten by it; 0: not yet
        ("returning", "u1"),  # 1: replies, looked at where interfaces are marked for them
        ("protocol", "u1"),  # these two are for user space: with the other row they give back the key
        ("family", "u1"),
        ("spare", "u1", 5),
        ("addresses", "u1", 32),  # source and destination that the packet gets
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("mac", "u1", 6),  # Ethernet destination that it gets
        ("spare2", "u1", 6),
        # ---
        ("closed", "<u4"),  # a segment with SYN, FIN or RST came by: nothing is rewritten any more
        ("spare3", "<u4"),
        ("last_seen_ns", "<u8"),  # CLOCK_MONOTONIC; in row LEASE_ROW: until when the program may rewrite
        ("packets", "<u8"),
        ("bytes", "<u8"),  # IP total length as received; a GSO frame is one packet
        ("spare4", "u1", 32),
    ]
)
assert ROW.itemsize == 128
assert ROW.fields is not None
assert ROW.fields["closed"][1] == 64

LEASE_ROW = 0


class CountOf(IntEnum):
    """Indices of the cache's per-CPU array `cached`."""

    HIT = 0  # packets rewritten
    CLOSED = 1  # segments with SYN, FIN or RST of a flow that was cached
    LAPSED = 2  # packets of cached flows that came up because the lease was over, or a trace was asked for
    FAILED = 3  # packets dropped because the kernel could not make room for a change
