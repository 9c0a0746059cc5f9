"""Which addresses are behind the interfaces of pods: kube-proxy's `detectLocalMode` by interface, as addresses.

Where pods hang on a bridge, its connected route names their prefix; where each has a veth of its own, a host route
names its address (Calico, kindnet, the clouds' CNIs).  So the routes say who is a pod, and tell of every change.
The node's own addresses within such a prefix are the node's: what it sends comes in through no interface.

Events come over a socket of its own: ten thousand routes to VIPs are nothing that `NodeWatch` should have to read.

Source: rtnetlink(7).
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import collapse_addresses, ip_address, ip_network

from ..errors import SteeringError
from . import netlink, rtnetlink
from .keys import Address, Network
from .rtnetlink import DELLINK, DELROUTE, LINK, NEWLINK, NEWROUTE, ROUTE

__all__ = ["PodRoutes", "without"]

_IFLA_IFNAME, _RTA_DST, _RTA_OIF = 3, 1, 4


class PodRoutes(rtnetlink.Followed):
    """The networks behind the interfaces with the names that are wanted, in the calling thread's network namespace."""

    def __init__(self, is_pods: Callable[[str], bool]) -> None:
        """Raises OSError, or SteeringError if the kernel does not answer."""
        self._is_pods = is_pods
        self._behind: dict[int, set[Network]] = {}  # by interface index
        self._stale: set[int] = set()  # interfaces whose routes are to be read anew
        super().__init__("link", "route4", "route6")

    def poll(self) -> bool:
        """Take in what has happened, without waiting; whether the networks may be others.  Raises SteeringError."""
        before = {index: set(networks) for index, networks in self._behind.items()}
        messages = self._events.take()
        if messages is None:
            self._read_all()
        for kind, data in messages or ():
            self._take(kind, data)
        self._read_stale()
        return before != self._behind

    def networks(self, own: Iterable[Address] = ()) -> tuple[Network, ...]:
        """What is behind them, less the node's own addresses; as few prefixes as can say it, in order."""
        found = set(itertools.chain(*self._behind.values()))
        result: list[Network] = []
        for version in (4, 6):
            result += without(
                (each for each in found if each.version == version),
                [each for each in own if each.version == version],
            )
        return tuple(result)

    # ------------------------------------------------------------------------------------------------ messages

    def _read_all(self) -> None:
        self._behind.clear()
        for kind, data in rtnetlink.dump(rtnetlink.GETLINK, LINK.pack(0, 0, 0, 0, 0)):
            self._take(kind, data)
        self._read_stale()

    def _read_stale(self) -> None:
        while self._stale:
            index = self._stale.pop()
            if index not in self._behind:
                continue
            self._behind[index].clear()
            through = struct.pack("=HHi", 8, _RTA_OIF, index)
            for family in (socket.AF_INET, socket.AF_INET6):
                body = ROUTE.pack(family, *bytes(7), 0) + through
                try:
                    found = rtnetlink.dump(rtnetlink.GETROUTE, body, strict=True)
                except FileNotFoundError:  # a kernel without that family
                    continue
                except SteeringError as error:
                    if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENODEV:
                        raise
                    continue  # the interface has gone by now, and its end is on its way
                for kind, data in found:
                    self._take(kind, data)

    def _take(self, kind: int, data: bytes) -> None:
        if kind in (NEWROUTE, DELROUTE):
            self._take_route(data, kind == DELROUTE)
        elif kind in (NEWLINK, DELLINK):
            told = rtnetlink.link(data)
            if told is not None:
                name = netlink.text(told.attributes.get(_IFLA_IFNAME, b""))
                self._take_link(told.ifindex, name, kind == DELLINK)

    def _take_link(self, index: int, name: str, gone: bool) -> None:
        if gone or not self._is_pods(name):
            self._behind.pop(index, None)
            return
        # When it goes down its routes go without a word (fib_sync_down_dev()).
        self._behind.setdefault(index, set())
        self._stale.add(index)

    def _take_route(self, data: bytes, gone: bool) -> None:
        family, length, _, _, _, _, _, kind, flags = ROUTE.unpack_from(data)
        found = netlink.attributes(data, ROUTE.size)
        index = netlink.number(found, _RTA_OIF)
        if index not in self._behind or kind != rtnetlink.UNICAST or flags & rtnetlink.CLONED or not length:
            return  # somebody else's, or the default route, which says nothing
        if gone:
            self._stale.add(index)  # another one may say the same
            return
        packed = found.get(_RTA_DST, b"").ljust(4 if family == socket.AF_INET else 16, b"\0")
        address = ip_address(packed)
        if not (address.is_link_local or address.is_multicast):
            self._behind[index].add(ip_network((packed, length)))


def without(networks: Iterable[Network], own: Iterable[Address]) -> list[Network]:
    """Networks of one family less some addresses, in order."""
    left: list[Network] = list(collapse_addresses(networks))  # type: ignore[type-var]
    for address in own:
        alone = ip_network(address)
        for holder in [each for each in left if address in each]:
            left.remove(holder)
            left += holder.address_exclude(alone) if holder != alone else ()  # type: ignore[arg-type]
    return sorted(left)

