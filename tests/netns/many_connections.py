"""Very many live TCP connections through a VIP, with small messages on all of them, watched closely.

    with many_connections(world, 10_000) as load:
        load.begin()
        ...                       # kill something
        report = load.report()
    assert not report.broken and report.longest_gap_ms < 100

A message is on its way on each connection at most once, the next connection's turn comes after 1/rate seconds; so the
messages spread evenly over time, and what is lost in a pause of the data plane is what fell into that pause.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute

from kuproxy.demo.topology import Host
from netns import many_peers
from netns.world import World

PORT = 9000
VIPS = ("10.96.0.70", "fd00:10:96::70")
_SOURCES = 4  # addresses of the client per family: 2,500 of some 28,000 ports each
_OPEN_WITHIN_S = 50


@dataclass(frozen=True)
class Report:
    """What became of the messages since `begin`."""

    connections: int  # still open
    broken: dict[str, int]  # reason → connections lost since `begin`
    seconds: float
    sent: int
    answered: int
    unanswered: int  # not even some seconds later
    late_turns: int  # a connection's turn came while its last message was still under way
    longest_gap_ms: float  # between two answers, over all connections
    longest_gap_at_s: float  # when it began, after `begin`
    latency_ms: dict[str, float]  # p50, p99, max
    delayed: int  # messages that took as long as one that TCP had to send again
    lost: int  # segments with data that did not arrive the first time, in both directions

    @property
    def rate(self) -> float:
        """Messages a second, as they came."""
        return self.answered / self.seconds

    @property
    def lost_ms(self) -> float:
        """For how long all traffic would have to be lost to lose so much: a message is a segment each way."""
        return 1000 * self.lost / (2 * self.rate) if self.rate else 1000 * self.seconds

    def __str__(self) -> str:
        latency = ", ".join(f"{name} {value:.1f}" for name, value in self.latency_ms.items())
        return (
            f"{self.connections} open, {sum(self.broken.values())} broken {self.broken or ''}; "
            f"{self.answered} of {self.sent} messages answered in {self.seconds:.1f} s, {self.unanswered} not; "
            f"longest gap {self.longest_gap_ms:.1f} ms at {self.longest_gap_at_s:.2f} s; latency ms: {latency}; "
            f"{self.delayed} delayed, {self.lost} segments lost = {self.lost_ms:.1f} ms of traffic"
        )


class Load:
    """The client with its connections, and the servers in the pods."""

    def __init__(self, client: subprocess.Popen[str], servers: Sequence[subprocess.Popen[str]]) -> None:
        self.client, self.servers = client, servers
        self._before = 0

    def _lost(self) -> int:
        """As the pods see it: their answers sent again, and what they have got twice."""
        return sum(int(_tell(each, "lost")) for each in self.servers if each.poll() is None)

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._lost()
        _tell(self.client, "begin")

    def report(self) -> Report:
        """Figures since `begin`."""
        content: dict[str, Any] = json.loads(_tell(self.client, "report"))
        content["lost"] += self._lost() - self._before
        return Report(**content)


def _tell(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return _line(process)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    answer = process.stdout.readline().strip()
    if not answer:
        process.wait(_OPEN_WITHIN_S)
        raise AssertionError(f"a peer ended with status {process.returncode}: {process.stderr.read()}")
    return answer


def _start(host: Host, *words: str) -> subprocess.Popen[str]:
    """Without pytest's environment: `-I -S` starts in some 15 ms and imports nothing else."""
    command = (sys.executable, "-I", "-S", many_peers.__file__, *words)
    pipe = subprocess.PIPE
    return host.start(*command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def vip_script(world: World) -> Iterator[str]:
    """Lines of `ku` that make the VIPs, with every pod behind them, and room for the flows."""
    yield "ku conf buckets 131072"  # with 20,000 entries, a bucket of four is hardly ever full
    for address, bits, family in zip(VIPS, (32, 128), ("ipv4", "ipv6"), strict=True):
        yield f"ku vip {address}/{bits} protocol tcp port {PORT} target_port {PORT}"
        yield f"ku pod {address}/{bits} {' '.join(getattr(each, family) for each in world.endpoints)}"


def _own_addresses(client: Host) -> tuple[list[str], list[str]]:
    """Give the client its addresses; IPv6's without waiting for duplicates."""
    addresses = (
        [f"10.244.0.{10 + number}" for number in range(_SOURCES)],
        [f"fd00:10:244::{10 + number:x}" for number in range(_SOURCES)],
    )

    def add(netlink: IPRoute) -> None:
        (index,) = netlink.link_lookup(ifname="eth0")
        for each, length, flags in ((addresses[0], 24, {}), (addresses[1], 64, {"flags": 0x02})):
            for address in each:
                netlink.addr("replace", index=index, address=address, prefixlen=length, **flags)

    client.netlink(add)
    return addresses


@contextmanager
def many_connections(world: World, connections: int, rate_per_s: int = 5000) -> Iterator[Load]:
    """So many connections, half of them IPv6, to the VIPs of `vip_script`; the daemon serves those already.

    Raises AssertionError when one cannot be opened.
    """
    own = _own_addresses(world.client)
    targets = [[VIPS[family], PORT, own[family][source]] for source in range(_SOURCES) for family in (0, 1)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for pod in world.pods:
            processes.append(_start(pod, "serve", str(PORT)))
        for each in processes:
            assert _line(each) == "ready"
        plan = {"connections": connections, "targets": targets, "rate": rate_per_s}
        client = _start(world.client, "ask", json.dumps(plan))
        processes.append(client)
        assert _line(client) == "ready"
        yield Load(client, processes[:-1])
    finally:
        for each in reversed(processes):
            each.kill()
            each.wait()
            for pipe in (each.stdin, each.stdout, each.stderr):
                if pipe is not None:
                    pipe.close()
