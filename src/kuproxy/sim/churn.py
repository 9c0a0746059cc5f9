"""Churn plans: what happens to pods while a trace runs, as YAML, and the states of the services that follow from it.

    nodes:                                # names for groups of pods, optional
      worker-1: [10.0.0.1, 10.0.0.2]
    events:
      - {at: 10, remove: [10.0.0.3]}      # seconds after the first packet; its flows stay (drain)
      - {at: 20, add: [10.0.0.9], weight: 2}   # of 1 unless said
      - {at: 30, reweigh: [10.0.0.4], weight: 3}
      - {at: 40, lose: [worker-1]}        # gone at once, with all flows
    rolling:                              # every so often one pod of `replace` goes and one of `with` comes
      - {at: 50, every: 2, replace: [10.0.0.4], with: [10.0.0.10]}

With several VIPs, `vip: 90.0.0.0/8` names the one that is meant; without it all VIPs that have the pod.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kuproxy.errors import ConfigError, Problem
from kuproxy.kube.manifest import line_of, read_documents
from kuproxy.load import read_text
from kuproxy.model.vip import MAX_WEIGHT, Address, Pod, Prefix, Vip, VipKey, parse_address, parse_prefix

__all__ = ["Event", "Plan", "State", "read_plan", "states"]

ACTIONS = ("add", "remove", "reweigh", "lose")
_EVENT_KEYS = {"at", "vip", "weight", *ACTIONS}
_ROLLING_KEYS = {"at", "every", "replace", "with", "vip"}
_HINTS = {
    "events": "an event has `at` and one of add, remove, reweigh, lose; perhaps `vip` and `weight`",
    "rolling": "it has at, every, replace and with; perhaps `vip`",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a plan."""

    at_s: float  # after the first packet
    action: str  # of ACTIONS
    pods: tuple[Address, ...]
    weight: int | None = None
    vip: Prefix | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Events in the order of their times; those of one time in the order of the file."""

    events: tuple[Event, ...] = ()
    file: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The services from `at_s` on."""

    at_s: float
    vips: tuple[Vip, ...]
    changed: tuple[Vip, ...] = ()  # against the state before
    flushed: tuple[tuple[VipKey, Pod], ...] = ()  # lost just now
    lost: frozenset[tuple[VipKey, Address]] = frozenset()


class _Reader:
    """Reads one file's document and keeps every problem."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self.problems: list[Problem] = []
        self.nodes: dict[str, tuple[Address, ...]] = {}

    def fault(self, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        self.problems.append(Problem(message, self._file, self.line(path), field, hint))

    def line(self, path: tuple[str | int, ...]) -> int:
        return line_of(self._text, (0, *path))

    def seconds(self, entry: dict[str, Any], path: tuple[str | int, ...], key: str, low: float) -> float:
        value = entry.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < low
        ):
            self.fault((*path, key), f"{value!r} is not a time", "it is a number of seconds, not negative")
            return low
        return float(value)

    def addresses(self, value: object, path: tuple[str | int, ...]) -> tuple[Address, ...]:
        """Addresses, and names of nodes for theirs; a single one needs no list."""
        items = value if isinstance(value, list) else [value]
        found: list[Address] = []
        for item in items:
            if isinstance(item, str) and item in self.nodes:
                found += self.nodes[item]
                continue
            try:
                found.append(parse_address(str(item)))
            except ValueError as error:
                self.fault(path, str(error), "write addresses of pods, or names from `nodes`")
        if not items:
            self.fault(path, "names no pods")
        return tuple(found)

    def prefix(self, entry: dict[str, Any], path: tuple[str | int, ...]) -> Prefix | None:
        if "vip" not in entry:
            return None
        try:
            text = str(entry["vip"])
            return parse_prefix(text if "/" in text else f"{text}/{128 if ':' in text else 32}")
        except ValueError as error:
            self.fault((*path, "vip"), str(error))
            return None

    def weight(self, entry: dict[str, Any], path: tuple[str | int, ...]) -> int | None:
        weight = entry.get("weight")
        if weight is None:
            return None
        if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= MAX_WEIGHT:
            self.fault((*path, "weight"), f"{weight!r} is not a weight", f"it is 0 to {MAX_WEIGHT}")
            return None
        return weight

    def entries(self, document: dict[str, Any], name: str, keys: set[str]) -> Iterable[tuple[Any, Any]]:
        value = document.get(name, [])
        if not isinstance(value, list):
            self.fault((name,), "is not a list", _HINTS[name])
            return
        for number, entry in enumerate(value):
            path = (name, number)
            if not isinstance(entry, dict):
                self.fault(path, f"{entry!r} is not an object", _HINTS[name])
                continue
            for key in entry:
                if key not in keys:
                    self.fault((*path, key), "is not known", _HINTS[name])
            yield path, entry

    def event(self, path: tuple[str | int, ...], entry: dict[str, Any]) -> list[Event]:
        actions = [key for key in ACTIONS if key in entry]
        at_s = self.seconds(entry, path, "at", 0.0)
        if len(actions) != 1:
            self.fault(path, f"{len(actions)} actions", _HINTS["events"])
            return []
        [action] = actions
        weight = self.weight(entry, path)
        if action == "reweigh" and "weight" not in entry:
            self.fault(path, "reweigh without weight", "say `weight: NUMBER`")
        if action in ("remove", "lose") and "weight" in entry:
            self.fault((*path, "weight"), f"means nothing with {action}")
        pods = self.addresses(entry[action], (*path, action))
        return [Event(at_s, action, pods, weight, self.prefix(entry, path), self.line(path))]

    def rolling(self, path: tuple[str | int, ...], entry: dict[str, Any]) -> list[Event]:
        at_s = self.seconds(entry, path, "at", 0.0)
        every = self.seconds(entry, path, "every", 0.0)
        old = self.addresses(entry.get("replace", []), (*path, "replace"))
        new = self.addresses(entry.get("with", []), (*path, "with"))
        if len(old) != len(new):
            self.fault(path, f"replaces {len(old)} pods with {len(new)}", "as many come as go")
        vip, line = self.prefix(entry, path), self.line(path)
        events = []
        for number, (goes, comes) in enumerate(zip(old, new, strict=False)):
            when = at_s + number * every
            events.append(Event(when, "add", (comes,), None, vip, line))
            events.append(Event(when, "remove", (goes,), None, vip, line))
        return events


def read_plan(path: Path) -> Plan:
    """Read a plan.  Raises ConfigError with every problem and its line."""
    file = str(path)
    text = read_text(path)
    documents = [each for each in read_documents(text, file) if each is not None]
    document = documents[0] if documents else {}
    reader = _Reader(text, file)
    if len(documents) > 1 or not isinstance(document, dict):
        raise ConfigError(Problem("is not one object", file, hint="a plan has events, rolling and nodes"))
    for key in document:
        if key not in ("events", "rolling", "nodes"):
            reader.fault((key,), "is not known", "a plan has events, rolling and nodes")
    nodes = document.get("nodes", {})
    if isinstance(nodes, dict):
        reader.nodes = {str(name): reader.addresses(pods, ("nodes", name)) for name, pods in nodes.items()}
    else:
        reader.fault(("nodes",), "is not an object", "write NAME: [ADDRESS, ...]")
    events: list[Event] = []
    for place, entry in reader.entries(document, "events", _EVENT_KEYS):
        events += reader.event(place, entry)
    for place, entry in reader.entries(document, "rolling", _ROLLING_KEYS):
        events += reader.rolling(place, entry)
    if reader.problems:
        raise ConfigError(sorted(reader.problems, key=lambda problem: problem.line))
    return Plan(tuple(sorted(events, key=lambda event: event.at_s)), file)


def states(vips: Sequence[Vip], plan: Plan) -> list[State]:
    """The state before the first event, then one for each time at which something happens.

    Raises ConfigError for events that name no VIP or pod that is there, or add one that is.
    """
    now = {vip.key: vip for vip in vips}
    lost: set[tuple[VipKey, Address]] = set()
    found = [State(0.0, tuple(now.values()))]
    problems: list[Problem] = []
    times = sorted({event.at_s for event in plan.events})
    for at_s in times:
        before = dict(now)
        flushed: list[tuple[VipKey, Pod]] = []
        for event in (each for each in plan.events if each.at_s == at_s):
            try:
                _apply(event, now, lost, flushed)
            except ConfigError as error:
                problems += [problem.at(plan.file, event.line) for problem in error.problems]
        changed = tuple(vip for key, vip in now.items() if vip != before[key])
        found.append(State(at_s, tuple(now.values()), changed, tuple(flushed), frozenset(lost)))
    if problems:
        raise ConfigError(problems)
    return found


def _apply(
    event: Event,
    now: dict[VipKey, Vip],
    lost: set[tuple[VipKey, Address]],
    flushed: list[tuple[VipKey, Pod]],
) -> None:
    keys = [key for key in now if event.vip in (None, key.prefix)]
    if not keys:
        raise ConfigError(Problem(f"no VIP {event.vip}", field=event.action))
    for address in event.pods:
        having = [key for key in keys if any(pod.address == address for pod in now[key].pods)]
        if event.action == "add":
            if having:
                raise ConfigError(Problem(f"pod {address} is there already", field="add"))
            if len(keys) > 1:
                hint = "say `vip: PREFIX`"
                raise ConfigError(Problem(f"to which of {len(keys)} VIPs?", field="add", hint=hint))
            [key] = keys
            new = Pod(address) if event.weight is None else Pod(address, 0, event.weight)
            now[key] = replace(now[key], pods=(*now[key].pods, new))
            lost.discard((key, address))
            continue
        if not having:
            raise ConfigError(Problem(f"no pod {address} at that time", field=event.action))
        for key in having:
            pods = now[key].pods
            if event.action == "reweigh" and event.weight is not None:
                weight = event.weight
                pods = tuple(pod.weighing(weight) if pod.address == address else pod for pod in pods)
            else:
                gone = [pod for pod in pods if pod.address == address]
                pods = tuple(pod for pod in pods if pod.address != address)
                if event.action == "lose":
                    lost.add((key, address))
                    flushed += [(key, pod) for pod in gone]
            now[key] = replace(now[key], pods=pods)
