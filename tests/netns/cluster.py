"""A cluster of two nodes with a `ku kube-proxy` each, in namespaces, and a (fake) API server that kubectl could drive.

    lan 192.168.50.0/24, fd00:50::/64       client .100    api .200
      node1 .1 ── pods 10.244.1.2 … .4, fd00:10:244:1::2 …
      node2 .2 ── pods 10.244.2.2 … .3, fd00:10:244:2::2 …

Each pod runs the demo's servers: HTTP at 8080 and UDP echo at 7007, which tell the pod's name.  The client is no part
of the cluster.  A pod without servers on node1, `visitor`, is a client inside.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from kube_api.server import FakeApi
from kuproxy.client import Client
from kuproxy.demo.topology import Host, Pair, addresses, remove_stale, stop

PREFIX = "kucluster"
START_WITHIN_S = 100  # the kernels may have to be compiled
HTTP_PORT, ECHO_PORT = 8080, 7007
NAMESPACE = "shop"
Object = dict[str, Any]
_numbers = itertools.count(1)


@dataclass(slots=True)
class Pod:
    name: str
    node: str
    host: Host
    ipv4: str
    ipv6: str


@dataclass(slots=True)
class Node:
    """A host that routes, its pods, and the kube-proxy in it."""

    name: str
    host: Host
    ipv4: str
    ipv6: str
    directory: Path
    pods: list[Pod] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        path = self.directory / "kube-proxy.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def client(self) -> Client:
        return Client(str(self.directory / "ku.sock"))

    def start(self, *words: str, before: Sequence[str] = (), **options: Any) -> None:
        """`ku kube-proxy`, by way of the command `before`; does not wait."""
        command = [*before, sys.executable, "-m", "kuproxy.keeper", "kuproxy.kubeproxy.service", *words]
        with (self.directory / "kube-proxy.log").open("ab") as log:
            self.process = self.host.start(
                *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    def curl(self, target: str, host: Host | None = None) -> tuple[int, str, str]:
        """Status, headers and body, as asked from a host (the node itself)."""
        where = host or self.host
        words = ["ip", "netns", "exec", where.name, "curl", "-sS", "-m", "5", "-i", f"http://{target}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
        if done.returncode:
            raise OSError(done.stderr)
        head, _, body = done.stdout.replace("\r", "").partition("\n\n")
        return int(head.split()[1]), head, body


class Cluster:
    """Hosts, API server and objects; `start` starts the proxies."""

    def __init__(self, directory: Path, pods: Sequence[int]) -> None:
        self.directory = directory
        self.hosts: list[Host] = []
        self._prefix = f"{PREFIX}{next(_numbers)}-{os.getpid()}"
        self.api: FakeApi
        try:
            self._build(pods)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------ hosts

    def _build(self, pods: Sequence[int]) -> None:
        self.lan = self._add("lan")
        self.lan.netlink(lambda netlink: netlink.link("add", ifname="br0", kind="bridge"))
        self.client, self.master = self._add("client"), self._add("api")
        self.nodes = []
        for number, count in enumerate(pods, 1):
            name = f"node{number}"
            directory = self.directory / name
            directory.mkdir()
            node = Node(name, self._add(name), f"192.168.50.{number}", f"fd00:50::{number}", directory)
            self.nodes.append(node)
            for index in range(2, count + 2):
                self._add_pod(node, number, index)
        self.visitor = self._add_pod(self.nodes[0], 1, 100, "visitor")
        self.nodes[0].pods.remove(self.visitor)
        for host, suffix in (
            (self.client, 100),
            (self.master, 200),
            *((n.host, i) for i, n in enumerate(self.nodes, 1)),
        ):
            self._attach(host, suffix)
        self._up(self.lan, "br0")
        for number, node in enumerate(self.nodes, 1):
            # A node speaks with the address of the interface that leads out.
            _route(node.host, "default", "192.168.50.100")
            _route(node.host, "default", "fd00:50::100")
            node.host.sysctl("ipv4/ip_forward", "1")
            node.host.sysctl("ipv6/conf/all/forwarding", "1")
            for host in (self.client, *(other.host for other in self.nodes if other is not node)):
                for destination, via in (
                    (f"10.244.{number}.0/24", node.ipv4),
                    (f"fd00:10:244:{number}::/64", node.ipv6),
                ):
                    _route(host, destination, via)
        self._start_servers()
        self._serve_api()

    def _add(self, name: str) -> Host:
        host = Host(f"{self._prefix}-{name}")
        self.hosts.append(host)
        return host

    def _add_pod(self, node: Node, number: int, index: int, name: str = "") -> Pod:
        name = name or f"{node.name}-pod{index - 1}"
        host = self._add(name.replace("-", ""))
        theirs, ours = addresses(number, index), addresses(number, 1)
        # Every pod has an interface of its own on the node, as with most network plugins.
        Pair(host, node.host, f"pod{index}", [(each, our) for each, our in zip(theirs, ours, strict=True)])
        ipv4, ipv6 = (str(ip_interface(each).ip) for each in theirs)
        _host_route(node.host, f"pod{index}", ipv4, ipv6)
        # ... and reaches every other one through the node.
        for prefix, gateway, six in ((theirs[0], ours[0], ""), (theirs[1], ours[1], "-6 ")):
            ip(host, f"{six}route add {ip_interface(gateway).ip} dev eth0")
            ip(host, f"{six}route del {ip_interface(prefix).network} dev eth0")
        pod = Pod(name, node.name, host, ipv4, ipv6)
        node.pods.append(pod)
        return pod

    def _attach(self, host: Host, suffix: int) -> None:
        port = f"lan{suffix}"
        peer = {"ifname": "lan", "net_ns_fd": host.fd}
        self.lan.netlink(lambda netlink: netlink.link("add", ifname=port, kind="veth", peer=peer))
        for words in (
            f"addr add 192.168.50.{suffix}/24 dev lan",
            f"addr add fd00:50::{suffix}/64 dev lan nodad",
            "link set lan up",
        ):
            ip(host, words)
        ip(self.lan, f"link set {port} master br0 up")

    def _up(self, host: Host, name: str) -> None:
        ip(host, f"link set {name} up")

    def _start_servers(self) -> None:
        started = []
        for pod in self.pods:
            words = [sys.executable, "-m", "kuproxy.demo.pods", pod.name, str(HTTP_PORT), str(ECHO_PORT)]
            started.append(pod.host.start(*words, stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    @property
    def pods(self) -> list[Pod]:
        return [pod for node in self.nodes for pod in node.pods]

    # ------------------------------------------------------------------------------------------------ objects

    def _serve_api(self) -> None:
        import socket

        self.api = FakeApi(address="192.168.50.200", make_socket=lambda: self.master.call(socket.socket))
        self.api.start()
        self.kubeconfig = self.directory / "kubeconfig"
        self.kubeconfig.write_text(self.api.kubeconfig())
        self.create("namespaces", {"metadata": {"name": NAMESPACE}})
        self.create("servicecidrs", {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}})
        for number, node in enumerate(self.nodes, 1):
            made: Object = {
                "metadata": {"name": node.name, "labels": {"topology.kubernetes.io/zone": f"z{number}"}},
                "spec": {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"]},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": node.ipv4},
                        {"type": "InternalIP", "address": node.ipv6},
                    ]
                },
            }
            self.create("nodes", made)

    def create(self, plural: str, obj: Object) -> None:
        self.api.do(lambda: self.api.store.create(plural, obj))

    def change(
        self, plural: str, name: str, change: Callable[[Object], None], namespace: str = NAMESPACE
    ) -> None:
        """Change an object in place."""

        def act() -> None:
            obj = self.api.store.get(plural, namespace, name)
            obj = json.loads(json.dumps(obj))
            change(obj)
            self.api.store.update(plural, obj)

        self.api.do(act)

    def service(
        self, name: str, addresses: Sequence[str], pods: Sequence[Pod], target: int = HTTP_PORT, **spec: Any
    ) -> None:
        """A Service with HTTP (or what `target` serves) at 80 and UDP echo at 7, and its slices."""
        ports: list[Object] = [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": target},
            {"name": "echo", "protocol": "UDP", "port": 7, "targetPort": ECHO_PORT},
        ]
        for port, number in zip(ports, spec.pop("node_ports", ()), strict=False):
            port["nodePort"] = number
        families = ["IPv6" if ":" in each else "IPv4" for each in addresses]
        self.create(
            "services",
            {
                "metadata": {"namespace": NAMESPACE, "name": name},
                "spec": {
                    "clusterIP": addresses[0],
                    "clusterIPs": list(addresses),
                    "ipFamilies": families,
                    "ports": ports,
                    **spec,
                },
            },
        )
        for family in families:
            self.create("endpointslices", self._slice(name, family, pods, target=target))

    def _slice(
        self,
        name: str,
        family: str,
        pods: Sequence[Pod],
        conditions: Object | None = None,
        target: int = HTTP_PORT,
    ) -> Object:
        return {
            "metadata": {
                "namespace": NAMESPACE,
                "name": f"{name}-{family.lower()}",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "ports": [
                {"name": "http", "protocol": "TCP", "port": target},
                {"name": "echo", "protocol": "UDP", "port": ECHO_PORT},
            ],
            "endpoints": [
                {
                    "addresses": [pod.ipv4 if family == "IPv4" else pod.ipv6],
                    "nodeName": pod.node,
                    "conditions": conditions or {"ready": True, "serving": True, "terminating": False},
                    "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": pod.name},
                }
                for pod in pods
            ],
        }

    def endpoints(
        self,
        name: str,
        pods: Sequence[Pod],
        terminating: Sequence[Pod] = (),
        families: Sequence[str] = ("IPv4",),
    ) -> None:
        """Let these pods serve, and those serve on while they end."""
        leaving = {"ready": False, "serving": True, "terminating": True}
        for family in families:
            new = self._slice(name, family, pods)["endpoints"]
            new += self._slice(name, family, terminating, leaving)["endpoints"]

            def replace(obj: Object, endpoints: list[Object] = new) -> None:
                obj["endpoints"] = endpoints

            self.change("endpointslices", f"{name}-{family.lower()}", replace)

    def kubectl(self, *words: str, text: str = "") -> str:
        """What kubectl prints, as a user of this API server."""
        command = [
            "ip",
            "netns",
            "exec",
            self.master.name,
            "kubectl",
            "--kubeconfig",
            str(self.kubeconfig),
            *words,
        ]
        environment = {"HOME": str(self.directory), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # ------------------------------------------------------------------------------------------------ proxies

    def start(self, config: str = "", **options: Any) -> None:
        """A kube-proxy on each node; returns when all have taken over everything."""
        from netns.world import _warm, cache_entries, cache_shortcuts

        _warm()
        entries = cache_entries()
        cached = f"[cache]\nflow_cache_entries = {entries}\n" if entries else ""
        flags = ("--flow-cache=on", f"--flow-cache-shortcuts={cache_shortcuts()}") if entries else ()
        for node in self.nodes:
            (node.directory / "config.yaml").write_text(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
                f"clientConnection: {{kubeconfig: {self.kubeconfig}}}\n{config}"
            )
            (node.directory / "kuproxy.toml").write_text(
                f'state_directory = "{node.directory}/state"\n[api]\nsocket = "{node.directory}/ku.sock"\n'
                f"{cached}"
            )
            node.start(
                f"--config={node.directory}/config.yaml",
                f"--hostname-override={node.name}",
                f"--settings={node.directory}/kuproxy.toml",
                *flags,
                **options,
            )
        for node in self.nodes:
            self.wait_for(node, functools.partial(_is_synced, node), START_WITHIN_S)

    def wait_for(self, node: Node, true: Callable[[], Any], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert node.process is None or node.process.poll() is None, node.log
            assert time.monotonic() < deadline, node.log
            time.sleep(0.02)

    def close(self) -> None:
        """Idempotent."""
        if hasattr(self, "api"):
            self.api.stop()
        stop([process for host in self.hosts for process in host.processes])
        for host in self.hosts:
            host.close()
        self.hosts.clear()


def _is_synced(node: Node) -> bool:
    """Whether the tables have been filled from the API server."""
    try:
        status, _, body = node.curl("127.0.0.1:10249/metrics")
    except OSError:
        return False
    return (
        status == 200 and 'kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1' in body
    )


def ip(host: Host, words: str) -> str:
    command = ["ip", "-n", host.name, *words.split()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def _route(host: Host, destination: str, via: str) -> None:
    ip(host, f"{'-6 ' if ':' in via else ''}route add {destination} via {via}")


def _host_route(host: Host, port: str, *pods: str) -> None:
    """The prefix of all pods is on every pod's interface: say which pod is where."""

    def ask(netlink: IPRoute) -> None:
        (index,) = netlink.link_lookup(ifname=port)
        for pod in pods:
            netlink.route("add", dst=f"{pod}/{128 if ':' in pod else 32}", oif=index)

    host.netlink(ask)


@contextmanager
def cluster(*pods: int) -> Iterator[Cluster]:
    """So many pods on each node; no proxy runs yet."""
    remove_stale(PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-") as directory:
        made = Cluster(Path(directory), pods)
        try:
            yield made
        finally:
            made.close()
