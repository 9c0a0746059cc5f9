"""What happens in the demo, and when: three pods serve, a fourth joins, one is drained, and load runs throughout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from kuproxy.demo.client import Plan, Tally, Target
from kuproxy.demo.load import Clients
from kuproxy.demo.manifest import CLUSTER4, CLUSTER6, ECHO, HTTP, Endpoint, demo_service
from kuproxy.demo.plane import DataPlane
from kuproxy.demo.topology import Network, addresses, remove_stale
from kuproxy.errors import KuError

Progress = Callable[[str], None]

PREFIX = "kudemo"
PODS = 4
JOINS, DRAINED = "pod4", "pod2"
PHASES = ("three pods", f"{JOINS} joined", f"{DRAINED} drained")
KEPT = 60
LOAD_S = 12.0  # over which the requests are spread
LOAD_LIMIT_S = 35.0  # a machine that is too slow for them fails
COMPILE_LIMIT_S = 300.0
NODE_SHARE = 8  # one in so many requests comes from the node itself


@dataclass(slots=True)
class Outcome:
    """What the story ended with."""

    tally: Tally
    shares: dict[str, dict[str, float]]  # phase → pod → share of the Maglev rings
    report: dict[str, Any]  # the last one of `ku run`
    run_status: int
    seconds: float
    faults: list[str] = field(default_factory=list)  # what was not as it should be, one sentence each


def shares_of(report: dict[str, Any], pods: list[Endpoint]) -> dict[str, float]:
    """Each pod's part of the new-flow tables, averaged over the VIPs."""
    names = {address: pod.name for pod in pods for address in (pod.ipv4, pod.ipv6)}
    slots: dict[str, float] = {pod.name: 0.0 for pod in pods}
    vips = [vip for vip in report["vips"] if not vip["removed"] and vip["pods"]]
    for vip in vips:
        total = sum(pod["buckets"] for pod in vip["pods"]) or 1
        for pod in vip["pods"]:
            slots[names[pod["address"]]] += pod["buckets"] / total / len(vips)
    return slots


def targets(where: str = "") -> list[Target]:
    """Every way to the Service: cluster IPs and node ports, TCP and UDP, both families."""
    node4, node6 = (str(ip_interface(each).ip) for each in addresses(0, 1))
    ways = [
        ("cluster IP", CLUSTER4, HTTP.port, ECHO.port),
        ("cluster IP", CLUSTER6, HTTP.port, ECHO.port),
        ("node port", node4, HTTP.node_port, ECHO.node_port),
        ("node port", node6, HTTP.node_port, ECHO.node_port),
    ]
    found = []
    for kind in ("tcp", "udp"):
        for name, address, tcp, udp in ways:
            family = "IPv6" if ":" in address else "IPv4"
            label = f"{kind.upper()} {name} {family}{where}"
            found.append(Target(label, kind, address, tcp if kind == "tcp" else udp))
    # Three HTTP requests for each datagram.
    return found[:4] * 3 + found[4:]


def tell(requests: int, progress: Progress) -> Outcome:
    """The whole story. Whatever happens, nothing of it is left behind."""
    warm = subprocess.Popen([sys.executable, "-m", "kuproxy.warm"], stdout=subprocess.DEVNULL)
    try:
        progress("network namespaces: client, node, four pods")
        files = tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-")
        with files as directory, Network(PREFIX, PODS) as network:
            endpoints = start_pods(network)
            progress("kernels: compiled, or taken from the cache")
            try:
                if warm.wait(COMPILE_LIMIT_S):
                    raise KuError(f"compiling the kernels ended with status {warm.returncode}")
            except subprocess.TimeoutExpired:
                raise KuError(f"compiling the kernels took more than {COMPILE_LIMIT_S:g} s") from None
            return _main_part(network, Path(directory), endpoints, requests, progress)
    finally:
        if warm.poll() is None:
            warm.kill()
        warm.wait()


def remove_leftovers() -> None:
    """What runs that were killed could not take away: namespaces and files of processes that are gone."""
    remove_stale(PREFIX)
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*"):
        process_id = path.name.split("-")[1]
        ours = path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
        if ours and process_id.isdecimal() and not Path("/proc", process_id).exists():
            shutil.rmtree(path, ignore_errors=True)


def start_pods(network: Network) -> list[Endpoint]:
    """A server in each pod; returns when all of them listen."""
    endpoints, servers = [], []
    ports = (str(HTTP.target), str(ECHO.target))
    for number, host in enumerate(network.pods, 1):
        name = f"pod{number}"
        ipv4, ipv6 = (str(ip_interface(each).ip) for each in addresses(number, 2))
        endpoints.append(Endpoint(name, ipv4, ipv6))
        command = (sys.executable, "-m", "kuproxy.demo.pods", name, *ports)
        servers.append(host.start(*command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
    for server in servers:
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            raise KuError(f"a pod's server ended with status {server.wait()}")
    return endpoints


def _main_part(
    network: Network, directory: Path, endpoints: list[Endpoint], requests: int, progress: Progress
) -> Outcome:
    started = time.monotonic()
    stages = [
        [pod for pod in endpoints if pod.name != JOINS],
        endpoints,
        [pod for pod in endpoints if pod.name != DRAINED],
    ]
    progress("ku run: starting on the node")
    plane = DataPlane(network.node, directory, demo_service(stages[0]))
    plane.wait_for("forwarding")
    on_node = requests // NODE_SHARE
    clients = Clients(
        [
            (network.client, Plan(targets(), requests - on_node, LOAD_S, KEPT)),
            (network.node, Plan(targets(" from the node"), on_node, LOAD_S)),
        ]
    )
    deadline = time.monotonic() + LOAD_LIMIT_S
    shares = {PHASES[0]: shares_of(plane.report(), endpoints)}
    clients.order(phase=PHASES[0])
    try:
        for number, (phase, pods) in enumerate(zip(PHASES, stages, strict=True)):
            if number:
                plane.change(demo_service(pods))
                shares[phase] = shares_of(plane.report(), endpoints)
                # From here on a new connection to the drained pod is a failure.
                clients.order(phase=phase, drained=[DRAINED] if number == 2 else [])
            goal = requests * (number + 1) // 3
            while clients.tally.new < goal:
                clients.listen(deadline)
                progress(f"{phase}: {clients.tally.line(requests)}")
        clients.order(finish=True)
        while not clients.finished:
            clients.listen(deadline)
    except TimeoutError:
        tally = clients.tally
        lines = [f"the load did not end within {LOAD_LIMIT_S:g} s: {tally.line(requests)}", *tally.examples]
        raise KuError("\n".join([*lines, "the log of ku run:", plane.log.rstrip()])) from None
    status, report = plane.stop()
    outcome = Outcome(clients.tally, shares, report, status, time.monotonic() - started)
    outcome.faults = judge(outcome, requests)
    return outcome


def judge(outcome: Outcome, requests: int) -> list[str]:
    """Everything that is not as it should be. Shares are judged roughly: the rest is chance."""
    tally, faults = outcome.tally, []
    if tally.new_failed + tally.kept_failed:
        faults.append(f"{tally.new_failed + tally.kept_failed} requests failed")
    if tally.broken or tally.kept_open != KEPT:
        faults.append(f"{KEPT - tally.kept_open} of {KEPT} kept connections broke")
    if tally.new != requests:
        faults.append(f"{tally.new} of {requests} new connections were made")
    if KEPT and not tally.on_drained:
        faults.append(f"no kept connection was at {DRAINED}: its draining was not seen")
    if outcome.run_status:
        faults.append(f"ku run ended with status {outcome.run_status}")
    for phase, shares in outcome.shares.items():
        counted = tally.per_phase.get(phase, {})
        total = sum(counted.values())
        for pod, share in shares.items():
            got = counted.get(pod, 0) / max(total, 1)
            if total >= 300 and share and not share / 2 < got < share * 2:
                faults.append(f"{phase}: {pod} got {got:.0%} where its share of the ring is {share:.0%}")
    return faults
