"""What tables say, in the words of the model: the way back from arrays to VIPs and pods.

For a control process that finds tables which another one has written.  Whatever only the other one knew is lost:
owners, and pods' weights (rings tell shares, not weights).  A row that makes no sense, because its writer died over
it, is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import numpy as np

from kuproxy.codes import Encap, HashMode, Origin, Protocol, VipFlag, VipType
from kuproxy.control.compile.records import Block, Ring
from kuproxy.control.compile.words import words_address
from kuproxy.dataplane.layout import RING_FORMER, RING_LOG2, RING_SPLIT, TICKS_PER_SECOND, Tables
from kuproxy.errors import KuError
from kuproxy.model.vip import Pod, Prefix, Vip, VipKey

__all__ = ["pod_at", "ranges_at", "ring_of", "vip_at", "vip_rows"]

NODE_ONLY = {4: ip_network("0.0.0.0/32"), 6: ip_network("::/128")}
UNKNOWN_OWNER = "?"


def vip_rows(tables: Tables) -> Iterator[int]:
    """Indices of the rows that were ever used."""
    yield from np.flatnonzero(tables.vips["generation"]).tolist()


def ring_of(row: np.void) -> Ring | None:
    word = int(row["ring"])
    if not word:
        return None
    return Ring(word >> 8, word & RING_LOG2, word & RING_SPLIT, bool(word & RING_FORMER))


def ranges_at(tables: Tables, offset: int, family: int) -> tuple[Block | None, tuple[Prefix, ...]]:
    """A block of prefixes, as VIP["ranges"] or a word of the header names it."""
    if not offset:
        return None, ()
    count = int(tables.ranges[offset]["hi"])
    prefixes = []
    for each in tables.ranges[offset + 1 : offset + 1 + count]:
        network = words_address(family, int(each["hi"]), int(each["lo"]))
        mask = words_address(family, int(each["mask_hi"]), int(each["mask_lo"]))
        prefixes.append(ip_network(f"{network}/{int(mask).bit_count()}"))
    return Block(offset, count.bit_length()), tuple(prefixes)


def pod_at(tables: Tables, index: int) -> Pod:
    """With its port resolved, as records have it."""
    row = tables.pods[index]
    return Pod(words_address(int(row["family"]), int(row["hi"]), int(row["lo"])), int(row["port"]))


def vip_at(
    tables: Tables,
    index: int,
    pods: tuple[Pod, ...],
    outside_pods: tuple[Pod, ...] | None,
    *,
    on_node_only: bool,
) -> Vip | None:
    """The VIP of a row with these pods; None if the row makes no sense."""
    row = tables.vips[index]
    try:
        family = int(row["family"])
        if on_node_only:
            prefix: Prefix = NODE_ONLY[family]
        else:
            plen = int(row["plen"]) - (96 if family == 4 else 0)
            prefix = ip_network((words_address(family, int(row["hi"]), int(row["lo"])).packed, plen))
        ring = ring_of(row)
        flags = int(row["flags"])
        encap = Encap(int(row["encap"]))
        return Vip(
            VipKey(prefix, Protocol(int(row["protocol"])), int(row["port"])),
            VipType(int(row["type"])),
            target_port=int(row["target_port"]),
            node_port=int(row["node_port"]),
            new_len=1 << ring.log2 if ring else 1,
            pods=pods,
            reject=bool(flags & VipFlag.REJECT),
            masquerade_from=Origin((flags & VipFlag.MASQUERADE) // VipFlag.MASQUERADE_POD),
            outside_pods=outside_pods,
            reset=bool(flags & VipFlag.RESET),
            affinity_s=int(row["affinity"]) / TICKS_PER_SECOND,
            source_ranges=ranges_at(tables, int(row["ranges"]), family)[1],
            hash_mode=HashMode(int(row["hash_mode"])),
            session_cap=int(row["session_cap"]),
            owner=UNKNOWN_OWNER,
            encap=encap,
            dscp=int(row["dscp"]) if encap is Encap.L3DSR else 0,
            gue_port=int(row["gue_port"]) if encap is Encap.GUE else 0,
        )
    except (KeyError, ValueError, KuError):
        return None
