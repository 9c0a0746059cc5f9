"""VIPs: from the changes of the store to rows, entries, pods and rings."""

from collections.abc import Sequence

import numpy as np

from kuproxy.codes import Encap, Node, VipFlag, VipType
from kuproxy.control.compile.pods import PodRows
from kuproxy.control.compile.records import VipRecord
from kuproxy.control.compile.words import address_words, prefix_length
from kuproxy.control.store import Changes
from kuproxy.dataplane.layout import (
    KIND_ADDRESS,
    KIND_POD_ADDRESS,
    TICKS_PER_SECOND,
    WAY_GUARDED,
)
from kuproxy.errors import TableFullError
from kuproxy.model.vip import Prefix, Vip

BULK = 8  # new VIPs from which on they are written together

# Arithmetic with members is ten times slower.
_USED, _MASQUERADE, _MASQUERADE_POD = map(int, (VipFlag.USED, VipFlag.MASQUERADE, VipFlag.MASQUERADE_POD))
_REJECT, _RESET = int(VipFlag.REJECT), int(VipFlag.RESET)
_SPARE = np.zeros(4, np.uint8)
_WAYS = {
    VipType.IP4_NAT44: Node.NAT44,
    VipType.IP6_NAT66: Node.NAT66,
    VipType.IP4_NAT46: Node.NAT46,
    VipType.IP6_NAT64: Node.NAT64,
}


def _slots_needed(vip: Vip) -> int:
    return vip.new_len * (bool(vip.pods) + bool(vip.outside_pods))


class VipRows(PodRows):
    """Keeps `tables` equal to what the store holds."""

    def apply(self, changes: Changes) -> int:
        """Publish; returns the generation that workers acknowledge when they have seen it."""
        self._new_pods.clear()
        for vip in changes.removed:
            self._remove(vip)
        for old, new in changes.changed:
            # All before any new one: two VIPs may swap their node ports.
            if old.node_port != new.node_port:
                self._leave_node_port(self._records[old.key])
        for old, new in changes.changed:
            if old.type != new.type or old.encap != new.encap:
                self._remove(self._records[old.key].vip)
                self._add(new)
            else:
                self._change(old, new)
        if len(changes.added) > BULK:
            self._begin_bulk()
        for vip in changes.added:
            self._add(vip)
        if len(changes.added) > BULK:
            self._end_bulk()
        return self._publish()

    def check(self, changes: Changes) -> None:
        """Raise TableFullError if the tables may not hold these changes, before any of them is made."""
        touched = [*changes.added, *(new for _, new in changes.changed)]
        pods = sum(len(vip.all_pods) for vip in touched)
        needs = (
            (len(changes.added), self._vip_indices.room, "VIPs"),
            (pods, self._pod_indices.room, "pods"),
            (sum(map(_slots_needed, touched)) << bool(self._second_chance), self._rings.room, "ring slots"),
            (8 * len(touched) + 2 * pods, self._match.room, "match entries"),
            (2 * sum(len(vip.source_ranges) + 1 for vip in touched), self._ranges.room, "source ranges"),
        )
        for needed, room, what in needs:
            if needed > room:
                raise TableFullError(f"{needed} more {what} are asked for, and {room} are free")

    def in_use(self) -> dict[str, int]:
        """How much of each arena is out: what must return to zero when all is deleted."""
        return {
            "vips": self._vip_indices.used,
            "pods": self._pod_indices.used,
            "ring_slots": self._rings.used,
            "match_entries": self._vip_match.entries + self._match.entries,
            "address_references": len(self._references),
            "source_ranges": self._ranges.used,
            "retired": len(self._retirement),
        }

    def _add(self, vip: Vip) -> None:
        index = self._vip_indices.allocate()
        record = VipRecord(index, vip)
        row = self.tables.vips[index]
        hi, lo = address_words(vip.key.prefix.network_address)
        self.tables.vips[index] = (
            hi,
            lo,
            0,
            int(row["generation"]) + 1,
            self._flags(vip),
            vip.key.port,
            vip.target_port,
            vip.node_port,
            int(vip.key.protocol),
            int(vip.type),
            vip.key.id[0],
            # Reached by node port alone: it tells a reply as little as a wide prefix what the client addressed.
            0 if vip.on_node_only else prefix_length(vip.key),
            0,
            0,
            round(vip.affinity_s * TICKS_PER_SECOND),
            0,
            vip.session_cap,
            0,
            int(vip.hash_mode),
            0,
            _SPARE,
        )
        self._set_encap(record)
        self._records[vip.key] = record
        self._by_index[index] = self.touched[index] = record
        self._set_pods(record, vip)
        if vip.source_ranges:
            self._set_ranges(record, vip.source_ranges)
        if not vip.on_node_only:
            self._enter_key(record)
            self._reference(KIND_ADDRESS, vip.key.prefix.network_address, prefix_length(vip.key))
        self._enter_node_port(record, vip.node_port)

    def _change(self, old: Vip, new: Vip) -> None:
        record = self._records[old.key]
        record.vip = new
        self.touched[record.index] = record
        row = self.tables.vips[record.index]
        if not self._exchange_pods(record, old, new) and (
            old.pods != new.pods
            or old.outside_pods != new.outside_pods
            or old.target_port != new.target_port
            or old.new_len != new.new_len
        ):
            self._set_pods(record, new)
        row["target_port"] = new.target_port
        self._set_encap(record)
        row["flags"] = self._flags(new)
        row["hash_mode"] = int(new.hash_mode)
        row["affinity"] = round(new.affinity_s * TICKS_PER_SECOND)
        row["session_cap"] = new.session_cap
        if old.source_ranges != new.source_ranges:
            self._set_ranges(record, new.source_ranges)
        row["node_port"] = new.node_port
        if record.node_port != new.node_port:
            self._enter_node_port(record, new.node_port)

    def _remove(self, vip: Vip) -> None:
        record = self._records.pop(vip.key)
        record.removed = True
        self.touched[record.index] = record
        if not vip.on_node_only:
            self._leave_key(record)
            self._dereference(KIND_ADDRESS, vip.key.prefix.network_address, prefix_length(vip.key))
        self._leave_node_port(record)
        row = self.tables.vips[record.index]
        row["generation"] = int(row["generation"]) + 1  # its flows are dead from here on
        row["flags"] = 0
        self._set_rings(record, None)
        self.former_rings.forget(vip.key)
        self._set_ranges(record, ())
        for pod in list(record.pods):
            self._drain(record, pod)
        for pod in [*record.draining, *record.flushed.values()]:
            self._dereference(KIND_POD_ADDRESS, pod.address)
        if not record.draining and not record.flushed:
            self._retire(lambda: self._free_vip(record))

    def _set_encap(self, record: VipRecord) -> None:
        row, vip = self.tables.vips[record.index], record.vip
        row["encap"], row["dscp"], row["gue_port"] = vip.encap, vip.dscp, vip.gue_port
        self._set_way(record)

    def _set_way(self, record: VipRecord) -> None:
        """Last of all: workers see whether it is guarded before they look by what."""
        vip = record.vip
        node = _WAYS[vip.type] if vip.encap is Encap.NAT else Node(Node.GRE + vip.encap - Encap.GRE)
        guarded = record.ranges is not None or node in (Node.NAT46, Node.NAT64)
        self.tables.vips[record.index]["way"] = int(node) | (WAY_GUARDED if guarded else 0)

    @staticmethod
    def _flags(vip: Vip) -> int:
        masquerade = _MASQUERADE if vip.masquerade else int(vip.masquerade_from) * _MASQUERADE_POD
        return _USED | masquerade | (_REJECT if vip.reject else 0) | (_RESET if vip.reset else 0)

    def _set_ranges(self, record: VipRecord, ranges: Sequence[Prefix]) -> None:
        old, record.ranges = record.ranges, self._write_block(ranges)
        self.tables.vips[record.index]["ranges"] = record.ranges.offset if record.ranges else 0
        self._set_way(record)
        self._give_up_block(old)
