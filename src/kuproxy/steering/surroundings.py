"""What lies around this node, as far as shortcuts depend on it: links, neighbours, queues, routes, and what filters.

Events say that something has changed, and then everything is read anew: some milliseconds.  Events that change nothing
(a neighbour that was confirmed, a link's counters) are kept from becoming noise here.  What sends no events (iptables,
IPVS, IPsec, programs at an egress) is looked at with every turn: `look`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from . import netlink, rtnetlink
from .bpf import attached_programs
from .fib import Fib
from .filters import NETLINK_NETFILTER, NFT_GROUP, filters
from .links import read_sysctl
from .rtnetlink import DELLINK, DELNEIGH, GETLINK, GETNEIGH, GETQDISC, LINK, NEWLINK, NEWNEIGH, NEWQDISC

__all__ = ["LinkView", "Surroundings"]

_GROUPS = ("link", "neighbour", "tc", "route4", "rule4", "route6", "rule6")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NETNSID = 1, 3, 4, 10, 18, 37
_INFO_KIND = 1
_NDA_DST, _NDA_LLADDR, _TCA_KIND = 1, 2, 1
_IFF_UP, _IFF_NOARP, _IFF_LOWER_UP = 0x1, 0x80, 0x10000
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # include/net/neighbour.h
_ETHERNET = 1
_FAMILIES = (4, 6)


class LinkView(NamedTuple):
    """An interface."""

    name: str
    kind: str  # "veth", "bridge", ...; empty: a device
    ethernet: bool
    up: bool  # with a carrier
    arp: bool
    mtu: int
    mtu6: int
    master: int  # the bridge, bond or VRF that it belongs to, 0: none
    elsewhere: bool  # its other end is in another network namespace
    mac: bytes


class Surroundings:
    """Of the calling thread's network namespace."""

    def __init__(self) -> None:
        """Raises OSError or SteeringError."""
        self.links: dict[int, LinkView] = {}
        self.neighbours: dict[tuple[int, bytes], bytes] = {}  # of veths: (interface, address) → MAC, where it is valid
        self.queued: frozenset[int] = frozenset()  # interfaces whose packets meet a queueing discipline
        self.fibs: dict[int, Fib] = {}
        self.filters: tuple[str, ...] = ()
        self._programs: dict[int, int] = {}  # at the egress of interfaces that were asked about
        self._events = rtnetlink.events(*_GROUPS)
        self._rules: netlink.Events | None = None
        with suppress(OSError):  # a kernel without netfilter
            self._rules = netlink.Events(NETLINK_NETFILTER, NFT_GROUP)
        try:
            self.read()
        except BaseException:
            self.close()
            raise

    def filenos(self) -> list[int]:
        """Readable when `poll` has something to do."""
        return [each.fileno() for each in (self._events, self._rules) if each is not None]

    def close(self) -> None:
        """Idempotent."""
        for each in (self._events, self._rules):
            if each is not None:
                each.close()

    # --- what happens ---------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Take in events, without waiting; whether something has changed, and `read` is due."""
        changed = False
        messages = self._events.take()
        for kind, data in messages or ():
            if kind in (NEWLINK, DELLINK):
                changed |= self._take_link(kind, data)
            elif kind in (NEWNEIGH, DELNEIGH):
                changed |= self._take_neighbour(kind, data)
            else:
                changed = True
        if self._rules is not None:
            rules = self._rules.take()
            changed |= rules is None or bool(rules)
        return changed or messages is None

    def look(self) -> bool:
        """Look at what sends no events; whether it has changed."""
        before = self.filters, dict(self._programs)
        self.filters = tuple(filters())
        for index in list(self._programs):
            self._programs[index] = attached_programs(index) if index in self.links else 0
        return before != (self.filters, self._programs)

    def read(self) -> None:
        """Everything anew.  Raises SteeringError."""
        self.links.clear()
        self.neighbours.clear()
        for kind, data in rtnetlink.dump(GETLINK, LINK.pack(0, 0, 0, 0, 0)):
            self._take_link(kind, data)
        for kind, data in rtnetlink.dump(GETNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0)):
            self._take_neighbour(kind, data)
        self.queued = frozenset(_queued(rtnetlink.dump(GETQDISC, struct.pack("=Bxxxi12x", 0, 0))))
        self.fibs = {family: Fib(family) for family in _FAMILIES}
        self._programs = {}
        self.filters = tuple(filters())

    def programs(self, ifindex: int) -> int:
        """How many BPF programs stand at the egress of an interface (TCX)."""
        if ifindex not in self._programs:
            self._programs[ifindex] = attached_programs(ifindex)
        return self._programs[ifindex]

    def _take_link(self, kind: int, data: bytes) -> bool:
        told = rtnetlink.link(data)
        if told is None:
            return False
        index, link_type, flags, found = told
        if kind == DELLINK:
            return self.links.pop(index, None) is not None
        name = netlink.text(found.get(_IFLA_IFNAME, b""))
        view = LinkView(
            name,
            netlink.text(netlink.nested(found, _IFLA_LINKINFO).get(_INFO_KIND, b"")),
            link_type == _ETHERNET,
            flags & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP,
            not flags & _IFF_NOARP,
            netlink.number(found, _IFLA_MTU),
            int(read_sysctl(f"ipv6/conf/{name}/mtu") or 0),
            netlink.number(found, _IFLA_MASTER),
            _IFLA_NETNSID in found,
            found.get(_IFLA_ADDRESS, b""),
        )
        before = self.links.get(index)
        self.links[index] = view
        return before != view

    def _take_neighbour(self, kind: int, data: bytes) -> bool:
        _, index, state, _, _ = struct.unpack_from("=BxxxiHBB", data)
        link = self.links.get(index)
        if link is None or link.kind != "veth" or not link.elsewhere:
            return False
        found = netlink.attributes(data, 12)
        key = index, found.get(_NDA_DST, b"")
        before = self.neighbours.pop(key, None)
        if kind == NEWNEIGH and state & _NUD_VALID and len(found.get(_NDA_LLADDR, b"")) == 6:
            self.neighbours[key] = found[_NDA_LLADDR]
        return before != self.neighbours.get(key)


def _queued(messages: Iterable[tuple[int, bytes]]) -> Iterable[int]:
    """Interfaces that have another discipline than none, a filter's hook included."""
    for kind, data in messages:
        if kind == NEWQDISC:
            (index,) = struct.unpack_from("=4xi", data)
            if netlink.text(netlink.attributes(data, 20).get(_TCA_KIND, b"")) != "noqueue":
                yield index
