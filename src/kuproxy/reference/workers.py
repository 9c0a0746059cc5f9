"""Several workers: which one gets a packet, and what they have in common (docs/forwarding.md, "Several workers")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kuproxy.codes import FlowState, Node, Outcome, PodCounter, Reason, VipCounter
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey
from kuproxy.reference.forwarding import Reference
from kuproxy.reference.passage import LiveFlow, RefPacket, Result


class Workers:
    """References side by side: each with its flows, all with the same VIPs, interfaces and memory of clients' pods.

    `kind` makes one, from the settings of `Reference`.
    """

    def __init__(self, workers: int = 1, kind: type[Reference] = Reference, **settings: object):
        self.workers = [
            kind(workers=workers, number=number, **settings)  # type: ignore[arg-type]
            for number in range(workers)
        ]

    # ------------------------------------------------------------------------------------------ configuration

    def set_vip(self, vip: Vip) -> None:
        for each in self.workers:
            each.set_vip(vip)
            each.share_affinity(vip.key, self.workers[0])

    def del_vip(self, key: VipKey) -> None:
        for each in self.workers:
            each.del_vip(key)

    def flush(self, key: VipKey, address: Address, port: int = 0) -> None:
        for each in self.workers:
            each.flush(key, address, port)

    def mark_interface(self, index: int, nat4_in: bool, nat6_in: bool) -> None:
        for each in self.workers:
            each.mark_interface(index, nat4_in, nat6_in)

    def set_timeout(self, ticks: int, state: FlowState | None = None) -> None:
        for each in self.workers:
            each.set_timeout(ticks, state)

    def set_masquerade(self, addresses: Iterable[Address]) -> None:
        own = tuple(addresses)
        for each in self.workers:
            each.set_masquerade(own)

    def set_origins(self, pod_ranges: Iterable[Prefix], node_addresses: Iterable[Address]) -> None:
        pods, node = tuple(pod_ranges), tuple(node_addresses)
        for each in self.workers:
            each.set_origins(pods, node)

    def end_second_chances(self) -> None:
        for each in self.workers:
            each.end_second_chances()

    def set_buckets(self, buckets: int, now: int) -> None:
        """Of every worker's table, or of none.  Raises ValueError."""
        for each in self.workers:
            each.check_buckets(buckets, now)
        for each in self.workers:
            each.set_buckets(buckets, now)

    def set_flow_key(self, key: bytes, now: int) -> None:
        """Of every worker, or of none.  Raises ValueError."""
        for each in self.workers:
            each.check_flow_key(key, now)
        for each in self.workers:
            each.set_flow_key(key, now)

    # ------------------------------------------------------------------------------------------------ packets

    def receive(
        self, packets: Sequence[RefPacket], now: int, workers: Sequence[int] | None = None
    ) -> list[Result]:
        """A vector for each worker, one after the other; `workers` says whose each packet is (none: the first's).

        A result for each packet in the order given, then those of the released fragments, worker by worker.
        """
        whose = list(workers or [0] * len(packets))
        own: dict[int, Result] = {}
        released: list[Result] = []
        for number, worker in enumerate(self.workers):
            places = [place for place, of in enumerate(whose) if of == number]
            if places:
                results = worker.receive([packets[place] for place in places], now)
                own |= zip(places, results, strict=False)
                released += results[len(places) :]
        return [own[place] for place in sorted(own)] + released

    def sweep(self, now: int) -> list[Result]:
        return [result for each in self.workers for result in each.sweep(now)]

    def collect(self, now: int) -> None:
        """A removed pod goes when no worker has a flow of it."""
        used = frozenset().union(*(each.used_pods(now) for each in self.workers))
        for each in self.workers:
            each.collect(now, used)

    # ------------------------------------------------------------------------------------------------ looking

    @property
    def received(self) -> int:
        return sum(each.received for each in self.workers)

    @property
    def counters(self) -> Counter[tuple[Node, Reason]]:
        total: Counter[tuple[Node, Reason]] = Counter()
        for each in self.workers:
            total.update(each.counters)
        return total

    @property
    def outcomes(self) -> Counter[Outcome]:
        total: Counter[Outcome] = Counter()
        for each in self.workers:
            total.update(each.outcomes)
        return total

    @property
    def vip_counters(self) -> Mapping[VipKey, Counter[VipCounter]]:
        total: dict[VipKey, Counter[VipCounter]] = {}
        for each in self.workers:
            for key, counts in each.vip_counters.items():
                total.setdefault(key, Counter()).update(counts)
        return total

    @property
    def pod_counters(self) -> Mapping[VipKey, Mapping[Pod, Counter[PodCounter]]]:
        total: dict[VipKey, dict[Pod, Counter[PodCounter]]] = {}
        for each in self.workers:
            for key, pods in each.pod_counters.items():
                of_vip = total.setdefault(key, {})
                for pod, counts in pods.items():
                    of_vip.setdefault(pod, Counter()).update(counts)
        return total

    def live_flows(self, now: int) -> list[LiveFlow]:
        return [flow for each in self.workers for flow in each.live_flows(now)]
