"""The veth pair between the node and the workers: ku0 on the node, ku1 in the private namespace.

What the BPF programs redirect to ku0 arrives on ku1, where the workers read it.  What the workers send on ku1
enters the node at ku0, and the node routes it like any other packet.  Addressed to `KU0_MAC`, please: the kernel
ignores frames for others.

Only ku0's own settings are touched, never the node's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ..errors import SteeringError
from ..keeper.vault import Vault
from .bpf import AttachType, Link, LoadedProgram
from .namespace import PrivateNamespace

__all__ = ["KU0", "KU0_MAC", "KU1", "KU1_MAC", "NEXT_HOP4", "NEXT_HOP6", "VethPair", "is_left", "read_sysctl"]

KU0, KU1 = "ku0", "ku1"
# Locally administered (bit 1 of the first byte); the middle spells "ku".
KU0_MAC, KU1_MAC = "02:00:6b:75:00:00", "02:00:6b:75:00:01"
MTU = 65535  # whatever comes in anywhere goes through, GSO frames of 64 KiB included

# Addresses of ku1 as a next hop; nobody else sees them. Permanent neighbours: no ARP, no neighbour discovery.
NEXT_HOP4, NEXT_HOP6 = IPv4Address("169.254.107.117"), IPv6Address("fe80::6b75:1")
# With rp_filter on, an interface without an address accepts only what is routed back through itself
# (`__fib_validate_source()`, no_addr). Scope "host" keeps this one from ever being chosen as a source.
_OWN4 = "169.254.107.116"
_SCOPE_HOST = 254

# Written before the interface comes up. Path below /proc/sys/net: value; missing ones are skipped.
_SYSCTLS = {
    "ipv4/conf/ku0/rp_filter": "2",  # the greater of `all` and this one counts: loose even where `all` is strict
    "ipv4/conf/ku0/accept_local": "1",  # packets that the node itself sent come back rewritten
    "ipv4/conf/ku0/forwarding": "1",  # what enters here is forwarded, even on a node that else does not route
    "ipv4/conf/ku0/send_redirects": "0",
    "ipv4/conf/ku0/accept_redirects": "0",
    "ipv6/conf/ku0/force_forwarding": "1",  # the same for IPv6 (Linux 6.17)
    "ipv6/conf/ku0/addr_gen_mode": "1",  # none: no link-local address, hence no noise about it
    "ipv6/conf/ku0/accept_dad": "0",
    "ipv6/conf/ku0/accept_ra": "0",
    "ipv6/conf/ku0/accept_redirects": "0",
    "ipv6/conf/ku0/autoconf": "0",
    "ipv6/conf/ku0/router_solicitations": "0",
}
_IFF_UP, _IFF_NOARP, _IFF_MULTICAST = 0x1, 0x80, 0x1000
_GSO_MAX_SEGS = 65535  # the kernel's default
# include/uapi/linux/ethtool.h, sockios.h
_ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM = 0x16, 0x17
_SIOCETHTOOL = 0x8946
_STALE_PATIENCE_S = 3.0
_DROP, _GUARD = "link/ku1", "link/ku0"  # in the vault


class VethPair:
    """ku0 and ku1, from creation to deletion, with the programs that keep their two ends clean."""

    def __init__(self, netlink: IPRoute, namespace: PrivateNamespace, queues: int, vault: Vault) -> None:
        """Create them, or take over those of a predecessor (`is_left`)."""
        self._netlink, self._namespace, self._vault = netlink, namespace, vault
        self.ifindex = 0
        self._always_split = False
        self._ends: dict[str, Link] = {}  # by name in the vault
        if {_DROP, _GUARD} <= set(vault.names()) and _exists(KU0):  # the namespace has been taken already
            self.ifindex = socket.if_nametoindex(KU0)
            for name in (_DROP, _GUARD):
                self._ends[name] = Link.adopt(vault.take(name), self.ifindex, AttachType.TCX_EGRESS)
            return
        _wait_until_gone(KU0)
        namespace.run(_without_ipv6)
        self._create(queues)
        try:
            self._configure_node_side()
        except BaseException:
            self.close()
            raise

    def _create(self, queues: int) -> None:
        peer = {
            "ifname": KU1,
            "net_ns_fd": self._namespace.fd,
            "address": KU1_MAC,
            "mtu": MTU,
            "num_rx_queues": queues,
            "num_tx_queues": queues,
        }
        try:
            self._netlink.link(
                "add",
                ifname=KU0,
                kind="veth",
                address=KU0_MAC,
                mtu=MTU,
                num_rx_queues=queues,
                num_tx_queues=queues,
                peer=peer,
            )
        except NetlinkError as error:
            raise SteeringError(f"creating the interfaces {KU0} and {KU1}: {_reason(error)}") from error
        self.ifindex = socket.if_nametoindex(KU0)

    def _configure_node_side(self) -> None:
        for path, value in _SYSCTLS.items():
            _write_sysctl(path, value)
        self._ask("link", "set", index=self.ifindex, flags=_IFF_NOARP, change=_IFF_NOARP | _IFF_MULTICAST)
        self._ask("addr", "add", index=self.ifindex, address=_OWN4, prefixlen=32, scope=_SCOPE_HOST)
        self._ask("link", "set", index=self.ifindex, flags=_IFF_UP, change=_IFF_UP)
        for next_hop in self.next_hops().values():
            self._ask(
                "neigh", "replace", dst=str(next_hop), lladdr=KU1_MAC, ifindex=self.ifindex, state="permanent"
            )

    def split_segments(self, split: bool) -> None:
        """Let the kernel split GSO frames before they come up (or not, as in the beginning).

        A frame of several segments cannot enter a tunnel: virtio_net_hdr has no words for segments inside GRE, IPIP or
        UDP, and packet sockets refuse what it cannot say. With `gso_max_segs` 1 `netif_skb_features()` takes
        segmentation from ku0's features for every frame with more, so that the kernel splits it on its way out of
        ku0, whoever redirected it there. Then TCP on this node builds no larger frames towards ku0, either.
        """
        split = split or self._always_split
        self._ask("link", "set", index=self.ifindex, gso_max_segs=1 if split else _GSO_MAX_SEGS)

    def finish_packets(self) -> None:
        """Let the kernel compute every checksum and split every segment before a packet leaves ku0, for good.

        AF_XDP has no words for unfinished packets.  Without checksum offload among ku0's features
        `validate_xmit_skb()` completes what local senders have left open, whoever redirected it there.
        """
        self._always_split = True
        self.split_segments(True)
        try:
            _ethtool(KU0, _ETHTOOL_STXCSUM, 0)
            on = _ethtool(KU0, _ETHTOOL_GTXCSUM, 0)
        except OSError as error:
            raise SteeringError(f"checksum offload of {KU0}: {error.strerror}") from error
        if on:
            raise SteeringError(f"checksum offload of {KU0} cannot be switched off")

    def next_hops(self) -> dict[int, IPv4Address | IPv6Address]:
        """Family (4, 6) → the address through which routes lead to ku1. Without 6 where the node has none."""
        hops: dict[int, IPv4Address | IPv6Address] = {4: NEXT_HOP4}
        if read_sysctl("ipv6/conf/ku0/disable_ipv6") == "0":
            hops[6] = NEXT_HOP6
        return hops

    def bring_up_far_side(self, drop: LoadedProgram) -> None:
        """Let packets through to ku1, once the program stands at its ingress that ends them there."""

        def bring_up() -> Link:
            index = socket.if_nametoindex(KU1)
            link = Link(drop, index, AttachType.TCX_INGRESS)
            with IPRoute() as netlink:
                netlink.bind(groups=0)
                netlink.link("set", index=index, state="up")
            return link

        if _DROP not in self._ends:
            self._keep(_DROP, self._namespace.run(bring_up))

    def guard(self, program: LoadedProgram) -> None:
        """Let this program stand at ku0's egress, in the place of a former one."""
        if _GUARD in self._ends:
            self._ends[_GUARD].update(program)
        else:
            self._keep(_GUARD, Link(program, self.ifindex, AttachType.TCX_EGRESS))

    def _keep(self, name: str, link: Link) -> None:
        self._ends[name] = link
        self._vault.keep({name: link.fd})

    def close(self) -> None:
        """Delete the pair, with all its routes. Idempotent."""
        for name, link in self._ends.items():
            link.close()
            self._vault.drop(name)
        self._ends.clear()
        if self.ifindex:
            with suppress(NetlinkError):  # gone already
                self._netlink.link("del", index=self.ifindex)
            self.ifindex = 0

    def _ask(self, what: str, command: str, **arguments: Any) -> None:
        try:
            getattr(self._netlink, what)(command, **arguments)
        except NetlinkError as error:
            raise SteeringError(f"{what} {command} on {KU0}: {_reason(error)}") from error


def is_left(vault: Vault) -> bool:
    """Whether a predecessor has left a pair that still stands."""
    names = set(vault.names())
    return {_DROP, _GUARD, "namespace"} <= names and _exists(KU0)


def _ethtool(name: str, command: int, value: int) -> int:
    """ethtool(8) by ioctl, for commands with one number; returns it as the kernel left it. Raises OSError."""
    argument = ctypes.create_string_buffer(struct.pack("=2I", command, value), 8)
    request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, request)
    return int(struct.unpack("=2I", argument.raw)[1])


def _wait_until_gone(name: str) -> None:
    """The kernel removes a dead process's namespace in the background; a fresh start may come too early."""
    deadline = time.monotonic() + _STALE_PATIENCE_S
    while _exists(name):
        if time.monotonic() > deadline:
            raise SteeringError(f"there is an interface {name} already: is another kuproxy running here?")
        time.sleep(0.05)


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _without_ipv6() -> None:
    for scope in ("all", "default"):
        _write_sysctl(f"ipv6/conf/{scope}/disable_ipv6", "1")


def _sysctl(path: str) -> Path:
    """Containers see a /proc/sys that cannot be written; what is mounted elsewhere shows the caller's network too."""
    return Path(os.environ.get("KUPROXY_PROC_SYS_NET", "/proc/sys/net"), path)


def read_sysctl(path: str) -> str:
    """A value below /proc/sys/net in the calling thread's namespace, "" when this kernel does not have it."""
    try:
        return _sysctl(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _write_sysctl(path: str, value: str) -> None:
    if read_sysctl(path) in ("", value):
        return
    try:
        _sysctl(path).write_text(value, encoding="ascii")
    except OSError as error:
        raise SteeringError(f"{_sysctl(path)} = {value}: {error.strerror}") from error


def _reason(error: NetlinkError) -> str:
    hint = "; CAP_NET_ADMIN (or root) is needed" if error.code == 1 else ""
    return f"{os.strerror(error.code)}{hint}"
