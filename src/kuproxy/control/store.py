"""The one place where the wanted state lives, and the one writer that everybody else must go through.

Sources (a file, the command line, the API server) hold named sets of VIPs.  A write either changes everything that
it names or raises and changes nothing, and it returns what really changed, so that the tables are rebuilt in
proportion.  There is no clock and no I/O here.

Two sources may hold the same VIP in the same words: it is one VIP, and lives until both have let it go.  What they
may not do is contradict each other:

- one VIP (prefix, protocol, port) with different contents or owners;
- one node port of one IP version with overlapping protocols on two VIPs (ANY overlaps all).  The versions are apart
  because a dual-stack service has the same node port in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kuproxy.codes import Family, Protocol
from kuproxy.errors import ConflictError, Problem
from kuproxy.model.config import Settings
from kuproxy.model.vip import Vip, VipKey

__all__ = ["Changes", "Snapshot", "Store"]

_NodePort = tuple[Family, int]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a write changed in the state; empty (and false) if nothing."""

    added: tuple[Vip, ...] = ()
    removed: tuple[Vip, ...] = ()
    changed: tuple[tuple[Vip, Vip], ...] = ()  # (old, new), with the same key

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one moment."""

    settings: Settings
    vips: tuple[Vip, ...]


class Store:
    """The wanted VIPs of all sources, always free of contradictions."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._sources: dict[str, dict[VipKey, Vip]] = {}
        self._vips: dict[VipKey, Vip] = {}
        self._holders: dict[VipKey, int] = {}  # how many sources hold a VIP
        self._node_ports: dict[_NodePort, dict[Protocol, VipKey]] = {}

    def __len__(self) -> int:
        return len(self._vips)

    def __iter__(self) -> Iterator[Vip]:
        return iter(self._vips.values())

    def get(self, key: VipKey) -> Vip | None:
        return self._vips.get(key)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources that hold anything."""
        return tuple(self._sources)

    def source(self, name: str) -> tuple[Vip, ...]:
        """What one source holds."""
        return tuple(self._sources.get(name, {}).values())

    def excerpt(self, name: str, keys: Iterable[VipKey]) -> tuple[list[Vip], list[VipKey]]:
        """Of these keys, the VIPs that a source holds, and those that it does not: what would undo an update."""
        held = self._sources.get(name, {})
        keys = dict.fromkeys(keys)
        return [held[key] for key in keys if key in held], [key for key in keys if key not in held]

    def holders(self, key: VipKey) -> tuple[str, ...]:
        """The sources that hold a VIP."""
        return tuple(name for name, held in self._sources.items() if key in held)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.settings, tuple(self._vips.values()))

    def replace(self, source: str, vips: Iterable[Vip]) -> Changes:
        """Let a source hold exactly these VIPs.  Cost: the size of the source.

        Raises ConflictError with all conflicts; then nothing has changed.
        """
        wanted, problems = _unique(vips)
        held = self._sources.get(source, {})
        gone = [key for key in held if key not in wanted]
        new = {key: vip for key, vip in wanted.items() if held.get(key) != vip}
        return self._commit(source, new, gone, problems)

    def update(self, source: str, add: Iterable[Vip] = (), remove: Iterable[VipKey] = ()) -> Changes:
        """Let a source hold, or hold anew, what is in `add`, and let go what is in `remove` and not in `add`.

        Letting go what it does not hold changes nothing.  Cost: the size of the change.

        Raises ConflictError with all conflicts; then nothing has changed.
        """
        wanted, problems = _unique(add)
        held = self._sources.get(source, {})
        gone = [key for key in dict.fromkeys(remove) if key in held and key not in wanted]
        new = {key: vip for key, vip in wanted.items() if held.get(key) != vip}
        return self._commit(source, new, gone, problems)

    def yielding(self, source: str, add: Iterable[Vip]) -> tuple[list[Vip], dict[VipKey, Problem]]:
        """Of what a source would hold, free of contradictions in itself, that which no other source contradicts.

        A VIP of which only the node port is taken comes back without it; the problems tell of it nonetheless.
        """
        held = self._sources.get(source, {})
        accepted: list[Vip] = []
        problems: dict[VipKey, Problem] = {}
        for vip in add:
            key = vip.key
            current = self._vips.get(key)
            if current is not None and self._holders[key] - (key in held) and current != vip:
                problems[key] = _vip_conflict(current, vip)
                continue
            rival = self._rival(vip, held) if vip.node_port else None
            if rival is not None:
                problems[key] = _node_port_conflict(rival, vip)
                if vip.on_node_only:
                    continue
            accepted.append(vip if rival is None else replace(vip, node_port=0))
        return accepted, problems

    def _rival(self, vip: Vip, held: dict[VipKey, Vip]) -> Vip | None:
        """Another source's VIP that has this one's node port."""
        for other in self._node_ports.get((vip.key.family, vip.node_port), {}).values():
            if other == vip.key or (other in held and self._holders[other] == 1):
                continue
            if other.protocol == vip.key.protocol or Protocol.ANY in (other.protocol, vip.key.protocol):
                return self._vips[other]
        return None

    def _commit(
        self, source: str, new: dict[VipKey, Vip], gone: list[VipKey], problems: list[Problem]
    ) -> Changes:
        held = self._sources.get(source, {})
        for key, vip in new.items():
            current = self._vips.get(key)
            elsewhere = self._holders.get(key, 0) - (key in held)
            if current is not None and elsewhere and current != vip:
                problems.append(_vip_conflict(current, vip))
        # What disappears altogether; a VIP that another source holds too stays.
        vanishing = [key for key in gone if self._holders[key] == 1]
        problems += self._node_port_conflicts(new, vanishing)
        if problems:
            raise ConflictError(problems)

        removed = tuple(self._vips[key] for key in vanishing)
        for vip in removed:
            self._release_node_port(vip)
            del self._vips[vip.key]
        held = self._sources.setdefault(source, {})
        for key in gone:
            del held[key]
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
        added: list[Vip] = []
        changed: list[tuple[Vip, Vip]] = []
        # All old node ports first: two VIPs may swap theirs.
        for key in new:
            if key in self._vips:
                self._release_node_port(self._vips[key])
        for key, vip in new.items():
            current = self._vips.get(key)
            if current is None:
                added.append(vip)
            elif current is held.get(key) or current != vip:  # what it holds has been compared before
                changed.append((current, vip))
            self._vips[key] = vip
            if vip.node_port:
                self._node_ports.setdefault((key.family, vip.node_port), {})[key.protocol] = key
            if key not in held:
                self._holders[key] = self._holders.get(key, 0) + 1
            held[key] = vip
        if not held:
            del self._sources[source]
        return Changes(tuple(added), removed, tuple(changed))

    def _release_node_port(self, vip: Vip) -> None:
        if not vip.node_port:
            return
        place = (vip.key.family, vip.node_port)
        del self._node_ports[place][vip.key.protocol]
        if not self._node_ports[place]:
            del self._node_ports[place]

    def _node_port_conflicts(self, new: dict[VipKey, Vip], vanishing: list[VipKey]) -> list[Problem]:
        problems = []
        free = set(vanishing)
        claimed: dict[_NodePort, dict[Protocol, Vip]] = {}
        for key, vip in new.items():
            if not vip.node_port:
                continue
            place = (key.family, vip.node_port)
            rivals = list(claimed.get(place, {}).values())
            rivals += [
                self._vips[other]
                for other in self._node_ports.get(place, {}).values()
                if other not in free and other not in new
            ]
            problems += [
                _node_port_conflict(rival, vip)
                for rival in rivals
                if rival.key.protocol == key.protocol or Protocol.ANY in (rival.key.protocol, key.protocol)
            ]
            claimed.setdefault(place, {})[key.protocol] = vip
        return problems


def _unique(vips: Iterable[Vip]) -> tuple[dict[VipKey, Vip], list[Problem]]:
    """The VIPs by key, and the contradictions among them."""
    wanted: dict[VipKey, Vip] = {}
    problems = []
    for vip in vips:
        other = wanted.setdefault(vip.key, vip)
        if other is not vip and other != vip:
            problems.append(_vip_conflict(other, vip))
    return wanted, problems


def _vip_conflict(old: Vip, new: Vip) -> Problem:
    if old.owner == new.owner:
        return Problem(f"VIP {new.key} is asked for twice by {new.owner}, and not with the same contents")
    return Problem(f"VIP {new.key} belongs to {old.owner}; {new.owner} asks for it too")


def _node_port_conflict(old: Vip, new: Vip) -> Problem:
    return Problem(
        f"node port {new.node_port} belongs to VIP {old.key} of {old.owner}; "
        f"VIP {new.key} of {new.owner} asks for it too"
    )
