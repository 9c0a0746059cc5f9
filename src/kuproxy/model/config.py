"""What configuration comes down to once every file has been read: VIPs, settings, interfaces.

The reading itself is done elsewhere (`kuproxy.load`), because nothing in this package touches a file.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from kuproxy.codes import FlowState
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.node import NodeView
from kuproxy.model.service import ServiceObjects
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey, is_power_of_two

__all__ = [
    "DEFAULT_TIMEOUTS_S",
    "MAX_BUCKETS",
    "MAX_SECOND_CHANCE_S",
    "MAX_TIMEOUT_S",
    "MAX_TRACED",
    "NAT46_PREFIX",
    "NAT64_POOL",
    "NAT64_PORTS",
    "Config",
    "FlowFilter",
    "FlowHash",
    "InterfaceMark",
    "ReplyPath",
    "Settings",
    "Show",
    "ShowKind",
]

# RFC 8215: for translation within a network, of private addresses too; the well-known 64:ff9b::/96 must not stand for
# those (RFC 6052 section 3.1).
NAT46_PREFIX = IPv6Network("64:ff9b:1::/96")
# RFC 7335: the addresses of translators inside a host or site, which are never routed elsewhere.
NAT64_POOL = IPv4Network("192.0.0.0/29")
NAT64_PORTS = (1024, 65535)

MAX_BUCKETS = 1 << 24  # of 4 entries and one 64-byte line each: 1 GiB per worker
MAX_TRACED = 1000  # packets at once that a worker's trace ring holds with all their nodes
MAX_SECOND_CHANCE_S = 3600.0  # removed pods are kept for so long
MAX_TIMEOUT_S = 1_000_000.0  # 11.6 days: below half the period of a 32-bit clock in milliseconds, 24.8 days

DEFAULT_TIMEOUTS_S: dict[FlowState, float] = {
    FlowState.OTHER: 300.0,
    FlowState.TCP_HALF_OPEN: 30.0,  # five SYNs of a client that backs off; the ring gives it the same pod later
    FlowState.TCP_ESTABLISHED: 7440.0,  # 2 h 4 min: RFC 5382 REQ-5, RFC 6146 section 4
    FlowState.TCP_CLOSING: 5.0,  # what still comes of the last segments
    FlowState.UDP: 300.0,  # RFC 4787 REQ-5
    FlowState.SCTP: 240.0,  # beyond several heartbeats of 30 s (RFC 9260 section 16)
    FlowState.ICMP: 60.0,  # RFC 5508 REQ-2
}


FLOW_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class FlowHash:
    """By which hash flows are found and given to pods (docs/adr/033).  Raises ConfigError."""

    keyed: bool = False  # False: as VPP
    key: bytes = dataclasses.field(default=b"", repr=False)  # b"": one that nobody knows, drawn once for all workers

    def __post_init__(self) -> None:
        if self.key and (not self.keyed or len(self.key) != FLOW_KEY_BYTES):
            raise ConfigError(Problem(f"a key has {FLOW_KEY_BYTES} bytes", field="flow-hash", hint=FLOW_HASH_HINT))

    @classmethod
    def parse(cls, text: str) -> FlowHash:
        """`vpp`, `keyed`, or a key in hexadecimal.  Raises ValueError."""
        word = text.lower()
        if word in ("vpp", "keyed"):
            return cls(keyed=word == "keyed")
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != FLOW_KEY_BYTES or len(text) != 2 * FLOW_KEY_BYTES:
            raise ValueError(f"not a flow hash; {FLOW_HASH_HINT}")  # without the text: it may be most of a key
        return cls(True, key)

    @property
    def text(self) -> str:
        """What `parse` takes, the key included."""
        return self.key.hex() or ("keyed" if self.keyed else "vpp")

    def __str__(self) -> str:
        """For everybody to read: the key stays with those who gave it."""
        return "given" if self.key else self.text

    @property
    def wish(self) -> bytes | None:
        """As an engine is told: None, b"" or the key."""
        return self.key if self.keyed else None


class ReplyPath(enum.Enum):
    """Where replies of pods may come in, as long as no interface is marked (docs/adr/037)."""

    STRICT = "strict"  # where this node would send to the pod
    ANY = "any"

    def __str__(self) -> str:
        return self.value


FLOW_HASH_HINT = "say vpp, keyed, or the 32 hexadecimal digits of a key"


@dataclass(frozen=True, slots=True)
class Settings:
    """`ku conf`: the established-flow table of each worker.  Raises ConfigError with every problem."""

    buckets: int = 1024  # VPP's default; four flows each
    timeout_s: float | None = (
        None  # how long any flow without packets is remembered; None: DEFAULT_TIMEOUTS_S
    )
    timeouts_s: tuple[tuple[FlowState, float], ...] = ()  # of single states, before both
    masquerade: tuple[Address, ...] = ()  # source of masqueraded packets, at most one of each family
    pod_ranges: tuple[Prefix, ...] = ()  # whose packets come from pods, where VIPs treat clients unlike
    ip4_src_address: Address | None = None  # outer source of tunnels to IPv4 pods
    ip6_src_address: Address | None = None
    nat46_prefix: IPv6Network = NAT46_PREFIX  # IPv4 clients towards IPv6 pods
    nat64_pool: IPv4Network = NAT64_POOL  # IPv6 clients towards IPv4 pods
    nat64_ports: tuple[int, int] = NAT64_PORTS  # lowest and highest
    flow_hash: FlowHash = FlowHash()
    reply_path: ReplyPath = ReplyPath.STRICT
    second_chance_s: float = 0.0  # how long after a change of pods a connection may be its slot's former pod's; 0: off
    translation_mtu: int = 0  # longest packet that translation may make; 0: the routing behind us knows

    def __post_init__(self) -> None:
        problems = []
        if not (is_power_of_two(self.buckets) and self.buckets <= MAX_BUCKETS):
            problems.append(
                Problem(
                    f"{self.buckets} is not a number of buckets",
                    field="buckets",
                    hint=f"it is a power of two, 1 to {MAX_BUCKETS}",
                )
            )
        general = [] if self.timeout_s is None else [("timeout", self.timeout_s)]
        for field, value in [*general, *((state.label, value) for state, value in self.timeouts_s)]:
            if not (math.isfinite(value) and 0 < value <= MAX_TIMEOUT_S):
                problems.append(
                    Problem(
                        f"{value:g} is not a timeout",
                        field=field,
                        hint=f"it is a number of seconds above 0, at most {MAX_TIMEOUT_S:.0f}",
                    )
                )
        if not (math.isfinite(self.second_chance_s) and 0 <= self.second_chance_s <= MAX_SECOND_CHANCE_S):
            problems.append(
                Problem(
                    f"{self.second_chance_s:g} is not a time for second chances",
                    field="second-chance",
                    hint=f"it is a number of seconds, at most {MAX_SECOND_CHANCE_S:.0f}, or 0 for none",
                )
            )
        for field, version in (("ip4-src-address", 4), ("ip6-src-address", 6)):
            address = getattr(self, field.replace("-", "_"))
            if address is not None and address.version != version:
                problems.append(Problem(f"{address} is not an IPv{version} address", field=field))
        if len({address.version for address in self.masquerade}) < len(self.masquerade):
            problems.append(Problem("two masquerade addresses of one family", field="masquerade"))
        problems += self._translation_problems()
        if problems:
            raise ConfigError(problems)

    @property
    def timeouts(self) -> dict[FlowState, float]:
        """Seconds for each state: its own, else the one for all, else the default."""
        general = DEFAULT_TIMEOUTS_S if self.timeout_s is None else dict.fromkeys(FlowState, self.timeout_s)
        return general | dict(self.timeouts_s)

    def _translation_problems(self) -> list[Problem]:
        problems = []
        if self.nat46_prefix.prefixlen != 96 or self.nat46_prefix.network_address.packed[8]:
            # RFC 6052 section 2.2: bits 64 to 71 are zero
            hint = "it has 96 bits, and bits 64 to 71 are zero"
            problems.append(
                Problem(f"{self.nat46_prefix} is not a translation prefix", field="nat46-prefix", hint=hint)
            )
        if self.nat64_pool.prefixlen < 8:
            problems.append(
                Problem(f"{self.nat64_pool} is too large a pool", field="nat64-pool", hint="/8 at most")
            )
        low, high = self.nat64_ports
        if not 1 <= low <= high <= 65535:
            problems.append(
                Problem(f"{low}-{high} are no ports", field="nat64-ports", hint="say LOWEST-HIGHEST, 1 to 65535")
            )
        if self.translation_mtu and not 1280 <= self.translation_mtu <= 65535:
            hint = "it is 1280 to 65535, or 0 to leave it to the routing"
            problems.append(
                Problem(f"{self.translation_mtu} is not an MTU", field="nat-mtu", hint=hint)
            )
        for address in self.masquerade:
            if address in self.nat64_pool or address in self.nat46_prefix:
                hint = "replies to it would be taken for those to clients of the other family"
                problems.append(
                    Problem(f"{address} is the translation's already", field="masquerade", hint=hint)
                )
        return problems


@dataclass(frozen=True, slots=True)
class InterfaceMark:
    """An interface whose traffic comes from pods: it is looked up in the return direction."""

    name: str
    nat4_in: bool = False
    nat6_in: bool = False


class ShowKind(enum.Enum):
    """What a `show` command asks for."""

    GENERAL = "general"
    VIPS = "vips"
    NODES = "nodes"
    TRACE = "trace"
    FLOWS = "flows"


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows; None stands for all.  A page begins behind `after`, a worker and a slot of its table."""

    vip: Prefix | None = None
    pod: Address | None = None
    client: Address | None = None
    state: FlowState | None = None
    limit: int = 100
    after: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Show:
    """One `show` command of a script."""

    kind: ShowKind = ShowKind.GENERAL
    verbose: bool = False
    flows: FlowFilter = FlowFilter()  # of ShowKind.FLOWS


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a set of files asks for."""

    vips: tuple[Vip, ...] = ()
    settings: Settings = Settings()
    interfaces: tuple[InterfaceMark, ...] = ()
    shows: tuple[Show, ...] = ()
    flushed: tuple[tuple[VipKey, Pod], ...] = ()  # pods removed with `flush`; port 0: each with that address
    flush_flows: bool = False  # a script contains `test kube-proxy flowtable flush`
    trace: int = 0  # packets to trace
    sources: tuple[str, ...] = ()  # the files, as they were named
    notes: tuple[Problem, ...] = ()  # what was skipped, or is not honoured yet; never an error
    node_addresses: tuple[Address, ...] = ()  # as a Node object names them, the primary ones first
    services: tuple[ServiceObjects, ...] = ()  # what the VIPs that belong to a Service were made from
    view: NodeView | None = None  # from which node they were looked at
