"""A path of seven hosts with two routers before the node and two behind it, `ku run` on the node.

    client ── a ── b ── node ── c ── d ── pod

Every link n (from 1, at the client) is 10.1.n.0/24 and fd01:n::/64; its end towards the client has host part 1, the
other one 2.  Services, for pods of the client's family and of the other one: the port VIPs lead port 80 to 8080 and
81 to 8081, the whole ones everything.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from netns.lab import Host, Server
from netns.world import cache_options

NAMES = ("client", "a", "b", "node", "c", "d", "pod")
LINKS = len(NAMES) - 1
NODE = NAMES.index("node")
KINDS = ("nat44", "nat66", "nat46", "nat64")
PORT_VIPS = {"nat44": "90.0.0.1", "nat66": "2003::1", "nat46": "90.0.0.2", "nat64": "2003::2"}
WHOLE_VIPS = {"nat44": "90.0.1.1", "nat66": "2003:1::1", "nat46": "90.0.1.2", "nat64": "2003:1::2"}


def address(name: str, family: int, towards_client: bool = True) -> str:
    """That of a host on its link towards the client, or on the one towards the pod."""
    link = NAMES.index(name) + (0 if towards_client else 1)
    part = 2 if towards_client else 1
    return f"10.1.{link}.{part}" if family == 4 else f"fd01:{link}::{part}"


CLIENT = {family: address("client", family, towards_client=False) for family in (4, 6)}
SECOND_CLIENT = {4: "10.1.1.3", 6: "fd01:1::3"}  # which has no flow through a VIP
POD = {family: address("pod", family) for family in (4, 6)}


def script() -> str:
    """The services."""
    lines = []
    for kind in KINDS:
        pod = POD[int(kind[4])]
        whole, ported = (f"{each[kind]}/{32 if kind[3] == '4' else 128}" for each in (WHOLE_VIPS, PORT_VIPS))
        lines += [f"ku vip {whole} nat{kind[4]}", f"ku pod {whole} {pod}"]
        for port, target in ((80, 8080), (81, 8081)):
            lines += [
                f"ku vip {ported} port {port} target_port {target} nat{kind[4]}",
                f"ku pod {ported} port {port} {pod}",
            ]
    return "\n".join(lines) + "\n"


class World:
    """The hosts, by name, and what a test may change."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts = hosts
        self.client, self.node, self.pod = hosts["client"], hosts["node"], hosts["pod"]

    def set_mtu(self, link: int, mtu: int) -> None:
        """At both ends, so that whoever sends into it knows."""
        self.hosts[NAMES[link - 1]].sh(f"ip link set right mtu {mtu}")
        self.hosts[NAMES[link]].sh(f"ip link set left mtu {mtu}")

    def forget_paths(self) -> None:
        """Client and pod know nothing of any path's MTU: that knowledge hangs on their routes."""
        for host, name in ((self.client, "client"), (self.pod, "pod")):
            host.sh("ip route del default", "ip -6 route del default")
            _add_default_route(host, name)


def _add_default_route(host: Host, name: str) -> None:
    for family in (4, 6):
        gateway = address("d", family, False) if name == "pod" else address("a", family)
        host.sh(f"ip -{family} route add default via {gateway}")


def _connect(hosts: dict[str, Host]) -> None:
    for link in range(1, LINKS + 1):
        left, right = hosts[NAMES[link - 1]], hosts[NAMES[link]]
        left.connect_to(right, "right", "left")
        for host, interface, part in ((left, "right", 1), (right, "left", 2)):
            host.sh(
                f"ip addr add 10.1.{link}.{part}/24 dev {interface}",
                f"ip -6 addr add fd01:{link}::{part}/64 dev {interface} nodad",
            )


def _route(hosts: dict[str, Host]) -> None:
    """Routers know the links one by one; everything else (VIPs, prefix and pool) goes towards the node."""
    for number, name in enumerate(NAMES[1:-1], 1):
        host = hosts[name]
        for family in (4, 6):
            left = f"10.1.{number}.1" if family == 4 else f"fd01:{number}::1"
            right = f"10.1.{number + 1}.2" if family == 4 else f"fd01:{number + 1}::2"
            to_left, to_right = range(1, number), range(number + 2, LINKS + 1)
            for via, links in ((left, to_left), (right, to_right)):
                for link in links:
                    network = f"10.1.{link}.0/24" if family == 4 else f"fd01:{link}::/64"
                    host.sh(f"ip -{family} route add {network} via {via}")
            host.sh(f"ip -{family} route add default via {right if number < NODE else left}")


@contextmanager
def path(directory: Path) -> Iterator[World]:
    """The network, `ku run`, and a `Server` at the pod's port 8080."""
    config = directory / "services.ku"
    config.write_text(script())
    with ExitStack() as stack:
        hosts = {}
        for name in NAMES:
            hosts[name] = Host()
            stack.callback(hosts[name].close)
        for host in hosts.values():
            for scope in ("all", "default"):
                host.sysctl(f"ipv6/conf/{scope}/accept_dad", "0")
            host.sysctl("ipv4/ip_forward", "1")
            host.sysctl("ipv6/conf/all/forwarding", "1")
            host.sysctl("ipv4/icmp_ratelimit", "0")  # a router has more than six errors to tell
            host.sysctl("ipv6/icmp/ratelimit", "0")
        _connect(hosts)
        _route(hosts)
        for name in ("client", "pod"):
            _add_default_route(hosts[name], name)
        hosts["client"].sh(
            f"ip addr add {SECOND_CLIENT[4]}/24 dev right",
            f"ip -6 addr add {SECOND_CLIENT[6]}/64 dev right nodad preferred_lft 0",  # only when asked for
        )
        words = ("-m", "kuproxy.daemon.foreground", "--config", str(config), *cache_options())
        run = hosts["node"].start(sys.executable, *words)

        def stop() -> None:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=10)

        stack.callback(stop)
        assert run.stderr is not None
        for line in run.stderr:
            if "forwarding" in line:
                break
        assert run.poll() is None
        server = Server(hosts["pod"], "pod", 8080)
        stack.callback(server.close)
        yield World(hosts)
