"""Which way a rewritten packet may take out of the node: the rules that know where a shortcut is safe.

The way into the node at ku0 is always right: the kernel routes, filters and counts.  A shortcut passes by all that, so
it may be taken only where nothing of it has anything to say:

- Both shortcuts: no rules of netfilter, IPVS or IPsec (unless somebody says that those are no concern of services'
  traffic); no rules of routing but the kernel's own; one next hop, on a link with Ethernet and neighbours, outside any
  VRF, that is up; and the destination is not this node.
- Into a pod's namespace (`redirect_peer`) besides: the link is a veth whose other end is in another namespace and which
  is no bridge's port; the destination is on that link, and its MAC address is known; and nothing stands at the veth's
  egress here, neither a queueing discipline nor somebody's BPF program.  Otherwise the packet leaves by the link by
  which it would leave anyhow (`redirect_neigh`), through its egress, to a next hop whose MAC address the kernel finds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .cache_layout import CHOICE, Way
from .fib import Hop, NoHop
from .links import KU0
from .surroundings import LinkView, Surroundings

__all__ = ["Choice", "Ways", "packed"]

_LONGEST = 65535
_AF = {4: socket.AF_INET, 16: socket.AF_INET6}


class Choice(NamedTuple):
    """A way; of Way.ROUTE also why there is no shorter one."""

    way: Way
    record: bytes = bytes(CHOICE.itemsize)  # CHOICE: what rows say of it
    why: str = ""


ROUTE = Choice(Way.ROUTE)


def _choice(way: Way, ifindex: int, mtu: int, next_hop: bytes = bytes(20), macs: bytes = bytes(12)) -> Choice:
    return Choice(way, struct.pack("=BxHI20s12s", way, mtu, ifindex, next_hop, macs))


def packed(choices: Sequence[Choice]) -> np.ndarray:
    """CHOICE[n]"""
    return np.frombuffer(b"".join(each.record for each in choices), CHOICE)


class Ways:
    """The choices for destinations, in the surroundings as they were when `forget` was last called."""

    def __init__(
        self,
        around: Surroundings,
        own_programs: Callable[[int], int],
        *,
        into_pods: bool = True,
        past_filters: bool = False,
    ) -> None:
        """`own_programs`: how many programs of ours stand at the egress of an interface; they need no such packets.

        `into_pods`: namespaces may be entered. `past_filters`: netfilter, IPVS and IPsec do not matter.
        """
        self._around, self._own_programs = around, own_programs
        self._into_pods, self._past_filters = into_pods, past_filters
        self._known: dict[bytes, Choice] = {}

    def forget(self) -> None:
        """The surroundings have changed."""
        self._known.clear()

    def to(self, address: bytes) -> Choice:
        """To an address in network byte order, of 4 or 16 bytes."""
        choice = self._known.get(address)
        if choice is None:
            choice = self._known[address] = self._choose(address)
        return choice

    def _choose(self, address: bytes) -> Choice:
        around = self._around
        if around.filters and not self._past_filters:
            return ROUTE._replace(why=" and ".join(around.filters))
        hop = around.fibs[4 if len(address) == 4 else 6].hop(address)
        if isinstance(hop, NoHop):
            return ROUTE._replace(why=hop.why)
        link = around.links.get(hop.ifindex)
        why = self._unfit(link)
        if why or link is None:
            return ROUTE._replace(why=why)
        mtu = link.mtu if len(address) == 4 else min(link.mtu, link.mtu6)
        mtu = min(mtu, hop.mtu or mtu, _LONGEST)
        macs = self._peer(address, hop, link)
        if macs:
            return _choice(Way.PEER, hop.ifindex, mtu, macs=macs)
        gateway = hop.gateway or address
        next_hop = struct.pack("=I16s", _AF[len(gateway)], gateway)  # struct bpf_redir_neigh
        return _choice(Way.NEIGHBOUR, hop.ifindex, mtu, next_hop)

    def _unfit(self, link: LinkView | None) -> str:
        if link is None or not link.up:
            return "the route's link is down"
        if link.name == KU0 or not link.ethernet or not link.arp:
            return "a link without neighbours"
        master = self._around.links.get(link.master)
        if link.kind == "vrf" or (master is not None and master.kind == "vrf"):
            return "a VRF"
        return ""

    def _peer(self, address: bytes, hop: Hop, link: LinkView) -> bytes:
        """Ethernet destination and source; empty where the other end must not be entered."""
        if not self._into_pods or link.kind != "veth" or not link.elsewhere or link.master or hop.gateway:
            return b""
        index = hop.ifindex
        if index in self._around.queued or self._around.programs(index) != self._own_programs(index):
            return b""
        mac = self._around.neighbours.get((index, address))
        return mac + link.mac if mac is not None and len(link.mac) == 6 else b""
