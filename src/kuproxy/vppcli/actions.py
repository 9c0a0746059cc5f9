"""What a line of the `ku` language asks for, as plain records.

The grammar produces them, `apply.Desired` and the daemon consume them; neither knows the other.  Every record
keeps the place it came from, so that a fault that shows only later (no such VIP) still names file and line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from ipaddress import IPv4Network, IPv6Network

from kuproxy.codes import Family, FlowState, Protocol
from kuproxy.errors import Problem
from kuproxy.model.config import FlowHash, ReplyPath, Settings, Show, ShowKind
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey

__all__ = [
    "Action",
    "AddPods",
    "AddTrace",
    "AddVip",
    "DelPods",
    "DelVip",
    "FlushFlows",
    "SetConf",
    "SetInterface",
    "ShowAction",
    "ShowKind",
    "VipSelector",
    "Where",
]


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a script."""

    file: str = ""
    line: int = 0

    def problem(self, message: str, field: str = "", hint: str = "") -> Problem:
        return Problem(message, self.file, self.line, field, hint)


@dataclass(frozen=True, slots=True)
class VipSelector:
    """VIPs by prefix and, if given, port and protocol."""

    prefix: Prefix
    port: int | None = None
    protocol: Protocol | None = None

    def matches(self, key: VipKey) -> bool:
        return (
            key.prefix == self.prefix
            and self.port in (None, key.port)
            and self.protocol in (None, key.protocol)
        )

    def __str__(self) -> str:
        parts = [str(self.prefix)]
        if self.protocol is not None:
            parts.append(f"protocol {self.protocol.name.lower()}")
        if self.port is not None:
            parts.append(f"port {self.port}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One command."""

    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True, slots=True)
class SetConf(Action):
    buckets: int | None = None  # None: stays as it is
    timeout_s: float | None = None  # of every state
    timeouts_s: tuple[tuple[FlowState, float], ...] = ()  # of single states
    masquerade: Address | None = None  # in the place of the former one of its family
    pod_ranges: tuple[Prefix, ...] | None = None  # in the place of all former ones
    ip4_src_address: Address | None = None
    ip6_src_address: Address | None = None
    nat46_prefix: IPv6Network | None = None
    nat64_pool: IPv4Network | None = None
    nat64_ports: tuple[int, int] | None = None
    translation_mtu: int | None = None
    flow_hash: FlowHash | None = None
    reply_path: ReplyPath | None = None
    second_chance_s: float | None = None

    def applied_to(self, settings: Settings) -> Settings:
        """Raises ConfigError."""
        names = (field.name for field in fields(settings))
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        changes["timeouts_s"] = tuple(sorted((dict(settings.timeouts_s) | dict(self.timeouts_s)).items()))
        changes["masquerade"] = settings.masquerade
        if self.masquerade is not None:
            version = self.masquerade.version
            others = (address for address in settings.masquerade if address.version != version)
            changes["masquerade"] = (*others, self.masquerade)
        return replace(settings, **changes)


@dataclass(frozen=True, slots=True)
class AddVip(Action):
    vip: Vip  # without pods


@dataclass(frozen=True, slots=True)
class DelVip(Action):
    selector: VipSelector


@dataclass(frozen=True, slots=True)
class AddPods(Action):
    selector: VipSelector
    pods: tuple[Pod, ...]


@dataclass(frozen=True, slots=True)
class DelPods(Action):
    selector: VipSelector
    pods: tuple[Pod, ...]  # port 0: every pod with that address
    flush: bool = False  # do not let them serve the flows that they have


@dataclass(frozen=True, slots=True)
class SetInterface(Action):
    name: str
    family: Family
    enable: bool = True


@dataclass(frozen=True, slots=True)
class ShowAction(Action):
    show: Show

    @property
    def kind(self) -> ShowKind:
        return self.show.kind

    @property
    def verbose(self) -> bool:
        return self.show.verbose


@dataclass(frozen=True, slots=True)
class AddTrace(Action):
    packets: int


@dataclass(frozen=True, slots=True)
class FlushFlows(Action):
    """Forget every flow."""
