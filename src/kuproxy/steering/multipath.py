"""Which interfaces share routes: what goes to a pod behind several next hops leaves by one, the reply may come by any.

Only routes with several next hops count, in whatever table.  They are read once, and then followed by events, so that
ten thousand routes with one next hop each (our own to VIPs among them) cost a look at each message and no more.
That a default route has changed, by which the node's own address is chosen, is noticed on the way.

Source: rtnetlink(7), struct rtnexthop in <linux/rtnetlink.h>, <linux/nexthop.h>.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator

from . import netlink, rtnetlink
from .rtnetlink import DELLINK, DELROUTE, NEWNEXTHOP, NEWROUTE, ROUTE

__all__ = ["Multipath", "grouped"]

_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface
_OBJECT = struct.Struct("=4BI")  # struct nhmsg
_DST, _PRIORITY, _MULTIPATH, _TABLE = 1, 6, 9, 15
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5

_Key = tuple[int, int, int, int, bytes, bytes]  # family, lengths, type of service, metric and table, destination


class Multipath(rtnetlink.Followed):
    """Of the calling thread's network namespace."""

    def __init__(self) -> None:
        """Raises OSError or SteeringError."""
        self._routes: dict[_Key, frozenset[int]] = {}
        # Groups of nexthop objects, whether routes use them or not, and the numbers of these groups and their members.
        self._objects: list[frozenset[int]] = []
        self._members: frozenset[bytes] = frozenset()
        super().__init__("link", "route4", "route6", "nexthop")

    def poll(self) -> bool:
        """Take in what has happened, without waiting.  Raises SteeringError.

        Returns whether the groups, or where a default route leads, may be others.
        """
        before, messages = dict(self._routes), self._events.take()
        objects = self._objects
        if messages is None or any([self._makes_stale(kind, data) for kind, data in messages]):
            self._read_all()
        if messages is None or any(_moves_default(kind, data) for kind, data in messages):
            return True
        return before != self._routes or objects != self._objects

    def groups(self) -> dict[int, int]:
        """Interface → the number of its group, from 1 on; those that share no route are not in it."""
        return grouped([*self._routes.values(), *self._objects])

    # ------------------------------------------------------------------------------------------------ messages

    def _makes_stale(self, kind: int, data: bytes) -> bool:
        """Take in a message; whether everything has to be read anew."""
        if kind == DELLINK:
            # Its routes go without a word (fib_sync_down_dev()).
            gone = rtnetlink.link(data)
            return gone is not None and any(gone.ifindex in each for each in self._all())
        if kind >= NEWNEXTHOP:
            found = netlink.attributes(data, _OBJECT.size)
            return _NHA_GROUP in found or found.get(_NHA_ID, b"") in self._members
        if kind not in (NEWROUTE, DELROUTE):
            return False
        key, hops = _route(data)
        if kind == NEWROUTE and len(hops) > 1:
            self._routes[key] = hops
            return False
        # One of several next hops has gone (IPv6), the route, or what it was before.
        return key in self._routes

    def _all(self) -> Iterator[frozenset[int]]:
        yield from self._routes.values()
        yield from self._objects

    def _read_all(self) -> None:
        self._routes.clear()
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                found = rtnetlink.dump(rtnetlink.GETROUTE, ROUTE.pack(family, *bytes(7), 0))
            except FileNotFoundError:  # a kernel without that family
                continue
            for kind, data in found:
                if kind == NEWROUTE:
                    key, hops = _route(data)
                    if len(hops) > 1:
                        self._routes[key] = hops
        self._objects, self._members = _object_groups()


def _moves_default(kind: int, data: bytes) -> bool:
    """Of whatever table; a next hop by number may be a default route's."""
    if kind >= NEWNEXTHOP:
        return True
    return kind in (NEWROUTE, DELROUTE) and not ROUTE.unpack_from(data)[1]


def _route(data: bytes) -> tuple[_Key, frozenset[int]]:
    """Whose it is, and the interfaces of its next hops if it has several."""
    family, length, from_length, tos, table, _, _, _, flags = ROUTE.unpack_from(data)
    found = netlink.attributes(data, ROUTE.size)
    key = (
        family,
        length << 8 | from_length,
        tos,
        netlink.number(found, _PRIORITY),
        found.get(_TABLE, bytes([table])),
        found.get(_DST, b""),
    )
    hops = set()
    data, at = found.get(_MULTIPATH, b""), 0
    while at + _HOP.size <= len(data) and not flags & rtnetlink.CLONED:
        size, _, _, index = _HOP.unpack_from(data, at)
        if size < _HOP.size:
            break
        hops.add(index)
        at += size + 3 & ~3
    return key, frozenset(hops)


def _object_groups() -> tuple[list[frozenset[int]], frozenset[bytes]]:
    """Interfaces of groups of nexthop objects (ip-nexthop(8)), which routes may name by a number; their numbers."""
    try:
        found = rtnetlink.dump(rtnetlink.GETNEXTHOP, _OBJECT.pack(0, 0, 0, 0, 0))
    except FileNotFoundError:
        return [], frozenset()
    told = [netlink.attributes(data, _OBJECT.size) for kind, data in found if kind == NEWNEXTHOP]
    interfaces = {each.get(_NHA_ID, b""): each[_NHA_OIF] for each in told if _NHA_OIF in each}
    groups: list[frozenset[int]] = []
    numbers: set[bytes] = set()
    for each in told:
        members = each.get(_NHA_GROUP, b"")  # struct nexthop_grp: id (4), weight, 3 more bytes
        ids = [members[at : at + 4] for at in range(0, len(members), 8)]
        indices = {int.from_bytes(interfaces[one], "little") for one in ids if one in interfaces}
        numbers.update(ids, [each.get(_NHA_ID, b"")] if ids else ())
        if len(indices) > 1:
            groups.append(frozenset(indices))
    return groups, frozenset(numbers)


def grouped(sets: Iterable[frozenset[int]]) -> dict[int, int]:
    """Sets that have a member in common become one group; groups are numbered by their lowest members, from 1 on."""
    leader: dict[int, int] = {}

    def find(member: int) -> int:
        while leader.setdefault(member, member) != member:
            member = leader[member]
        return member

    for each in sets:
        first, *others = sorted(each)
        for other in others:
            low, high = sorted((find(first), find(other)))
            leader[high] = low
    numbers: dict[int, int] = {}
    return {member: numbers.setdefault(find(member), len(numbers) + 1) for member in sorted(leader)}
