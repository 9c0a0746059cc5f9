"""Pods: who gets new flows, whose old flows still run, and when an index is free again."""

from collections.abc import Callable, Sequence
from itertools import chain, compress, repeat
from operator import lt

import numpy as np

from kuproxy.codes import PodFlag
from kuproxy.control.compile.entries import reference_place
from kuproxy.control.compile.members import FROM, Members, difference
from kuproxy.control.compile.records import Draining, Ring, VipRecord
from kuproxy.control.compile.ring_rows import RingRows
from kuproxy.control.compile.rings import fill_columns, fill_equal
from kuproxy.control.compile.words import HOST, Words, address_words, key_word, number_columns
from kuproxy.control.places import place_of, places_of, pod_of
from kuproxy.dataplane.layout import (
    KIND_POD,
    KIND_POD_ADDRESS,
    MAX_PODS,
    RING_INSIDE,
    Tables,
)
from kuproxy.dataplane.writer import IndexPool
from kuproxy.model.vip import DEFAULT_WEIGHT, Address, Pod, Vip, VipKey

_USED = int(PodFlag.USED)


def _pod_key(kind: int, family: np.ndarray) -> np.ndarray:
    """`key_word` of hosts, without a port: uint64[n]."""
    return np.uint64(key_word(kind, 0, HOST, 0, 0)) | family.astype(np.uint64) << np.uint64(48)


def pod_flags(vip: Vip) -> list[int]:
    """Whose new flows each of `vip.all_pods` gets."""
    flags = [_USED if pod.weight else 0 for pod in vip.all_pods]
    if vip.outside_pods is not None:
        inside, outside = set(vip.pods), set(vip.outside_pods)
        for number, pod in enumerate(vip.all_pods):
            if pod.weight and pod not in inside:
                flags[number] |= PodFlag.NOT_INSIDE
            if pod.weight and pod not in outside:
                flags[number] |= PodFlag.NOT_OUTSIDE
    return flags


class PodRows(RingRows):
    """Gives pods their indices and keeps them as long as flows need them."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        super().__init__(tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address)
        self._pod_indices = IndexPool(MAX_PODS, "pods")
        # Pods with the same replies by `place_of`: mostly one, and a list where they are several, the newest last.
        self._chains: dict[int, int | list[int]] = {}
        self._new_pods: list[int] = []
        self._in_bulk = False
        self._waiting_pods: list[tuple[int, int, int, int]] = []  # index, VIP's index, the pod's place, flags
        self._waiting_rings: list[tuple[int, Ring, list[int]]] = []  # VIP's index, ring, owners in its order

    def collect(self, acknowledged: int, references: Callable[[int], int]) -> int:
        """Free what nobody can see any more; returns how many pods went.

        `acknowledged` is the generation that every worker has seen, `references(pod index)` the sum of their flows.
        """
        self._retirement.run(acknowledged)
        gone = [
            index
            for index, draining in self._draining.items()
            if draining.generation <= acknowledged
            and index not in draining.record.former_pods
            and references(index) == 0
        ]
        for index in gone:
            draining = self._draining.pop(index)
            self._free_pod(draining.record, draining.pod, index)
        if gone:
            self._publish()
        return len(gone)

    def take_new_pods(self) -> list[int]:
        """Indices that were given to pods since the last call: their counters may hold an earlier pod's counts."""
        taken, self._new_pods = self._new_pods, []
        return taken

    def bounds(self) -> tuple[int, int]:
        """One more than the highest index of a VIP, and of a pod, that was ever given out."""
        return self._vip_indices.bound, self._pod_indices.bound

    def _exchange_pods(self, record: VipRecord, old: Vip, new: Vip) -> bool:
        """`_set_pods` for a few of many pods that are alike: its cost follows the change, but for the ring's.

        False, and nothing is done, where they are not, or something else has changed about them.
        """
        members = record.members
        if (
            members is None
            or old.outside_pods is not None
            or new.outside_pods is not None
            or old.target_port != new.target_port
            or old.new_len != new.new_len
        ):
            return False
        gone, come = difference(old.pods, new.pods)
        if any(pod.port or pod.weight != DEFAULT_WEIGHT for pod in (*gone, *come)) or not new.pods:
            return False
        if not (gone or come):
            return True
        named = [Pod(pod.address, new.target_port) for pod in come]
        revived = [pod for pod in named if pod in record.draining]
        for pod in revived:
            index = record.pods[pod] = self._revive(record, pod)
            self.tables.pods[index]["flags"] = int(PodFlag.USED)
        fresh = [pod for pod in named if pod not in record.pods]
        self._add_pods(record, list(map(place_of, fresh)), [_USED] * len(fresh))
        for pod in named:
            members.join(pod, record.pods[pod])
        left = [Pod(pod.address, old.target_port) for pod in gone]
        for pod in left:
            members.leave(pod)
        self._note_ring(record)
        former, ring = record.ring, Ring(0, record.vip.new_len.bit_length() - 1)
        self._place(ring, former)
        fill_columns(members.hi, members.lo, members.owners, self._ring_view(ring, RING_INSIDE))
        self._go_live(record, ring, former)
        for pod in left:
            self._drain(record, pod)
        return True

    def _set_pods(self, record: VipRecord, vip: Vip) -> None:
        if not (vip.all_pods or record.pods or record.ring):
            return
        # In the records a pod is its address and port; its weight may change while it stays the same pod.
        places, flags = places_of(vip), pod_flags(vip)
        if not (record.pods or record.draining):
            indices = self._add_pods(record, places, flags)
            if not (self._in_bulk and self._wait_for_ring(record, vip, places, indices)):
                self._set_rings(record, vip)
            return
        have = record.pods.at
        for pod in map(pod_of, places) if record.draining else ():
            if pod in record.draining:
                record.pods[pod] = self._revive(record, pod)
        is_new = [place not in have for place in places]
        self._add_pods(record, list(compress(places, is_new)), list(compress(flags, is_new)))
        for place, wanted in zip(places, flags, strict=True):
            if wanted:
                row = self.tables.pods[have[place]]
                row["flags"] = wanted & (int(row["flags"]) | PodFlag.USED)
        # The new rings go live before the pods that left one are marked.
        self._set_rings(record, vip)
        staying = set(places)
        for pod in [pod for pod in record.pods if place_of(pod) not in staying]:
            self._drain(record, pod)
        for place, wanted in zip(places, flags, strict=True):
            self.tables.pods[have[place]]["flags"] = wanted

    def _add_pods(self, record: VipRecord, places: Sequence[int], flags: Sequence[int]) -> list[int]:
        """Give the pods of these places indices, rows and entries, those in one go, and note them in the record."""
        indices = [self._pod_indices.allocate() for _ in places]
        self._waiting_pods += zip(indices, repeat(record.index), places, flags, strict=False)
        self._new_pods += indices
        if not self._in_bulk:
            self._write_pods()
        record.pods.at.update(zip(places, indices, strict=True))
        return indices

    def _write_pods(self) -> None:
        """Rows first, then the entries that lead to them."""
        waiting, self._waiting_pods = self._waiting_pods, []
        if not waiting:
            return
        indices, vips, pods, flags = zip(*waiting, strict=True)
        hi, lo = number_columns([place >> 24 for place in pods])
        at = np.array(indices, np.int64)
        rows = np.zeros(len(waiting), self.tables.pods.dtype)
        rows["hi"], rows["lo"], rows["vip"], rows["flags"] = hi, lo, vips, flags
        rows["generation"] = self.tables.pods["generation"][at] + np.uint32(1)
        rows["port"] = [place >> 8 & 0xFFFF for place in pods]
        rows["family"] = [place & 0xFF for place in pods]
        replies = _pod_key(KIND_POD, rows["family"]) | rows["port"].astype(np.uint64)
        addresses = _pod_key(KIND_POD_ADDRESS, rows["family"])
        rows["next"] = list(map(self._join_chain, pods, indices))
        self.tables.pods[at] = rows
        fresh = []
        references = self._references
        for number, pod in enumerate(pods):
            place = reference_place(KIND_POD_ADDRESS, HOST, pod & 0xFF, pod >> 24)
            count = references.get(place, 0)
            references[place] = count + 1
            if count == 0:
                fresh.append(number)
        self._match.put_many(hi, lo, replies, at)
        self._match.put_many(hi[fresh], lo[fresh], addresses[fresh], np.ones(len(fresh), np.int64))

    def _join_chain(self, place: int, index: int) -> int:
        """Make a pod the first of those with the same replies; returns the one that was, or 0."""
        present = self._chains.setdefault(place, index)
        if present == index:
            return 0
        chain = present if isinstance(present, list) else [present]
        self._chains[place] = [*chain, index]
        return chain[-1]

    def _revive(self, record: VipRecord, pod: Pod) -> int:
        """A pod that comes back while it drains keeps its index, and so its flows."""
        index = record.draining.pop(pod, 0)
        if index:
            del self._draining[index]
        return index

    def _drain(self, record: VipRecord, pod: Pod) -> None:
        index = record.pods.pop(pod)
        record.draining[pod] = index
        row = self.tables.pods[index]
        row["flags"] = 0
        row["generation"] = int(row["generation"]) + 1  # affinity to it is over, even if it comes back
        self._draining[index] = Draining(record, pod, self._generation + 1)

    def flush(self, key: VipKey, address: Address, port: int = 0) -> int:
        """End the flows of a pod that was removed from the VIP (port 0: of each with this address).

        The next packets of their clients find another pod, or are answered with a reset.
        """
        record = self._records.get(key)
        if record is not None:
            self.touched[record.index] = record
            for pod, index in list(record.draining.items()):
                if pod.address == address and port in (0, pod.port):
                    del record.draining[pod]  # if the pod comes back, it is another one
                    record.flushed[index] = pod
                    self.tables.pods[index]["flags"] = int(PodFlag.FLUSHED)
                    self._forget_former(record, index)
        return self._publish()

    def _free_pod(self, record: VipRecord, pod: Pod, index: int) -> None:
        self.touched[record.index] = record
        if record.flushed.pop(index, None) is None:
            del record.draining[pod]
        self._leave_chain(pod, index)
        if not record.removed:
            self._dereference(KIND_POD_ADDRESS, pod.address)
        # Workers may follow `next` of a pod that they met before it was unlinked.
        self._retire(lambda: self._pod_indices.free(index))
        if record.removed and not record.draining and not record.flushed:
            self._retire(lambda: self._free_vip(record))

    @staticmethod
    def _reply_key(pod: Pod) -> tuple[Words, np.uint64]:
        """Where the pod's replies find it. Pods of several VIPs may share it: they are chained, the newest first."""
        return address_words(pod.address), key_word(KIND_POD, pod.address.version, HOST, 0, pod.port)

    def _leave_chain(self, pod: Pod, index: int) -> None:
        (hi, lo), word = self._reply_key(pod)
        place = place_of(pod)
        present = self._chains[place]
        if not isinstance(present, list):
            del self._chains[place]
            self._match.delete(hi, lo, word)
            return
        at = present.index(index)
        chain = [*present[:at], *present[at + 1 :]]
        before = chain[at - 1] if at else 0
        if at < len(chain):
            self.tables.pods[chain[at]]["next"] = before
        else:
            self._match.put(hi, lo, word, before)
        self._chains[place] = chain if len(chain) > 1 else chain[0]

    def _wait_for_ring(self, record: VipRecord, vip: Vip, places: list[int], owners: list[int]) -> bool:
        """Let a new VIP's ring be filled with others, at the end.  False, and nothing is done, if its pods differ."""
        is_alike = vip.outside_pods is None and all(pod.weight == DEFAULT_WEIGHT for pod in vip.pods)
        if not (places and is_alike and all(map(lt, places, places[1:]))):
            return False
        ring = record.ring = Ring(0, vip.new_len.bit_length() - 1)
        ring.offset = self._rings.allocate(ring.block_log2)
        record.members = Members.of(list(map(pod_of, places)), owners) if len(places) >= FROM else None
        self._waiting_rings.append((record.index, ring, owners))
        return True

    # -------------------------------------------------------------------------------------------------- bulk

    def warm(self) -> None:
        """Load what is compiled, so that the first of many VIPs need not wait for it."""
        nothing = np.zeros(0, np.uint64)
        for entries in (self._match, self._vip_match):
            entries.put_many(nothing, nothing, nothing, np.zeros(0, np.int64))
        fill_equal(nothing, nothing, [], self.tables.rings, [])

    def _begin_bulk(self) -> None:
        """From here on many VIPs are added, and nothing else: their pods, rings and entries are written together."""
        self._in_bulk = True
        self._match.hold()
        self._vip_match.hold()

    def _end_bulk(self) -> None:
        """What is found comes before what leads to it: pods, rings, and last the VIPs' own entries."""
        self._in_bulk = False
        self._write_pods()
        waiting, self._waiting_rings = self._waiting_rings, []
        if waiting:
            vips, rings, owners = zip(*waiting, strict=True)
            pods = self.tables.pods
            every = np.fromiter(chain.from_iterable(owners), np.int64)
            fill_equal(pods["hi"][every], pods["lo"][every], owners, self.tables.rings, rings)
            self.tables.vips["ring"][list(vips)] = [ring.word for ring in rings]
        self._match.release()
        self._vip_match.release()

    def _free_vip(self, record: VipRecord) -> None:
        if self._by_index.pop(record.index, None) is not None:
            self._vip_indices.free(record.index)
