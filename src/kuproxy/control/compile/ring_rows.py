"""The rings that the tables hold: the present one of each VIP, and for a while the one before it.

A ring is written beside the one that it replaces and published with one store. While second chances are given
(docs/adr/036) the owners before the change lie behind it in the same block, so that the same store publishes both; when
their time is over the word says so no more, and their half of the block is free once every worker has seen it.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np

from kuproxy.codes import Origin
from kuproxy.control.compile.entries import MatchEntries
from kuproxy.control.compile.members import Members
from kuproxy.control.compile.records import Draining, Ring, VipRecord
from kuproxy.control.compile.rings import fill
from kuproxy.control.rings import RingHistory
from kuproxy.dataplane.layout import (
    RING_ARENA,
    RING_INSIDE,
    RING_OUTSIDE,
    RING_SPLIT,
    TICK_MASK,
    TICKS_PER_SECOND,
    Tables,
)
from kuproxy.dataplane.writer import Arena
from kuproxy.model.vip import Pod, Vip

_POD_ID = attrgetter("id")


class RingRows(MatchEntries):
    """Places rings in the tables, publishes them, and tells what they say."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        super().__init__(tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address)
        self._rings = Arena(RING_ARENA, "ring slots")
        self._draining: dict[int, Draining] = {}  # by pod index
        self.former_rings = RingHistory()
        self._second_chance = 0  # ticks that a former ring stays published
        # Until when, by VIP index: a tick, or None where nobody has told the time since.
        self._ends: dict[int, int | None] = {}

    def slots_of(self, record: VipRecord) -> dict[int, int]:
        """Ring slots by pod index; with two rings, those of the inside's."""
        return self._slots(record, RING_INSIDE)

    def outside_slots_of(self, record: VipRecord) -> dict[int, int] | None:
        """The same of the ring for clients from outside; None where they share the one ring."""
        if record.vip.outside_pods is None:
            return None
        return self._slots(record, RING_OUTSIDE)

    def _slots(self, record: VipRecord, which: int) -> dict[int, int]:
        ring = record.ring
        if ring is None or (ring.kind and not ring.kind & which):
            return {}
        owners, counts = np.unique(self._ring_view(ring, which), return_counts=True)
        return dict(zip(owners.tolist(), counts.tolist(), strict=True))

    def owners_of(self, record: VipRecord) -> np.ndarray:
        """uint32[slots]: the pod index of each slot of the new-flow table, of the inside's with two; 0 without pods."""
        ring = record.ring
        if ring is None or ring.kind == RING_OUTSIDE:
            return np.zeros(record.vip.new_len, np.uint32)
        return self._ring_view(ring, RING_INSIDE).copy()

    def ring_for(self, record: VipRecord, origin: Origin) -> np.ndarray | None:
        """uint32[slots]: the same of the ring for clients of this origin; None: it has no pods."""
        ring = record.ring
        which = RING_OUTSIDE if origin is Origin.OUTSIDE else RING_INSIDE
        if ring is None or (ring.kind and not ring.kind & which):
            return None
        return self._ring_view(ring, which)

    def _ring_view(self, ring: Ring, which: int) -> np.ndarray:
        """`which`: RING_INSIDE or RING_OUTSIDE, where there are two."""
        start = ring.offset
        if ring.kind == RING_SPLIT and which == RING_OUTSIDE:
            start += 1 << ring.log2
        return self.tables.rings[start : start + (1 << ring.log2)]

    @staticmethod
    def _in_order(record: VipRecord, pods: Sequence[Pod]) -> tuple[list[Pod], list[int]]:
        """Those of a VIP's pods that get slots, in the ring's order, with their ports and indices."""
        port = record.vip.target_port
        placed = [Pod(pod.address, pod.port or port, pod.weight) for pod in pods if pod.weight]
        placed.sort(key=_POD_ID)
        return placed, [record.pods[pod] for pod in placed]

    def _set_rings(self, record: VipRecord, vip: Vip | None) -> None:
        """The ring for everybody, or that of pods and the node and that of clients from outside: one word.

        The pods of `vip` (None: there are none) are all in record.pods; those of weight 0 get no slot.
        """
        old = record.ring
        self._note_ring(record)
        record.ring = record.members = None
        outside = vip.outside_pods if vip is not None else None
        groups = {RING_INSIDE: vip.pods if vip is not None else (), RING_OUTSIDE: outside or ()}
        placed = {which: self._in_order(record, each) for which, each in groups.items()}
        members = {which: each for which, each in placed.items() if each[0]}
        if members:
            log2 = record.vip.new_len.bit_length() - 1
            ring = record.ring = Ring(0, log2, 0 if outside is None else sum(members))
            self._place(ring, old)
            pods, owners = placed[RING_INSIDE]
            record.members = Members.of(pods, owners) if outside is None else None
            for which, (pods, owners) in members.items():
                fill(pods, np.array(owners, np.uint32), self._ring_view(ring, which))
        self._go_live(record, record.ring, old)

    def _note_ring(self, record: VipRecord) -> None:
        """Keep what is about to be replaced."""
        ring = record.ring
        former = None if ring is None or ring.kind == RING_OUTSIDE else self._ring_view(ring, RING_INSIDE)
        self.former_rings.note(record.vip.key, former, record.pods)

    def _place(self, ring: Ring, old: Ring | None) -> None:
        """Give a ring its block: with room for what it replaces, if that is to be published beside it."""
        comparable = old is not None and old.log2 == ring.log2 and bool(old.kind) == bool(ring.kind)
        ring.former = bool(self._second_chance) and comparable
        ring.offset = self._rings.allocate(ring.block_log2)

    def _go_live(self, record: VipRecord, ring: Ring | None, old: Ring | None) -> None:
        """One word; the old ring is free when nobody can see it any more."""
        record.ring = ring
        before, record.former_pods = record.former_pods, frozenset()
        if ring is not None and ring.former and old is not None:
            self._write_former(record, ring, old)
        if ring is None or not ring.former:
            self._ends.pop(record.index, None)
        self.tables.vips[record.index]["ring"] = ring.word if ring else 0
        self._let_go(before - record.former_pods)
        if old is not None:
            self._retire(lambda: self._rings.free(old.offset, old.block_log2))

    # ------------------------------------------------------------------------------------------ second chances

    def set_second_chance(self, seconds: float) -> None:
        """For how long changes of pods from now on leave the former owners beside the present ones; 0: not at all."""
        self._second_chance = round(seconds * TICKS_PER_SECOND)

    def end_second_chances(self, now: int) -> int:
        """Withdraw the former rings whose time is over; returns how many.  `now` is the workers' time, in ticks."""
        over = []
        for index, end in self._ends.items():
            if not self._second_chance or (end is not None and (now - end) & TICK_MASK <= TICK_MASK >> 1):
                over.append(index)
            elif end is None:
                self._ends[index] = (now + self._second_chance) & TICK_MASK
        for index in over:
            self._withdraw_former(self._by_index[index])
        if over:
            self._publish()
        return len(over)

    def former_pod(self, record: VipRecord, origin: Origin, slot: int) -> int:
        """Index of the pod that this slot of the ring for clients of this origin had before; 0: nobody tells."""
        ring = record.ring
        if ring is None or not ring.former or self.ring_for(record, origin) is None:
            return 0
        return int(self._former_view(ring, RING_OUTSIDE if origin is Origin.OUTSIDE else RING_INSIDE)[slot])

    def _former_block(self, ring: Ring) -> np.ndarray:
        """All former slots of a ring that has some."""
        size = 1 << ring.present_log2
        return self.tables.rings[ring.offset + size : ring.offset + 2 * size]

    def _former_view(self, ring: Ring, which: int) -> np.ndarray:
        """Those behind `_ring_view`."""
        size = 1 << ring.log2
        start = size if ring.kind == RING_SPLIT and which == RING_OUTSIDE else 0
        return self._former_block(ring)[start : start + size]

    def _write_former(self, record: VipRecord, ring: Ring, old: Ring) -> None:
        """What `old` holds goes behind `ring`. If they are the same, what lies behind the old one stays there."""
        size = 1 << ring.present_log2
        now, before = (self.tables.rings[each.offset : each.offset + size] for each in (ring, old))
        if ring.kind == old.kind and np.array_equal(now, before):
            if not old.former:
                ring.former = False
                self._rings.free(ring.offset + size, ring.present_log2)
                return
            self._former_block(ring)[:] = self._former_block(old)
        else:
            self._ends[record.index] = None
            for which in (RING_INSIDE, RING_OUTSIDE) if ring.kind else (RING_INSIDE,):
                if ring.kind and not ring.kind & which:
                    continue
                known = not old.kind or old.kind & which
                self._former_view(ring, which)[:] = self._ring_view(old, which) if known else 0
        self._note_former(record, ring)

    def _note_former(self, record: VipRecord, ring: Ring) -> None:
        """Whom the former rings name: their rows must stay."""
        record.former_pods = frozenset(np.unique(self._former_block(ring)).tolist()) - {0}

    def _withdraw_former(self, record: VipRecord) -> None:
        """From here on the ring is as if it had never had another."""
        ring = record.ring
        assert ring is not None and ring.former
        record.ring = Ring(ring.offset, ring.log2, ring.kind)
        self.tables.vips[record.index]["ring"] = record.ring.word
        self._retire(lambda: self._rings.free(ring.offset + (1 << ring.present_log2), ring.present_log2))
        del self._ends[record.index]
        gone, record.former_pods = record.former_pods, frozenset()
        self._let_go(gone)

    def _forget_former(self, record: VipRecord, index: int) -> None:
        """No flow is given to this pod again."""
        if index in record.former_pods and record.ring is not None:
            slots = self._former_block(record.ring)
            slots[slots == index] = 0
            record.former_pods -= {index}
            self._let_go([index])

    def _let_go(self, indices: Iterable[int]) -> None:
        """They may be given no more flows; a worker may just be doing it. Whoever drains does so from here on."""
        for index in indices:
            if index in self._draining:
                self._draining[index].generation = self._generation + 1
