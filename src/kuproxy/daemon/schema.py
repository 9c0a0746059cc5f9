"""What clients of the daemon write and what its state file holds, in the words of the command language.

One set of records serves the API, its description and the state file, so none of them can say what another cannot.
Decoding is strict: an unknown field is an error.  `vip_of` and `settings_over` give the model's own records, whose
constructors judge the values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from ipaddress import ip_address
from operator import or_
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kuproxy.codes import Encap, Family, FlowState, HashMode, Origin, Protocol, VipType
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.config import MAX_SECOND_CHANCE_S, Config, FlowHash, InterfaceMark, ReplyPath, Settings
from kuproxy.model.vip import Pod, Prefix, Vip, VipKey, parse_address, parse_prefix, prefix_parser
from kuproxy.vppcli.actions import SetConf

__all__ = [
    "STATE_VERSION",
    "Conf",
    "Interface",
    "PodSpec",
    "State",
    "VipRef",
    "VipSpec",
    "conf_with",
    "settings_over",
    "vip_of",
]

STATE_VERSION = 1

T = TypeVar("T")
Port = Annotated[int, Meta(ge=0, le=65535)]
Text = Annotated[str, Meta(max_length=64)]
PortRange = tuple[Annotated[int, Meta(ge=1, le=65535)], Annotated[int, Meta(ge=1, le=65535)]]
ProtocolWord = Literal["any", "tcp", "udp", "sctp"]
OriginWord = Literal["pod", "node", "outside"]
EncapWord = Literal["nat", "gre", "ipip", "gue", "l3dsr"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that is read from outside."""


class VipRef(Record, frozen=True):
    """One VIP by its key."""

    prefix: Text
    protocol: ProtocolWord = "any"
    port: Port = 0


class PodSpec(Record, frozen=True):
    """One backend; port 0 is the VIP's target port, weight 0 gets no new flows."""

    address: Text
    port: Port = 0
    weight: Annotated[int, Meta(ge=0, le=100)] = 1


class VipSpec(Record, frozen=True):
    """A VIP and the pods behind it; fields as in `ku vip`."""

    prefix: Text
    protocol: ProtocolWord = "any"
    port: Port = 0
    target_port: Port = 0
    node_port: Port = 0
    pod_family: Literal[4, 6] | None = None  # null: the prefix's own
    encap: EncapWord = "nat"
    dscp: Annotated[int, Meta(ge=0, le=63)] = 0
    gue_port: Port = 0
    new_len: Annotated[int, Meta(ge=1, le=1 << 24)] = 1024
    reject: bool = False
    masquerade: bool = False
    masquerade_from: list[OriginWord] = []
    reset: bool = False
    affinity: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    source_ranges: list[Text] = []
    hash: Literal["flow", "source"] = "flow"
    sessions: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)] = 0
    pods: list[PodSpec] = []
    outside_pods: list[PodSpec] | None = None  # for clients from outside; null: the same


class Conf(Record, frozen=True):
    """What `ku conf` has set; what is absent is left to the files, or to the default."""

    buckets: int | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    timeouts: dict[str, float] | UnsetType = UNSET
    masquerade: list[Text] | UnsetType = UNSET
    pod_ranges: list[Text] | UnsetType = UNSET
    ip4_src_address: Text | UnsetType = UNSET
    ip6_src_address: Text | UnsetType = UNSET
    nat46_prefix: Text | UnsetType = UNSET
    nat64_pool: Text | UnsetType = UNSET
    nat64_ports: PortRange | UnsetType = UNSET  # lowest and highest
    translation_mtu: Annotated[int, Meta(ge=0, le=65535)] | UnsetType = UNSET
    reply_path: Literal["strict", "any"] | UnsetType = UNSET
    second_chance: Annotated[float, Meta(ge=0, le=MAX_SECOND_CHANCE_S)] | UnsetType = UNSET  # seconds
    flow_hash: Text | UnsetType = UNSET  # vpp, keyed, or a key; who asks is told "given" instead of a key


class Interface(Record, frozen=True):
    """An interface behind which pods are: `ku set interface`."""

    name: Annotated[str, Meta(min_length=1, max_length=15)]
    nat4_in: bool = False
    nat6_in: bool = False

    def mark(self) -> InterfaceMark:
        return InterfaceMark(self.name, self.nat4_in, self.nat6_in)

    @classmethod
    def of(cls, mark: InterfaceMark) -> Interface:
        return cls(name=mark.name, nat4_in=mark.nat4_in, nat6_in=mark.nat6_in)


class State(Record, frozen=True):
    """Everything that was set by commands and by the API: what survives a restart."""

    version: Literal[1] = 1  # STATE_VERSION
    conf: Conf = Conf()
    vips: list[VipSpec] = []
    interfaces: list[Interface] = []


def _parsed(field: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise ConfigError(Problem(message, field=field, hint=hint)) from None


def key_of(prefix: str, protocol: str = "any", port: int = 0) -> VipKey:
    """Raises ConfigError."""
    return VipKey(_parsed("prefix", parse_prefix, prefix), Protocol[protocol.upper()], port)


def pod_of(spec: PodSpec) -> Pod:
    """Raises ConfigError."""
    return Pod(_parsed("address", parse_address, spec.address), spec.port, spec.weight)


def vip_of(spec: VipSpec) -> Vip:
    """The model's record.  Raises ConfigError with every problem."""
    key = key_of(spec.prefix, spec.protocol, spec.port)
    pods = Family(spec.pod_family or key.family)
    kind = next(each for each in VipType if (each.vip_family, each.pod_family) == (key.family, pods))
    ranges: tuple[Prefix, ...] = tuple(
        _parsed("source_ranges", parse_prefix, text) for text in spec.source_ranges
    )
    return Vip(
        key=key,
        type=kind,
        target_port=spec.target_port,
        node_port=spec.node_port,
        new_len=spec.new_len,
        pods=tuple(map(pod_of, spec.pods)),
        reject=spec.reject,
        masquerade=spec.masquerade,
        masquerade_from=reduce(or_, (Origin[word.upper()] for word in spec.masquerade_from), Origin(0)),
        outside_pods=None if spec.outside_pods is None else tuple(map(pod_of, spec.outside_pods)),
        reset=spec.reset,
        affinity_s=spec.affinity,
        source_ranges=ranges,
        hash_mode=HashMode[spec.hash.upper()],
        session_cap=spec.sessions,
        encap=Encap[spec.encap.upper()],
        dscp=spec.dscp,
        gue_port=spec.gue_port,
    )


def _pod_spec(pod: Pod) -> PodSpec:
    return PodSpec(address=str(pod.address), port=pod.port, weight=pod.weight)


def spec_of(vip: Vip) -> VipSpec:
    """The inverse of `vip_of`, but for the owner."""
    return VipSpec(
        prefix=str(vip.key.prefix),
        protocol=vip.key.protocol.name.lower(),  # type: ignore[arg-type]
        port=vip.key.port,
        target_port=vip.target_port,
        node_port=vip.node_port,
        pod_family=vip.type.pod_family.value,  # type: ignore[arg-type]
        encap=vip.encap.name.lower(),  # type: ignore[arg-type]
        dscp=vip.dscp,
        gue_port=vip.gue_port,
        new_len=vip.new_len,
        reject=vip.reject,
        masquerade=vip.masquerade,
        masquerade_from=list(vip.origins_masqueraded),  # type: ignore[arg-type]
        outside_pods=None if vip.outside_pods is None else list(map(_pod_spec, vip.outside_pods)),
        reset=vip.reset,
        affinity=vip.affinity_s,
        source_ranges=[str(prefix) for prefix in vip.source_ranges],
        hash=vip.hash_mode.name.lower(),  # type: ignore[arg-type]
        sessions=vip.session_cap,
        pods=list(map(_pod_spec, vip.pods)),
    )


def conf_with(conf: Conf, action: SetConf) -> Conf:
    """`conf` after one more `ku conf`."""
    changes: dict[str, object] = {}
    if action.buckets is not None:
        changes["buckets"] = action.buckets
    if action.timeout_s is not None:
        changes["timeout"] = action.timeout_s
    if action.timeouts_s:
        old = conf.timeouts if conf.timeouts is not UNSET else {}
        changes["timeouts"] = old | {state.label: seconds for state, seconds in action.timeouts_s}
    if action.masquerade is not None:
        before = conf.masquerade if conf.masquerade is not UNSET else []
        others = [text for text in before if ip_address(text).version != action.masquerade.version]
        changes["masquerade"] = [*others, str(action.masquerade)]
    if action.pod_ranges is not None:
        changes["pod_ranges"] = [str(prefix) for prefix in action.pod_ranges]
    for name in ("ip4_src_address", "ip6_src_address", "nat46_prefix", "nat64_pool"):
        value = getattr(action, name)
        if value is not None:
            changes[name] = str(value)
    if action.second_chance_s is not None:
        changes["second_chance"] = action.second_chance_s
    if action.flow_hash is not None:
        changes["flow_hash"] = action.flow_hash.text
    if action.reply_path is not None:
        changes["reply_path"] = action.reply_path.value
    for name in ("nat64_ports", "translation_mtu"):
        if getattr(action, name) is not None:
            changes[name] = getattr(action, name)
    return msgspec.structs.replace(conf, **changes)


def without_key(conf: Conf) -> Conf:
    """For everybody to read: the flow hash's key stays with those who gave it."""
    if conf.flow_hash is UNSET:
        return conf
    return msgspec.structs.replace(conf, flow_hash=str(_parsed("flow_hash", FlowHash.parse, conf.flow_hash)))


def settings_over(base: Settings, conf: Conf) -> Settings:
    """`base` (of the files) with what `conf` sets instead.  Raises ConfigError with every problem."""
    timeouts = dict(base.timeouts_s)
    states = {state.label: state for state in FlowState}
    for label, seconds in (conf.timeouts if conf.timeouts is not UNSET else {}).items():
        if label not in states:
            raise ConfigError(
                Problem(
                    f"{label!r} is no state of a flow", field="timeouts", hint=f"they are {', '.join(states)}"
                )
            )
        timeouts[states[label]] = seconds
    masquerade = base.masquerade
    if conf.masquerade is not UNSET:
        said = tuple(_parsed("masquerade", parse_address, text) for text in conf.masquerade)
        families = {address.version for address in said}
        masquerade = (*(each for each in masquerade if each.version not in families), *said)

    pod_ranges = base.pod_ranges
    if conf.pod_ranges is not UNSET:
        pod_ranges = tuple(_parsed("pod_ranges", parse_prefix, text) for text in conf.pod_ranges)

    def said_as(name: str, parse: Callable[[str], object]) -> object:
        text = getattr(conf, name)
        return getattr(base, name) if text is UNSET else _parsed(name, parse, text)

    return Settings(
        buckets=base.buckets if conf.buckets is UNSET else conf.buckets,
        timeout_s=base.timeout_s if conf.timeout is UNSET else conf.timeout,
        timeouts_s=tuple(sorted(timeouts.items())),
        masquerade=masquerade,
        pod_ranges=pod_ranges,
        ip4_src_address=said_as("ip4_src_address", parse_address),  # type: ignore[arg-type]
        ip6_src_address=said_as("ip6_src_address", parse_address),  # type: ignore[arg-type]
        nat46_prefix=said_as("nat46_prefix", prefix_parser(6)),  # type: ignore[arg-type]
        nat64_pool=said_as("nat64_pool", prefix_parser(4)),  # type: ignore[arg-type]
        nat64_ports=base.nat64_ports if conf.nat64_ports is UNSET else conf.nat64_ports,
        flow_hash=said_as("flow_hash", FlowHash.parse),  # type: ignore[arg-type]
        reply_path=said_as("reply_path", ReplyPath),  # type: ignore[arg-type]
        translation_mtu=base.translation_mtu if conf.translation_mtu is UNSET else conf.translation_mtu,
        second_chance_s=base.second_chance_s if conf.second_chance is UNSET else conf.second_chance,
    )


def merged_marks(*configs: Config) -> tuple[InterfaceMark, ...]:
    """The marks of all sources: an interface is marked when one of them marks it."""
    marks: dict[str, InterfaceMark] = {}
    for config in configs:
        for mark in config.interfaces:
            old = marks.get(mark.name, InterfaceMark(mark.name))
            marks[mark.name] = InterfaceMark(
                mark.name, old.nat4_in or mark.nat4_in, old.nat6_in or mark.nat6_in
            )
    return tuple(marks.values())
