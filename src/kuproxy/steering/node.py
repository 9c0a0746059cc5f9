"""What the node looks like: its interfaces and addresses, kept up to date by netlink events.

Two sockets: events come unasked on one, whose descriptor an event loop can wait for; requests go over another.
When the kernel had to throw events away (ENOBUFS), everything is read anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from . import netlink, rtnetlink
from .keys import Address
from .links import KU0, read_sysctl
from .rtnetlink import ADDRESS, DELADDR, DELLINK, GETADDR, GETLINK, LINK, NEWADDR, NEWLINK

__all__ = ["Interface", "NodeWatch", "check_node"]

_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_IFF_UP = 0x1
# Not yet, or never, usable: IFA_F_DADFAILED, IFA_F_TENTATIVE.
_UNUSABLE = 0x08 | 0x40
_SCOPE_UNIVERSE = 0
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _INFO_SLAVE_KIND = 3, 4, 10, 18, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
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


class NodeWatch(rtnetlink.Followed):
    """The interfaces and usable addresses of the calling thread's network namespace."""

    def __init__(self, requests: IPRoute) -> None:
        """Raises OSError or SteeringError."""
        self._requests = requests
        self.interfaces: dict[int, Interface] = {}
        self._owned: dict[_Owned, None] = {}  # in the order in which the kernel tells them
        super().__init__("link", "address4", "address6")

    def poll(self) -> bool:
        """Take in what has happened, without waiting. Returns whether anything has.  Raises SteeringError."""
        messages = self._events.take()
        if messages is None:
            self._read_all()
        for kind, data in messages or ():
            self._take(kind, data)
        return messages is None or bool(messages)

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
            (route, *_) = self._requests.route("get", dst=_ELSEWHERE[family])
            source = ip_address(route.get("prefsrc") or "::")
        except (NetlinkError, ValueError):
            source = None
        if source in candidates:
            return source
        return candidates[0] if candidates else None

    def _read_all(self) -> None:
        self.interfaces.clear()
        self._owned.clear()
        for request, body in ((GETLINK, LINK.pack(*[0] * 5)), (GETADDR, ADDRESS.pack(*[0] * 5))):
            for kind, data in rtnetlink.dump(request, body):
                self._take(kind, data)

    def _take(self, kind: int, data: bytes) -> None:
        if kind in (NEWLINK, DELLINK):
            link = rtnetlink.link(data)
            if link is not None:
                self._take_link(link, kind == DELLINK)
        elif kind in (NEWADDR, DELADDR):
            self._take_address(data, kind == DELADDR)

    def _take_link(self, link: rtnetlink.Link, gone: bool) -> None:
        index, link_type, flags, found = link
        if gone:
            self.interfaces.pop(index, None)
            self._owned = {each: None for each in self._owned if each.ifindex != index}
            return
        self.interfaces[index] = Interface(
            ifindex=index,
            name=netlink.text(found.get(_IFLA_IFNAME, b"")),
            ethernet=link_type in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
            up=bool(flags & _IFF_UP),
            mtu=netlink.number(found, _IFLA_MTU),
            master=netlink.number(found, _IFLA_MASTER),
            member_of=netlink.text(netlink.nested(found, _IFLA_LINKINFO).get(_INFO_SLAVE_KIND, b"")),
        )

    def _take_address(self, data: bytes, gone: bool) -> None:
        _, _, flags, scope, index = ADDRESS.unpack_from(data)
        found = netlink.attributes(data, ADDRESS.size)
        # Of a point-to-point interface, IFA_ADDRESS is the other end.
        packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
        if len(packed) not in (4, 16):
            return  # of a family that we know nothing of
        owned = _Owned(index, ip_address(packed), scope == _SCOPE_UNIVERSE)
        if gone or flags & _UNUSABLE:
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
