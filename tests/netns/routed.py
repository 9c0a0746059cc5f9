"""A router with BGP (bird), nodes with `ku daemon` and `ku announce bgp` each, pods, and a client behind the router.

    client 10.9.0.2 ── router ── 10.1.0.2 node1      10.21.0.2 pod1
                         │  ├─── 10.2.0.2 node2      10.22.0.2 pod2
                         │  └─── 10.3.0.2 node3  ...
                         └────── pods, which answer their clients themselves (L3DSR)

Host n of the second byte n has fd09:n::2 beside 10.n.0.2; the router's ends are .1.  The router hashes ports too
(fib_multipath_hash_policy 1), as routers in front of load balancers do.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kuproxy.client import Client
from kuproxy.demo.topology import Host, Pair, remove_stale, stop
from netns.test_daemon import Daemon
from netns.world import listener

PREFIX = "kuroute"
VIPS = ("90.0.0.1", "2001:db8:90::1")
PORT = 80
DSCP = 46
ROUTER_ASN, NODE_ASN = 64513, 64512
SETTLED_WITHIN_S = 30.0
_CLIENT, _FIRST_POD, _BEHIND = 9, 21, 100
_SOURCE, _DESTINATION = "17", "34"  # FIB_MULTIPATH_HASH_FIELD_*: an address and a port (Linux, net/ip_fib.h)
_numbers = itertools.count(1)
Network = TypeVar("Network", bound="Routed")


def ends(number: int) -> list[tuple[str, str]]:
    """A host's addresses and the router's, for both families."""
    return [(f"10.{number}.0.2/24", f"10.{number}.0.1/24"), (f"fd09:{number}::2/64", f"fd09:{number}::1/64")]


def until(true: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Router:
    """bird, and what it tells."""

    def __init__(self, host: Host, directory: Path, nodes: int) -> None:
        self.host, self._socket = host, directory / "bird.ctl"
        config = directory / "bird.conf"
        config.write_text(self._config(nodes))
        words = ("bird", "-f", "-c", str(config), "-s", str(self._socket), "-P", str(directory / "bird.pid"))
        self._log = (directory / "bird.log").open("wb")
        host.start(*words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        until(self._socket.exists)

    @staticmethod
    def _config(nodes: int) -> str:
        lines = ["log stderr all;", "router id 10.9.0.1;", "protocol device {}"]
        for family in ("ipv4", "ipv6"):
            lines.append(f"protocol kernel {{ {family} {{ import none; export all; }}; merge paths on; }}")
        channels = " ".join(f"{each} {{ import all; export none; }};" for each in ("ipv4", "ipv6"))
        for number in range(1, nodes + 1):
            ends = f"local 10.{number}.0.1 as {ROUTER_ASN}; neighbor 10.{number}.0.2 as {NODE_ASN};"
            lines.append(f"protocol bgp node{number} {{ {ends} passive on; hold time 9; {channels} }}")
        return "\n".join([*lines, ""])

    def birdc(self, words: str) -> str:
        command = ["birdc", "-s", str(self._socket), *words.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    def next_hops(self, vip: str) -> set[str]:
        """Where the router's kernel sends a VIP's packets."""
        return set(self.hops(vip))

    def hops(self, vip: str) -> list[str]:
        """The same, in the kernel's order."""
        length = 128 if ":" in vip else 32
        words = ["ip", "-n", self.host.name, "-j", *(["-6"] if ":" in vip else []), "route", "show", f"{vip}/{length}"]
        text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout
        routes = json.loads(text or "[]")
        return [each["gateway"] for route in routes for each in route.get("nexthops", [route])]

    def withdrawals(self, number: int) -> int:
        """Routes that a node has withdrawn in its present session, over both families; -1 without a session."""
        text = self.birdc(f"show protocols all node{number}")
        if "Established" not in text:
            return -1
        rows = [line.split() for line in text.splitlines() if line.strip().startswith("Import withdraws:")]
        return sum(int(row[2]) for row in rows)

    def close(self) -> None:
        self._log.close()


class Node:
    """A daemon with its speaker, once started."""

    def __init__(self, number: int, host: Host, directory: Path) -> None:
        self.number, self.node, self.directory = number, host, directory
        directory.mkdir()
        self.hops = {f"10.{number}.0.2", f"fd09:{number}::2"}
        self.daemon = Daemon(self)  # type: ignore[arg-type]
        self.speaker: subprocess.Popen[Any] | None = None
        with self.daemon.settings.open("a") as file:
            file.write(self._announce())

    def _announce(self) -> str:
        number = self.number
        return f"""
        [announce]
        ranges = ["90.0.0.0/24", "2001:db8:90::/64"]
        drain_s = 1
        interval_s = 0.2
        [announce.bgp]
        asn = {NODE_ASN}
        router_id = "10.{number}.0.2"
        next_hop4 = "10.{number}.0.2"
        next_hop6 = "fd09:{number}::2"
        communities = ["{NODE_ASN}:1"]
        [[announce.bgp.neighbors]]
        address = "10.{number}.0.1"
        asn = {ROUTER_ASN}
        """

    @property
    def client(self) -> Client:
        return Client(str(self.daemon.socket))

    def start(self) -> None:
        text = self.daemon.settings.read_text()
        if "workers" not in text:
            self.daemon.settings.write_text(f"workers = 1\n{text}")
        self.daemon.start()

    def serve(self, pods: list[str], vips: tuple[str, ...] = VIPS, *, translated: bool = False) -> None:
        """Let these pods stand behind the VIPs: numbers of the second byte, by family."""
        for vip in vips:
            six = ":" in vip
            length = 128 if six else 32
            name = f"{vip}/{length}"
            addresses = [f"fd09:{pod}::2" if six else f"10.{pod}.0.2" for pod in pods]
            body: dict[str, Any] = {"prefix": name, "pods": [{"address": each} for each in addresses]}
            body |= {"protocol": "tcp", "port": PORT} if translated else {"encap": "l3dsr", "dscp": DSCP}
            self.client.request("PUT", "/v1/vips", body)

    def announce(self) -> None:
        """Start the speaker."""
        log = (self.directory / "announce.log").open("ab")
        with log:
            words = (sys.executable, "-m", "kuproxy", "announce", "bgp", "--settings", str(self.daemon.settings))
            self.speaker = self.node.start(*words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return (self.directory / "announce.log").read_text()

    def flows(self) -> int:
        return len(self.client.request("GET", "/v1/flows?limit=10000")["flows"])

    def slots(self, vip: str) -> list[str]:
        """The Maglev table of a VIP, as this node holds it: the pod of each slot."""
        length = 128 if ":" in vip else 32
        answer = self.client.request("GET", f"/v1/ring?prefix={vip}/{length}")
        assert len(answer["owners"]) == answer["slots"]
        return [answer["shares"][owner]["address"] for owner in answer["owners"]]

    def kill(self) -> None:
        """The daemon with all its processes, without a word."""
        os.kill(self.daemon.process.pid, signal.SIGKILL)
        self.daemon.process.wait()


def _answer(name: str, over: threading.Event) -> Callable[[socket.socket, str], None]:
    """Each byte is answered with the pod's name, for as long as the client likes: of some the end is never heard."""

    def serve(connection: socket.socket, _peer: str) -> None:
        connection.settimeout(1)
        while not over.is_set():
            try:
                data = connection.recv(4096)
                connection.sendall(f"{name} ".encode() * len(data))
            except TimeoutError:
                continue
            except OSError:
                return  # the client has ended
            if not data:
                return

    return serve


class Routed:
    """All of it; nodes are started one by one."""

    def __init__(self, directory: Path, nodes: int, pods: int, stack: ExitStack) -> None:
        self.hosts: list[Host] = []
        stack.callback(self.close)
        prefix = f"{PREFIX}{next(_numbers)}-{os.getpid()}"
        self._prefix = prefix
        host = self._add("router")
        self.client = self._attach(host, "client", _CLIENT)
        self.nodes = [
            Node(number, self._attach(host, f"node{number}", number), directory / f"node{number}")
            for number in range(1, nodes + 1)
        ]
        self.behind = self._behind_nodes(host)
        self.pods = [
            self._attach(self.behind, f"pod{number}", _FIRST_POD + number - 1) for number in range(1, pods + 1)
        ]
        self.pod_numbers = [str(_FIRST_POD + index) for index in range(pods)]
        for each in (host, *(node.node for node in self.nodes)):
            each.sysctl("ipv4/ip_forward", "1")
            each.sysctl("ipv6/conf/all/forwarding", "1")
        for each in self.hosts:
            for name in ("all", "default", "eth0"):
                if each not in (host, self.behind) or name != "eth0":
                    each.sysctl(f"ipv4/conf/{name}/rp_filter", "0")
        for number in (*range(1, nodes + 1), _CLIENT):
            host.sysctl(f"ipv4/conf/if{number}/rp_filter", "0")
        for index in range(pods):
            self.behind.sysctl(f"ipv4/conf/if{_FIRST_POD + index}/rp_filter", "0")
        self._spread(host)
        over = threading.Event()
        for number, pod in enumerate(self.pods, _FIRST_POD):
            self._prepare_pod(pod, number)
            stack.enter_context(listener(pod, PORT, _answer(f"pod{number - _FIRST_POD + 1}", over)))
        stack.callback(over.set)
        self.router = Router(host, directory, nodes)
        stack.callback(self.router.close)

    def _add(self, name: str) -> Host:
        host = Host(f"{self._prefix}-{name}")
        self.hosts.append(host)
        return host

    def _attach(self, router: Host, name: str, number: int) -> Host:
        host = self._add(name)
        Pair(host, router, f"if{number}", ends(number))
        return host

    def _behind_nodes(self, router: Host) -> Host:
        """To what the pods are attached."""
        return router

    def _spread(self, router: Host) -> None:
        """How the router chooses a node for each packet."""
        for family in ("ipv4", "ipv6"):
            router.sysctl(f"{family}/fib_multipath_hash_policy", "1")

    def _prepare_pod(self, pod: Host, number: int) -> None:
        """Direct return: it has the VIPs' addresses."""
        for vip in VIPS:
            length = 128 if ":" in vip else 32
            words = ["ip", "-n", pod.name, "addr", "add", f"{vip}/{length}", "dev", "lo"]
            subprocess.run(words, check=True, timeout=10)
        rules = f"""table inet dsr {{
            chain restore {{
                type filter hook prerouting priority raw
                ip dscp {DSCP} ip daddr 10.{number}.0.2 ip daddr set {VIPS[0]}
                ip6 dscp {DSCP} ip6 daddr fd09:{number}::2 ip6 daddr set {VIPS[1]}
            }}
        }}
        """
        subprocess.run(pod.command("nft", "-f", "-"), input=rules.encode(), check=True, timeout=10)

    def wait_for_hops(self, *nodes: Node) -> None:
        """Until the router's kernel sends the VIPs' packets to these nodes and no others."""
        for index, vip in enumerate(VIPS):
            wanted = {(f"10.{node.number}.0.2", f"fd09:{node.number}::2")[index] for node in nodes}

            def holds(vip: str = vip, wanted: set[str] = wanted) -> bool:
                return self.router.next_hops(vip) == wanted

            until(holds, lambda vip=vip: (self.router.next_hops(vip), [node.log for node in nodes]))  # type: ignore[misc]

    def close(self) -> None:
        stop([process for host in self.hosts for process in host.processes])
        for node in getattr(self, "nodes", ()):
            node.daemon.notified.close()
        for host in self.hosts:
            host.close()


class Between(Routed):
    """The nodes lie between two routers: addresses are translated, and the way back leads by the same node.

        client ── router ══ nodes ══ router behind them ── pods

    The router behind chooses a node for a pod's reply by the client's address and port alone, as the one in front does
    for the client's packets: each side's hash is over these, and the kernel's does not tell source from destination.
    Their next hops are in the same order.
    """

    def _behind_nodes(self, router: Host) -> Host:
        behind = self._add("behind")
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            behind.sysctl(family, "1")
        for node in self.nodes:
            number = _BEHIND + node.number
            name = f"if{number}"
            words = ("link", "add", name, "type", "veth", "peer", "name", "eth1", "netns", node.node.name)
            ip(behind, *words)
            for host, interface, end in ((behind, name, 1), (node.node, "eth1", 2)):
                ip(host, "addr", "add", f"10.{number}.0.{end}/24", "dev", interface)
                ip(host, "addr", "add", f"fd09:{number}::{end}/64", "dev", interface, "nodad")
                ip(host, "link", "set", interface, "up")
                host.sysctl(f"ipv4/conf/{interface}/rp_filter", "0")
        return behind

    def _spread(self, router: Host) -> None:
        for host, fields in ((router, _SOURCE), (self.behind, _DESTINATION)):
            for family in ("ipv4", "ipv6"):
                host.sysctl(f"{family}/fib_multipath_hash_policy", "3")
                host.sysctl(f"{family}/fib_multipath_hash_fields", fields)

    def _prepare_pod(self, pod: Host, number: int) -> None:
        """Its replies go by way of the nodes, whose packets come from behind."""
        for node in self.nodes:
            behind = _BEHIND + node.number
            ip(node.node, "route", "add", f"10.{number}.0.0/24", "via", f"10.{behind}.0.1")
            ip(node.node, "route", "add", f"fd09:{number}::/64", "via", f"fd09:{behind}::1")

    def lead_back(self) -> None:
        """Replies to the client go by the nodes by which its packets come, in the same order of next hops."""
        clients = (f"10.{_CLIENT}.0.0/24", "10.{}.0.2"), (f"fd09:{_CLIENT}::/64", "fd09:{}::2")
        for vip, (client, way) in zip(VIPS, clients, strict=True):
            numbers = [int(hop.replace(":", ".").split(".")[1]) for hop in self.router.hops(vip)]
            hops = [("nexthop", "via", way.format(_BEHIND + number)) for number in numbers]
            ip(self.behind, "route", "replace", client, *(word for hop in hops for word in hop))


def ip(host: Host, *words: str) -> None:
    """`ip` in this host."""
    subprocess.run(["ip", "-n", host.name, *words], check=True, timeout=10)


@contextmanager
def routed(nodes: int = 3, pods: int = 5, kind: type[Network] = Routed) -> Iterator[Network]:  # type: ignore[assignment]
    remove_stale(PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-") as directory, ExitStack() as stack:
        yield kind(Path(directory), nodes, pods, stack)
