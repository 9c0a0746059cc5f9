"""What every service comes to, and who gets what several of them claim: kept up to date service by service.

The cost of a change follows the services that it concerns: those that changed, and those that claim the same address
or node port as one of them.  Which of two claimants gets a VIP depends on their ranks alone, never on who came when, so
that every node decides alike, and the same again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kuproxy.control.policy.cleanup import stale_udp
from kuproxy.control.policy.conflicts import settle
from kuproxy.control.policy.exposure import ServiceVips
from kuproxy.errors import Problem
from kuproxy.model.vip import Pod, Vip, VipKey

__all__ = ["Claimant", "Difference", "ServiceBook", "Wanted"]

Claimant = tuple[str, str]
"""Namespace and name of a service."""

Rank = tuple[str, str, str]
"""Creation time (RFC 3339, UTC, so that texts compare as times), namespace, name: the lowest gets what it claims."""

_Place = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one service comes to by itself."""

    rank: Rank
    vips: ServiceVips


@dataclass(slots=True)
class Difference:
    """What changes in the store, and what follows from it."""

    add: list[Vip] = field(default_factory=list)
    remove: list[VipKey] = field(default_factory=list)
    flushed: list[tuple[VipKey, Pod]] = field(default_factory=list)  # UDP flows that end
    # Services whose conflicts are others than before; without problems: they have got what they claim.
    problems: dict[Claimant, tuple[Problem, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    wanted: Wanted
    granted: tuple[Vip, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Change:
    """A difference while it is put together."""

    keep: dict[VipKey, Vip] = field(default_factory=dict)
    gone: dict[VipKey, None] = field(default_factory=dict)
    serving_before: dict[VipKey, frozenset[Pod]] = field(default_factory=dict)
    serving_after: dict[VipKey, frozenset[Pod]] = field(default_factory=dict)
    problems: dict[Claimant, tuple[Problem, ...]] = field(default_factory=dict)

    def difference(self) -> Difference:
        before, after = (
            ServiceVips(serving=tuple(each.items())) for each in (self.serving_before, self.serving_after)
        )
        return Difference(
            add=list(self.keep.values()),
            remove=[key for key in self.gone if key not in self.keep],
            flushed=stale_udp(before, after),
            problems=self.problems,
        )


class ServiceBook:
    """The VIPs of all services, free of contradictions among each other."""

    def __init__(self) -> None:
        self._entries: dict[Claimant, _Entry] = {}
        # Who claims a VIP's key or a node port; a set only where there are several.
        self._claims: dict[_Place, Claimant | set[Claimant]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def granted(self, claimant: Claimant) -> tuple[Vip, ...]:
        """The VIPs that a service has got."""
        entry = self._entries.get(claimant)
        return entry.granted if entry is not None else ()

    def problems(self, claimant: Claimant) -> tuple[Problem, ...]:
        """What a service claims and does not get, because an older one has it."""
        entry = self._entries.get(claimant)
        return entry.problems if entry is not None else ()

    def serving(self) -> Iterable[tuple[VipKey, frozenset[Pod]]]:
        """The pods that serve, of every UDP VIP that a service has got."""
        for entry in self._entries.values():
            yield from _serving(entry.wanted, entry.granted)

    def update(self, changes: Mapping[Claimant, Wanted | None]) -> Difference:
        """Take in what some services come to now; None: they are no more."""
        before = {claimant: self._entries.get(claimant) for claimant in changes}
        concerned = set(changes)
        for claimant, wanted in changes.items():
            old = before[claimant]
            if old is not None:
                concerned |= self._leave(claimant, old.wanted)
            if wanted is None:
                self._entries.pop(claimant, None)
            else:
                concerned |= self._enter(claimant, wanted)
                granted = old.granted if old is not None else ()
                self._entries[claimant] = _Entry(wanted, granted, old.problems if old is not None else ())
        change = _Change()
        for claimant, old in before.items():
            if old is None:
                continue
            change.serving_before.update(_serving(old.wanted, old.granted))
            if claimant not in self._entries:
                change.gone.update(dict.fromkeys(vip.key for vip in old.granted))
                if old.problems:
                    change.problems[claimant] = ()
        for group in self._groups(concerned):
            self._grant(group, changes, change)
        return change.difference()

    def _grant(
        self, group: list[Claimant], changed: Mapping[Claimant, Wanted | None], change: _Change
    ) -> None:
        """Decide for services that share claims, or for one that shares none."""
        entries = [self._entries[claimant] for claimant in group]
        shares: Iterable[tuple[tuple[Vip, ...], tuple[Problem, ...]]]
        if len(group) == 1 and _is_consistent(entries[0].wanted.vips.vips):
            shares = [(entries[0].wanted.vips.vips, ())]
        else:
            shares = _settle(entries)
        for claimant, entry, (granted, problems) in zip(group, entries, shares, strict=True):
            if claimant not in changed:
                change.serving_before.update(_serving(entry.wanted, entry.granted))
            change.serving_after.update(_serving(entry.wanted, granted))
            held = {vip.key: vip for vip in entry.granted}
            for vip in granted:
                if held.pop(vip.key, None) != vip:
                    change.keep[vip.key] = vip
            change.gone.update(dict.fromkeys(held))
            entry.granted = granted
            if problems != entry.problems:
                entry.problems = change.problems[claimant] = problems

    def _enter(self, claimant: Claimant, wanted: Wanted) -> set[Claimant]:
        """Note its claims; returns the others who have one of them."""
        others: set[Claimant] = set()
        for place in _places(wanted.vips.vips):
            present = self._claims.setdefault(place, claimant)
            if present == claimant:
                continue
            if not isinstance(present, set):
                present = self._claims[place] = {present}
            present.add(claimant)
            others |= present
        return others

    def _leave(self, claimant: Claimant, wanted: Wanted) -> set[Claimant]:
        others: set[Claimant] = set()
        for place in _places(wanted.vips.vips):
            present = self._claims.get(place)
            if isinstance(present, set):
                present.discard(claimant)
                others |= present
                if len(present) == 1:
                    (self._claims[place],) = present
            elif present == claimant:
                del self._claims[place]
        return others

    def _groups(self, concerned: set[Claimant]) -> Iterable[list[Claimant]]:
        """Those concerned that still exist, each with all whom a chain of shared claims leads to, by rank."""
        seen: set[Claimant] = set()
        for first in concerned:
            if first in seen or first not in self._entries:
                continue
            seen.add(first)
            group = [first]
            for claimant in group:  # it grows
                for place in _places(self._entries[claimant].wanted.vips.vips):
                    present = self._claims[place]
                    if isinstance(present, set):
                        new = present - seen
                        seen |= new
                        group += new
            if len(group) > 1:
                group.sort(key=lambda each: self._entries[each].wanted.rank)
            yield group


def _places(vips: Iterable[Vip]) -> Iterable[_Place]:
    for vip in vips:
        yield vip.key.id
        if vip.node_port:
            yield (vip.key.id[0], vip.key.id[3], vip.node_port)


def _is_consistent(vips: tuple[Vip, ...]) -> bool:
    places = [place for vip in vips for place in _places((vip,))]
    return len(set(places)) == len(places)


def _serving(wanted: Wanted, granted: tuple[Vip, ...]) -> Iterable[tuple[VipKey, frozenset[Pod]]]:
    """The pods that serve, of the UDP VIPs that were granted."""
    if not wanted.vips.serving:
        return ()
    keys = {vip.key for vip in granted}
    return [each for each in wanted.vips.serving if each[0] in keys]


def _settle(entries: list[_Entry]) -> Iterable[tuple[tuple[Vip, ...], tuple[Problem, ...]]]:
    """What each gets of what all of them claim, and why not the rest."""
    taken: list[Vip] = []
    for entry in entries:
        kept, problems = settle([*taken, *entry.wanted.vips.vips])
        yield tuple(kept[len(taken) :]), tuple(problems)
        taken = kept
