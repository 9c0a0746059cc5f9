"""The only translator between the model and the tables: what changed in the store becomes what changes in the arrays.

Indices are stable: a VIP and a pod keep theirs as long as they exist, so flows survive every change around them. A
new ring is written beside the old one and published with one store. Removed pods stay, for their flows ("drain"),
until no flow refers to them and every worker has passed a quiescent point; their index then starts over with a new
generation.

A pod is known by address and port: when a VIP's target port changes, pods that took it are replaced by others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network

import numpy as np

from kuproxy.codes import (
    PROTOCOLS_WITH_PORTS,
    Encap,
    Family,
    FlowState,
    Node,
    PodFlag,
    Protocol,
    VipFlag,
    VipType,
)
from kuproxy.control.rings import RingHistory
from kuproxy.control.store import Changes
from kuproxy.dataplane.layout import (
    CLASS_ANY,
    CLASS_PORT,
    CLASS_PROTOCOL,
    KIND_ADDRESS,
    KIND_NODE_ADDRESS,
    KIND_NODEPORT,
    KIND_POD,
    KIND_POD_ADDRESS,
    KIND_VIP,
    MAX_PODS,
    MAX_SOURCES,
    MAX_VIPS,
    PREFIX_LENGTHS,
    RANGE_ARENA,
    RING_ARENA,
    T_ANY_NODE_ADDRESS,
    T_DECREMENT_TTL,
    T_FLOW_TIMEOUT,
    T_GENERATION,
    T_MASQUERADE4,
    T_MASQUERADE6,
    T_MATCH,
    T_N_NODEPORTS,
    T_NAT46_HI,
    T_NAT46_LO,
    T_NAT64_BASE,
    T_NAT64_COUNT,
    T_NAT64_PORTS,
    T_OWN4,
    T_OWN6_HI,
    T_OWN6_LO,
    T_PREFIXES,
    T_REJECT_RATE,
    T_TRANSLATION_MTU,
    T_TUNNEL_SOURCE,
    T_VIP_MATCH,
    TICKS_PER_SECOND,
    WAY_GUARDED,
    Tables,
)
from kuproxy.dataplane.maglev import fill_ring, fill_weighted
from kuproxy.dataplane.writer import Arena, IndexPool, MatchWriter, Retirement, match_arena
from kuproxy.errors import TableFullError
from kuproxy.model.config import NAT46_PREFIX, NAT64_POOL, NAT64_PORTS
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey

HOST = 128
_WAYS = {
    VipType.IP4_NAT44: Node.NAT44,
    VipType.IP6_NAT66: Node.NAT66,
    VipType.IP4_NAT46: Node.NAT46,
    VipType.IP6_NAT64: Node.NAT64,
}
DEFAULT_REJECT_RATE = 1000  # ICMP answers per second and worker, as Linux' icmp_msgs_per_sec

Words = tuple[np.uint64, np.uint64]


def address_words(address: Address) -> Words:
    """(hi, lo) of an address as layout.py defines them."""
    raw = address.packed.rjust(16, b"\0")
    return np.uint64(int.from_bytes(raw[:8], "little")), np.uint64(int.from_bytes(raw[8:], "little"))


def key_word(kind: int, family: int, plen: int, protocol: int, port: int) -> np.uint64:
    """The same as dataplane.match.match_key, without a crossing into compiled code."""
    return np.uint64(kind << 56 | family << 48 | plen << 32 | protocol << 16 | port)


def prefix_length(key: VipKey) -> int:
    """In the 128-bit form."""
    return key.prefix.prefixlen + (96 if key.family == Family.IPV4 else 0)


def _fill(pods: Sequence[Pod], owners: np.ndarray, ring: np.ndarray) -> None:
    """Write the new-flow table of `pods` (in order, none of weight 0) into `ring`, as the numbers in `owners`."""
    words = [address_words(pod.address) for pod in pods]
    hi, lo = np.array([hi for hi, _ in words]), np.array([lo for _, lo in words])
    walk = np.empty((2, len(words)), np.uint32)
    ring[:] = 0
    weights = np.array([pod.weight for pod in pods], np.uint32)
    if len(pods) == 0 or (weights == weights[0]).all():
        fill_ring(hi, lo, owners, walk, ring)
    else:
        fill_weighted(hi, lo, weights, owners, walk, ring)


def ring_owners(pods: Iterable[Pod], new_len: int) -> list[Pod]:
    """The pod of each of `new_len` slots; empty without pods."""
    order = sorted(pod for pod in set(pods) if pod.weight)
    if not order:
        return []
    ring = np.empty(new_len, np.uint32)
    _fill(order, np.arange(1, len(order) + 1, dtype=np.uint32), ring)
    return [order[owner - 1] for owner in ring.tolist()]


@dataclass(slots=True)
class _Ring:
    offset: int
    log2: int


@dataclass(slots=True)
class _Block:
    """A block of source ranges."""

    offset: int
    log2: int


@dataclass(slots=True)
class VipRecord:
    """A VIP's places in the tables."""

    index: int
    vip: Vip
    pods: dict[Pod, int] = field(default_factory=dict)  # in the ring; Pod with its port resolved
    draining: dict[Pod, int] = field(default_factory=dict)
    flushed: dict[int, Pod] = field(default_factory=dict)  # removed, by index; their flows end
    ring: _Ring | None = None
    ranges: _Block | None = None
    removed: bool = False


@dataclass(slots=True)
class _Draining:
    record: VipRecord
    pod: Pod
    generation: int


class Compiler:
    """Keeps `tables` equal to what the store holds."""

    def __init__(self, tables: Tables, *, decrement_ttl: bool, any_node_address: bool):
        self.tables = tables
        self._generation = 0
        self._retirement = Retirement()
        arena = match_arena(tables)
        self._vip_match = MatchWriter(tables, T_VIP_MATCH, arena, self._retire)
        self._match = MatchWriter(tables, T_MATCH, arena, self._retire)
        self._rings = Arena(RING_ARENA, "ring slots")
        self._ranges = Arena(RANGE_ARENA, "source ranges")
        self._vip_indices = IndexPool(MAX_VIPS, "VIPs")
        self._pod_indices = IndexPool(MAX_PODS, "pods")
        self._records: dict[VipKey, VipRecord] = {}
        self._by_index: dict[int, VipRecord] = {}
        self._draining: dict[int, _Draining] = {}  # by pod index
        self._chains: dict[tuple[int, int, np.uint64], list[int]] = {}  # pods with the same replies
        self._references: dict[
            tuple[int, int, np.uint64], int
        ] = {}  # address entries that several things need
        self._lengths: dict[tuple[int, int, int], int] = {}  # VIP entries by family, prefix length, class
        self._node_addresses: set[Address] = set()
        self._new_pods: list[int] = []
        self.former_rings = RingHistory()
        self._sources: list[Address] = []  # of IPv6, in the order of their indices
        self._next_source = 0
        tables.header[T_DECREMENT_TTL] = int(decrement_ttl)
        tables.header[T_ANY_NODE_ADDRESS] = int(any_node_address)
        tables.header[T_REJECT_RATE] = DEFAULT_REJECT_RATE
        self.set_translation(NAT46_PREFIX, NAT64_POOL, NAT64_PORTS, 0)

    # ---------------------------------------------------------------------------------------------- changes

    @property
    def generation(self) -> int:
        """Of the last published change."""
        return self._generation

    def apply(self, changes: Changes) -> int:
        """Publish; returns the generation that workers acknowledge when they have seen it."""
        self._new_pods.clear()
        for vip in changes.removed:
            self._remove(vip)
        for old, new in changes.changed:
            # All before any new one: two VIPs may swap their node ports.
            if old.node_port != new.node_port:
                self._leave_node_port(self._records[old.key], old.node_port)
                self._records[old.key].vip = replace(old, node_port=0)
        for old, new in changes.changed:
            if old.type != new.type or old.encap != new.encap:
                self._remove(self._records[old.key].vip)
                self._add(new)
            else:
                self._change(old, new)
        for vip in changes.added:
            self._add(vip)
        return self._publish()

    def check(self, changes: Changes) -> None:
        """Raise TableFullError if the tables may not hold these changes, before any of them is made."""
        touched = [*changes.added, *(new for _, new in changes.changed)]
        pods = sum(len(vip.served_pods) for vip in touched)
        needs = (
            (len(changes.added), self._vip_indices.room, "VIPs"),
            (pods, self._pod_indices.room, "pods"),
            (sum(vip.new_len for vip in touched if vip.served_pods), self._rings.room, "ring slots"),
            (8 * len(touched) + 2 * pods, self._match.room, "match entries"),
            (2 * sum(len(vip.source_ranges) + 1 for vip in touched), self._ranges.room, "source ranges"),
        )
        for needed, room, what in needs:
            if needed > room:
                raise TableFullError(f"{needed} more {what} are asked for, and {room} are free")

    def set_timeout(self, seconds: float) -> int:
        """One flow timeout for all states, from the next packet of each flow on."""
        return self.set_timeouts(dict.fromkeys(FlowState, seconds))

    def set_timeouts(self, seconds: Mapping[FlowState, float]) -> int:
        """The flow timeout of each state, from the next packet of each flow on."""
        for state, value in seconds.items():
            self.tables.header[T_FLOW_TIMEOUT + state] = max(1, round(value * TICKS_PER_SECOND))
        return self._publish()

    def set_tunnel_sources(self, ipv4: Address | None, ipv6: Address | None) -> int:
        """Our address in the outer headers of tunnels; None: such tunnels carry nothing."""
        zeros = (np.uint64(0), np.uint64(0))
        _, lo4 = address_words(ipv4) if ipv4 is not None else zeros
        hi6, lo6 = address_words(ipv6) if ipv6 is not None else zeros
        self.tables.header[T_TUNNEL_SOURCE : T_TUNNEL_SOURCE + 3] = (lo4, hi6, lo6)
        return self._publish()

    def set_masquerade(self, addresses: Iterable[Address]) -> int:
        """The source of masqueraded packets: at most one address of each family, none where there is no family."""
        word4 = word6 = 0
        for address in addresses:
            if address.version == 4:
                word4 = int(address_words(address)[1]) >> 32
            else:
                word6 = self._source_index(address)
        self.tables.header[T_MASQUERADE4] = word4
        self.tables.header[T_MASQUERADE6] = word6
        return self._publish()

    def _source_index(self, address: Address) -> int:
        """An address keeps its index: flows name it. When all are taken the oldest one is overwritten."""
        if address not in self._sources:
            place = self._next_source % (MAX_SOURCES - 1)
            self._next_source += 1
            self._sources[place : place + 1] = [address]
            self.tables.sources[place + 1] = address_words(address)
        return self._sources.index(address) + 1

    def set_translation(
        self, prefix: IPv6Network, pool: IPv4Network | None, ports: tuple[int, int], mtu: int
    ) -> int:
        """What clients are called at pods of the other family, and the longest packet that translation may make.

        Flows that began before keep their pool address; their replies are known as long as it stays in the pool.
        """
        header = self.tables.header
        header[T_NAT46_HI], header[T_NAT46_LO] = address_words(prefix.network_address)
        low, high = ports
        header[T_NAT64_COUNT] = 0  # no reader may see a mixture
        header[T_NAT64_PORTS] = low << 16 | high - low + 1
        header[T_TRANSLATION_MTU] = mtu
        if pool is not None:
            header[T_NAT64_BASE] = int(pool.network_address)
            header[T_NAT64_COUNT] = pool.num_addresses
        return self._publish()

    def set_own_addresses(self, addresses: Iterable[Address]) -> int:
        """The sources of ICMP errors of our own: the first address of each family; without one, what was addressed."""
        own = {address.version: address_words(address) for address in reversed(list(addresses))}
        self.tables.header[T_OWN4] = own.get(4, (0, 0))[1]
        self.tables.header[T_OWN6_HI], self.tables.header[T_OWN6_LO] = own.get(6, (0, 0))
        return self._publish()

    def set_interface(self, index: int, flags: int) -> int:
        """Mark an interface (InterfaceFlag)."""
        self.tables.interfaces[index] = flags
        return self._publish()

    def set_node_addresses(self, addresses: Iterable[Address]) -> int:
        """The addresses at which node ports answer."""
        wanted = set(addresses)
        for address in wanted - self._node_addresses:
            self._reference(KIND_NODE_ADDRESS, address)
        for address in self._node_addresses - wanted:
            self._dereference(KIND_NODE_ADDRESS, address)
        self._node_addresses = wanted
        return self._publish()

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

    def _publish(self) -> int:
        self._generation += 1
        self.tables.header[T_GENERATION] = self._generation
        return self._generation

    def _retire(self, action: Callable[[], None]) -> None:
        self._retirement.add(self._generation + 1, action)

    # ------------------------------------------------------------------------------------------------- reads

    def records(self) -> Iterator[VipRecord]:
        """Every VIP in use, then removed ones that still drain, by index."""
        for index in sorted(self._by_index):
            yield self._by_index[index]

    def record_at(self, index: int) -> VipRecord | None:
        """The VIP that has this index now."""
        return self._by_index.get(index)

    def record(self, key: VipKey) -> VipRecord | None:
        """The VIP in use under this key."""
        return self._records.get(key)

    def take_new_pods(self) -> list[int]:
        """Indices that were given to pods since the last call: their counters may hold an earlier pod's counts."""
        taken, self._new_pods = self._new_pods, []
        return taken

    def slots_of(self, record: VipRecord) -> dict[int, int]:
        """Ring slots by pod index."""
        if record.ring is None:
            return {}
        ring = self._ring_view(record.ring)
        owners, counts = np.unique(ring, return_counts=True)
        return dict(zip(owners.tolist(), counts.tolist(), strict=True))

    def owners_of(self, record: VipRecord) -> np.ndarray:
        """uint32[slots]: the pod index of each slot of the new-flow table; all 0 without pods."""
        if record.ring is None:
            return np.zeros(record.vip.new_len, np.uint32)
        return self._ring_view(record.ring).copy()

    def bounds(self) -> tuple[int, int]:
        """One more than the highest index of a VIP, and of a pod, that was ever given out."""
        return self._vip_indices.bound, self._pod_indices.bound

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

    # -------------------------------------------------------------------------------------------------- VIPs

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
            int(vip.key.family),
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
            np.zeros(4, np.uint8),
        )
        self._set_encap(record)
        self._records[vip.key] = record
        self._by_index[index] = record
        self._set_pods(record, vip)
        self._set_ranges(record, vip.source_ranges)
        if not vip.on_node_only:
            self._enter_key(record)
            self._reference(KIND_ADDRESS, vip.key.prefix.network_address, prefix_length(vip.key))
        self._enter_node_port(record, vip.node_port)

    def _change(self, old: Vip, new: Vip) -> None:
        record = self._records[old.key]
        record.vip = new
        row = self.tables.vips[record.index]
        if (
            old.served_pods != new.served_pods
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
        if old.node_port != new.node_port:
            row["node_port"] = new.node_port
            self._enter_node_port(record, new.node_port)

    def _remove(self, vip: Vip) -> None:
        record = self._records.pop(vip.key)
        record.removed = True
        if not vip.on_node_only:
            self._leave_key(record)
            self._dereference(KIND_ADDRESS, vip.key.prefix.network_address, prefix_length(vip.key))
        self._leave_node_port(record, vip.node_port)
        row = self.tables.vips[record.index]
        row["generation"] = int(row["generation"]) + 1  # its flows are dead from here on
        row["flags"] = 0
        self._set_ring(record, ())
        self.former_rings.forget(vip.key)
        self._set_ranges(record, ())
        for pod in list(record.pods):
            self._drain(record, pod)
        for pod in [*record.draining, *record.flushed.values()]:
            self._dereference(KIND_POD_ADDRESS, pod.address)
        if not record.draining and not record.flushed:
            self._retire(lambda: self._free_vip(record))

    def _free_vip(self, record: VipRecord) -> None:
        if self._by_index.pop(record.index, None) is not None:
            self._vip_indices.free(record.index)

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
        flags = VipFlag.USED
        for wanted, flag in (
            (vip.reject, VipFlag.REJECT),
            (vip.masquerade, VipFlag.MASQUERADE),
            (vip.reset, VipFlag.RESET),
        ):
            if wanted:
                flags |= flag
        return int(flags)

    def _set_ranges(self, record: VipRecord, ranges: Sequence[Prefix]) -> None:
        """A new block beside the old one, published with one store."""
        old = record.ranges
        record.ranges = None
        if ranges:
            log2 = len(ranges).bit_length()
            record.ranges = _Block(self._ranges.allocate(log2), log2)
            rows = self.tables.ranges[record.ranges.offset : record.ranges.offset + len(ranges) + 1]
            rows[0]["hi"] = len(ranges)
            for row, prefix in zip(rows[1:], ranges, strict=True):
                net_hi, net_lo = address_words(prefix.network_address)
                mask_hi, mask_lo = address_words(prefix.netmask)
                row["hi"], row["lo"], row["mask_hi"], row["mask_lo"] = net_hi, net_lo, mask_hi, mask_lo
        self.tables.vips[record.index]["ranges"] = record.ranges.offset if record.ranges else 0
        self._set_way(record)
        if old is not None:
            self._retire(lambda: self._ranges.free(old.offset, old.log2))

    # ------------------------------------------------------------------------------------------------- match

    @staticmethod
    def _protocols(key: VipKey) -> tuple[Protocol, ...]:
        """The protocols under which a key is entered."""
        if key.port and key.protocol == Protocol.ANY:
            return PROTOCOLS_WITH_PORTS
        return (key.protocol,)

    def _enter_key(self, record: VipRecord) -> None:
        key = record.vip.key
        hi, lo = address_words(key.prefix.network_address)
        for protocol in self._protocols(key):
            # A VIP of this very protocol goes before one of any protocol at the same port.
            if protocol != key.protocol and VipKey(key.prefix, protocol, key.port) in self._records:
                continue
            word = key_word(KIND_VIP, key.family, prefix_length(key), protocol, key.port)
            self._vip_match.put(hi, lo, word, record.index)
        self._count_length(key, 1)

    def _leave_key(self, record: VipRecord) -> None:
        key = record.vip.key
        hi, lo = address_words(key.prefix.network_address)
        general = None
        if key.port and key.protocol != Protocol.ANY:
            general = self._records.get(VipKey(key.prefix, Protocol.ANY, key.port))
        for protocol in self._protocols(key):
            if protocol != key.protocol and VipKey(key.prefix, protocol, key.port) in self._records:
                continue
            word = key_word(KIND_VIP, key.family, prefix_length(key), protocol, key.port)
            if general is not None and protocol in PROTOCOLS_WITH_PORTS:
                self._vip_match.put(hi, lo, word, general.index)
            else:
                self._vip_match.delete(hi, lo, word)
        self._count_length(key, -1)

    def _count_length(self, key: VipKey, change: int) -> None:
        """Keep the sets of prefix lengths and of their kinds of keys, which spare readers vain probes."""
        side = 0 if key.family == Family.IPV4 else 1
        plen = prefix_length(key)
        kind = CLASS_PORT if key.port else CLASS_PROTOCOL if key.protocol != Protocol.ANY else CLASS_ANY
        self._lengths[side, plen, kind] = self._lengths.get((side, plen, kind), 0) + change
        present = [k for k in (CLASS_PORT, CLASS_PROTOCOL, CLASS_ANY) if self._lengths.get((side, plen, k))]
        self.tables.classes[side * PREFIX_LENGTHS + plen] = sum(present)
        word = T_PREFIXES + 3 * side + plen // 64
        bit = 1 << plen % 64
        bits = int(self.tables.header[word])
        self.tables.header[word] = bits | bit if present else bits & ~bit

    def _enter_node_port(self, record: VipRecord, port: int) -> None:
        for word in self._node_port_words(record.vip, port):
            self._match.put(np.uint64(0), np.uint64(0), word, record.index)
            self.tables.header[T_N_NODEPORTS] += np.uint64(1)

    def _leave_node_port(self, record: VipRecord, port: int) -> None:
        for word in self._node_port_words(record.vip, port):
            self._match.delete(np.uint64(0), np.uint64(0), word)
            self.tables.header[T_N_NODEPORTS] -= np.uint64(1)

    @staticmethod
    def _node_port_words(vip: Vip, port: int) -> Iterator[np.uint64]:
        if port:
            protocols = PROTOCOLS_WITH_PORTS if vip.key.protocol == Protocol.ANY else (vip.key.protocol,)
            for protocol in protocols:
                yield key_word(KIND_NODEPORT, vip.key.family, HOST, protocol, port)

    def _reference(self, kind: int, address: Address, plen: int = HOST) -> None:
        hi, lo = address_words(address)
        word = key_word(kind, address.version, plen, 0, 0)
        place = (int(hi), int(lo), word)
        count = self._references.get(place, 0)
        if count == 0:
            self._match.put(hi, lo, word, 1)
        self._references[place] = count + 1

    def _dereference(self, kind: int, address: Address, plen: int = HOST) -> None:
        hi, lo = address_words(address)
        word = key_word(kind, address.version, plen, 0, 0)
        place = (int(hi), int(lo), word)
        self._references[place] -= 1
        if self._references[place] == 0:
            del self._references[place]
            self._match.delete(hi, lo, word)

    # -------------------------------------------------------------------------------------------------- pods

    def _set_pods(self, record: VipRecord, vip: Vip) -> None:
        # In the records a pod is its address and port; its weight may change while it stays the same pod.
        weights = {Pod(pod.address, pod.port or vip.target_port): pod.weight for pod in vip.served_pods}
        for pod, weight in weights.items():
            if pod not in record.pods:
                record.pods[pod] = self._revive(record, pod) or self._add_pod(record, pod)
            if weight:
                self.tables.pods[record.pods[pod]]["flags"] = int(PodFlag.USED)
        # The new ring goes live before the pods that left it are marked.
        self._set_ring(record, sorted(pod.weighing(weight) for pod, weight in weights.items() if weight))
        for pod in [pod for pod in record.pods if pod not in weights]:
            self._drain(record, pod)
        for pod, weight in weights.items():
            if not weight:
                self.tables.pods[record.pods[pod]]["flags"] = 0

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
        self._draining[index] = _Draining(record, pod, self._generation + 1)

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

    def _ring_view(self, ring: _Ring) -> np.ndarray:
        return self.tables.rings[ring.offset : ring.offset + (1 << ring.log2)]

    def _set_ring(self, record: VipRecord, pods: Sequence[Pod]) -> None:
        """`pods` in order, with their weights, all of them in record.pods."""
        old = record.ring
        self.former_rings.note(
            record.vip.key, None if old is None else self._ring_view(old), record.pods.items()
        )
        word = 0
        record.ring = None
        if pods:
            log2 = record.vip.new_len.bit_length() - 1
            record.ring = _Ring(self._rings.allocate(log2), log2)
            owners = np.array([record.pods[pod.weighing(1)] for pod in pods], np.uint32)
            _fill(pods, owners, self._ring_view(record.ring))
            word = record.ring.offset << 8 | log2
        self.tables.vips[record.index]["ring"] = word
        if old is not None:
            self._retire(lambda: self._rings.free(old.offset, old.log2))
