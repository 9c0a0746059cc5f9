"""The flow cache's maps, byte by byte: what user space writes, and what the program `ku_cache` reads and counts.

`flows` is a hash map: a packet's five-tuple → which row, and of which generation.  `rows` is an array that user space
has mapped into its memory: what to make of such a packet, and what has become of it.  So a flow is forbidden with one
store, whatever the number of entries: a row that does not bear the generation of the entry counts as no row.

Rows come in pairs, 2n for packets to the pod and 2n + 1 for its replies; pair 0 is none: row 0 holds the lease, row 1
that of the ways that are shorter than the node's own.

Ports are in network byte order.  Addresses are as they lie in packets: in keys 16 bytes each, IPv4 in the last four;
in rows both together, IPv4's in 8 bytes, IPv6's in 32.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = [
    "CHOICE", "KEY", "LAYOUT", "LEASE_ROW", "MAX_ENTRIES", "ROW", "SHORTCUT_ROW", "VALUE", "CountOf", "Way", "offset",
]  # fmt: skip

MAX_ENTRIES = 1 << 22  # 1 GiB

LAYOUT = 3  # to be raised with every change of what follows: maps of another layout are not taken over

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

# Two cache lines: the first is written by user space (but for `came_by`), the second by the program.
ROW = np.dtype(
    [
        ("armed", "<u4"),  # the generation that the row is used in; 0: it is free
        ("live", "<u4"),  # the same once packets may be rewritten by it; 0: not yet
        ("returning", "u1"),  # 1: replies, looked at only where they may come in
        ("protocol", "u1"),  # these two are for user space: with the other row they give back the key
        ("family", "u1"),
        ("way", "u1"),  # Way
        ("source_port", ">u2"),
        ("destination_port", ">u2"),
        ("addresses", "u1", 32),  # source and destination that the packet gets
        ("mac", "u1", 6),  # Ethernet destination that it gets where it enters the node
        ("mtu", "<u2"),  # the longest IP packet that a shortcut takes; longer ones enter the node
        # Replies: by which interface the last one came that came rightly (lower half), and when (upper half, in units
        # of 2^30 ns, CLOCK_MONOTONIC); written by the program.
        ("came_by", "<u8"),
        # ---
        ("closed", "<u4"),  # a segment with SYN, FIN or RST came by: nothing is rewritten any more
        ("ifindex", "<u4"),  # of a shortcut: where it leaves
        ("last_seen_ns", "<u8"),  # CLOCK_MONOTONIC; of the two leases: until when they last
        ("packets", "<u8"),
        ("bytes", "<u8"),  # IP total length as received; a GSO frame is one packet
        ("next_hop", "u1", 20),  # of Way.NEIGHBOUR: struct bpf_redir_neigh, the family and an address
        ("macs", "u1", 12),  # of Way.PEER: Ethernet destination and source
    ]
)
assert ROW.itemsize == 128
assert ROW.fields is not None
assert ROW.fields["closed"][1] == 64

# What a row says of its way.
CHOICE = np.dtype(
    [
        ("way", "u1"),
        ("spare", "u1"),
        ("mtu", "<u2"),
        ("ifindex", "<u4"),
        ("next_hop", "u1", 20),
        ("macs", "u1", 12),
    ]
)

LEASE_ROW, SHORTCUT_ROW = 0, 1  # until when packets may be rewritten; until when shortcuts may be taken


class Way(IntEnum):
    """Where a packet goes once it has been rewritten (steering/ways.py chooses)."""

    ROUTE = 0  # into the node at ku0: it is routed and filtered like what a worker sends
    NEIGHBOUR = 1  # out of an interface, to a next hop that the kernel resolves: redirect_neigh
    PEER = 2  # into the other end of a veth, in a pod's namespace: redirect_peer


def offset(field: str) -> int:
    """Where a field of a row lies."""
    assert ROW.fields is not None
    return int(ROW.fields[field][1])


class CountOf(IntEnum):
    """Indices of the cache's per-CPU array `cached`."""

    HIT = 0  # packets rewritten
    CLOSED = 1  # segments with SYN, FIN or RST of a flow that was cached
    LAPSED = 2  # packets of cached flows that came up because the lease was over, or a trace was asked for
    FAILED = 3  # packets dropped because the kernel could not make room for a change
    SHORT = 4  # of those rewritten: that took a shortcut
