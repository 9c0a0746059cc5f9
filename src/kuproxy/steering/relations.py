"""Which interfaces stand for one another when a pod's reply is judged by where it comes in: the map `related`.

A bridge's port, a bond's or a VRF's member stands for its master, which is what routes name.  What is refused at a port
is judged once more at the bridge, whose program sees it, too; a VRF's packets meet no program there.  Interfaces that
share a route of several next hops stand for each other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from .bpf import Map
from .keys import RELATED_SIZE
from .multipath import Multipath
from .node import Interface

__all__ = ["Relations", "relations"]

_VALUE = struct.Struct("=3I4x")  # master, whether its program sees the packets, too, and group
assert _VALUE.size == RELATED_SIZE
_VRF = "vrf"


def relations(interfaces: Iterable[Interface], groups: dict[int, int]) -> dict[bytes, bytes]:
    """Keys and values of the map: of interfaces that have a master or a group, and of no others."""
    wanted = {index: (0, 0, group) for index, group in groups.items()}
    for each in interfaces:
        if each.master:
            again = int(each.member_of != _VRF)
            wanted[each.ifindex] = each.master, again, groups.get(each.ifindex, 0)
    return {struct.pack("=I", index): _VALUE.pack(*value) for index, value in wanted.items()}


class Relations:
    """Keeps the map in line with the node's interfaces and routes."""

    def __init__(self, related: Map) -> None:
        """Raises OSError or SteeringError."""
        self._map = related
        self._multipath = Multipath()
        self._written: dict[bytes, bytes] = {}

    def fileno(self) -> int:
        """Readable when `poll` has something to do."""
        return self._multipath.fileno()

    def poll(self) -> bool:
        """Take in what has happened to routes; see `Multipath.poll`.  Raises SteeringError."""
        return self._multipath.poll()

    def sync(self, interfaces: Iterable[Interface]) -> None:
        """Raises SteeringError."""
        wanted = relations(interfaces, self._multipath.groups())
        if wanted != self._written:
            self._map.update({key: value for key, value in wanted.items() if self._written.get(key) != value})
            self._map.delete(self._written.keys() - wanted.keys())
            self._written = wanted

    def alike(self, index: int) -> list[int]:
        """An interface with those that share a route of several next hops with it."""
        groups = self._multipath.groups()
        return [each for each, group in groups.items() if group == groups.get(index)] or [index]

    def close(self) -> None:
        """Idempotent."""
        self._multipath.close()
