"""Which VIP a packet is for: the matching rules of section kp-lookup, and what is remembered about a VIP."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from kuproxy.codes import (
    PROTOCOLS_WITH_PORTS,
    Encap,
    Family,
    HashMode,
    Origin,
    PodCounter,
    Protocol,
    VipCounter,
)
from kuproxy.model.vip import Address, Pod, Vip, VipKey
from kuproxy.reference.hashes import flow_hash
from kuproxy.reference.maglev import in_ring_order, maglev_ring
from kuproxy.reference.origins import Origins
from kuproxy.reference.packet import Endpoints

MOST_SLOTS_FURTHER = 64  # looked at when the reply of the first candidate would be ambiguous
ORIGINS = (Origin.POD, Origin.NODE, Origin.OUTSIDE)


@dataclass(frozen=True)
class Kept:
    """The pod that a client had last."""

    pod: Pod
    expires: int


class VipState:
    """One life of a VIP. Changed in place; deleted and made again under the same key, it is another object."""

    def __init__(self, vip: Vip, origins: Origins, key: bytes = b"", keeps_former: bool = False):
        self.origins = origins
        self.flow_key = key
        self.keeps_former = keeps_former  # for second chances
        self.deleted = False
        self.counters: Counter[VipCounter] = Counter()
        self.pod_counters: defaultdict[Pod, Counter[PodCounter]] = defaultdict(Counter)  # drained pods' too
        self.removed_pods: set[Address] = set()  # and perhaps serving flows still
        self.vip = vip
        self.rings: dict[Origin, list[Pod]] = {}  # for clients of each origin, one pod a slot
        self.former_rings: dict[Origin, list[Pod | None]] = {}  # those before the last change, while they count
        self.getting_new_flows: dict[Origin, frozenset[Pod]] = {}
        self.pods: dict[Pod, int] = {}  # as flows name them, and their weights
        self.drained: set[Pod] = set()  # removed, with flows of their own
        self.affinity: dict[Address, Kept] = {}  # by client
        self.change(vip)

    def change(self, vip: Vip) -> None:
        """Pods, ports, size of the ring. Flows and counters stay."""
        self.removed_pods |= {pod.address for pod in self.vip.all_pods}
        self.removed_pods -= {pod.address for pod in vip.all_pods}
        weights = {Pod(pod.address, vip.pod_port(pod)): pod.weight for pod in vip.all_pods}
        self.drained |= set(self.pods)
        self.drained -= set(weights)
        self.pods = weights
        self.serving = set(weights)
        before = dict(self.rings)
        for origin in ORIGINS:
            self._fill(origin, vip)
        self._note_former(before, vip)
        for client in [client for client, kept in self.affinity.items() if kept.pod not in weights]:
            del self.affinity[client]  # in place: workers share it
        self.vip = vip

    def _fill(self, origin: Origin, vip: Vip) -> None:
        weights = {Pod(pod.address, vip.pod_port(pod)): pod.weight for pod in vip.pods_for(origin)}
        ordered = in_ring_order(pod for pod, weight in weights.items() if weight)
        slots = maglev_ring(ordered, vip.new_len, [weights[pod] for pod in ordered])
        self.rings[origin] = [ordered[position] for position in slots]
        self.getting_new_flows[origin] = frozenset(ordered)  # also those that a small ring has no slot for

    def _note_former(self, before: dict[Origin, list[Pod]], vip: Vip) -> None:
        """Owners before and now can be compared where there are both, in rings of one size and of one kind."""
        tells_apart = vip.outside_pods is not None
        if before == self.rings and tells_apart == (self.vip.outside_pods is not None):
            return  # whatever has changed, it was not who owns what
        comparable = vip.new_len == self.vip.new_len and tells_apart == (self.vip.outside_pods is not None)
        self.former_rings = {}
        for origin, ring in self.rings.items():
            if self.keeps_former and comparable and ring:
                self.former_rings[origin] = list(before.get(origin, ()))

    def end_second_chances(self) -> None:
        """The time is over."""
        self.former_rings = {}

    @property
    def former_pods(self) -> set[Pod]:
        """Removed or not, they may still be given flows."""
        return {pod for ring in self.former_rings.values() for pod in ring if pod is not None}

    def former_owner(self, forward: Endpoints) -> Pod | None:
        """Of the client's slot, before the last change."""
        ring = self.former_rings.get(self.origins.of(forward.source))
        return ring[self._hash(forward) % len(ring)] if ring else None

    def flush(self, address: Address, port: int) -> list[Pod]:
        """The removed pods that are meant; if they come back, they are others."""
        meant = [pod for pod in self.drained if pod.address == address and port in (0, pod.port)]
        self.drained -= set(meant)
        for origin, ring in self.former_rings.items():
            self.former_rings[origin] = [None if pod in meant else pod for pod in ring]
        return meant

    def gets_new_flows(self, pod: Pod, client: Address) -> bool:
        return pod in self.getting_new_flows[self.origins.of(client)]

    def ring_for(self, client: Address) -> list[Pod]:
        """The new-flow table for clients of this one's origin; empty without pods for them."""
        return self.rings[self.origins.of(client)]

    def must_masquerade(self, pod: Pod, client: Address) -> bool:
        """By the VIP's wish, or because the client is the pod: its own reply would never come back here."""
        return self.vip.masquerades(self.origins.of(client)) or pod.address == client

    def lets_in(self, client: Address) -> bool:
        return not self.vip.source_ranges or any(client in prefix for prefix in self.vip.source_ranges)

    @property
    def affinity_ticks(self) -> int:
        return round(self.vip.affinity_s * 10)

    def kept_pod(self, client: Address, now: int) -> Pod | None:
        """The pod that this client had last and may have again."""
        kept = self.affinity.get(client)
        if not self.affinity_ticks or kept is None or not 0 < (kept.expires - now) & 0xFFFFFFFF < 1 << 31:
            return None
        return kept.pod if self.gets_new_flows(kept.pod, client) else None

    def remember(self, client: Address, pod: Pod, expires: int) -> None:
        if self.affinity_ticks:
            self.affinity[client] = Kept(pod, expires)

    @property
    def key(self) -> VipKey:
        return self.vip.key

    def has_pod_address(self, address: Address) -> bool:
        """Also that of a removed pod, until nothing refers to it any more."""
        return address in self.removed_pods or any(pod.address == address for pod in self.vip.all_pods)

    def pod_port(self, pod: Pod, packet_port: int, protocol: int) -> int:
        """The pod's, which is its own or the target port when it came; else the packet's; 0 for protocols without."""
        if protocol not in PROTOCOLS_WITH_PORTS:
            return 0
        return pod.port or packet_port

    def candidate(self, forward: Endpoints, now: int) -> Pod:
        """The client's pod by affinity, else that of its slot."""
        kept = self.kept_pod(forward.source, now)
        if kept is not None:
            return kept
        ring = self.ring_for(forward.source)
        return ring[self._hash(forward) % len(ring)]

    def _hash(self, forward: Endpoints) -> int:
        """That the slot follows from."""
        if self.vip.hash_mode == HashMode.SOURCE:
            nobody = type(forward.source)(0)
            return flow_hash(forward.source, nobody, key=self.flow_key)
        return forward.hash(self.flow_key)

    def further_candidates(self, forward: Endpoints) -> Iterator[Pod]:
        """The pods of the following slots, not beyond once around; none if the client's address alone decides."""
        ring = self.ring_for(forward.source)
        if self.affinity_ticks or self.vip.hash_mode == HashMode.SOURCE:
            return
        for step in range(1, min(MOST_SLOTS_FURTHER, len(ring) - 1) + 1):
            yield ring[(forward.hash(self.flow_key) + step) % len(ring)]

    def addressed_by_client(self, reply: Endpoints, now: int) -> Endpoints | None:
        """What a client must have written for this reply, if this VIP's ring would give it to this very pod.

        Only a VIP of one address tells what was addressed; and a VIP of every port only if it left the port alone.
        """
        key = self.key
        if (
            key.prefix.num_addresses != 1
            or self.vip.on_node_only
            or key.family != reply.source.version
            or not self.ring_for(reply.destination)
        ):
            return None
        if not accepts_protocol(key, reply.protocol) or self.vip.encap is not Encap.NAT:
            return None
        masquerades = self.vip.masquerades(self.origins.of(reply.destination))
        if masquerades or reply.source == reply.destination:
            return None  # masqueraded, so never untracked
        addressed = Endpoints(
            reply.destination,
            reply.destination_port,
            key.prefix.network_address,
            key.port or reply.source_port,
            reply.protocol,
        )
        pod = self.candidate(addressed, now)
        if (pod.address, self.pod_port(pod, addressed.destination_port, reply.protocol)) != (
            reply.source,
            reply.source_port,
        ):
            return None
        return addressed


def accepts_protocol(key: VipKey, protocol: int) -> bool:
    """A VIP of any protocol with a port means TCP, UDP and SCTP."""
    if key.protocol != Protocol.ANY:
        return key.protocol == protocol
    return not key.port or protocol in PROTOCOLS_WITH_PORTS


def accepts(key: VipKey, protocol: int, port: int) -> bool:
    """Whether this packet is for that VIP, as far as protocol and port go."""
    return accepts_protocol(key, protocol) and key.port in (0, port)


def preference(key: VipKey) -> tuple[int, bool, bool]:
    """Of several VIPs that accept a packet the greatest is meant: longest prefix, then port, then protocol."""
    return key.prefix.prefixlen, key.port != 0, key.protocol != Protocol.ANY


class Vips:
    """All VIPs that exist."""

    def __init__(self, origins: Origins, key: bytes = b"", keep_former: bool = False) -> None:
        self.origins = origins
        self._key = key
        self._keep_former = keep_former
        self.by_key: dict[VipKey, VipState] = {}

    def set_flow_key(self, key: bytes) -> None:
        """The rings are asked by another hash from now on."""
        self._key = key
        for state in self.by_key.values():
            state.flow_key = key

    def set(self, vip: Vip) -> None:
        for other in self.by_key.values():
            if other.key != vip.key and _share_node_port(other.vip, vip):
                raise ValueError(f"node port {vip.node_port} belongs to VIP {other.key}")
        old = self.by_key[vip.key].vip if vip.key in self.by_key else vip
        if (old.type, old.encap) != (vip.type, vip.encap):
            self.delete(vip.key)  # pods that got it in another way cannot go on with a flow
        if vip.key in self.by_key:
            self.by_key[vip.key].change(vip)
        else:
            self.by_key[vip.key] = VipState(vip, self.origins, self._key, self._keep_former)

    def end_second_chances(self) -> None:
        for state in self.by_key.values():
            state.end_second_chances()

    def delete(self, key: VipKey) -> None:
        self.by_key.pop(key).deleted = True

    def match(self, destination: Address, protocol: int, port: int) -> VipState | None:
        """The VIP that the packet is addressed to."""
        matching = [
            state
            for state in self.by_key.values()
            if not state.vip.on_node_only
            and destination in state.key.prefix
            and accepts(state.key, protocol, port)
        ]
        return max(matching, key=lambda state: preference(state.key), default=None)

    def match_node_port(self, family: Family, protocol: int, port: int) -> VipState | None:
        """The VIP whose node port this is."""
        for state in self.by_key.values():
            vip = state.vip
            same_port = vip.node_port != 0 and vip.node_port == port and state.key.family == family
            if same_port and protocol in _node_port_protocols(vip):
                return state
        return None

    def have_node_ports(self) -> bool:
        return any(state.vip.node_port for state in self.by_key.values())

    def cover(self, destination: Address) -> bool:
        """Whether it lies in the prefix of some VIP, whatever its protocol and port."""
        return any(
            destination in state.key.prefix for state in self.by_key.values() if not state.vip.on_node_only
        )

    def have_pod_address(self, address: Address) -> bool:
        return any(state.has_pod_address(address) for state in self.by_key.values())


def _node_port_protocols(vip: Vip) -> tuple[Protocol, ...]:
    return PROTOCOLS_WITH_PORTS if vip.key.protocol == Protocol.ANY else (vip.key.protocol,)


def _share_node_port(one: Vip, other: Vip) -> bool:
    return (
        one.node_port != 0
        and one.node_port == other.node_port
        and one.key.family == other.key.family
        and not set(_node_port_protocols(one)).isdisjoint(_node_port_protocols(other))
    )
