"""VIPs and pods, as everything above the tables talks about them.

A `Vip` that exists is valid: its constructor checks everything, reports all faults at once, and brings equal
meanings into one form, so that comparing two of them tells whether anything must change in the tables.  There is
no I/O and no array here; `control.compile` alone translates these records.

A VIP is identified by prefix, protocol *and* port: VPP keys it by the prefix alone and never compares the port,
which is why two services on one address are impossible there.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from operator import attrgetter, lt
from socket import AF_INET, inet_pton

from kuproxy.codes import PROTOCOLS_WITH_PORTS, Encap, Family, HashMode, Origin, Protocol, VipType
from kuproxy.errors import ConfigError, Problem

__all__ = [
    "DEFAULT_NEW_LEN",
    "DEFAULT_WEIGHT",
    "ENCAP_WORDS",
    "GUE_PORT",
    "MAX_NEW_LEN",
    "MAX_PORT",
    "VIP_TYPE_WORDS",
    "Address",
    "Pod",
    "Prefix",
    "Vip",
    "VipKey",
    "address_text",
    "encap_of",
    "host_prefix",
    "is_power_of_two",
    "parse_address",
    "parse_prefix",
    "pod_family_message",
    "prefix_parser",
    "vip_type",
]

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

MAX_PORT = 65535
DEFAULT_NEW_LEN = 1024  # VPP's default size of the new-flow table
DEFAULT_WEIGHT = 1
MAX_WEIGHT = 100  # as in VPP's lb plugin
MAX_SESSION_CAP = (1 << 32) - 1
MAX_AFFINITY_S = 86400.0  # Kubernetes' limit, one day
MAX_NEW_LEN = 1 << 24  # 2^24 slots of 4 bytes: 64 MiB for one VIP

VIP_TYPE_WORDS: dict[str, tuple[Family | None, Family]] = {
    "nat4": (None, Family.IPV4),  # the family of the pods alone: the VIP's is the prefix's
    "nat6": (None, Family.IPV6),
    "nat44": (Family.IPV4, Family.IPV4),
    "nat46": (Family.IPV4, Family.IPV6),
    "nat64": (Family.IPV6, Family.IPV4),
    "nat66": (Family.IPV6, Family.IPV6),
}
"""The words for a VIP's type: the family that its prefix must have (None: any), and the family of its pods."""

GUE_PORT = 6080  # IANA's for Generic UDP Encapsulation
MAX_DSCP = 63

ENCAP_WORDS: dict[str, tuple[Encap, Family | None]] = {
    "nat4": (Encap.NAT, Family.IPV4),
    "nat6": (Encap.NAT, Family.IPV6),
    "gre4": (Encap.GRE, Family.IPV4),
    "gre6": (Encap.GRE, Family.IPV6),
    "ipip": (Encap.IPIP, None),
    "ipip4": (Encap.IPIP, Family.IPV4),
    "ipip6": (Encap.IPIP, Family.IPV6),
    "gue": (Encap.GUE, None),
    "gue4": (Encap.GUE, Family.IPV4),
    "gue6": (Encap.GUE, Family.IPV6),
    "l3dsr": (Encap.L3DSR, None),
}
"""The words behind `encap`: how packets get to the pods, and the pods' family (None: the prefix's)."""

_TYPE_OF = {(kind.vip_family, kind.pod_family): kind for kind in VipType}
_PROTOCOLS_FOR_PORTS = (Protocol.ANY, *PROTOCOLS_WITH_PORTS)


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def parse_address(text: str) -> Address:
    """An IP address.  Raises ValueError with a sentence; a zone (`fe80::1%eth0`) is refused."""
    try:
        return IPv4Address(inet_pton(AF_INET, text))  # as strict as ip_address, and five times faster
    except (OSError, ValueError):
        pass
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text!r} has a zone; a pod or VIP has none")
    return address


@functools.lru_cache(1024)
def host_prefix(address: Address) -> Prefix:
    """The prefix of one address alone; five times faster than `ip_network`, which goes by way of text."""
    network = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    return network((int(address), address.max_prefixlen))


def parse_prefix(text: str) -> Prefix:
    """A prefix; an address alone is a host prefix.  Raises ValueError with a sentence that names the right one."""
    address, slash, _length = text.partition("/")
    parse_address(address)
    if "/" in _length or (slash and not _length.isdecimal()):
        raise ValueError(f"{text!r} is not a prefix; write ADDRESS/LENGTH")
    try:
        prefix = ip_network(text, strict=False)
    except ValueError:
        limit = 128 if ":" in address else 32
        raise ValueError(f"{text!r} is not a prefix; the length is 0 to {limit}") from None
    if prefix.network_address != ip_address(address):
        raise ValueError(f"{text!r} has bits set beyond its length; the prefix is {prefix}")
    return prefix


def prefix_parser(version: int) -> Callable[[str], Prefix]:
    """`parse_prefix` for prefixes of one IP version; the others raise ValueError too."""

    def parse(text: str) -> Prefix:
        prefix = parse_prefix(text)
        if prefix.version != version:
            raise ValueError(f"{text!r} is not IPv{version}")
        return prefix

    return parse


def vip_type(prefix: Prefix, word: str | None = None) -> VipType:
    """The type that a word of the command language means for this prefix; without a word, no translation.

    Raises ValueError if the word names another family than the prefix has.
    """
    family = Family(prefix.version)
    if word is None:
        return _TYPE_OF[family, family]
    wanted, pods = VIP_TYPE_WORDS[word]
    if wanted not in (None, family):
        right = _TYPE_OF[family, pods].label.partition("-")[2]
        raise ValueError(f"{word} does not fit the prefix {prefix}; with these pods it is {right}")
    return _TYPE_OF[family, pods]


def encap_of(prefix: Prefix, word: str) -> tuple[Encap, VipType]:
    """What a word behind `encap` means for this prefix."""
    encap, pods = ENCAP_WORDS[word]
    family = Family(prefix.version)
    return encap, _TYPE_OF[family, pods or family]


def address_text(address: Address, port: int = 0) -> str:
    """`10.0.0.1`, `10.0.0.1:8080`, `[2001::2]:8080`: the spelling of the command language and of `show`."""
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _check_port(problems: list[Problem], name: str, port: int) -> None:
    if not 0 <= port <= MAX_PORT:
        problems.append(Problem(f"{port} is not a port", field=name, hint=f"a port is 0 to {MAX_PORT}"))


@dataclass(frozen=True, slots=True, order=True)
class Pod:
    """One backend.  Ordered by its 16 address bytes (IPv4 as ::a.b.c.d), as the Maglev table needs it, then port."""

    address: Address = field(compare=False)
    port: int = field(default=0, compare=False)  # 0: the VIP's target port
    weight: int = field(default=DEFAULT_WEIGHT, compare=False)  # share of the new flows; 0: none
    # Read big-endian, the 16 bytes are one integer, and an IPv4 address fills only its last four.  Everything
    # that compares or hashes uses this tuple: the address objects do it in Python, eight times slower.
    id: tuple[int, int, int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.port <= MAX_PORT and 0 <= self.weight <= MAX_WEIGHT):
            raise ConfigError(self._problems())
        object.__setattr__(self, "id", (int(self.address), self.port, self.address.version, self.weight))

    def __eq__(self, other: object) -> bool:
        # The generated one makes two tuples more for each of a thousand pods that are compared.
        return self.id == other.id if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self) -> int:
        return hash((self.id,))  # as dataclasses do it: sets of pods keep their order

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        _check_port(problems, "port", self.port)
        if not 0 <= self.weight <= MAX_WEIGHT:
            problems.append(
                Problem(f"{self.weight} is not a weight", field="weight", hint=f"it is 0 to {MAX_WEIGHT}")
            )
        return problems

    def weighing(self, weight: int) -> Pod:
        """The same pod with this weight."""
        return self if weight == self.weight else Pod(self.address, self.port, weight)

    def is_at(self, other: Pod) -> bool:
        """The same address and port, whatever the weights."""
        return self.id[:3] == other.id[:3]

    @property
    def family(self) -> Family:
        return Family(self.id[2])

    def __str__(self) -> str:
        return address_text(self.address, self.port)


@dataclass(frozen=True, slots=True, order=True)
class VipKey:
    """What a packet is matched by: destination prefix, protocol (ANY: all), destination port (0: all)."""

    prefix: Prefix = field(compare=False)
    protocol: Protocol = field(default=Protocol.ANY, compare=False)
    port: int = field(default=0, compare=False)
    id: tuple[int, int, int, int, int] = field(
        init=False, repr=False
    )  # version, address, length, protocol, port

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        _check_port(problems, "port", self.port)
        if self.port and self.protocol not in _PROTOCOLS_FOR_PORTS:
            problems.append(
                Problem(
                    f"{self.protocol.name} has no ports", field="protocol", hint="say any, tcp, udp or sctp"
                )
            )
        if problems:
            raise ConfigError(problems)
        prefix = self.prefix
        identity = (
            prefix.version, int(prefix.network_address), prefix.prefixlen, int(self.protocol), self.port
        )  # fmt: skip
        object.__setattr__(self, "id", identity)

    @property
    def family(self) -> Family:
        return Family(self.id[0])

    def __str__(self) -> str:
        """`10.96.0.10/32 protocol udp port 53`, as one writes it behind `ku vip`."""
        parts = [str(self.prefix)]
        if self.protocol:
            parts.append(f"protocol {self.protocol.name.lower()}")
        if self.port:
            parts.append(f"port {self.port}")
        return " ".join(parts)


def pod_family_message(key: VipKey, kind: VipType, address: Address) -> str | None:
    """Why this address cannot be a pod of that VIP, or None if it can."""
    if address.version == kind.pod_family:
        return None
    return f"pod {address} is IPv{address.version}, but VIP {key} is {kind.label}: its pods are IPv{kind.pod_family}"


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual IP and the pods behind it.

    Normalised on construction: pods are unique and in order; with a port, `target_port` is never 0; a pod's port
    is 0 when it equals `target_port`.  Two records are equal exactly when they mean the same.

    Raises ConfigError with every problem, `field` being the name of the attribute.
    """

    key: VipKey
    type: VipType
    target_port: int = 0  # 0: the destination port stays as it is
    node_port: int = 0  # 0: none
    new_len: int = DEFAULT_NEW_LEN  # slots of the new-flow table
    pods: tuple[Pod, ...] = ()
    reject: bool = False  # without pods: answer with a reset or port unreachable instead of dropping
    masquerade: bool = False  # pods see an address of the node instead of the client's, whoever that is
    masquerade_from: Origin = Origin(0)  # the same for clients from there; empty if everywhere
    outside_pods: tuple[Pod, ...] | None = None  # pods for clients from outside; None: `pods`
    reset: bool = False  # flows of flushed pods are reset instead of moved to another pod
    affinity_s: float = (
        0.0  # a client keeps its pod for new flows that begin within so many seconds; 0: it does not
    )
    source_ranges: tuple[Prefix, ...] = ()  # clients that are let in, but for node ports; empty: all
    hash_mode: HashMode = HashMode.FLOW  # what chooses the slot of the new-flow table
    session_cap: int = 0  # flows per worker; 0: no limit
    owner: str = "ku"  # who asked for it, in the user's words: `ku`, or `namespace/service:port`
    encap: Encap = Encap.NAT
    dscp: int = 0  # of L3DSR
    gue_port: int = 0  # destination port of GUE, where it is never 0

    def __post_init__(self) -> None:
        key = self.key
        target_port = self.target_port or key.port
        object.__setattr__(self, "target_port", target_port)
        if self.encap is Encap.GUE and not self.gue_port:
            object.__setattr__(self, "gue_port", GUE_PORT)
        object.__setattr__(self, "pods", _canonical_pods(self.pods, target_port))
        if self.outside_pods is not None:
            outside = _canonical_pods(self.outside_pods, target_port)
            object.__setattr__(self, "outside_pods", None if outside == self.pods else outside)
        if self.masquerade_from and (self.masquerade or self.masquerade_from == Origin.ANYWHERE):
            object.__setattr__(self, "masquerade", True)
            object.__setattr__(self, "masquerade_from", Origin(0))
        if self.source_ranges:
            ranges = tuple(sorted(set(self.source_ranges), key=lambda prefix: (prefix.version, prefix)))
            object.__setattr__(self, "source_ranges", ranges)
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[Problem]:
        return self._pod_problems() if self._is_plain else [*self._own_problems(), *self._pod_problems()]

    @property
    def _is_plain(self) -> bool:
        """Of the common kind, with nothing wrong: ten thousand of them are checked at once, and this is quick."""
        version, address, _, protocol, port = self.key.id
        return (
            self.encap is Encap.NAT
            and version == self.type.vip_family
            and bool(port or not self.target_port)
            and 0 <= self.target_port <= MAX_PORT
            and (not self.node_port or (0 < self.node_port <= MAX_PORT and protocol in _PROTOCOLS_FOR_PORTS))
            and bool(address)
            and not (self.dscp or self.gue_port or self.source_ranges)
            and is_power_of_two(self.new_len)
            and self.new_len <= MAX_NEW_LEN
            and 0 <= self.affinity_s <= MAX_AFFINITY_S
            and 0 <= self.session_cap <= MAX_SESSION_CAP
        )

    def _own_problems(self) -> list[Problem]:
        """Those that have nothing to do with pods."""
        key = self.key
        problems: list[Problem] = []
        if key.id[0] != self.type.vip_family:
            problems.append(Problem(f"{self.type.label} does not fit the prefix {key.prefix}", field="type"))
        _check_port(problems, "target_port", self.target_port)
        _check_port(problems, "node_port", self.node_port)
        if self.target_port and not key.port:
            problems.append(
                Problem(
                    f"target port {self.target_port} without a port: every port of {key.prefix} would become this one",
                    field="target_port",
                    hint="name the port that it replaces",
                )
            )
        if self.node_port and key.protocol not in _PROTOCOLS_FOR_PORTS:
            problems.append(Problem(f"{key.protocol.name} has no ports, so no node port", field="node_port"))
        if not (is_power_of_two(self.new_len) and self.new_len <= MAX_NEW_LEN):
            problems.append(
                Problem(
                    f"{self.new_len} is not a size for the new-flow table",
                    field="new_len",
                    hint=f"it is a power of two, 1 to {MAX_NEW_LEN}",
                )
            )
        problems += self._direct_problems()
        if not (math.isfinite(self.affinity_s) and 0 <= self.affinity_s <= MAX_AFFINITY_S):
            problems.append(
                Problem(
                    f"{self.affinity_s:g} is not an affinity timeout",
                    field="affinity",
                    hint=f"it is a number of seconds, at most {MAX_AFFINITY_S:.0f}",
                )
            )
        if not 0 <= self.session_cap <= MAX_SESSION_CAP:
            problems.append(Problem(f"{self.session_cap} is not a number of sessions", field="sessions"))
        for prefix in self.source_ranges:
            if prefix.version != key.family:
                problems.append(
                    Problem(
                        f"source range {prefix} is of another family than VIP {key}", field="source_range"
                    )
                )
        return problems

    def _pod_problems(self) -> list[Problem]:
        every_pod = self.all_pods
        if not every_pod:
            return []
        ids = [pod.id for pod in every_pod]
        right_family = {each[2] for each in ids} <= {int(self.type.pod_family)}
        if right_family and self.key.port and len({each[:2] for each in ids}) == len(ids):
            return []  # nearly always: then nothing needs to be looked at one by one
        problems: list[Problem] = []
        key = self.key
        for one, other in itertools.pairwise(every_pod):
            if one.is_at(other):
                problems.append(
                    Problem(f"pod {one} has the weights {one.weight} and {other.weight}", field="pods")
                )
        for pod in every_pod:
            message = pod_family_message(key, self.type, pod.address)
            if message is not None:
                problems.append(Problem(message, field="pods"))
            if pod.port and not key.port:
                problems.append(
                    Problem(f"pod {pod} has a port, but VIP {key} stands for every port", field="pods")
                )
        return problems

    def _direct_problems(self) -> list[Problem]:
        """What direct return cannot do: pods must answer in the VIP's name, so they must be addressed by it."""
        problems: list[Problem] = []
        if not 0 <= self.dscp <= MAX_DSCP:
            problems.append(
                Problem(f"{self.dscp} is not a DSCP", field="dscp", hint=f"it is 0 to {MAX_DSCP}")
            )
        elif self.dscp and self.encap is not Encap.L3DSR:
            problems.append(Problem("only encap l3dsr has a DSCP", field="dscp"))
        _check_port(problems, "gue_port", self.gue_port)
        if self.gue_port and self.encap is not Encap.GUE:
            problems.append(Problem("only encap gue has a port of its own", field="gue_port"))
        if self.on_node_only and not self.node_port:
            problems.append(
                Problem(
                    f"{self.key.prefix} is nobody's address",
                    field="key",
                    hint="it stands for every address of the node, and needs a node port",
                )
            )
        if self.encap is Encap.NAT:
            return problems
        if self.outside_pods is not None or self.masquerade_from:  # `masquerade` alone says nothing here
            problems.append(
                Problem(
                    f"{self.encap.name.lower()} neither masquerades nor tells clients apart", field="encap"
                )
            )
        if self.encap is Encap.L3DSR and self.type.vip_family != self.type.pod_family:
            problems.append(
                Problem(
                    f"l3dsr keeps the family, so that the pods are IPv{self.type.vip_family}", field="type"
                )
            )
        if self.target_port != self.key.port:
            problems.append(
                Problem(
                    f"{self.encap.name.lower()} leaves the port alone",
                    field="target_port",
                    hint="leave it out",
                )
            )
        if self.node_port:
            problems.append(
                Problem(
                    f"{self.encap.name.lower()} cannot serve a node port: pods answer from the VIP",
                    field="node_port",
                )
            )
        if any(pod.port for pod in self.pods):
            problems.append(
                Problem(f"{self.encap.name.lower()} leaves the port alone, pods have none", field="pods")
            )
        return problems

    @property
    def label(self) -> str:
        """VPP's spelling: `ip4-nat44`, `ip4-gre6`, `ip6-l3dsr`."""
        if self.encap is Encap.NAT:
            return self.type.label
        family = int(self.type.pod_family) if self.encap.is_tunnel else ""
        return f"ip{int(self.type.vip_family)}-{self.encap.name.lower()}{family}"

    @property
    def all_pods(self) -> tuple[Pod, ...]:
        """Every pod that clients of any origin may get, in order."""
        if self.outside_pods is None:
            return self.pods
        return tuple(sorted({*self.pods, *self.outside_pods}, key=_POD_ID))

    def pods_for(self, origin: Origin) -> tuple[Pod, ...]:
        """The pods for clients of one origin."""
        return self.outside_pods if origin is Origin.OUTSIDE and self.outside_pods is not None else self.pods

    def masquerades(self, origin: Origin) -> bool:
        """Do pods see the node's address instead of that of a client of this origin?"""
        return self.masquerade or bool(self.masquerade_from & origin)

    @property
    def origins_masqueraded(self) -> tuple[str, ...]:
        """`node`, `outside`: the words for `masquerade_from`."""
        single = (Origin.POD, Origin.NODE, Origin.OUTSIDE)
        return tuple(str(origin.name).lower() for origin in single if self.masquerade_from & origin)

    @property
    def on_node_only(self) -> bool:
        """Reached by its node port alone: the prefix is 0.0.0.0/32 or ::/128, as a socket bound to any address."""
        return self.key.id[1] == 0 and self.key.prefix.prefixlen == self.key.prefix.max_prefixlen

    def pod_port(self, pod: Pod) -> int:
        """The destination port of packets to this pod; 0: as it was."""
        return pod.port or self.target_port

    def describe(self) -> str:
        """Everything but the pods, in the words of the command language; for messages."""
        parts = [str(self.key), self.label.partition("-")[2]]
        if self.encap is not Encap.NAT:
            parts.insert(1, "encap")
        if self.encap is Encap.L3DSR:
            parts.append(f"dscp {self.dscp}")
        if self.encap is Encap.GUE:
            parts.append(f"gue_port {self.gue_port}")
        if self.target_port != self.key.port:
            parts.append(f"target_port {self.target_port}")
        if self.node_port:
            parts.append(f"node_port {self.node_port}")
        parts.append(f"new_len {self.new_len}")
        if self.masquerade:
            parts.append("masquerade")
        elif self.masquerade_from:
            parts.append(f"masquerade_from {','.join(self.origins_masqueraded)}")
        if self.reset:
            parts.append("reset")
        if self.affinity_s:
            parts.append(f"affinity {self.affinity_s:g}")
        parts += [f"source_range {prefix}" for prefix in self.source_ranges]
        if self.hash_mode != HashMode.FLOW:
            parts.append(f"hash {self.hash_mode.name.lower()}")
        if self.session_cap:
            parts.append(f"sessions {self.session_cap}")
        return " ".join(parts)


_POD_ID = attrgetter("id")


def _canonical_pods(pods: Iterable[Pod], target_port: int) -> tuple[Pod, ...]:
    pods = tuple(pods)
    ids = [pod.id for pod in pods]
    if all(map(lt, ids, ids[1:])) and (not target_port or all(each[1] != target_port for each in ids)):
        return pods  # already in this form, as the policy makes them
    unique = {
        pod if pod.port != target_port or not pod.port else Pod(pod.address, weight=pod.weight)
        for pod in pods
    }
    return tuple(sorted(unique, key=_POD_ID))
