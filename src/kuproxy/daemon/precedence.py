"""Whom packets go to first: a destination that is a VIP's or a node port's counts before anything else about a packet.

So a flow that is cached must be given back when one of its two destinations becomes some VIP's, and no flow may be
cached whose replies go to one (kp-lookup, steps 3 to 5).  `Destinations` knows what steering was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from kuproxy.codes import PROTOCOLS_WITH_PORTS
from kuproxy.steering.keys import Address, KeyBit
from kuproxy.steering.targets import NodePort, Vip

__all__ = ["Destinations", "of_addresses"]

_ANY = (0, *PROTOCOLS_WITH_PORTS)
_MANY = 256  # new ones at once: then whatever is cached may be theirs


class Destinations:
    """VIPs and node ports that are asked for."""

    def __init__(self, vips: Iterable[Vip] = (), node_ports: Iterable[NodePort] = ()) -> None:
        self._vips: set[Vip] = set()
        self._node_ports: set[NodePort] = set()
        self._single: set[bytes] = set()  # of VIPs with one address: see `_single_key`
        self._wide: set[Vip] = set()
        self._mixed: np.ndarray | None = None
        self.change((), vips, (), node_ports)

    def change(
        self,
        vips_before: Iterable[Vip],
        vips: Iterable[Vip],
        ports_before: Iterable[NodePort],
        ports: Iterable[NodePort],
    ) -> tuple[set[Vip], set[NodePort]]:
        """The former are asked for no more, but for those among the latter; returns what has not been there before."""
        vips_now = {each for each in vips if each[1] in _ANY}
        vips_gone = {each for each in vips_before if each[1] in _ANY} - vips_now
        ports_now = set(ports)
        new = vips_now - self._vips, ports_now - self._node_ports
        self._vips = (self._vips - vips_gone) | vips_now
        self._node_ports = (self._node_ports - (set(ports_before) - ports_now)) | ports_now
        if vips_gone or new[0]:
            self._mixed = None
        for vip in vips_gone:
            self._wide.discard(vip)
            self._single.discard(_single_key(vip))
        for vip in new[0]:
            if vip[0].prefixlen == vip[0].max_prefixlen:
                self._single.add(_single_key(vip))
            else:
                self._wide.add(vip)
        return new

    def vips_of(self, keys: np.ndarray) -> np.ndarray:
        """int64[n]: how many VIPs packets with these keys, KEY[n], could go to."""
        found = np.zeros(len(keys), np.int64)
        perhaps = np.flatnonzero(np.isin(_mixed(keys["destination"]), self._addresses()))
        found[perhaps] = self._singles_of(keys[perhaps])
        for vip in self._wide:
            found += meets(keys, vip)
        return found

    def _addresses(self) -> np.ndarray:
        """uint64: the addresses of VIPs that have one, mixed."""
        if self._mixed is None:
            data = np.frombuffer(b"".join(self._single), _END)
            self._mixed = np.unique(_mixed(data["address"]))
        return self._mixed

    def _singles_of(self, keys: np.ndarray) -> np.ndarray:
        ends = np.zeros(len(keys), _END)
        ends["family"], ends["address"] = keys["family"], keys["destination"]
        ends["port"], ends["protocol"] = keys["destination_port"], keys["protocol"]
        found = np.zeros(len(keys), np.int64)
        for port, protocol in ((True, True), (True, False), (False, True), (False, False)):
            some = ends.copy()
            if not port:
                some["port"] = 0
            if not protocol:
                some["protocol"] = 0
            data, size = some.tobytes(), _END.itemsize
            single = self._single
            found += np.array([data[at : at + size] in single for at in range(0, len(data), size)], bool)
        return found

    def are_node_ports(self, keys: np.ndarray, addresses: Iterable[Address]) -> np.ndarray:
        """bool[n]: do packets with these keys, KEY[n], go to a node port at one of these addresses of the node?"""
        at_node = _is_one_of(keys["destination"], keys["family"], addresses)
        asked = [
            any((6 if family else 4, each, port) in self._node_ports for each in (protocol, 0))
            for family, protocol, port in zip(
                keys["family"].tolist(), keys["protocol"].tolist(), keys["destination_port"].tolist(), strict=True
            )
        ]
        return at_node & np.array(asked, bool)

    @staticmethod
    def become(keys: np.ndarray, vips: Collection[Vip], node_ports: Collection[NodePort]) -> np.ndarray:
        """bool[n]: do packets with these keys go to one of these, which are new?  With very many of them, all do."""
        if len(vips) + len(node_ports) > _MANY:
            return np.ones(len(keys), bool)
        found = np.zeros(len(keys), bool)
        for vip in vips:
            found |= meets(keys, vip)
        for family, protocol, port in node_ports:
            found |= (
                (keys["family"] == (KeyBit.IPV6 if family == 6 else 0))
                & (keys["destination_port"] == port)
                & ((keys["protocol"] == protocol) | (protocol == 0))
            )
        return found


_END = np.dtype([("family", "u1"), ("address", "u1", 16), ("port", ">u2"), ("protocol", "u1")])


def _mixed(addresses: np.ndarray) -> np.ndarray:
    """uint64[n] from uint8[n, 16]: different for most addresses that differ."""
    words = np.ascontiguousarray(addresses).view(np.uint64).reshape(len(addresses), 2)
    return words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]


def _single_key(vip: Vip) -> bytes:
    network, protocol, port = vip
    end = np.zeros(1, _END)
    end["family"] = KeyBit.IPV6 if network.version == 6 else 0
    end["address"] = np.frombuffer(network.network_address.packed.rjust(16, b"\0"), np.uint8)
    end["port"], end["protocol"] = port, protocol
    return end.tobytes()


def meets(keys: np.ndarray, vip: Vip) -> np.ndarray:
    """bool[n]: do packets with these keys, KEY[n], go to this VIP?"""
    network, protocol, port = vip
    six = network.version == 6
    address = np.frombuffer(network.network_address.packed.rjust(16, b"\0"), np.uint8)
    mask = np.frombuffer(network.netmask.packed.rjust(16, b"\xff"), np.uint8)
    found = (keys["family"] == (KeyBit.IPV6 if six else 0)) & (keys["destination"] & mask == address).all(axis=1)
    if protocol:
        found &= keys["protocol"] == protocol
    if port:
        found &= keys["destination_port"] == port
    return np.asarray(found)


def of_addresses(keys: np.ndarray, addresses: Iterable[Address]) -> np.ndarray:
    """bool[n]: do packets with these keys, KEY[n], come from one of these addresses?"""
    return _is_one_of(keys["source"], keys["family"], addresses)


def _is_one_of(places: np.ndarray, families: np.ndarray, addresses: Iterable[Address]) -> np.ndarray:
    found = np.zeros(len(places), bool)
    for address in addresses:
        packed = np.frombuffer(address.packed.rjust(16, b"\0"), np.uint8)
        family = KeyBit.IPV6 if address.version == 6 else 0
        found |= (families == family) & (places == packed).all(axis=1)
    return found
