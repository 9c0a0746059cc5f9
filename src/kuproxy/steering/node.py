"""What the node looks like: its interfaces and addresses, kept up to date by netlink events.

Two sockets: events come unasked on one, whose descriptor an event loop can wait for; requests go over another.
When the kernel had to throw events away (ENOBUFS), everything is read anew.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from .keys import Address
from .links import KU0, read_sysctl

__all__ = ["Interface", "NodeWatch", "check_node"]

_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_IFF_UP = 0x1
# Not yet, or never, usable: IFA_F_DADFAILED, IFA_F_TENTATIVE.
_UNUSABLE = 0x08 | 0x40
_SCOPE_UNIVERSE = 0
_GROUPS = rtnl.RTMGRP_LINK | rtnl.RTMGRP_IPV4_IFADDR | rtnl.RTMGRP_IPV6_IFADDR
_BUFFER = 1 << 20
# Documentation addresses (RFC 5737, RFC 3849): routed by the default route if by any.
_ELSEWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}


class Interface(NamedTuple):
    ifindex: int
    name: str
    ethernet: bool  # frames have an Ethernet header; loopback has one too
    up: bool
    mtu: int
    master: int = 0  # interface index of the bridge, bond or VRF that it belongs to, 0: none
    member_of: str = ""  # what kind of interface that is


class _Owned(NamedTuple):
    ifindex: int
    address: Address
    universal: bool  # scope global


class NodeWatch:
    """The interfaces and usable addresses of the calling thread's network namespace."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self.interfaces: dict[int, Interface] = {}
        self._owned: dict[_Owned, None] = {}  # in the order in which the kernel tells them
        self._events = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            self._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._events.bind((0, _GROUPS))  # first, so that nothing is missed between the two
            self._read_all()
        except BaseException:
            self._events.close()
            raise

    def fileno(self) -> int:
        return self._events.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._events.close()

    def poll(self) -> bool:
        """Take in what has happened, without waiting. Returns whether anything has."""
        heard: list[bytes] = []
        happened = lost = False
        while True:
            try:
                heard.append(self._events.recv(_BUFFER))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
            happened = True
        if lost:
            # Only now: until its queue is empty the kernel throws further events away without another word
            # (NETLINK_S_CONGESTED), and what was queued is older than what is read.
            self._read_all()
            return True
        for data in heard:
            for message in MarshalRtnl().parse(data):
                self._take(message)
        return happened

    @property
    def addresses(self) -> frozenset[Address]:
        """Addresses at which others, or the node itself, reach the node.

        Not loopback addresses: node ports are refused there.  Not IPv6's link-local ones: the kernel does not
        forward packets that come from such addresses, so a translated one would go nowhere.
        """
        own = {index for index, each in self.interfaces.items() if each.name == KU0}
        return frozenset(
            each.address
            for each in self._owned
            if each.ifindex not in own
            and not each.address.is_loopback
            and not (each.address.version == 6 and each.address.is_link_local)
        )

    def primary_address(self, family: int) -> Address | None:
        """The node's address of one family (4 or 6): the source of its default route, else its first global one."""
        candidates = [
            each.address
            for each in self._owned
            if each.universal and each.address.version == family and each.address in self.addresses
        ]
        try:
            (route, *_) = self._netlink.route("get", dst=_ELSEWHERE[family])
            source = ip_address(route.get("prefsrc") or "::")
        except (NetlinkError, ValueError):
            source = None
        if source in candidates:
            return source
        return candidates[0] if candidates else None

    def _read_all(self) -> None:
        self.interfaces.clear()
        self._owned.clear()
        for message in self._netlink.link("dump"):
            self._take(message)
        for message in self._netlink.addr("dump"):
            self._take(message)

    def _take(self, message: Any) -> None:
        event = message.get("event")
        if event in ("RTM_NEWLINK", "RTM_DELLINK"):
            self._take_link(message, event == "RTM_DELLINK")
        elif event in ("RTM_NEWADDR", "RTM_DELADDR"):
            self._take_address(message, event == "RTM_DELADDR")

    def _take_link(self, message: Any, gone: bool) -> None:
        if message["family"] != socket.AF_UNSPEC:
            return  # a bridge tells about its ports with the same message
        index = message["index"]
        if gone:
            self.interfaces.pop(index, None)
            self._owned = {each: None for each in self._owned if each.ifindex != index}
            return
        self.interfaces[index] = Interface(
            ifindex=index,
            name=message.get("ifname") or "",
            ethernet=message["ifi_type"] in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
            up=bool(message["flags"] & _IFF_UP),
            mtu=message.get("mtu") or 0,
            master=message.get("master") or 0,
            member_of=message.get(("linkinfo", "slave_kind")) or "",
        )

    def _take_address(self, message: Any, gone: bool) -> None:
        # Of a point-to-point interface, IFA_ADDRESS is the other end.
        text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
        owned = _Owned(message["index"], ip_address(text), message["scope"] == _SCOPE_UNIVERSE)
        if gone or message["flags"] & _UNUSABLE:
            self._owned.pop(owned, None)
        else:
            self._owned[owned] = None


def check_node(families: Iterable[int] = (4, 6)) -> list[str]:
    """Warnings about settings of the node that would stop translated packets, for families (4, 6) that have VIPs.

    To be asked while ku0 is there. Nothing is changed: the node's settings are its owner's.
    """
    warnings = []
    for family in sorted(set(families)):
        name = f"ipv{family}"
        if family == 6 and read_sysctl("ipv6/conf/all/disable_ipv6") != "0":
            warnings.append("IPv6 is disabled on this node: IPv6 VIPs will not work")
            continue
        forwards = read_sysctl(f"{name}/conf/all/forwarding") == "1"
        if family == 4:
            forwards = read_sysctl("ipv4/conf/ku0/forwarding") == "1"
        elif read_sysctl("ipv6/conf/ku0/force_forwarding") == "1":
            forwards = True
        if not forwards:
            warnings.append(
                f"IPv{family} forwarding is off: translated packets will be dropped; "
                f"set net.{name}.conf.all.forwarding = 1"
            )
    return warnings
