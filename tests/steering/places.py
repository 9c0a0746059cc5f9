"""A namespace with routes of every kind, and by which of its interfaces which pods may answer, in plain Python."""

from __future__ import annotations

import itertools
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TypeVar

from kuproxy.steering import program
from kuproxy.steering.bpf import Verdict
from kuproxy.steering.keys import ConfigBit
from kuproxy.steering.maps import Stats, SteeringMaps
from kuproxy.steering.namespace import PrivateNamespace
from kuproxy.steering.node import Interface
from kuproxy.steering.relations import Relations
from kuproxy.steering.targets import MapWriter, Targets, pod_keys, translated_keys, vip_keys
from steering import frames
from steering.frames import ICMP, ICMP6, TCP, UDP
from steering.model import Packet, decide

Result = TypeVar("Result")
MAC = bytes.fromhex("020000000042")  # of all interfaces, so that every frame is for the host
# By which interfaces the pods of a network may answer, in a namespace with the routes of `SETUP`. `port` is a port of
# `bridge`; `left` and `right` share a route of several next hops, `third` does so by nexthop objects.
PLACES = {
    "10.2.0.0/24": {"pod"},  # on the link
    "10.2.0.7/32": {"other"},  # a host route within it
    "10.3.0.0/24": {"bridge", "port"},
    "10.4.0.0/24": {"left", "right"},
    "10.5.0.0/24": {"uplink"},  # pods of another node, behind a gateway
    "10.6.0.0/24": set(),  # unreachable
    "10.7.0.0/24": set(),  # blackhole
    "10.8.0.1/32": set(),  # the node's own
    "0.0.0.0/0": {"uplink"},
    "10.9.0.0/24": {"third", "right"},
    "fd02::/64": {"pod"},
    "fd03::/64": {"bridge", "port"},
    "fd04::/64": {"left", "right"},
    "fd05::/64": {"uplink"},
    "fd06::/64": set(),
    "::/0": {"uplink"},
}
INTERFACES = ("pod", "other", "bridge", "port", "left", "right", "third", "uplink")
SETUP = f"""
link set lo up
link add bridge address {MAC.hex(":")} type bridge
link set port master bridge
link set bridge up
addr add 10.8.0.1/24 dev uplink
addr add fd08::1/64 dev uplink nodad
addr add 10.8.1.1/24 dev left
addr add 10.8.2.1/24 dev right
addr add 10.8.3.1/24 dev third
addr add fd08:1::1/64 dev left nodad
addr add fd08:2::1/64 dev right nodad
route add 10.2.0.0/24 dev pod
route add 10.2.0.7 dev other
route add 10.3.0.0/24 dev bridge
route add 10.4.0.0/24 nexthop dev left nexthop via 10.8.2.2 dev right
route add 10.5.0.0/24 via 10.8.0.2
route add unreachable 10.6.0.0/24
route add blackhole 10.7.0.0/24
route add default via 10.8.0.2
nexthop add id 1 via 10.8.3.2 dev third
nexthop add id 2 via 10.8.2.2 dev right
nexthop add id 3 group 1/2
route add 10.9.0.0/24 nhid 3
route add fd02::/64 dev pod
route add fd03::/64 dev bridge
route add fd04::/64 nexthop via fd08:1::2 dev left nexthop via fd08:2::2 dev right
route add fd05::/64 via fd08::2
route add unreachable fd06::/64
route add default via fd08::2 dev uplink
rule add from 198.51.100.9 lookup 100
route add 10.2.0.0/24 dev left table 100
"""
PODS = [
    "10.2.0.2", "10.2.0.7", "10.3.0.2", "10.4.0.2", "10.4.0.3", "10.5.0.2", "10.6.0.2", "10.7.0.2", "10.8.0.1",
    "203.0.113.5", "10.9.0.2", "10.9.0.3", "fd02::2", "fd03::2", "fd04::2", "fd05::2", "fd06::2", "2001:db8::5",
]  # fmt: skip
# The last ones are what clients of the other family are called.
CLIENTS = {
    4: ("198.51.100.1", "198.51.100.9", "192.0.0.7"),
    6: ("2001:db8:1::1", "2001:db8:1::9", "64:ff9b:1::c633:6401"),
}
TARGETS = Targets(
    vips=frozenset({(ip_network("10.96.0.10"), TCP, 80), (ip_network("fd96::10"), TCP, 80)}),
    pods=frozenset((ip_address(each), 0, 0) for each in PODS),
    translated=frozenset({ip_network("64:ff9b:1::/96"), ip_network("192.0.0.0/29")}),
)


def is_place_of(packet: Packet, interface: str) -> bool:
    if str(packet.destination) == "198.51.100.9" and packet.source in ip_network("10.2.0.0/24"):
        return interface in ("left", "right", "third")  # policy routing; the three share routes
    fitting = [each for each in map(ip_network, PLACES) if packet.source in each]
    places = PLACES[str(max(fitting, key=lambda each: each.prefixlen))]
    # `left`, `right` and `third` are one group: each shares a route with the next.
    shared = {"left", "right", "third"}
    return interface in (places | shared if places & shared else places)


class Rig:
    """Programs and maps in the namespace."""

    def __init__(self, stack: ExitStack, workers: int = 1, targets: Targets = TARGETS) -> None:
        self.targets = targets
        self.namespace = PrivateNamespace.create()
        stack.callback(self.namespace.close)
        self.index: dict[str, int] = {}
        self.run(self._set_up)
        self.maps = SteeringMaps(workers)
        stack.callback(self.maps.close)
        self.writer = MapWriter(self.maps)
        keys = (vip_keys(targets.vips), pod_keys(targets.pods), translated_keys(targets.translated))
        self.writer.apply([], itertools.chain(*keys))
        self.writer.set_config(ConfigBit.STRICT, targets.strict_replies)
        self.relations = self.run(lambda: Relations(self.maps.related))
        stack.callback(self.relations.close)
        self.sync()
        self.steer = program.steer(self.index["ku"], workers).load(self.maps.by_name())
        stack.callback(self.steer.close)
        self.guard = program.guard(self.index["ku"], workers).load(self.maps.by_name())
        stack.callback(self.guard.close)

    def run(self, function: Callable[[], Result]) -> Result:
        return self.namespace.run(function)

    def ip(self, *lines: str) -> None:
        for line in lines:
            family = ["-6"] if ":" in line and "nexthop add" not in line and not line.startswith("link") else []
            command = ["ip", *family, *line.split()]
            done = self.run(lambda: subprocess.run(command, capture_output=True, text=True, timeout=10, check=False))  # noqa: B023
            assert done.returncode == 0, (line, done.stderr)

    def _set_up(self) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)

        for name in ("ku", *(each for each in INTERFACES if each != "bridge")):
            ip("link", "add", name, "address", MAC.hex(":"), "type", "veth", "peer", "name", f"{name}-peer")
            ip("link", "set", f"{name}-peer", "up")
            ip("link", "set", name, "up")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        Path("/proc/sys/net/ipv4/conf/ku/forwarding").write_text("1")
        for line in SETUP.split("\n"):
            six = ["-6"] if ":" in line and line.startswith("route") else []
            if line:
                ip(*six, *line.split())
        for name in ("lo", "ku", *INTERFACES):
            self.index[name] = socket.if_nametoindex(name)

    def interfaces(self) -> list[Interface]:
        port = Interface(self.index["port"], "port", True, True, 1500, self.index["bridge"], "bridge")
        return [*(Interface(self.index[each], each, True, True, 1500) for each in INTERFACES if each != "port"), port]

    def sync(self) -> None:
        self.run(lambda: (self.relations.poll(), self.relations.sync(self.interfaces())))

    def outcome(self, data: bytes, interface: str) -> str:
        """By the counters; the verdict must say the same."""
        before = self.maps.read_stats()
        verdict = self.run(lambda: self.steer.test_run(data, self.index[interface])).verdict
        counted = Stats(*(after - old for after, old in zip(self.maps.read_stats(), before, strict=True)))
        ((outcome, number),) = [each for each in counted._asdict().items() if each[1]]
        assert number == 1
        assert verdict == (Verdict.NEXT if outcome in ("foreign", "refused") else Verdict.REDIRECT)
        return {"returned": "return"}.get(outcome, outcome)

    def check(self, data: bytes, interface: str) -> str:
        expected = decide(data, self.targets, frozenset(), interface, is_place_of=is_place_of)
        if expected == "refused" and interface == "port":
            expected = "foreign"  # the bridge will see it
        assert self.outcome(data, interface) == expected, (interface, data.hex())
        return expected


def all_kinds(pod: str, client: str) -> list[bytes]:
    """Packets in a pod's name: data, a reset, fragments, an echo's answer, an error about what went to it."""
    if ":" in pod:
        about = frames.ipv6(client, pod, TCP, frames.l4(TCP, 40000, 8080))
        bodies = [
            frames.ipv6(pod, client, TCP, frames.l4(TCP, 8080, 40000)),
            frames.ipv6(pod, client, UDP, frames.l4(UDP, 8080, 40000), [(60, 0, 0)]),
            frames.ipv6(pod, client, UDP, frames.l4(UDP, 8080, 40000), [(44, 0, 1)]),
            frames.ipv6(pod, client, UDP, bytes(16), [(44, 0, 8)]),
            frames.ipv6("2001:db8:ff::1", client, ICMP6, frames.error(about, 2)),
        ]
    else:
        about = frames.ipv4(client, pod, TCP, frames.l4(TCP, 40000, 8080))
        bodies = [
            frames.ipv4(pod, client, TCP, frames.l4(TCP, 8080, 40000)),
            frames.ipv4(pod, client, UDP, frames.l4(UDP, 8080, 40000), options=bytes(4)),
            frames.ipv4(pod, client, UDP, frames.l4(UDP, 8080, 40000), fragment=0x2000),
            frames.ipv4(pod, client, UDP, bytes(16), fragment=8),
            frames.ipv4("203.0.113.1", client, ICMP, frames.error(about, 3, 4)),
        ]
    return [MAC + each[6:] for each in bodies]
