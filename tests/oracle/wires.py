"""A node in a namespace, and at the other ends of its wires nobody but us: what comes out is what was sent in.

    clients ── out   node 192.168.50.1, fd00:50::1   pod1 … pod4 ── 10.244.1.11 … .14, fd00:10:244:1::11 …
                          (other nodes' pods, 10.244.2.0/24 and fd00:10:244:2::/64, are behind `out`)

The far ends have no address and no stack that answers: neighbours are written down on the node, and every answer is a
frame of the test's.  Processes of the node are raw sockets in its namespace.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from netns.lab import Host
from packets import CLIENT_MAC, ICMP, ICMP6, OUR_MAC, TCP, UDP, headers

PODS = ("pod1", "pod2", "pod3", "pod4")
POD = {
    4: {name: f"10.244.1.{10 + number}" for number, name in enumerate(PODS, 1)},
    6: {name: f"fd00:10:244:1::{10 + number}" for number, name in enumerate(PODS, 1)},
}
NODE = {4: "192.168.50.1", 6: "fd00:50::1"}
GATEWAY = {4: "192.168.50.100", 6: "fd00:50::100"}
POD_SIDE = {4: "10.244.1.1", 6: "fd00:10:244:1::1"}  # the node's address at every pod's wire
POD_PREFIX = {4: "10.244.1.0/24", 6: "fd00:10:244:1::/64"}
NODE_OWN = {4: {NODE[4], POD_SIDE[4]}, 6: {NODE[6], POD_SIDE[6]}}
QUIET_S = 0.04
LIMIT_S = 3.0
_OUTGOING = 4  # PACKET_OUTGOING
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT = 49, 50, 51, 52


@dataclass(frozen=True)
class Seen:
    """A packet at the far end of a wire, or handed to the node's own processes (`where` "node")."""

    where: str
    source: str
    destination: str
    protocol: int
    source_port: int  # of ICMP: its type
    destination_port: int  # of ICMP: its code
    ttl: int
    payload: bytes  # from the L4 header on

    @property
    def is_error(self) -> bool:
        """An ICMP error."""
        kinds = (3, 11) if self.protocol == ICMP else (1, 3)
        return self.protocol in (ICMP, ICMP6) and self.source_port in kinds

    @property
    def flags(self) -> int:
        return self.payload[13] if self.protocol == TCP else 0

    @property
    def mark(self) -> bytes:
        """What no translation changes: a TCP sequence number, the payload of others."""
        return self.payload[4:8] if self.protocol == TCP else self.payload[8:]

    def about(self) -> Seen:
        """Of an error: the packet that it embeds."""
        ethertype = b"\x08\x00" if self.protocol == ICMP else b"\x86\xdd"
        return seen(self.where, bytes(12) + ethertype + self.payload[8:])


def seen(where: str, frame: bytes) -> Seen:
    """Read an Ethernet frame with an IP packet."""
    l3, l4, protocol, _ = headers(frame)
    if frame[l3] >> 4 == 4:
        source, destination, ttl = frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20], frame[l3 + 8]
        end = l3 + struct.unpack_from(">H", frame, l3 + 2)[0]
    else:
        source, destination, ttl = frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40], frame[l3 + 7]
        end = l3 + 40 + struct.unpack_from(">H", frame, l3 + 4)[0]
    return _seen(where, source, destination, protocol, ttl, frame[l4:end])


def _seen(where: str, source: bytes, destination: bytes, protocol: int, ttl: int, payload: bytes) -> Seen:
    ports = (0, 0)
    if protocol in (TCP, UDP) and len(payload) >= 4:
        ports = struct.unpack_from(">HH", payload)
    elif protocol in (ICMP, ICMP6):
        ports = (payload[0], payload[1])
    addresses = (str(ip_address(source)), str(ip_address(destination)))
    return Seen(where, *addresses, protocol, *ports, ttl, payload)


class Wires:
    """The node and the ends of its wires."""

    def __init__(self) -> None:
        self.node, self.far = Host(), Host()
        try:
            self._build()
        except BaseException:
            self.node.close()
            self.far.close()
            raise
        self._sockets = {name: self.far.run(self._tap, name) for name in ("out", *PODS)}
        self._own = [
            self.node.run(self._own_socket, family, protocol)
            for family, protocols in (
                (socket.AF_INET, (TCP, UDP, ICMP)),
                (socket.AF_INET6, (TCP, UDP, ICMP6)),
            )
            for protocol in protocols
        ]
        self._raw = {
            4: self.node.run(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
            6: self.node.run(socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
        }

    def _build(self) -> None:
        node = self.node
        for scope in ("all", "default"):
            self.far.sysctl(f"ipv6/conf/{scope}/disable_ipv6", "1")
            node.sysctl(f"ipv6/conf/{scope}/accept_dad", "0")
            node.sysctl(f"ipv4/conf/{scope}/rp_filter", "0")
        node.sysctl("ipv4/ip_forward", "1")
        node.sysctl("ipv6/conf/all/forwarding", "1")
        for name, value in (("ratelimit", "0"), ("msgs_per_sec", "1000000"), ("msgs_burst", "1000000")):
            node.sysctl(f"ipv4/icmp_{name}", value)
        node.sysctl("ipv6/icmp/ratelimit", "0")
        near, far = (":".join(f"{byte:02x}" for byte in mac) for mac in (OUR_MAC, CLIENT_MAC))
        for name in ("out", *PODS):
            self.far.connect_to(node, name, name)
            self.far.sh(f"ip link set {name} address {far}")
            node.sh(f"ip link set {name} address {near}")
            for version in (4, 6):
                on_link = GATEWAY[version] if name == "out" else POD[version][name]
                own, length = (NODE, (24, 64)) if name == "out" else (POD_SIDE, (32, 128))
                prefix = length[version == 6]
                nodad = " nodad" if version == 6 else ""
                node.sh(f"ip -{version} addr add {own[version]}/{prefix} dev {name}{nodad}")
                if name != "out":
                    node.sh(f"ip -{version} route add {on_link} dev {name}")
                node.sh(f"ip neigh add {on_link} lladdr {far} dev {name} nud permanent")
        for version in (4, 6):
            node.sh(f"ip -{version} route add default via {GATEWAY[version]}")

    @staticmethod
    def _tap(name: str) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        opened.bind((name, 0x0003))
        opened.setblocking(False)
        return opened

    @staticmethod
    def _own_socket(family: socket.AddressFamily, protocol: int) -> socket.socket:
        opened = socket.socket(family, socket.SOCK_RAW, protocol)
        opened.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
        opened.setblocking(False)
        return opened

    # ------------------------------------------------------------------------------------------------ packets

    def send(self, where: str, frame: bytes) -> None:
        """Into the node from a wire, or by a process of the node's."""
        if where != "node":
            self._sockets[where].send(frame)
            return
        packet = frame[14:]
        version = packet[0] >> 4
        destination = packet[16:20] if version == 4 else packet[24:40]
        with contextlib.suppress(PermissionError):  # how a rule that drops tells the node's own processes
            self._raw[version].sendto(packet, (str(ip_address(destination)), 0))

    def collect(self, until: Iterable[bytes] = ()) -> list[Seen]:
        """What has come out, until packets with all these marks have, and then until nothing comes any more."""
        missing = set(until)
        got: list[Seen] = []
        limit = time.monotonic() + LIMIT_S
        quiet_since = time.monotonic()
        while time.monotonic() < limit and (missing or time.monotonic() - quiet_since < QUIET_S):
            new = self._drain()
            if new:
                quiet_since = time.monotonic()
                missing -= {each.mark for each in new}
                got += new
            else:
                time.sleep(0.004)
        assert not missing, "what should always come did not come"
        return got

    def _drain(self) -> list[Seen]:
        got = []
        for name, tap in self._sockets.items():
            while True:
                try:
                    frame, address = tap.recvfrom(4096)
                except BlockingIOError:
                    break
                if address[2] != _OUTGOING and frame[12:14] in (b"\x08\x00", b"\x86\xdd"):
                    got.append(seen(name, frame))
        for own in self._own:
            while True:
                try:
                    data, ancillary, _, address = own.recvmsg(4096, 256)
                except BlockingIOError:
                    break
                got.append(self._to_node(own, data, ancillary, address))
        return [each for each in got if not ip_address(each.destination).is_multicast]

    @staticmethod
    def _to_node(own: socket.socket, data: bytes, ancillary: list, address: tuple) -> Seen:
        if own.family == socket.AF_INET:
            return seen("node", bytes(12) + b"\x08\x00" + data)
        told = {kind: value for _, kind, value in ancillary}
        hops = struct.unpack("=i", told[_IPV6_HOPLIMIT])[0]
        source = ip_address(address[0].partition("%")[0]).packed
        return _seen("node", source, told[_IPV6_PKTINFO][:16], own.proto, hops, data)

    def nft(self, text: str) -> str:
        """Rules for the node's kernel; returns what nft prints."""
        words = ("nft", "-f", "-")
        done = self.node.run(
            lambda: subprocess.run(words, input=text, capture_output=True, text=True, check=False)
        )
        assert done.returncode == 0, f"{done.stderr}\n{text}"
        return done.stdout

    def close(self) -> None:
        for each in (*self._sockets.values(), *self._own, *self._raw.values()):
            each.close()
        self.node.close()
        self.far.close()
