"""Routes to the VIPs, so that processes on the node itself reach them.

A packet made on the node enters at no interface, so no ingress program sees it.  A route through ku0 brings it up
instead, with an address of the node as its source: the pod's reply must find the way back here.  All routes
lead over one next hop, so that a prefix of millions of addresses needs one neighbour entry.  They have the MTU of the
interfaces behind us, not ku0's: a datagram of 4 kB that comes back from ku0 whole would not fit on its way to the pod,
and the complaint about it would name the pod's address, of which the sender knows nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from .keys import Address, Network

__all__ = ["VipRoutes"]

PROTOCOL = 0x6B  # marks the routes as ours: `ip route show proto 107` ("k")
_ONLINK = 4  # RTNH_F_ONLINK: the next hop is on the link although no address says so
_EEXIST = 17
_LEAST_MTU = {4: 68, 6: 1280}  # RFC 791, RFC 8200


class VipRoutes:
    """The set of routed networks. They vanish with ku0; nothing has to be removed at the end."""

    def __init__(
        self, netlink: IPRoute, ifindex: int, next_hops: Mapping[int, IPv4Address | IPv6Address]
    ) -> None:
        self._netlink, self._ifindex, self._next_hops = netlink, ifindex, next_hops
        self._networks: set[Network] = set()
        self._wide: set[Network] = set()
        self._sources: dict[int, Address | None] = {4: None, 6: None}
        self._mtu = 0
        for family in (4, 6):
            self._networks |= set(self._left(family))
        self._wide |= {each for each in self._networks if each.prefixlen < each.max_prefixlen}
        self.refused: dict[Network, str] = {}  # what could not be routed, and why

    def _left(self, family: int) -> Iterator[Network]:
        """Routes through our interface that are there already: a predecessor's."""
        kind, everything = ((AF_INET, "0.0.0.0/0"), (AF_INET6, "::/0"))[family == 6]
        for message in self._netlink.route("dump", family=kind, oif=self._ifindex):
            if message["proto"] == PROTOCOL and message.get("oif") == self._ifindex:
                destination = message.get("dst") or everything.partition("/")[0]
                yield ip_network(f"{destination}/{message['dst_len']}")

    @property
    def networks(self) -> frozenset[Network]:
        return frozenset(self._networks)

    @property
    def wide(self) -> frozenset[Network]:
        """Those of more than one address."""
        return frozenset(self._wide)

    def set_sources(self, sources: Mapping[int, Address | None]) -> None:
        """The node's address per family (4, 6) as seen by pods; existing routes follow a change."""
        for family in (4, 6):
            if self._sources[family] != sources.get(family):
                self._sources[family] = sources.get(family)
                for network in [each for each in self._networks if each.version == family]:
                    self._request("replace", network)

    def set_mtu(self, mtu: int) -> None:
        """The largest packet that reaches every pod, 0 if nothing is known; existing routes follow a change."""
        if self._mtu != mtu:
            self._mtu = mtu
            for network in self._networks:
                self._request("replace", network)

    def change(self, remove: Iterable[Network], add: Iterable[Network]) -> None:
        """Only what differs is asked of the kernel; a network that somebody else routes already is left alone."""
        for network in remove:
            self.refused.pop(network, None)
            if network in self._networks:
                self._networks.discard(network)
                self._wide.discard(network)
                self._request("del", network)
        for network in add:
            if network not in self._networks and self._request("add", network):
                self._networks.add(network)
                if network.prefixlen < network.max_prefixlen:
                    self._wide.add(network)

    def _request(self, command: str, network: Network) -> bool:
        next_hop = self._next_hops.get(network.version)
        if next_hop is None:
            self.refused[network] = f"the node has no IPv{network.version}"
            return False
        arguments = {
            "dst": str(network),
            "gateway": str(next_hop),
            "oif": self._ifindex,
            "flags": _ONLINK,
            "proto": PROTOCOL,
        }
        source = self._sources[network.version]
        if source is not None and command != "del":
            arguments["prefsrc"] = str(source)
        if self._mtu and command != "del":
            arguments["metrics"] = {"mtu": max(self._mtu, _LEAST_MTU[network.version])}
        try:
            self._netlink.route(command, **arguments)
        except NetlinkError as error:
            if command != "del":  # a route that is gone is what we wanted
                theirs = "a route of somebody else is there"
                self.refused[network] = theirs if error.code == _EEXIST else os.strerror(error.code)
            return False
        self.refused.pop(network, None)
        return True
