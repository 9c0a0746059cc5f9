"""One peer's network with everything in it: servers in the pod, a client, and on the node what is measured."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from bench.live import ends
from bench.live.cpu import Moment, spent
from bench.live.nftables import ruleset
from bench.live.services import Rule, ku_lines, others
from kuproxy.demo.manifest import CLUSTER4, Endpoint, Port, service
from kuproxy.demo.plane import DataPlane
from kuproxy.demo.topology import Host, Network, addresses, bring_up
from kuproxy.errors import KuError

PREFIX = "kubench"
PROGRAMS = ("nginx", "iperf3", "nft")
HTTP = Port("http", "TCP", 80, 8080)
IPERF = Port("iperf", "TCP", 5201, 5201)
ECHO = Port("echo", "UDP", 7, 7007)
_ROOT = Path(__file__).resolve().parent.parent.parent
_READY_S = 60.0
_LOAD_PATIENCE_S = 30.0  # beyond its own time
_PLANE_START_S = 300.0  # compiling, and 10,000 services
BUCKETS = 1 << 18  # a million flows: nothing falls out while connections come and go
_IPERF = "iperf"
_DIRECT, _DIRECT_NETWORK = "direct0", 200

_NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen {port} backlog=4096; location / {{ return 200 "ok"; }} }}
}}
"""


@dataclass(frozen=True)
class Peer:
    """What stands between client and pod."""

    name: str
    plane: str  # nftables, kuproxy; nothing: routed, the client asks the pod, or direct, by a link between the two
    services: int = 1
    options: tuple[str, ...] = ()  # of ku run
    lines: str = ""  # of the command language
    documents: tuple[dict[str, Any], ...] = ()  # further objects of Kubernetes


def missing_programs() -> list[str]:
    """Of those that a bed needs."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@dataclass(frozen=True)
class Outcome:
    """One load: what it said, and the processor time that it took."""

    answer: dict[str, Any]
    cpu_s: float
    cpu_by_role: dict[str, float]  # client, pod, plane


class Bed:
    """Context manager.  Raises KuError when something does not start, and leaves nothing behind."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._stack = ExitStack()
        self._pids: dict[str, list[int]] = {"client": [], "pod": [], "plane": []}
        self.data_plane: DataPlane | None = None  # of kuproxy
        try:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}-")))
            self._network = self._stack.enter_context(Network(f"{PREFIX}{_number()}", 1))
            (pod,) = self._network.pods
            ipv4, ipv6 = (str(ip_interface(each).ip) for each in addresses(1, 2))
            self._pod = Endpoint("pod1", ipv4, ipv6)
            self._servers(pod, directory)
            self._client = self._end(self._network.client, "client", "client")
            self._plane(directory)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._stack.close()

    @property
    def network(self) -> Network:
        """Client, node and pod."""
        return self._network

    def join(self, process: subprocess.Popen[Any]) -> None:
        """Another process belongs to the load from now on; its time is the client's."""
        self._pids["client"].append(process.pid)

    # --- building ------------------------------------------------------------------------------------------

    def _end(self, host: Host, role: str, *words: str) -> subprocess.Popen[str]:
        command = (sys.executable, "-m", ends.__name__, *words)
        process = host.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
        self._pids[role].append(process.pid)
        return process

    def _servers(self, pod: Host, directory: Path) -> None:
        settings = directory / "nginx.conf"
        settings.write_text(_NGINX.format(directory=directory, port=HTTP.target))
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for command in (("nginx", "-c", str(settings)), ("iperf3", "-s", "-p", str(IPERF.target))):
            self._pids["pod"].append(pod.start(*command, **quiet).pid)
        self._sink = self._end(pod, "pod", "sink", str(ECHO.target))

    def _plane(self, directory: Path) -> None:
        node, peer = self._network.node, self.peer
        rest = list(others(peer.services - 1))
        if peer.plane == "nftables":
            own = [
                Rule(CLUSTER4, each.protocol.lower(), each.port, [self._pod.ipv4], each.target)
                for each in (HTTP, IPERF, ECHO)
            ]
            file = directory / "kube-proxy.nft"
            file.write_text(ruleset([*own, *rest]))
            if node.start("nft", "-f", str(file)).wait():
                raise KuError("nft refuses kube-proxy's rules")
        elif peer.plane == "kuproxy":
            lines = directory / "others.ku"
            lines.write_text(f"ku conf buckets {BUCKETS}\n{peer.lines}" + "".join(map(ku_lines, rest)))
            documents = service("bench", (CLUSTER4,), (HTTP, IPERF, ECHO), [self._pod])
            documents += peer.documents
            plane = self.data_plane = DataPlane(node, directory, documents, ("--config", str(lines), *peer.options))
            plane.wait_for("forwarding", limit_s=_PLANE_START_S)
            self._pids["plane"] = [plane.process.pid]
        elif peer.plane == "direct":
            self._join()

    def _join(self) -> None:
        """Client and pod by a link of their own: the node has nothing to do."""
        client, (pod,) = self._network.client, self._network.pods
        end = {"ifname": _DIRECT, "net_ns_fd": pod.fd}
        client.netlink(lambda netlink: netlink.link("add", ifname=_DIRECT, kind="veth", peer=end))
        for host, number in ((client, 1), (pod, 2)):
            bring_up(host, _DIRECT, [ip_interface(addresses(_DIRECT_NETWORK, number)[0])])

    # --- loading -------------------------------------------------------------------------------------------

    def await_ready(self) -> None:
        """Until the servers answer by way of the data plane.  Raises KuError."""
        for process in (self._client, self._sink):
            self._read(process, _READY_S)
        deadline = time.monotonic() + _READY_S
        while True:
            answer = self._ask(self._client, {"load": "close", **self._to(HTTP), "seconds": 0.05, "parallel": 1}, 5)
            if answer["requests"]:
                return
            if time.monotonic() > deadline:
                raise KuError(f"{self.peer.name}: nginx does not answer")
            time.sleep(0.05)

    def idle(self, seconds: float) -> Outcome:
        """Nothing happens for so long."""
        return self.measured(lambda: time.sleep(seconds) or {"seconds": seconds})

    def http(self, load: str, seconds: float, parallel: int, warm: float = 0.0) -> Outcome:
        """`load`: close or keep (ends.py)."""
        order = {"load": load, **self._to(HTTP), "seconds": seconds, "parallel": parallel}
        order = self._warmed(order, warm)
        return self.measured(lambda: self._ask(self._client, order, seconds))

    def udp(self, seconds: float, flows: int, rate: int = 0, warm: float = 0.0) -> Outcome:
        """Frames of 64 bytes in one direction; the answer's `received` is what came through."""
        order = {"load": "udp", **self._to(ECHO), "seconds": seconds, "parallel": flows, "rate": rate}
        order = self._warmed(order, warm)

        def load() -> dict[str, Any]:
            before = self._received()
            answer = self._ask(self._client, order, seconds)
            return answer | {"received": self._received() - before}

        return self.measured(load)

    def _warmed(self, order: dict[str, Any], warm: float) -> dict[str, Any]:
        """Have the client do it for `warm` seconds; returns what it waits for to go on, over the same sockets."""
        if not warm:
            return order
        self._ask(self._client, order | {"warm": warm}, warm)
        return {"go": True}

    def tcp(self, seconds: float, streams: int, warm: float = 0.0) -> Outcome:
        """The answer's `bits` is what iperf3's server got, in `seconds`, after so many whole seconds of the same."""
        to = self._to(IPERF)
        place = ("-c", to["address"], "-p", str(to["port"]))
        times = ("-t", str(max(1, round(seconds))), "-O", str(round(warm)))
        words = ("iperf3", "-J", *place, *times, "-P", str(streams))
        process = self._network.client.start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        time.sleep(round(warm))

        def load() -> dict[str, Any]:
            try:
                text, _ = process.communicate(timeout=seconds + _LOAD_PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise KuError(f"{self.peer.name}: iperf3 does not end") from None
            report = json.loads(text)
            if "error" in report:
                raise KuError(f"{self.peer.name}: iperf3: {report['error']}")
            received = report["end"]["sum_received"]
            return {
                "seconds": received["seconds"],
                "bits": received["bytes"] * 8,
                # It has ended, so nobody can read its time any more; it says it itself, in per cent.
                _IPERF: report["end"]["cpu_utilization_percent"]["host_total"] / 100 * received["seconds"],
            }

        return self.measured(load)

    def _to(self, port: Port) -> dict[str, Any]:
        if self.peer.plane in ("routed", "direct"):
            address, _ = addresses(1 if self.peer.plane == "routed" else _DIRECT_NETWORK, 2)
            return {"address": str(ip_interface(address).ip), "port": port.target}
        return {"address": CLUSTER4, "port": port.port}

    def _received(self) -> int:
        """Datagrams so far, once no more are on their way."""
        last = -1
        while (now := int(self._ask(self._sink, {}, 1)["received"])) != last:
            last = now
            time.sleep(0.02)
        return now

    def measured(self, load: Any) -> Outcome:
        roles = self._by_role()
        before = Moment.now()
        answer = load()
        after = Moment.now()
        own = {os.getpid()}.union(*roles.values())
        total, each = spent(before, after, own)
        by_role = {role: sum(each[pid] for pid in pids) for role, pids in roles.items()}
        by_role["client"] += answer.pop(_IPERF, 0.0)
        return Outcome(answer, total, by_role)

    def _by_role(self) -> dict[str, list[int]]:
        roles = {role: list(pids) for role, pids in self._pids.items()}
        for pid in roles["plane"]:
            roles["plane"] += [each for each in _descendants(pid) if each not in roles["plane"]]
        return roles

    def _ask(self, process: subprocess.Popen[str], order: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return self._read(process, seconds + _LOAD_PATIENCE_S)

    def _read(self, process: subprocess.Popen[str], patience_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], patience_s)[0]:
            raise KuError(f"{self.peer.name}: an end of the load does not answer")
        line = process.stdout.readline()
        if not line:
            raise KuError(f"{self.peer.name}: an end of the load ended with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


_counted = 0


def _number() -> int:
    """A number for each network of this process, so that their namespaces' names differ."""
    global _counted  # noqa: PLW0603
    _counted += 1
    return _counted


def _descendants(pid: int) -> Collection[int]:
    found: list[int] = []
    waiting: Sequence[int] = [pid]
    while waiting:
        children: list[int] = []
        for each in waiting:
            for tasks in Path("/proc", str(each), "task").glob("*/children"):
                children += [int(word) for word in tasks.read_text().split()]
        found += children
        waiting = children
    return found
