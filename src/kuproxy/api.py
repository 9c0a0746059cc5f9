"""The Python interface: services, tables, packets, captures and flows, without a node, a daemon or a privilege.

`import kuproxy` gives these names.  A `Balancer` is a data plane in the calling process, with the caller's clock: the
same tables and the same compiled graph that forward on a node.  It belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from kuproxy.codes import REASON_TEXT, HashMode, Outcome, Reason
from kuproxy.codes import Protocol as IpProtocol
from kuproxy.control.compile import ring_owners
from kuproxy.drivers.capture.driver import CaptureDriver
from kuproxy.engine.batch import Batch, PacketOut
from kuproxy.engine.contract import TICK_MASK, TICKS_PER_SECOND
from kuproxy.engine.packets import LONGEST, PacketIn
from kuproxy.errors import ConfigError, Problem
from kuproxy.explain.report import Explanation
from kuproxy.explain.services import finder
from kuproxy.explain.whatif import WhatIf, explain_both, parse_pod
from kuproxy.load import load_config
from kuproxy.model.config import Config, FlowFilter, InterfaceMark, Settings
from kuproxy.model.report import FlowReport
from kuproxy.model.vip import (
    DEFAULT_NEW_LEN,
    MAX_NEW_LEN,
    Pod,
    Vip,
    VipKey,
    encap_of,
    is_power_of_two,
    parse_address,
    parse_prefix,
    vip_type,
)
from kuproxy.replay import local_plane

__all__ = ["Balancer", "Frame", "Result", "maglev", "read_config", "service"]

AnyAddress = str | IPv4Address | IPv6Address
AnyPrefix = AnyAddress | IPv4Network | IPv6Network
AnyPod = AnyAddress | Pod
_OUTSIDE = "outside"  # interface 0: where clients come from
_PODS = "pods"  # interface 1: where replies come from


class Layers(Protocol):
    """What packets of scapy, and whatever else knows its bytes, have in common."""

    def __bytes__(self) -> bytes: ...


Frame = bytes | bytearray | memoryview | np.ndarray | Layers


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one packet.

    `packet` is of the kind that was given: bytes, uint8[n], or a packet of scapy.  It is the frame that leaves if the
    outcome is TRANSMIT or PASS, else what it was when it ended.
    """

    outcome: Outcome
    reason: Reason
    packet: Any
    interface: int  # that it came in by
    vip: Vip | None
    pod: Pod | None  # with its port

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return REASON_TEXT[self.reason]


def _pod(given: AnyPod) -> Pod:
    if isinstance(given, Pod):
        return given
    return parse_pod(given, "pods") if isinstance(given, str) else Pod(given)


def _parsed(field: str, given: AnyPrefix) -> IPv4Network | IPv6Network:
    if isinstance(given, IPv4Network | IPv6Network):
        return given
    if isinstance(given, IPv4Address | IPv6Address):
        return ip_network(given)
    try:
        return parse_prefix(given)
    except ValueError as error:
        raise ConfigError(Problem(str(error), field=field)) from None


def service(
    address: AnyPrefix,
    *,
    port: int = 0,
    protocol: str = "any",
    pods: Iterable[AnyPod] = (),
    target_port: int = 0,
    encap: str = "nat",
    new_len: int = DEFAULT_NEW_LEN,
    affinity_s: float = 0.0,
    source_ranges: Iterable[AnyPrefix] = (),
    hash_mode: str = "flow",
    masquerade: bool = False,
    reject: bool = False,
    sessions: int = 0,
) -> Vip:
    """A Virtual IP and its pods.

    - address: an address or a prefix; port 0: all ports; protocol: `any`, `tcp`, `udp`, `sctp`;
    - pods: addresses, `ADDRESS:PORT`, `[ADDRESS]:PORT`, each with `*WEIGHT` if wanted, or `Pod`s.  Those without a port
      listen on `target_port`, which is by default the port itself.  Pods of the other family are translated to;
    - encap: `nat`, or for direct return `gre4`, `gre6`, `ipip`, `gue`, `l3dsr`;
    - new_len: slots of the new-flow table, a power of two; affinity_s: seconds for which a client keeps its pod;
    - source_ranges: the clients that are let in, all if empty; hash_mode: `flow` or `source`, what chooses the pod;
    - masquerade: pods see an address of the node; reject: without pods, clients are told; sessions: flows at most.

    Raises ConfigError with every problem.
    """
    words = {
        each.name.lower(): each for each in (IpProtocol.ANY, IpProtocol.TCP, IpProtocol.UDP, IpProtocol.SCTP)
    }
    modes = {each.name.lower(): each for each in HashMode}
    for field, word, known in (("protocol", protocol, words), ("hash_mode", hash_mode, modes)):
        if word not in known:
            raise ConfigError(
                Problem(f"{word!r} is not known", field=field, hint=f"it is {', '.join(known)}")
            )
    prefix = _parsed("address", address)
    members = tuple(map(_pod, pods))
    if encap == "nat":
        other = bool(members) and int(members[0].family) != prefix.version
        kind, how = vip_type(prefix, f"nat{members[0].id[2]}" if other else None), None
    else:
        try:
            how, kind = encap_of(prefix, encap)
        except KeyError:
            hint = "it is nat, gre4, gre6, ipip, gue or l3dsr"
            raise ConfigError(Problem(f"{encap!r} is not known", field="encap", hint=hint)) from None
    made = Vip(
        VipKey(prefix, words[protocol], port),
        kind,
        target_port=target_port,
        new_len=new_len,
        pods=members,
        reject=reject,
        masquerade=masquerade,
        affinity_s=affinity_s,
        source_ranges=tuple(_parsed("source_ranges", each) for each in source_ranges),
        hash_mode=modes[hash_mode],
        session_cap=sessions,
    )
    return made if how is None else replace(made, encap=how)


def maglev(pods: Iterable[AnyPod], new_len: int = DEFAULT_NEW_LEN) -> list[Pod]:
    """The new-flow table of these pods: the owner of each slot, as every instance computes it.

    Raises ConfigError if the size is no power of two, or the pods are of two families, or there are none.
    """
    members = [_pod(each) for each in pods]
    if not (is_power_of_two(new_len) and new_len <= MAX_NEW_LEN):
        hint = f"it is a power of two, 1 to {MAX_NEW_LEN}"
        raise ConfigError(Problem(f"{new_len} is no size of a table", field="new_len", hint=hint))
    if len({pod.family for pod in members}) != 1:
        message = "they are of two families" if members else "there are none"
        raise ConfigError(Problem(message, field="pods", hint="give pods of one family"))
    return ring_owners(members, new_len)


def read_config(*paths: str | Path) -> Config:
    """`ku` scripts (*.ku) and Kubernetes manifests (*.yaml, *.json), as one configuration.  Raises ConfigError."""
    return load_config(paths)


class Balancer:
    """A load balancer in this process: what it is given goes through the graph, at the time that it is told.

    Packets come in by interface 0, "outside", unless `process` is told otherwise; pods' replies come in by interface 1,
    "pods", and so are restored.
    """

    def __init__(
        self,
        services: Iterable[Vip] = (),
        *,
        config: Config | None = None,
        buckets: int | None = None,
        masquerade: Iterable[AnyAddress] = (),
        tunnel_sources: Iterable[AnyAddress] = (),
        second_chance_s: float | None = None,
    ) -> None:
        """`buckets`: of four flows each, a power of two; `masquerade` and `tunnel_sources`: at most one of each family;
        `second_chance_s`: for so long after a change of a service's pods a TCP connection that began elsewhere, and
        that the new pod of its slot refuses, goes to the slot's former pod.

        Raises KuError: ConflictError for two services with one key, ConfigError for what cannot be.
        """
        base = config or Config()
        self.config = replace(base, vips=(*base.vips, *services), settings=base.settings)
        self.config = replace(
            self.config, settings=_settings(base.settings, buckets, masquerade, tunnel_sources, second_chance_s)
        )
        marks = [mark for mark in self.config.interfaces if mark.name != _PODS]
        self.config = replace(self.config, interfaces=(InterfaceMark(_PODS, True, True), *marks))
        self.interfaces: tuple[str, ...] = (_OUTSIDE, _PODS, *(mark.name for mark in marks))
        self._engine, self._plane, _ = local_plane(self.config, self.interfaces)
        self._batch = Batch(self._engine)
        self.now_s = 0.0  # the time of what comes next, in seconds from any beginning; only forwards

    # --------------------------------------------------------------------------------------------------- services

    @property
    def services(self) -> tuple[Vip, ...]:
        """As they are now, in the order of their keys."""
        records = [each.vip for each in self._plane.compiler.records() if not each.removed]
        return tuple(sorted(records, key=lambda vip: vip.key))

    def set(self, *services: Vip) -> None:
        """Add these services, or replace those with the same address, protocol and port; known flows stay.

        Raises ConflictError or TableFullError, changing nothing.
        """
        self._plane.update("files", services)

    def remove(self, *services: Vip) -> None:
        """Remove these, and end their flows."""
        self._plane.update("files", (), [each.key for each in services])

    def owners(self, wanted: Vip) -> list[Pod | None]:
        """The service's new-flow table as it stands in memory: the pod that each slot belongs to.

        Raises ConfigError if there is no such service.
        """
        record = self._plane.compiler.record(wanted.key)
        if record is None:
            raise ConfigError(Problem(f"there is no service {wanted.key}", hint="add it with `set`"))
        names = {index: pod for pod, index in record.pods.items()}
        return [names.get(index) for index in self._plane.compiler.owners_of(record).tolist()]

    # ---------------------------------------------------------------------------------------------------- packets

    @overload
    def process(self, packets: bytes | bytearray | memoryview, *, interface: int | str = 0) -> Result: ...
    @overload
    def process(self, packets: Iterable[Any], *, interface: int | str = 0) -> list[Result]: ...
    @overload
    def process(self, packets: Layers, *, interface: int | str = 0) -> Any: ...

    def process(self, packets: Any, *, interface: int | str = 0) -> Any:
        """One Ethernet frame, or many of them, through the graph at `now_s`.

        A frame is bytes, uint8[n], or a packet of scapy.  One frame has one `Result`; a list, a tuple, a generator or
        uint8[m, n] has a list of them, in their order, and behind these, as bytes, what else came out: fragments that
        had waited, and pieces of what had to be cut.  Raises ConfigError for what is no frame, before any of it is
        processed.
        """
        number = self._number(interface)
        if _is_one(packets):
            results = self._process([packets], number)
            return results[0]
        return self._process(list(packets), number)

    def _number(self, interface: int | str) -> int:
        known = self.interfaces
        if isinstance(interface, str) and interface in known:
            return known.index(interface)
        if isinstance(interface, int) and 0 <= interface < len(known):
            return interface
        hint = f"they are {', '.join(known)}, or 0 to {len(known) - 1}"
        raise ConfigError(Problem(f"there is no interface {interface!r}", field="interface", hint=hint))

    def _process(self, given: Sequence[Any], interface: int) -> list[Result]:
        frames = [PacketIn(_frame_bytes(each), interface) for each in given]
        out = self._batch.run(frames, self._tick)
        kinds = [*given, *[b""] * (len(out) - len(given))]
        return [self._result(done, like) for done, like in zip(out, kinds, strict=True)]

    def _result(self, done: PacketOut, like: Any) -> Result:
        record = self._plane.compiler.record_at(done.vip) if done.vip else None
        pod = None
        if record is not None and done.pod:
            places = (
                record.pods.items(),
                record.draining.items(),
                ((p, i) for i, p in record.flushed.items()),
            )
            pod = next((each for group in places for each, index in group if index == done.pod), None)
        vip = None if record is None else record.vip
        return Result(done.outcome, done.reason, _as(done.data, like), done.interface, vip, pod)

    @property
    def _tick(self) -> int:
        return int(self.now_s * TICKS_PER_SECOND) & TICK_MASK

    def advance(self, seconds: float) -> None:
        """Let time pass: flows that nothing comes for expire, removed pods without flows go.

        Raises ConfigError for a negative time.
        """
        if seconds < 0:
            raise ConfigError(
                Problem(f"{seconds:g} s are behind us", field="seconds", hint="time goes forwards")
            )
        self.now_s += seconds
        self._engine.maintain(self._tick)
        self._plane.collect()

    def capture(self, path: str | Path) -> Iterator[Result]:
        """Every packet of a pcap or pcapng file, in order, at its own time after now: `now_s` follows it.

        Interfaces of the file with the names of ours are ours; all others are interface 0.  Raises DriverError if the
        file cannot be read, and where it is damaged, after the packets before the damage.
        """
        source = CaptureDriver(path).capture
        numbers = [
            self.interfaces.index(name) if name in self.interfaces else 0 for name in source.interfaces
        ]
        begin_s, first_ns = self.now_s, None
        for place, entry in enumerate(source.packets):
            time_ns = int(entry["time_ns"])
            first_ns = time_ns if first_ns is None else first_ns
            self.now_s = max(self.now_s, begin_s + (time_ns - first_ns) / 1e9)
            yield from self._process([source.packet(place)], numbers[int(entry["interface"])])
        if source.error is not None:
            raise source.error

    # ------------------------------------------------------------------------------------------------ what is known

    def flows(
        self,
        *,
        address: AnyPrefix | None = None,
        pod: AnyAddress | None = None,
        client: AnyAddress | None = None,
    ) -> list[FlowReport]:
        """The remembered flows: of all services, or of those at `address`, at a pod, of a client."""
        self._engine.maintain(self._tick)  # what has expired is none
        wanted = FlowFilter(
            vip=None if address is None else _parsed("address", address),
            pod=None if pod is None else _address("pod", pod),
            client=None if client is None else _address("client", client),
            limit=1 << 31,
        )
        return list(self._plane.flows(wanted).flows)

    def explain(
        self,
        packet: Frame,
        *,
        interface: int | str = 0,
        without_pods: Iterable[str] = (),
        with_pods: Iterable[str] = (),
        new_len: int | None = None,
    ) -> Explanation:
        """What would become of this frame now, and why; and what would be with other pods or another table.

        Nothing changes by asking.  Raises ConfigError.
        """
        what_if = WhatIf(tuple(without_pods), tuple(with_pods), new_len)
        asked = PacketIn(_frame_bytes(packet), self._number(interface))
        services = finder(self.config.services, self.config.view)
        return explain_both(self._plane, asked, self._tick, what_if, services=services)

    def counters(self) -> dict[str, int]:
        """Packets by reason, over all nodes of the graph; only those that there were."""
        counted: dict[str, int] = {}
        for row in self._plane.report().nodes:
            counted[row.reason.name] = counted.get(row.reason.name, 0) + row.count
        return counted


def _settings(
    base: Settings,
    buckets: int | None,
    masquerade: Iterable[AnyAddress],
    tunnels: Iterable[AnyAddress],
    second_chance_s: float | None,
) -> Settings:
    given = {"buckets": buckets, "second_chance_s": second_chance_s}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    said = tuple(_address("masquerade", each) for each in masquerade)
    if said:
        changes["masquerade"] = said
    for each in tunnels:
        address = _address("tunnel_sources", each)
        changes[f"ip{address.version}_src_address"] = address
    return replace(base, **changes)


def _address(field: str, given: AnyAddress) -> IPv4Address | IPv6Address:
    if isinstance(given, IPv4Address | IPv6Address):
        return given
    try:
        return parse_address(given)
    except ValueError as error:
        raise ConfigError(Problem(str(error), field=field)) from None


def _is_scapy(given: Any) -> bool:
    """Whether it is a packet and not a list of them, both of which have `__bytes__` and can be iterated."""
    return (
        hasattr(given, "__bytes__")
        and not isinstance(given, list | tuple | np.ndarray)
        and hasattr(given, "layers")
    )


def _is_one(given: Any) -> bool:
    if isinstance(given, np.ndarray):
        return given.ndim == 1 and given.dtype != object
    return isinstance(given, bytes | bytearray | memoryview) or _is_scapy(given)


def _frame_bytes(given: Any) -> bytes:
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 1:
            message = f"an array {given.dtype}{list(given.shape)} is no frame"
            raise ConfigError(Problem(message, field="packets", hint="a frame is uint8[n]"))
        data = given.tobytes()
    elif _is_one(given):
        data = bytes(given)
    else:
        hint = "it is bytes, uint8[n] or a packet of scapy"
        raise ConfigError(Problem(f"{type(given).__name__} is no frame", field="packets", hint=hint))
    if not 0 < len(data) <= LONGEST:
        hint = f"1 to {LONGEST}"
        raise ConfigError(Problem(f"{len(data)} bytes are no frame", field="packets", hint=hint))
    return data


def _as(data: bytes, like: Any) -> Any:
    """In the kind that was given."""
    if isinstance(like, np.ndarray):
        return np.frombuffer(data, np.uint8).copy()
    if isinstance(like, bytes | bytearray | memoryview):
        return data
    return type(like)(data)
