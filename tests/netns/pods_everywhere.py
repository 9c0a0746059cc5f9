"""A node with pods of every kind, none of whose interfaces is marked, and `ku daemon` with a flow cache on it.

                      node ────── lan0 ────── other
    client ── client0      ────── lan1 ──────       rpod0 ── rpod   behind the other node, by routes
                      pod0 ── pod                   vpod0 ── vpod   behind the other node, through VXLAN
                      cni0 ── bpod  (a bridge with one port)

The node has one route with two next hops to `rpod`; the other node sends everything back by `lan1`.  The client is
10.1.0.2 and fd01::2, pod number n 10.2.n.2 and fd02:n::2; its VIP is 10.96.1.n and fd96::n, TCP 80 (to 5001) and
UDP 7 (to 7007), where it echoes what it gets.  10.96.2.1 and fd97::1 lead to `pod` by its address of the other family.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kuproxy.client import Client
from kuproxy.demo.topology import Host, remove_stale
from kuproxy.explain.packet import five_tuple, frame_of
from netns.test_daemon import Daemon
from netns.world import _warm, listener

PREFIX = "kuforged"
NAMES = ("client", "node", "other", "pod", "bpod", "rpod", "vpod")
PODS = {"pod": 1, "bpod": 2, "rpod": 3, "vpod": 4}
CLIENT = {4: "10.1.0.2", 6: "fd01::2"}
ACROSS = {4: "10.96.2.1", 6: "fd97::1"}  # VIPs with a pod of the other family
TCP_PORT, UDP_PORT = 5001, 7007
_LINKS = [  # (name there, host, name here, host)
    ("eth0", "client", "client0", "node"),
    ("lan0", "other", "lan0", "node"),
    ("lan1", "other", "lan1", "node"),
    ("eth0", "pod", "pod0", "node"),
    ("eth0", "bpod", "bpod0", "node"),
    ("eth0", "rpod", "rpod0", "other"),
    ("eth0", "vpod", "vpod0", "other"),
]
_SETUP = """
client addr add 10.1.0.2/24 dev eth0
client addr add fd01::2/64 dev eth0
client route add default via 10.1.0.1
client route add default via fd01::1
node addr add 10.1.0.1/24 dev client0
node addr add fd01::1/64 dev client0
node addr add 10.9.0.1/24 dev lan0
node addr add 10.9.1.1/24 dev lan1
node addr add fd09:0::1/64 dev lan0
node addr add fd09:1::1/64 dev lan1
node addr add 10.2.1.1/24 dev pod0
node addr add fd02:1::1/64 dev pod0
node link add cni0 type bridge
node link set cni0 up
node link set bpod0 master cni0
node addr add 10.2.2.1/24 dev cni0
node addr add fd02:2::1/64 dev cni0
node link add vxlan0 type vxlan id 42 dstport 8472 local 10.9.0.1 remote 10.9.0.2 dev lan0
node link set vxlan0 up
node addr add 10.10.0.1/24 dev vxlan0
node addr add fd0a::1/64 dev vxlan0
node route add 10.2.3.0/24 nexthop via 10.9.0.2 nexthop via 10.9.1.2
node route add fd02:3::/64 nexthop via fd09:0::2 nexthop via fd09:1::2
node route add 10.2.4.0/24 via 10.10.0.2
node route add fd02:4::/64 via fd0a::2
other addr add 10.9.0.2/24 dev lan0
other addr add 10.9.1.2/24 dev lan1
other addr add fd09:0::2/64 dev lan0
other addr add fd09:1::2/64 dev lan1
other addr add 10.2.3.1/24 dev rpod0
other addr add fd02:3::1/64 dev rpod0
other addr add 10.2.4.1/24 dev vpod0
other addr add fd02:4::1/64 dev vpod0
other link add vxlan0 type vxlan id 42 dstport 8472 local 10.9.0.2 remote 10.9.0.1 dev lan0
other link set vxlan0 up
other addr add 10.10.0.2/24 dev vxlan0
other addr add fd0a::2/64 dev vxlan0
other route add default via 10.9.1.1
other route add default via fd09:1::1
other rule add from 10.2.4.0/24 lookup 7
other rule add from fd02:4::/64 lookup 7
other route add 10.1.0.0/16 via 10.10.0.1 table 7
other route add fd01::/16 via fd0a::1 table 7
"""


class Everywhere:
    """The hosts, the servers in the pods, and the daemon on the node."""

    def __init__(self, stack: ExitStack) -> None:
        remove_stale(PREFIX)
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}-")))
        self.hosts: dict[str, Host] = {}
        for name in NAMES:
            self.hosts[name] = Host(f"{PREFIX}-{name}")
            stack.callback(self.hosts[name].close)
        self.client, self.node = self.hosts["client"], self.hosts["node"]
        self._connect()
        for name in PODS:
            stack.enter_context(listener(self.hosts[name], TCP_PORT, _echo))
            stack.enter_context(_datagrams(self.hosts[name]))

    def _connect(self) -> None:
        for there, host, here, node in _LINKS:
            self.ip(node, f"link add {here} type veth peer name {there} netns {self.hosts[host].name}")
            self.ip(host, f"link set {there} up")
            self.ip(node, f"link set {here} up")
        for name in ("node", "other"):
            self.hosts[name].call(_let_it_route)
        lines = _SETUP.strip().splitlines()
        for name, number in PODS.items():
            for family, bits in ((4, 24), (6, 64)):
                gateway = f"10.2.{number}.1" if family == 4 else f"fd02:{number}::1"
                lines.append(f"{name} addr add {address(name, family)}/{bits} dev eth0")
                lines.append(f"{name} route add default via {gateway}")
        for name in NAMES:
            self.ip(name, *(line.partition(" ")[2] for line in lines if line.startswith(f"{name} ")))

    def ip(self, name: str, *lines: str) -> None:
        """ip(8) in a host; all lines must succeed, those of IPv4 first."""
        for six in (False, True):
            batch = "\n".join(
                f"{line} nodad" if six and line.startswith("addr") else line for line in lines if ("::" in line) is six
            )
            command = ["ip", "-n", self.hosts[name].name, *(["-6"] if six else []), "-batch", "-"]
            done = subprocess.run(command, input=batch, capture_output=True, text=True, timeout=10, check=False)
            assert done.returncode == 0, (name, batch, done.stderr)

    def start(self, stack: ExitStack) -> None:
        """The daemon, with a VIP for each pod."""
        _warm()
        self.daemon = Daemon(self)  # type: ignore[arg-type]
        stack.callback(self.daemon.notified.close)
        self.daemon.settings.write_text(
            f'state_directory = "{self.directory}/state"\nworkers = 2\n[api]\nsocket = "{self.daemon.socket}"\n'
            '[cache]\nflow_cache = "on"\n'
        )
        self.daemon.start()
        stack.callback(self.daemon.process.kill)
        lines = []
        for name in PODS:
            for family, bits in ((4, 32), (6, 128)):
                for protocol, port, target in (("tcp", 80, TCP_PORT), ("udp", 7, UDP_PORT)):
                    prefix = f"{vip(name, family)}/{bits} protocol {protocol} port {port}"
                    lines += [f"ku vip {prefix} target_port {target}", f"ku pod {prefix} {address(name, family)}"]
        for prefix, pod in ((f"{ACROSS[4]}/32", address("pod", 6)), (f"{ACROSS[6]}/128", address("pod", 4))):
            words = f"{prefix} protocol tcp port 80"
            lines += [f"ku vip {words} target_port {TCP_PORT} nat{6 if '.' in prefix else 4}", f"ku pod {words} {pod}"]
        self.run("\n".join(lines))

    def run(self, text: str) -> dict[str, Any]:
        """Lines of the command language, without a process for each."""
        return dict(Client(str(self.daemon.socket)).run(text))

    def shown(self) -> dict[str, Any]:
        """`show ku`."""
        (shown,) = self.run("show ku")["shows"]
        return dict(shown)

    def refused(self) -> int:
        return int(self.shown()["replies"]["refused"])

    def flows(self) -> dict[int, dict[str, Any]]:
        """By the client's port."""
        told = Client(str(self.daemon.socket)).request("GET", "/v1/flows?limit=1000")["flows"]
        return {each["client_port"]: each for each in told}

    def comes_up(self, source: str, destination: str) -> str:
        """What `ku explain` tells of a segment's way up."""
        data = frame_of(five_tuple("tcp", source, destination, "ack"))
        return str(Client(str(self.daemon.socket)).request("POST", "/v1/explain", {"frame": data.hex()})["comes_up"])


@contextmanager
def everywhere() -> Iterator[Everywhere]:
    """All of it, running; whatever happens, it ends."""
    with ExitStack() as stack:
        made = Everywhere(stack)
        made.start(stack)
        yield made
        made.daemon.stop()


def address(pod: str, family: int) -> str:
    return f"10.2.{PODS[pod]}.2" if family == 4 else f"fd02:{PODS[pod]}::2"


def vip(pod: str, family: int) -> str:
    return f"10.96.1.{PODS[pod]}" if family == 4 else f"fd96::{PODS[pod]}"


def _let_it_route() -> None:
    for path in ("ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")
    for path in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
        path.write_text("0")  # what is refused shall be so by nobody else


def _echo(connection: socket.socket, _peer: str) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


@contextmanager
def _datagrams(host: Host) -> Iterator[None]:
    """Echo datagrams of both families."""
    opened = host.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.bind(("::", UDP_PORT))

    def serve() -> None:
        while True:
            data, peer = opened.recvfrom(65536)
            if not data:
                return
            opened.sendto(data, peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending = host.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
        with ending:
            ending.sendto(b"", ("::1", UDP_PORT))
        thread.join()
        opened.close()
