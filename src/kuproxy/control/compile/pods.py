"""Pods and rings: who gets new flows, whose old flows still run, and when an index is free again."""

from collections.abc import Callable, Sequence

import numpy as np

from kuproxy.codes import PodFlag
from kuproxy.control.compile.entries import MatchEntries
from kuproxy.control.compile.records import Draining, Ring, VipRecord
from kuproxy.control.compile.rings import fill
from kuproxy.control.compile.words import HOST, Words, address_words, key_word
from kuproxy.dataplane.layout import (
    KIND_POD,
    KIND_POD_ADDRESS,
    MAX_PODS,
    RING_ARENA,
    RING_INSIDE,
    RING_OUTSIDE,
    RING_SPLIT,
    Tables,
)
from kuproxy.dataplane.writer import Arena, IndexPool
from kuproxy.model.vip import Address, Pod, Vip, VipKey


def pod_flags(vip: Vip) -> dict[Pod, int]:
    """Whose new flows each pod gets."""
    flags = {pod: int(PodFlag.USED) if pod.weight else 0 for pod in vip.all_pods}
    if vip.outside_pods is not None:
        inside, outside = set(vip.pods), set(vip.outside_pods)
        for pod in vip.all_pods:
            if pod.weight and pod not in inside:
                flags[pod] |= PodFlag.NOT_INSIDE
            if pod.weight and pod not in outside:
                flags[pod] |= PodFlag.NOT_OUTSIDE
    return flags


class PodRows(MatchEntries):
    """Gives pods their indices and keeps them as long as flows need them."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        super().__init__(tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address)
        self._rings = Arena(RING_ARENA, "ring slots")
        self._pod_indices = IndexPool(MAX_PODS, "pods")
        self._draining: dict[int, Draining] = {}  # by pod index
        self._chains: dict[tuple[int, int, np.uint64], list[int]] = {}  # pods with the same replies
        self._new_pods: list[int] = []

    def collect(self, acknowledged: int, references: Callable[[int], int]) -> int:
        """Free what nobody can see any more; returns how many pods went.

        `acknowledged` is the generation that every worker has seen, `references(pod index)` the sum of their flows.
        """
        self._retirement.run(acknowledged)
        gone = [
            index
            for index, draining in self._draining.items()
            if draining.generation <= acknowledged and references(index) == 0
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

    def _set_pods(self, record: VipRecord, vip: Vip) -> None:
        # In the records a pod is its address and port; its weight may change while it stays the same pod.
        named = {pod: Pod(pod.address, vip.pod_port(pod)) for pod in vip.all_pods}
        flags = {named[pod]: wanted for pod, wanted in pod_flags(vip).items()}
        for pod, wanted in flags.items():
            if pod not in record.pods:
                record.pods[pod] = self._revive(record, pod) or self._add_pod(record, pod)
            if wanted:
                row = self.tables.pods[record.pods[pod]]
                row["flags"] = wanted & (int(row["flags"]) | PodFlag.USED)

        def shares(pods: Sequence[Pod]) -> list[Pod]:
            return sorted(named[pod].weighing(pod.weight) for pod in pods if pod.weight)

        # The new rings go live before the pods that left one are marked.
        outside = vip.outside_pods
        self._set_rings(record, shares(vip.pods), None if outside is None else shares(outside))
        for pod in [pod for pod in record.pods if pod not in flags]:
            self._drain(record, pod)
        for pod, wanted in flags.items():
            self.tables.pods[record.pods[pod]]["flags"] = wanted

    def _add_pod(self, record: VipRecord, pod: Pod) -> int:
        index = self._pod_indices.allocate()
        row = self.tables.pods[index]
        hi, lo = address_words(pod.address)
        generation = int(row["generation"]) + 1
        self.tables.pods[index] = (hi, lo, record.index, generation, 0, pod.port, 1, pod.address.version)
        self._new_pods.append(index)
        self._enter_chain(pod, index)
        self._reference(KIND_POD_ADDRESS, pod.address)
        return index

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
            for pod, index in list(record.draining.items()):
                if pod.address == address and port in (0, pod.port):
                    del record.draining[pod]  # if the pod comes back, it is another one
                    record.flushed[index] = pod
                    self.tables.pods[index]["flags"] = int(PodFlag.FLUSHED)
        return self._publish()

    def _free_pod(self, record: VipRecord, pod: Pod, index: int) -> None:
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

    def _enter_chain(self, pod: Pod, index: int) -> None:
        (hi, lo), word = self._reply_key(pod)
        chain = self._chains.setdefault((int(hi), int(lo), word), [])
        self.tables.pods[index]["next"] = chain[-1] if chain else 0
        chain.append(index)
        self._match.put(hi, lo, word, index)

    def _leave_chain(self, pod: Pod, index: int) -> None:
        (hi, lo), word = self._reply_key(pod)
        chain = self._chains[int(hi), int(lo), word]
        place = chain.index(index)
        del chain[place]
        before = chain[place - 1] if place else 0
        if place < len(chain):
            self.tables.pods[chain[place]]["next"] = before
        elif chain:
            self._match.put(hi, lo, word, before)
        else:
            del self._chains[int(hi), int(lo), word]
            self._match.delete(hi, lo, word)

    # ------------------------------------------------------------------------------------------------- rings

    def _ring_view(self, ring: Ring, which: int) -> np.ndarray:
        """`which`: RING_INSIDE or RING_OUTSIDE, where there are two."""
        start = ring.offset
        if ring.kind == RING_SPLIT and which == RING_OUTSIDE:
            start += 1 << ring.log2
        return self.tables.rings[start : start + (1 << ring.log2)]

    def _set_rings(self, record: VipRecord, pods: Sequence[Pod], outside: Sequence[Pod] | None) -> None:
        """The ring for everybody, or that of pods and the node and that of clients from outside: one word.

        Pods in the ring's order, with their weights, all of them in record.pods.
        """
        old, record.ring = record.ring, None
        members = {RING_INSIDE: pods, RING_OUTSIDE: outside or ()}
        present = {which: each for which, each in members.items() if each}
        if present:
            ring = Ring(0, record.vip.new_len.bit_length() - 1, 0 if outside is None else sum(present))
            ring.offset = self._rings.allocate(ring.block_log2)
            for which, each in present.items():
                owners = np.array([record.pods[pod.weighing(1)] for pod in each], np.uint32)
                fill(each, owners, self._ring_view(ring, which))
            record.ring = ring
        self.tables.vips[record.index]["ring"] = record.ring.word if record.ring else 0
        if old is not None:
            self._retire(lambda: self._rings.free(old.offset, old.block_log2))

    def _free_vip(self, record: VipRecord) -> None:
        if self._by_index.pop(record.index, None) is not None:
            self._vip_indices.free(record.index)
