"""Where this node would send a packet, as far as that is simple: one table after the other, longest prefix, one hop.

What routing can do besides (rules beyond the kernel's own, several next hops, sources, types of service, encapsulation)
is not repeated here: `Fib.hop` says that it is so, and leaves it to the kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple

from . import netlink, rtnetlink

__all__ = ["Fib", "Hop", "NoHop"]

# include/uapi/linux/rtnetlink.h, fib_rules.h
_HEAD = rtnetlink.ROUTE  # and struct fib_rule_hdr
_DST, _OIF, _GATEWAY, _PRIORITY, _METRICS, _MULTIPATH, _TABLE, _VIA, _ENCAP, _NH_ID = 1, 4, 5, 6, 8, 9, 15, 18, 22, 30
_METRIC_MTU = 2
_DEAD, _LINKDOWN = 1, 16
_LOCAL, _MAIN, _DEFAULT = 255, 254, 253
_RULE_PRIORITY, _RULE_SUPPRESS, _RULE_TABLE, _RULE_PROTOCOL = 6, 14, 15, 21
_TO_TABLE = 1
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_BITS = {4: 32, 6: 128}
MOST_ROUTES = 20_000  # a table of the whole Internet is not read again at each of its changes


class Hop(NamedTuple):
    """One next hop; `gateway` is in network byte order, empty: the destination itself. `mtu` 0: the interface's."""

    ifindex: int
    gateway: bytes
    mtu: int


class NoHop(NamedTuple):
    """Why there is nothing simple to say."""

    why: str


class _Route(NamedTuple):
    metric: int
    hop: Hop | NoHop


class Fib:
    """Of one family (4 or 6), as it was when it was read."""

    def __init__(self, family: int) -> None:
        """Raises SteeringError."""
        self._bits = _BITS[family]
        self._odd = ""  # what keeps everything from being simple
        # By table, by prefix length (the longest first), by prefix.
        self._tables: dict[int, dict[int, dict[int, _Route]]] = {}
        self._order: tuple[int, ...] = ()
        request = _HEAD.pack(_AF[family], *[0] * 8)
        self._read_rules(rtnetlink.dump(rtnetlink.GETRULE, request))
        if not self._odd:
            self._read_routes(rtnetlink.dump(rtnetlink.GETROUTE, request))

    def _read_rules(self, messages: Iterable[tuple[int, bytes]]) -> None:
        """The kernel's own are a look into the tables local, main and (IPv4's) default; others are policy."""
        order = []
        for kind, data in messages:
            if kind != rtnetlink.NEWRULE:
                continue
            _, destination, source, tos, table, _, _, action, flags = _HEAD.unpack_from(data)
            found = netlink.attributes(data, _HEAD.size)
            plain = not (destination or source or tos or flags) and action == _TO_TABLE
            plain &= found.keys() <= {_RULE_PRIORITY, _RULE_SUPPRESS, _RULE_TABLE, _RULE_PROTOCOL}
            plain &= found.get(_RULE_SUPPRESS, b"\xff" * 4) == b"\xff" * 4
            order.append((netlink.number(found, _RULE_PRIORITY), netlink.number(found, _RULE_TABLE, table), plain))
        order.sort()
        self._order = tuple(table for _, table, _ in order)
        if not all(plain for *_, plain in order) or self._order not in ((_LOCAL, _MAIN, _DEFAULT), (_LOCAL, _MAIN)):
            self._odd = "policy routing"

    def _read_routes(self, messages: list[tuple[int, bytes]]) -> None:
        if len(messages) > MOST_ROUTES:
            self._odd = f"more than {MOST_ROUTES} routes"
            return
        for kind, data in messages:
            if kind != rtnetlink.NEWROUTE:
                continue
            _, length, from_length, tos, table, _, _, route_type, flags = _HEAD.unpack_from(data)
            found = netlink.attributes(data, _HEAD.size)
            table = netlink.number(found, _TABLE, table)
            if flags & rtnetlink.CLONED or table not in self._order:
                continue
            prefix = int.from_bytes(found.get(_DST, b""), "big") >> (self._bits - length) if length else 0
            odd = "routes by source or type of service" if from_length or tos else ""
            route = _Route(netlink.number(found, _PRIORITY), _hop(found, route_type, flags, odd))
            self._enter(self._tables.setdefault(table, {}).setdefault(length, {}), prefix, route)
        self._tables = {
            table: dict(sorted(lengths.items(), reverse=True)) for table, lengths in self._tables.items()
        }

    @staticmethod
    def _enter(routes: dict[int, _Route], prefix: int, route: _Route) -> None:
        """The lowest metric counts; where two have it, they share the load."""
        there = routes.get(prefix)
        if there is None or route.metric < there.metric:
            routes[prefix] = route
        elif route.metric == there.metric:
            routes[prefix] = _Route(route.metric, NoHop("several next hops"))
        if there is not None and isinstance(there.hop, NoHop) and there.hop.why.startswith("routes by"):
            routes[prefix] = _Route(min(route.metric, there.metric), there.hop)

    def hop(self, address: bytes) -> Hop | NoHop:
        """To an address in network byte order, of 4 or 16 bytes."""
        if self._odd:
            return NoHop(self._odd)
        number = int.from_bytes(address, "big")
        for table in self._order:
            for length, routes in self._tables.get(table, {}).items():
                route = routes.get(number >> (self._bits - length))
                if route is not None:
                    return route.hop
        return NoHop("no route")


def _hop(found: dict[int, bytes], route_type: int, flags: int, odd: str) -> Hop | NoHop:
    if odd:
        return NoHop(odd)
    if route_type != rtnetlink.UNICAST:
        return NoHop("not forwarded")
    if _MULTIPATH in found or _NH_ID in found:
        return NoHop("several next hops")
    if _ENCAP in found or _VIA in found:
        return NoHop("encapsulation")
    if flags & (_DEAD | _LINKDOWN):
        return NoHop("the route's link is down")
    mtu = netlink.number(netlink.nested(found, _METRICS), _METRIC_MTU)
    return Hop(netlink.number(found, _OIF), found.get(_GATEWAY, b""), mtu)
