"""What operators and controllers do to a daemon all day: services and pods come and go, files change, people look.

Each act is one small thing that must succeed; they take turns, each at its own pace.
"""

import itertools
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kuproxy.client import Refusal
from kuproxy.demo.manifest import CLUSTER4, CLUSTER6, Endpoint, demo_service, write_manifest
from kuproxy.demo.topology import Host
from kuproxy.errors import KuError

from . import account
from .daemon import Daemon

TIMEOUT_S = 3.0
EXTRA_PODS = 50  # addresses of pods that nobody runs, for VIPs that nobody asks
EXAMPLES = 10
READ = (
    "/v1/vips",
    "/v1/services",
    "/v1/pods",
    "/v1/flows",
    "/v1/counters",
    "/v1/health",
    "/v1/state",
    "/v1/trace",
    "/v1/settings",
    "/openapi.json",
)


@dataclass
class _Act:
    name: str
    every_s: float
    do: Callable[[], None]
    due_s: float = 0.0


class Churn:
    """All acts, one after the other, in the caller's thread."""

    def __init__(self, daemon: Daemon, client: Host, endpoints: list[Endpoint], manifest: Path, buckets: int):
        self._daemon, self._client, self._endpoints, self._manifest = daemon, client, endpoints, manifest
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self._numbers = itertools.count(1)
        self._sizes = itertools.cycle((buckets * 2, buckets))
        self._absent = itertools.cycle(range(len(endpoints)))
        self._reads: Iterator[str] = itertools.cycle(READ)
        self._acts = [
            _Act("vip with traffic", 1.0, self._come_and_go),
            _Act("accounted vip", 2.0, self._accounted),
            _Act("vip with many pods", 2.0, self._many_pods),
            _Act("read", 0.2, self._read),
            _Act("metrics", 1.0, self._metrics),
            _Act("refused line", 3.0, self._refused),
            _Act("reload", 5.0, self._reload),
            _Act("ping", 1.0, self._ping),
            _Act("trace", 10.0, self._trace),
            _Act("resize", 20.0, self._resize),
        ]

    def turn(self) -> float:
        """Do what is due; returns when the next is, on the monotonic clock."""
        for act in self._acts:
            now = time.monotonic()
            if now < act.due_s:
                continue
            act.due_s = max(act.due_s + act.every_s, now)
            try:
                act.do()
                self.done[act.name] += 1
            except (Refusal, KuError, OSError, ValueError, subprocess.SubprocessError) as error:
                if len(self.failed) < EXAMPLES:
                    self.failed.append(f"{act.name}: {type(error).__name__}: {error}")
        return min(act.due_s for act in self._acts)

    def _pods(self, family: int) -> str:
        return " ".join((each.ipv4, each.ipv6)[family] for each in self._endpoints)

    def _come_and_go(self) -> None:
        """A new VIP serves at once."""
        number = next(self._numbers)
        family = number % 2
        vip = (f"10.97.{number // 250 % 250}.{number % 250 + 1}", f"fd00:10:97::{number % 65000 + 1:x}")[
            family
        ]
        prefix = f"{vip}/{(32, 128)[family]}"
        self._daemon.lines(
            f"ku vip {prefix} protocol tcp port 80 target_port 8080", f"ku pod {prefix} {self._pods(family)}"
        )
        try:
            opened = self._client.call(socket.socket, (socket.AF_INET, socket.AF_INET6)[family])
            with opened:
                opened.settimeout(TIMEOUT_S)
                opened.connect((vip, 80))
                opened.sendall(b"GET / HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
                if not opened.recv(100).startswith(b"HTTP/1.1 200 "):
                    raise ValueError(f"{vip} does not serve")
        finally:
            self._daemon.lines(f"ku vip {prefix} protocol tcp port 80 del")

    def _accounted(self) -> None:
        """Every packet of a VIP of one's own, counted by its clients, by the VIP and by its pods."""
        number = next(self._numbers)
        family = number % 2
        address = (f"10.99.{number // 250 % 250}.{number % 250 + 1}", f"fd00:10:99::{number % 65000 + 1:x}")[family]
        prefix = f"{address}/{(32, 128)[family]}"
        self._daemon.lines(
            f"ku vip {prefix} protocol udp port {account.PORT} target_port {account.TARGET}",
            f"ku pod {prefix} {self._pods(family)}",
        )
        try:
            account.compare(self._daemon, prefix, account.converse(self._client, address))
        finally:
            self._daemon.lines(f"ku vip {prefix} protocol udp port {account.PORT} del")

    def _many_pods(self) -> None:
        prefix, number = "10.98.0.0/24", next(self._numbers)
        pods = [f"10.200.{number % 250}.{each + 1}" for each in range(EXTRA_PODS)]
        self._daemon.lines(
            f"ku vip {prefix} port 53 new_len 4096", f"ku pod {prefix} port 53 {' '.join(pods)}"
        )
        self._daemon.lines(f"ku pod {prefix} port 53 {pods[0]} del")
        self._daemon.lines(f"ku vip {prefix} port 53 del")

    def _read(self) -> None:
        self._daemon.request("GET", next(self._reads))

    def _metrics(self) -> None:
        answer = self._daemon.metrics()
        if not answer.startswith(b"HTTP/1.1 200 ") or b"# TYPE " not in answer:
            raise ValueError(f"/metrics says {answer[:60]!r}")

    def _trace(self) -> None:
        # So many that the ring is soon full: until then its text grows, and what control needs to make it.
        self._daemon.lines("trace add 100")
        self._daemon.lines("show trace", "show node counters", "show ku vips verbose")

    def _refused(self) -> None:
        try:
            self._daemon.lines("ku vip nonsense")
        except Refusal:
            return
        raise ValueError("nonsense was accepted")

    def _reload(self) -> None:
        """Another pod is missing from the service that the load asks."""
        absent = self._endpoints[next(self._absent)]
        write_manifest(self._manifest, demo_service([each for each in self._endpoints if each is not absent]))
        self._daemon.request("POST", "/v1/reload")

    def _ping(self) -> None:
        for address in (CLUSTER4, CLUSTER6):
            words = ["ip", "netns", "exec", self._client.name, "ping", "-n", "-c", "1", "-W", "3", address]
            done = subprocess.run(words, capture_output=True, timeout=10, check=False)
            if done.returncode:
                raise ValueError(f"no echo from {address}")

    def _resize(self) -> None:
        self._daemon.lines(f"ku conf buckets {next(self._sizes)}")
