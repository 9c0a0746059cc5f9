"""Going on where another control process has stopped: its tables are read, put right, and kept.

The workers forward by these tables meanwhile.  Indices stay, so flows keep their VIPs and pods; what the former process
had half done when it was killed is completed or undone; arenas give out what is out of use.  VIPs that nobody has asked
for yet are orphans: they serve until `finish_adoption`, when all sources have said what they want.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kuproxy.codes import PodFlag, VipFlag
from kuproxy.control.compile.entries import reference_place
from kuproxy.control.compile.pods import pod_flags
from kuproxy.control.compile.records import Block, Draining, Ring, VipRecord
from kuproxy.control.compile.recover import pod_at, ranges_at, ring_of, vip_at, vip_rows
from kuproxy.control.compile.vips import VipRows
from kuproxy.control.compile.words import HOST, address_words, key_word, prefix_length, words_address
from kuproxy.control.places import Places, place_of
from kuproxy.control.store import Changes
from kuproxy.dataplane.layout import (
    KIND_ADDRESS,
    KIND_NODE_ADDRESS,
    KIND_POD_ADDRESS,
    KIND_VIP,
    MAX_PODS,
    PREFIX_LENGTHS,
    RING_INSIDE,
    RING_OUTSIDE,
    T_N_NODEPORTS,
    T_NODE_RANGES4,
    T_NODE_RANGES6,
    T_POD_RANGES4,
    T_POD_RANGES6,
    T_PREFIXES,
    Tables,
)
from kuproxy.model.vip import Address, Pod, Vip, VipKey

__all__ = ["Compiler"]

Entries = dict[tuple[int, int, int], int]


class Compiler(VipRows):
    """Keeps `tables` equal to what the store holds, whoever wrote them before."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        super().__init__(tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address)
        self._orphans: dict[VipKey, VipRecord] = {}
        self._claimed: set[VipKey] = set()  # orphans that somebody has asked for since

    @property
    def orphans(self) -> int:
        """VIPs of a former control process that nobody has asked for yet."""
        return len(self._orphans)

    # -------------------------------------------------------------------------------------------------- reading

    def adopt(self, references: np.ndarray) -> int:
        """Take over what the tables hold. `references` (int[MAX_PODS]) are the flows that refer to each pod.

        Returns how many VIPs are served.  To be called once, before anything else is asked of this object.
        """
        served = self._read_vips(references)
        self._vip_indices.adopt(self._by_index)
        self._pod_indices.adopt(set(self._pods_of(self._by_index.values())))
        rings = [record.ring for record in self._by_index.values() if record.ring is not None]
        self._rings.adopt((ring.offset, ring.block_log2) for ring in rings)
        blocks = [record.ranges for record in self._by_index.values() if record.ranges is not None]
        blocks += self._adopt_origins()
        self._ranges.adopt((block.offset, block.log2) for block in blocks)
        self._put_right()
        self._orphans = dict(self._records)
        self.touched = dict(self._by_index)
        self._publish()
        return served

    @staticmethod
    def _pods_of(records: Iterable[VipRecord]) -> Iterable[int]:
        for record in records:
            yield from record.pods.values()
            yield from record.draining.values()
            yield from record.flushed

    def _read_vips(self, references: np.ndarray) -> int:
        tables = self.tables
        entered = set(self._vip_match.items().values())
        holders: dict[int, list[int]] = {}  # pods that flows refer to, by VIP index
        for index in np.flatnonzero(references[1:MAX_PODS]).tolist():
            holders.setdefault(int(tables.pods[index + 1]["vip"]), []).append(index + 1)
        for index in vip_rows(tables):
            row = tables.vips[index]
            used = bool(row["flags"] & VipFlag.USED)
            held = holders.get(index, [])
            if not used and not held:
                continue
            ring = ring_of(row) if used else None
            former = self._former_pods(index, ring)
            inside, outside = self._members(ring)
            pods = inside | (outside or {})
            # It has a node port and no entry of its own: nothing else leads to it.
            on_node_only = bool(used and row["node_port"] and row["plen"] == 0 and index not in entered)
            vip = vip_at(
                tables,
                index,
                tuple(inside),
                None if outside is None else tuple(outside),
                on_node_only=on_node_only,
            )
            if vip is None:
                continue
            record = VipRecord(index, vip, ring=ring, removed=not used)
            record.ranges = ranges_at(tables, int(row["ranges"]), int(row["family"]))[0] if used else None
            record.pods = Places(pods)
            record.former_pods = former
            if ring is not None and ring.former:
                self._ends[index] = None
            self._by_index[index] = record
            self._drain_holders(record, sorted(former.union(held)))
            if used:
                self._records[vip.key] = record
        return len(self._records)

    def _members(self, ring: Ring | None) -> tuple[dict[Pod, int], dict[Pod, int] | None]:
        """Pods with their indices in the ring for everybody, or in the inside's and in the outside's."""

        def owners(which: int) -> dict[Pod, int]:
            if ring is None or (ring.kind and not ring.kind & which):
                return {}
            found = np.unique(self._ring_view(ring, which)).tolist()
            return {pod_at(self.tables, each): each for each in found if 0 < each < MAX_PODS}

        return owners(RING_INSIDE), owners(RING_OUTSIDE) if ring is not None and ring.kind else None

    def _former_pods(self, index: int, ring: Ring | None) -> frozenset[int]:
        """Whom the VIP's ring named before the last change, if that is still told."""
        if ring is None or not ring.former:
            return frozenset()
        found = np.unique(self._former_block(ring))
        found = found[(found > 0) & (found < MAX_PODS)]
        return frozenset(found[self.tables.pods["vip"][found] == index].tolist())

    def _adopt_origins(self) -> list[Block]:
        """Who is a pod and who is the node."""
        blocks = []
        for version, words in ((4, (T_POD_RANGES4, T_NODE_RANGES4)), (6, (T_POD_RANGES6, T_NODE_RANGES6))):
            for word in words:
                block, prefixes = ranges_at(self.tables, int(self.tables.header[word]), version)
                if block is not None:
                    self._origins[word] = prefixes, block
                    blocks.append(block)
        return blocks

    def _drain_holders(self, record: VipRecord, held: list[int]) -> None:
        """Pods that are in no ring any more and still have flows."""
        serving = set(record.pods.values())
        for index in held:
            if index in serving:
                continue
            pod = pod_at(self.tables, index)
            if int(self.tables.pods[index]["flags"]) & PodFlag.FLUSHED or pod in record.draining:
                record.flushed[index] = pod
            else:
                record.draining[pod] = index
            self._draining[index] = Draining(record, pod, self._generation + 1)

    # --------------------------------------------------------------------------------------------- putting right

    def _put_right(self) -> None:
        """Recompute everything that follows from the records, and correct what the former process left undone."""
        vips: Entries = {}
        others: Entries = {}
        node_ports = 0
        self._adopt_node_addresses(others)
        for record in self._records.values():
            vip = record.vip
            if not vip.on_node_only:
                self._expect_key(vips, record)
                self._expect(others, KIND_ADDRESS, vip.key.prefix.network_address, prefix_length(vip.key))
                self._adopt_length(vip.key)
            self._set_pod_flags(record)
            record.node_port = vip.node_port
            for word in self._node_port_words(vip, vip.node_port):
                others[0, 0, int(word)] = record.index
                node_ports += 1
            for pod in (*record.pods, *record.draining, *record.flushed.values()):
                self._expect(others, KIND_POD_ADDRESS, pod.address)
        self._adopt_chains(others)
        self._write_lengths()
        self._vip_match.make_equal(vips)
        self._match.make_equal(others)
        self.tables.header[T_N_NODEPORTS] = node_ports

    def _set_pod_flags(self, record: VipRecord) -> None:
        """Who gets new flows: what the rings say."""
        rows = self.tables.pods
        for pod, flags in zip(record.vip.all_pods, pod_flags(record.vip), strict=True):
            index = record.pods[Pod(pod.address, record.vip.pod_port(pod))]
            if int(rows[index]["flags"]) != flags:
                rows[index]["flags"] = flags
        for index in record.draining.values():
            if rows[index]["flags"]:
                rows[index]["flags"] = 0
                rows[index]["generation"] += 1  # as in `_drain`

    def _expect(self, entries: Entries, kind: int, address: Address, plen: int = HOST) -> None:
        hi, lo = address_words(address)
        word = key_word(kind, address.version, plen, 0, 0)
        entries[int(hi), int(lo), int(word)] = 1
        place = reference_place(kind, plen, address.version, int(address))
        self._references[place] = self._references.get(place, 0) + 1

    def _expect_key(self, entries: Entries, record: VipRecord) -> None:
        key = record.vip.key
        hi, lo = address_words(key.prefix.network_address)
        for protocol in self._protocols(key):
            if protocol != key.protocol and VipKey(key.prefix, protocol, key.port) in self._records:
                continue
            word = key_word(KIND_VIP, key.family, prefix_length(key), protocol, key.port)
            entries[int(hi), int(lo), int(word)] = record.index

    def _adopt_node_addresses(self, entries: Entries) -> None:
        for hi, lo, key in self._match.items():
            if key >> 56 == KIND_NODE_ADDRESS:
                address = words_address(key >> 48 & 0xFF, hi, lo)
                self._node_addresses.add(address)
                self._expect(entries, KIND_NODE_ADDRESS, address)

    def _adopt_length(self, key: VipKey) -> None:
        place = self._length_place(key)
        self._lengths[place] = self._lengths.get(place, 0) + 1

    def _write_lengths(self) -> None:
        classes = np.zeros(2 * PREFIX_LENGTHS, np.uint8)
        words = [0] * 6
        for side, plen, kind in self._lengths:
            classes[side * PREFIX_LENGTHS + plen] |= kind
            words[3 * side + plen // 64] |= 1 << plen % 64
        self.tables.classes[:] = classes
        self.tables.header[T_PREFIXES : T_PREFIXES + 6] = np.array(words, np.uint64)

    def _adopt_chains(self, entries: Entries) -> None:
        """Pods with the same replies, in the order in which they are linked; others go before them all."""
        heads = self._match.items()
        members: dict[int, list[int]] = {}  # by place_of
        pods: dict[int, Pod] = {}
        for record in self._by_index.values():
            pods |= {index: pod for pod, index in (*record.pods.items(), *record.draining.items())}
            pods |= record.flushed
        for index, pod in sorted(pods.items()):
            members.setdefault(place_of(pod), []).append(index)
        for place, indices in members.items():
            (hi, lo), word = self._reply_key(pods[indices[0]])
            entry = int(hi), int(lo), int(word)
            linked = self._linked(heads.get(entry, 0), set(indices))
            chain = [*(each for each in indices if each not in set(linked)), *reversed(linked)]
            self._chains[place] = chain if len(chain) > 1 else chain[0]
            before = 0
            for index in chain:
                if int(self.tables.pods[index]["next"]) != before:
                    self.tables.pods[index]["next"] = before
                before = index
            entries[entry] = chain[-1]

    def _linked(self, head: int, members: set[int]) -> list[int]:
        """The members that are found from the head on, newest first."""
        found: list[int] = []
        while head in members and head not in found:
            found.append(head)
            head = int(self.tables.pods[head]["next"])
        return found

    # ---------------------------------------------------------------------------------------------- going on

    def apply(self, changes: Changes) -> int:
        """Publish; what is asked for and served already goes on being served, changed where it differs.

        What was asked for and is so no more, before all sources have spoken, is an orphan again: it may have been asked
        for in a change that was refused and taken back, and comes with the next.
        """
        if not (self._orphans or self._claimed):
            return super().apply(changes)
        for vip in changes.removed:
            if vip.key in self._claimed:
                self._claimed.discard(vip.key)
                self._orphans[vip.key] = self._records[vip.key]
        removed = tuple(vip for vip in changes.removed if vip.key not in self._orphans)
        claimed = [vip for vip in changes.added if vip.key in self._orphans]
        self._claimed |= {vip.key for vip in claimed}
        self._free_node_ports(changes.added)
        known = tuple((self._orphans.pop(vip.key).vip, vip) for vip in claimed)
        fresh = tuple(vip for vip in changes.added if vip.key not in {each.key for each in claimed})
        return super().apply(Changes(fresh, removed, (*changes.changed, *known)))

    def _free_node_ports(self, wanted: Iterable[Vip]) -> None:
        """Node ports of orphans that somebody else asks for."""
        asked = {int(word): vip.key for vip in wanted for word in self._node_port_words(vip, vip.node_port)}
        for key, record in list(self._orphans.items()):
            words = self._node_port_words(record.vip, record.node_port)
            if any(asked.get(int(word), key) != key for word in words):
                self._leave_node_port(record)
                self.tables.vips[record.index]["node_port"] = 0

    def finish_adoption(self) -> int:
        """All sources have spoken: what nobody asked for is removed; its flows end.  Returns how many VIPs went."""
        gone = list(self._orphans.values())
        self._orphans, self._claimed = {}, set()
        for record in gone:
            self._remove(record.vip)
        if gone:
            self._publish()
        return len(gone)
