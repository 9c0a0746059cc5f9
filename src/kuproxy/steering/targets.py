"""What shall come up to the workers, and the entries of the maps that say so.

`Targets` is a value: whoever knows the services makes a new one whenever they change, or, where they are many, tells
the difference, `Asked` before and `Asked` now.  `Entries` counts how many
targets ask for each key, because targets share keys (the fragments' entry of an address with ten ports), and tells
which keys are new and which nobody wants any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import NamedTuple

from ..errors import SteeringError
from .keys import (
    STEER_KEY_SIZE,
    Address,
    ConfigBit,
    Network,
    endpoint_keys,
    is_return,
    is_translated,
    network_keys,
    prefix_key,
)
from .maps import PRESENT, SteeringMaps

__all__ = [
    "Asked",
    "Change",
    "Entries",
    "MapWriter",
    "NodePort",
    "Pod",
    "Targets",
    "Vip",
    "decrement",
    "node_port_keys",
    "pod_keys",
    "translated_keys",
    "vip_keys",
]

Vip = tuple[Network, int, int]
NodePort = tuple[int, int, int]
Pod = tuple[Address, int, int]


@dataclass(frozen=True)
class Targets:
    """Protocols are IP's numbers; 0 with a port means TCP, UDP and SCTP."""

    vips: frozenset[Vip] = frozenset()  # (network, protocol, port); port 0: the whole address
    node_ports: frozenset[NodePort] = frozenset()  # (family 4 or 6, protocol, port), at every node address
    pods: frozenset[Pod] = frozenset()  # (address, protocol, port): whose replies come up
    translated: frozenset[Network] = frozenset()  # what clients are called at pods of the other family
    # Interface name → keys.MARK4 | keys.MARK6: replies come up only where marked; None: see `strict_replies`.
    marks: Mapping[str, int] | None = None
    # Without marks: replies come up only where the node itself would send to their pod (reply_path.py).
    strict_replies: bool = True
    # Node ports are served at node addresses in these networks only; None: at all of them.
    node_networks: frozenset[Network] | None = None
    # Some VIP's packets go out in tunnels: the kernel has to split what comes up into single packets.
    tunnels: bool = False

    def __post_init__(self) -> None:
        for family, protocol, port in self.node_ports:
            if family not in (4, 6) or not 0 < port < 65536 or not 0 <= protocol < 256:
                raise ValueError(f"not a node port: family {family}, protocol {protocol}, port {port}")

    @property
    def families(self) -> set[int]:
        """Those that have a VIP or a node port."""
        named = {network.version for network in self.translated} | {each[0] for each in self.node_ports}
        return {vip[0].version for vip in self.vips} | named

    def serves_at(self, address: Address) -> bool:
        """Whether node ports are served at this address of the node."""
        return self.node_networks is None or any(address in network for network in self.node_networks)

    def beyond(self, others: Targets) -> Asked:
        """What these ask for and others do not."""
        return Asked(
            self.vips - others.vips,
            self.node_ports - others.node_ports,
            self.pods - others.pods,
            self.translated - others.translated,
        )


class Asked(NamedTuple):
    """Some targets, any of them as often as somebody asks for it."""

    vips: Collection[Vip] = ()
    node_ports: Collection[NodePort] = ()
    pods: Collection[Pod] = ()
    translated: Collection[Network] = ()

    @property
    def destinations(self) -> list[Vip]:
        """VIPs, and translated clients as if they were some: what no flow of one family may be sent to."""
        return [*self.vips, *((network, 0, 0) for network in self.translated)]


def vip_keys(vips: Iterable[Vip]) -> Iterable[bytes]:
    for network, protocol, port in vips:
        yield from network_keys(network, protocol, port)


def translated_keys(networks: Iterable[Network]) -> Iterable[bytes]:
    return (prefix_key(network, translated=True) for network in networks)


def pod_keys(pods: Iterable[Pod]) -> Iterable[bytes]:
    for address, protocol, port in pods:
        yield from endpoint_keys(address, protocol, port, returning=True)


def node_port_keys(node_ports: Iterable[NodePort], addresses: Iterable[Address]) -> Iterable[bytes]:
    """At these addresses of the node."""
    by_family: dict[int, list[Address]] = {4: [], 6: []}
    for address in addresses:
        by_family[address.version].append(address)
    for family, protocol, port in node_ports:
        for address in by_family[family]:
            yield from endpoint_keys(address, protocol, port)


class Change(NamedTuple):
    """The difference that a change of targets makes to the maps."""

    new: list[bytes]
    gone: list[bytes]


def decrement(counter: Counter, key: object) -> bool:
    """Whether it was the last one."""
    counter[key] -= 1
    if counter[key]:
        return False
    del counter[key]
    return True


class Entries:
    """Keys of the maps, each with the number of targets that want it."""

    def __init__(self) -> None:
        self._wanted: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, key: bytes) -> bool:
        return key in self._wanted

    def difference(self, remove: Iterable[bytes], add: Iterable[bytes]) -> tuple[Change, Counter[bytes]]:
        """What would change; the second value is for `commit`."""
        balance = Counter(add)
        for key in remove:
            balance[key] -= 1
        new, gone = [], []
        for key, count in balance.items():
            before = self._wanted.get(key, 0)
            if before == 0 and count > 0:
                new.append(key)
            elif before > 0 and before + count <= 0:
                gone.append(key)
        return Change(new, gone), balance

    def commit(self, balance: Counter[bytes]) -> None:
        if not self._wanted:
            self._wanted.update({key: count for key, count in balance.items() if count > 0})
            return
        for key, count in balance.items():
            total = self._wanted[key] + count
            if total > 0:
                self._wanted[key] = total
            else:
                del self._wanted[key]


class MapWriter:
    """Brings the maps to what the targets ask for, in an order in which no translated flow is ever half steered.

    A destination comes up only once the replies to it do, and as long as they do: replies first when something is
    added, destinations first when something goes.  Otherwise a client would see a pod's own address.
    """

    def __init__(self, maps: SteeringMaps) -> None:
        self._maps = maps
        self.entries = Entries()
        self._prefixes = self._translated = 0  # how many are in the map, and of those of what kind
        self._config = 0

    def apply(self, remove: Iterable[bytes], add: Iterable[bytes]) -> Change:
        """Raises SteeringError, with nothing changed, when a map has too little room."""
        change, balance = self.entries.difference(remove, add)
        new, gone = _sorted_out(change.new), _sorted_out(change.gone)
        prefixes = self._prefixes + len(new.prefixes) - len(gone.prefixes)
        # New entries are written before old ones go, so there must be room for both.
        self._check_room(
            len(self.entries) - self._prefixes + len(new.returns) + len(new.forwards),
            self._prefixes + len(new.prefixes),
        )
        self._maps.steer.update(dict.fromkeys(new.returns, PRESENT))
        self._maps.steer.update(dict.fromkeys(new.forwards, PRESENT))
        self._maps.prefixes.update(dict.fromkeys(new.prefixes, PRESENT))
        translated = self._translated + sum(map(is_translated, new.prefixes)) - sum(map(is_translated, gone.prefixes))
        self.set_config(ConfigBit.PREFIXES, prefixes > translated)
        self.set_config(ConfigBit.TRANSLATED, translated > 0)
        self._maps.prefixes.delete(gone.prefixes)
        self._maps.steer.delete(gone.forwards)
        self._maps.steer.delete(gone.returns)
        self.entries.commit(balance)
        self._prefixes, self._translated = prefixes, translated
        return change

    def set_config(self, bit: ConfigBit, on: bool) -> None:
        config = self._config | bit if on else self._config & ~bit
        if config != self._config:
            self._maps.write_config(config)
            self._config = config

    def _check_room(self, steered: int, prefixes: int) -> None:
        for bpf_map, wanted in ((self._maps.steer, steered), (self._maps.prefixes, prefixes)):
            if wanted > bpf_map.capacity:
                raise SteeringError(f"{wanted} entries for {bpf_map.name}, which holds {bpf_map.capacity}")


class _SortedOut(NamedTuple):
    returns: list[bytes]
    forwards: list[bytes]
    prefixes: list[bytes]


def _sorted_out(keys: Collection[bytes]) -> _SortedOut:
    """Keys by what they are for."""
    steering = [key for key in keys if len(key) == STEER_KEY_SIZE]
    prefixes = [key for key in keys if len(key) != STEER_KEY_SIZE] if len(steering) < len(keys) else []
    returning = list(map(is_return, steering))
    return _SortedOut(
        list(compress(steering, returning)), list(compress(steering, map(not_, returning))), prefixes
    )
