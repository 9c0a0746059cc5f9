"""Which addresses are behind the interfaces of pods: kube-proxy's `detectLocalMode` by interface, as addresses.

Where pods hang on a bridge, its connected route names their prefix; where each has a veth of its own, a host route
names its address (Calico, kindnet, the clouds' CNIs).  So the routes say who is a pod, and tell of every change.
The node's own addresses within such a prefix are the node's: what it sends comes in through no interface.

One socket of its own: ten thousand routes to VIPs are nothing that `NodeWatch` should have to read.  Routes are taken
apart by hand, because nearly all of them are somebody else's; links are rare.

Source: rtnetlink(7), struct rtmsg and struct rtattr in <linux/rtnetlink.h>.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import collapse_addresses, ip_address, ip_network

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ..errors import SteeringError
from .keys import Address, Network

__all__ = ["PodRoutes", "without"]

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NEWROUTE, _DELROUTE, _GETROUTE, _GETLINK = 24, 25, 26, 18
_REQUEST_DUMP = 0x301
_DST, _OIF = 1, 4
_UNICAST, _CLONED = 1, 0x200
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_GROUPS = rtnl.RTMGRP_LINK | rtnl.RTMGRP_IPV4_ROUTE | rtnl.RTMGRP_IPV6_ROUTE
_BUFFER = 1 << 20
_PATIENCE_S = 5.0


class PodRoutes:
    """The networks behind the interfaces with the names that are wanted, in the process' network namespace."""

    def __init__(self, is_pods: Callable[[str], bool]) -> None:
        """Raises SteeringError if the kernel does not answer."""
        self._is_pods = is_pods
        self._behind: dict[int, set[Network]] = {}  # by interface index
        self._stale: set[int] = set()  # interfaces whose routes are to be read anew
        self._serials = itertools.count(1)
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)  # so that it looks at the interface
            self._socket.bind((0, _GROUPS))
            self._read_all()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def poll(self) -> bool:
        """Take in what has happened, without waiting; whether the networks may be others.  Raises SteeringError."""
        before = {index: set(networks) for index, networks in self._behind.items()}
        while True:
            try:
                for message in _messages(self._socket.recv(_BUFFER)):
                    self._take(message)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._read_all()
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
        self._ask(_GETLINK, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0))
        self._stale = set(self._behind)
        self._read_stale()

    def _read_stale(self) -> None:
        while self._stale:
            index = self._stale.pop()
            if index not in self._behind:
                continue
            self._behind[index].clear()
            for family in (socket.AF_INET, socket.AF_INET6):
                interface = _ATTRIBUTE.pack(8, _OIF) + struct.pack("=i", index)
                self._ask(_GETROUTE, _RTMSG.pack(family, *bytes(7), 0) + interface)

    def _ask(self, kind: int, body: bytes) -> None:
        """A dump; what happens meanwhile is taken in with it."""
        serial = next(self._serials)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, serial, 0) + body)
        while True:
            if not select.select([self._socket], [], [], _PATIENCE_S)[0]:
                raise SteeringError("the kernel does not say which routes there are")
            for message in _messages(self._socket.recv(_BUFFER)):
                _, answer, _, number, _ = _HEADER.unpack_from(message)
                if number != serial or answer not in (_NLMSG_ERROR, _NLMSG_DONE):
                    self._take(message)
                    continue
                (status,) = struct.unpack_from("=i", message, _HEADER.size)
                if status < 0 and not (kind == _GETROUTE and -status in (errno.ENODEV, errno.ENOENT)):
                    raise SteeringError(f"which routes there are cannot be read: {errno.errorcode[-status]}")
                return

    def _take(self, message: bytes) -> None:
        kind = _HEADER.unpack_from(message)[1]
        if kind in (_NEWROUTE, _DELROUTE):
            self._take_route(message, kind == _DELROUTE)
            return
        for link in MarshalRtnl().parse(message):
            if link.get("event") in ("RTM_NEWLINK", "RTM_DELLINK") and link["family"] == socket.AF_UNSPEC:
                self._take_link(link["index"], link.get("ifname") or "", link["event"] == "RTM_DELLINK")

    def _take_link(self, index: int, name: str, gone: bool) -> None:
        if gone or not self._is_pods(name):
            self._behind.pop(index, None)
            return
        # When it goes down its routes go without a word (fib_sync_down_dev()).
        self._behind.setdefault(index, set())
        self._stale.add(index)

    def _take_route(self, message: bytes, gone: bool) -> None:
        family, length, _, _, _, _, _, kind, flags = _RTMSG.unpack_from(message, _HEADER.size)
        attributes = _attributes(message, _HEADER.size + _RTMSG.size)
        index = int.from_bytes(attributes.get(_OIF, b""), "little")
        if index not in self._behind or kind != _UNICAST or flags & _CLONED or not length:
            return  # somebody else's, or the default route, which says nothing
        if gone:
            self._stale.add(index)  # another one may say the same
            return
        packed = attributes.get(_DST, b"").ljust(4 if family == socket.AF_INET else 16, b"\0")
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


def _messages(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + _HEADER.size <= len(data):
        (length,) = struct.unpack_from("=I", data, place)
        if length < _HEADER.size:
            return
        yield data[place : place + length]
        place += (length + 3) & ~3


def _attributes(message: bytes, place: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while place + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, place)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = message[place + _ATTRIBUTE.size : place + length]
        place += (length + 3) & ~3
    return found
