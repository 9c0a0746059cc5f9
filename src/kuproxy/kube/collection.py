"""The objects of one resource as far as they are known, and what has changed since somebody last asked.

Every way in which the same news arrives twice, late or in the wrong order ends here: an object's version never goes
back, and what was deleted stays so.  Changes are kept per object, not per event: a consumer that sleeps for an hour
finds at most one change for each object, and none for what is again as it was.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

from kuproxy.kube.objects import Item, Key, version_of

__all__ = ["Change", "ChangeKind", "Collection"]

T = TypeVar("T", bound=Item)


class ChangeKind(enum.Enum):
    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What became of one object; `old` is what the consumer was told last, `new` what is so now."""

    key: Key
    old: T | None
    new: T | None

    @property
    def kind(self) -> ChangeKind:
        if self.old is None:
            return ChangeKind.ADDED
        return ChangeKind.DELETED if self.new is None else ChangeKind.CHANGED


class Collection(Generic[T]):
    """Objects by key.  `objects` is to be read only."""

    __slots__ = ("_changed", "_floor", "_max_tombstones", "_tombstones", "_versions", "objects", "stale")

    def __init__(self, max_tombstones: int) -> None:
        self.objects: dict[Key, T] = {}
        self.stale = 0  # events that told nothing new
        self._versions: dict[Key, int] = {}
        # Key → the object as the consumer knows it, for whatever was touched since the last `take`.
        self._changed: dict[Key, T | None] = {}
        # Nothing at or below this version can be news: a list or a bookmark has covered it.
        self._floor = 0
        # Versions of deletions above the floor: an addition from before must not bring the object back.
        self._tombstones: dict[Key, int] = {}
        self._max_tombstones = max_tombstones

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def changed(self) -> bool:
        """Whether there may be something to take."""
        return bool(self._changed)

    @property
    def waiting(self) -> int:
        """How many objects there may be to take."""
        return len(self._changed)

    def take(self) -> list[Change[T]]:
        """The changes since the last call, in the order of their first news; none for what is as it was."""
        touched, self._changed = self._changed, {}
        changes = []
        for key, old in touched.items():
            new = self.objects.get(key)
            if old != new:
                changes.append(Change(key, old, new))
        return changes

    def put(self, item: T) -> None:
        """An addition or modification.  Raises ValueError if its resourceVersion is none."""
        key, version = item.key, _take_version(item)
        known = self._versions.get(key)
        if known is None:
            known = max(self._floor, self._tombstones.get(key, 0))
        if version <= known:
            self.stale += 1
            return
        self._tombstones.pop(key, None)
        self._set(key, item, version)

    def delete(self, key: Key, version: int) -> None:
        """A deletion; one that is older than what is known of the object is late news."""
        known = self._versions.get(key)
        if known is not None and version < known:
            self.stale += 1
            return
        if version > self._floor:
            self._tombstones[key] = max(version, self._tombstones.get(key, 0))
            while len(self._tombstones) > self._max_tombstones:
                del self._tombstones[next(iter(self._tombstones))]
        self._remove(key)

    def cover(self, version: int) -> None:
        """The server has told everything up to this version (a bookmark)."""
        self._floor = version
        self._tombstones.clear()

    def replace(self, items: dict[Key, T], version: int) -> None:
        """The whole collection, as a list has it, whatever was known before; what it lacks is deleted.

        Versions may go back: an API server whose store was restored from a backup tells older ones.
        Raises ValueError, before anything is changed, if a resourceVersion is none.
        """
        versions = {key: _take_version(item) for key, item in items.items()}
        for key in [key for key in self.objects if key not in items]:
            self._remove(key)
        for key, item in items.items():
            self._set(key, item, versions[key])
        self.cover(version)

    def _set(self, key: Key, item: T, version: int) -> None:
        self._versions[key] = version
        old = self.objects.get(key)
        # What we look at may be the same although the version is not: managedFields, a node's heartbeat.
        if old != item:
            self._changed.setdefault(key, old)
            self.objects[key] = item

    def _remove(self, key: Key) -> None:
        old = self.objects.pop(key, None)
        if old is not None:
            del self._versions[key]
            self._changed.setdefault(key, old)


def _take_version(item: Item) -> int:
    """The version, taken out of the object, so that objects compare by what they mean."""
    meta = item.meta
    version = version_of(meta.resource_version)
    meta.resource_version = ""
    return version
