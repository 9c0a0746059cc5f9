"""From actions to the state that they ask for.

`Desired` holds what the commands so far amount to.  A batch of them (a script, a request to the daemon) is applied
as a whole or not at all: a half-applied script would leave a state that nobody wrote down.

Which VIPs a command means:

- `ku vip X ...` adds one VIP.  The same one again changes nothing; another one with the same prefix, protocol and
  port is refused, as is a second VIP of the same family with the same node port.
- `ku vip X [port N] [protocol P] del` deletes exactly one VIP and its pods.  If several fit, it is refused and
  names them; other options may be repeated and are not compared.
- `ku pod X [port N] [protocol P] A...` adds the pods to every VIP that fits at that point.  A pod that is there
  already takes the weight that is said now.
- `ku pod X ... A del` removes the pod from every VIP that fits; it is refused if none of them has it.  Without a
  port of its own, the address means every pod with that address.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kuproxy.codes import Encap, Family, Protocol
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.config import MAX_TRACED, Config, InterfaceMark, Settings, Show
from kuproxy.model.vip import Pod, Prefix, Vip, VipKey, pod_family_message
from kuproxy.vppcli.actions import (
    Action,
    AddPods,
    AddTrace,
    AddVip,
    DelPods,
    DelVip,
    FlushFlows,
    SetConf,
    SetInterface,
    ShowAction,
    VipSelector,
    Where,
)
from kuproxy.vppcli.grammar import scan_script

__all__ = ["Desired"]


class Desired:
    """The state that the commands so far ask for; `apply` and `run` change it, the properties tell it."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.shows: list[Show] = []
        self.flush_flows = False
        self.trace = 0
        self.flushed: list[tuple[VipKey, Pod]] = []
        self._vips: dict[VipKey, Vip] = {}  # as they were added: without pods
        self._pods: dict[VipKey, frozenset[Pod]] = {}
        self._by_prefix: dict[Prefix, tuple[VipKey, ...]] = {}
        self._node_ports: dict[tuple[Family, int, Protocol], VipKey] = {}
        self._interfaces: dict[str, tuple[bool, bool]] = {}
        self._places: dict[VipKey, Where] = {}  # where VIPs were added last

    def place_of(self, key: VipKey) -> Where:
        """Where the VIP was added; nowhere if no script did it."""
        return self._places.get(key, Where())

    @property
    def vips(self) -> tuple[Vip, ...]:
        """Every VIP with its pods, in the order in which the VIPs were added."""
        return tuple(replace(vip, pods=tuple(self._pods[key])) for key, vip in self._vips.items())

    @property
    def interfaces(self) -> tuple[InterfaceMark, ...]:
        return tuple(InterfaceMark(name, *marks) for name, marks in self._interfaces.items())

    def config(self, sources: tuple[str, ...] = ()) -> Config:
        return Config(
            self.vips,
            self.settings,
            self.interfaces,
            tuple(self.shows),
            tuple(self.flushed),
            self.flush_flows,
            self.trace,
            sources,
        )

    def run(self, text: str, file: str = "") -> None:
        """Apply a script.  Raises ConfigError with every problem of every line; then nothing has changed."""
        scan = scan_script(text, file)
        self._apply_all(scan.actions, scan.problems, scan.spoilt)

    def apply(self, *actions: Action) -> None:
        """Apply actions in order.  Raises ConfigError with every problem; then nothing has changed."""
        self._apply_all(actions, [], set())

    def _apply_all(self, actions: Iterable[Action], problems: list[Problem], spoilt: set[Prefix]) -> None:
        trial = self.copy()
        problems = list(problems)
        for action in actions:
            try:
                trial._apply_one(action)
            except ConfigError as error:
                # What a refused line would have added is missing from later ones: no fault of theirs.
                if not (isinstance(action, AddPods | DelPods | DelVip) and action.selector.prefix in spoilt):
                    problems.extend(p.at(action.where.file, action.where.line) for p in error.problems)
                if isinstance(action, AddVip):
                    spoilt.add(action.vip.key.prefix)
        if problems:
            raise ConfigError(sorted(problems, key=lambda problem: problem.line))
        self.__dict__.update(trial.__dict__)

    def copy(self) -> Desired:
        """A copy that shares every value: all of them are immutable."""
        copy = Desired.__new__(Desired)
        for name, value in self.__dict__.items():
            copy.__dict__[name] = value.copy() if isinstance(value, dict | list) else value
        return copy

    def put(self, vip: Vip) -> None:
        """Hold this VIP with exactly these pods, in the place of the former one.  Raises ConfigError, perhaps halfway:
        work on a copy.
        """
        if vip.key in self._vips:
            self._del_vip(VipSelector(vip.key.prefix, vip.key.port, vip.key.protocol))
        self._add_vip(replace(vip, pods=()))
        self._pods[vip.key] = frozenset(vip.pods)

    def set_interfaces(self, marks: Iterable[InterfaceMark]) -> None:
        """Mark these interfaces and no others."""
        self._interfaces = {
            mark.name: (mark.nat4_in, mark.nat6_in) for mark in marks if mark.nat4_in or mark.nat6_in
        }

    def _apply_one(self, action: Action) -> None:
        match action:
            case AddVip():
                self._add_vip(action.vip)
                self._places[action.vip.key] = action.where
            case DelVip():
                self._del_vip(action.selector)
            case AddPods():
                self._add_pods(action.selector, action.pods)
            case DelPods():
                self._del_pods(action.selector, action.pods, flush=action.flush)
            case SetConf():
                self.settings = action.applied_to(self.settings)
            case SetInterface():
                self._set_interface(action)
            case ShowAction():
                self.shows.append(action.show)
            case AddTrace():
                self.trace += action.packets
                if self.trace > MAX_TRACED:
                    raise ConfigError(
                        Problem(f"at most {MAX_TRACED} packets are traced at once", field="add")
                    )
            case FlushFlows():
                self.flush_flows = True
            case _:
                raise AssertionError(action)

    def _add_vip(self, vip: Vip) -> None:
        key = vip.key
        old = self._vips.get(key)
        if old == vip:
            return
        if old is not None:
            raise ConfigError(
                Problem(
                    f"VIP {key} exists already, as {old.describe()}",
                    field="prefix",
                    hint="delete it first, or repeat it as it is",
                )
            )
        family = vip.type.pod_family
        source = self.settings.ip4_src_address if family == Family.IPV4 else self.settings.ip6_src_address
        if vip.encap.is_tunnel and source is None:
            raise ConfigError(
                Problem(
                    f"{vip.label} needs an outer source address",
                    field="encap",
                    hint=f"say `ku conf ip{int(family)}-src-address ADDRESS` first",
                )
            )
        if vip.node_port:
            for protocol in _overlapping(key.protocol):
                holder = self._node_ports.get((key.family, vip.node_port, protocol))
                if holder is not None:
                    raise ConfigError(
                        Problem(f"{vip.node_port} is the node port of VIP {holder}", field="node_port")
                    )
            self._node_ports[key.family, vip.node_port, key.protocol] = key
        self._vips[key] = vip
        self._pods[key] = frozenset()
        self._by_prefix[key.prefix] = (*self._by_prefix.get(key.prefix, ()), key)

    def _matching(self, selector: VipSelector) -> list[VipKey]:
        keys = self._by_prefix.get(selector.prefix, ())
        matching = [key for key in keys if selector.matches(key)]
        if not matching:
            others = f"; with this prefix there is {_listed(keys)}" if keys else ""
            raise ConfigError(Problem(f"no VIP {selector}{others}", field="prefix"))
        return matching

    def _del_vip(self, selector: VipSelector) -> None:
        keys = self._matching(selector)
        if len(keys) > 1:
            raise ConfigError(
                Problem(
                    f"{selector} is the prefix of {len(keys)} VIPs",
                    field="prefix",
                    hint=f"say port and protocol: {_listed(keys)}",
                )
            )
        key = keys[0]
        vip = self._vips.pop(key)
        self._places.pop(key, None)
        del self._pods[key]
        rest = tuple(other for other in self._by_prefix[key.prefix] if other != key)
        if rest:
            self._by_prefix[key.prefix] = rest
        else:
            del self._by_prefix[key.prefix]
        if vip.node_port:
            del self._node_ports[key.family, vip.node_port, key.protocol]

    def _canonical(self, key: VipKey, pod: Pod) -> Pod:
        """A pod whose port is the VIP's target port is the pod without one."""
        return Pod(pod.address, weight=pod.weight) if pod.port == self._vips[key].target_port else pod

    def _add_pods(self, selector: VipSelector, pods: tuple[Pod, ...]) -> None:
        problems = []
        for key in self._matching(selector):
            for pod in pods:
                message = pod_family_message(key, self._vips[key].type, pod.address)
                if message is not None:
                    problems.append(Problem(message, field="address"))
                elif pod.port and self._vips[key].encap is not Encap.NAT:
                    problems.append(
                        Problem(f"pod {pod} has a port, but VIP {key} leaves the port alone", field="address")
                    )
                elif pod.port and not key.port:
                    problems.append(
                        Problem(f"pod {pod} has a port, but VIP {key} stands for every port", field="address")
                    )
            new = [self._canonical(key, pod) for pod in pods]
            old = {pod for pod in self._pods[key] if not any(pod.is_at(other) for other in new)}
            self._pods[key] = frozenset(old.union(new))
        if problems:
            raise ConfigError(problems)

    def _del_pods(self, selector: VipSelector, pods: tuple[Pod, ...], *, flush: bool) -> None:
        keys = self._matching(selector)
        problems = []
        for pod in pods:
            found = False
            for key in keys:
                wanted = self._canonical(key, pod)
                gone = {
                    old
                    for old in self._pods[key]
                    if old.is_at(wanted) or (not pod.port and old.address == pod.address)
                }
                self._pods[key] -= gone
                if flush and gone:
                    self.flushed.append((key, wanted))
                found = found or bool(gone)
            if not found:
                problems.append(Problem(f"VIP {selector} has no pod {pod}", field="address"))
        if problems:
            raise ConfigError(problems)

    def _set_interface(self, action: SetInterface) -> None:
        nat4, nat6 = self._interfaces.get(action.name, (False, False))
        if action.family == Family.IPV4:
            nat4 = action.enable
        else:
            nat6 = action.enable
        if nat4 or nat6:
            self._interfaces[action.name] = (nat4, nat6)
        else:
            self._interfaces.pop(action.name, None)


def _overlapping(protocol: Protocol) -> tuple[Protocol, ...]:
    """The protocols whose packets could also be meant: a node port for any protocol overlaps all."""
    if protocol == Protocol.ANY:
        return (Protocol.ANY, Protocol.TCP, Protocol.UDP, Protocol.SCTP)
    return (Protocol.ANY, protocol)


def _listed(keys: Iterable[VipKey]) -> str:
    return ", ".join(map(str, keys))
