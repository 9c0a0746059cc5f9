"""What the kernel tells about links, addresses and routes: numbers and layouts of rtnetlink's messages.

Source: rtnetlink(7); include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, fib_rules.h, nexthop.h.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from . import netlink

__all__ = [
    "ADDRESS",
    "CLONED",
    "DELADDR",
    "DELLINK",
    "DELNEIGH",
    "DELROUTE",
    "GETADDR",
    "GETLINK",
    "GETNEIGH",
    "GETNEXTHOP",
    "GETQDISC",
    "GETROUTE",
    "GETRULE",
    "LINK",
    "NEWADDR",
    "NEWLINK",
    "NEWNEIGH",
    "NEWNEXTHOP",
    "NEWQDISC",
    "NEWROUTE",
    "NEWRULE",
    "ROUTE",
    "UNICAST",
    "Followed",
    "Link",
    "dump",
    "events",
    "link",
]

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, GETRULE = 32, 34
NEWQDISC, GETQDISC = 36, 38
NEWNEXTHOP, GETNEXTHOP = 104, 106
_GROUPS = {  # enum rtnetlink_groups
    "link": 1,
    "neighbour": 3,
    "tc": 4,
    "address4": 5,
    "route4": 7,
    "rule4": 8,
    "address6": 9,
    "route6": 11,
    "rule6": 19,
    "nexthop": 32,
}
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
ADDRESS = struct.Struct("=4BI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
UNICAST, CLONED = 1, 0x200  # types and flags of routes: RTN_UNICAST, RTM_F_CLONED


class Link(NamedTuple):
    ifindex: int
    type: int  # ARPHRD_*
    flags: int  # IFF_*
    attributes: dict[int, bytes]  # IFLA_*


def link(data: bytes) -> Link | None:
    """Of a message about a link; None where it is a bridge's view of its port."""
    family, link_type, index, flags, _ = LINK.unpack_from(data)
    if family != socket.AF_UNSPEC:
        return None
    return Link(index, link_type, flags, netlink.attributes(data, LINK.size))


def dump(kind: int, body: bytes, *, strict: bool = False) -> list[tuple[int, bytes]]:
    """`netlink.dump` of this family."""
    return netlink.dump(socket.NETLINK_ROUTE, kind, body, strict=strict)


def events(*groups: str) -> netlink.Events:
    """Of these groups.  Raises OSError."""
    return netlink.Events(socket.NETLINK_ROUTE, sum(1 << _GROUPS[each] - 1 for each in groups))


class Followed:
    """Something of the calling thread's network namespace that is read once, and then followed by events."""

    def __init__(self, *groups: str) -> None:
        """Raises OSError or SteeringError."""
        self._events = events(*groups)  # first, so that nothing is missed
        try:
            self._read_all()
        except BaseException:
            self.close()
            raise

    def _read_all(self) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        """Readable when events have come."""
        return self._events.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._events.close()
