"""The real tier's world: one node with a real `ku kube-proxy` under its keeper, three pods, clients, an API server.

Two Services: `web` is asked over new connections; at `kept` there are a hundred TCP connections with messages on each,
the same ones through all seeds.  The state directory is a small file system of its own.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.evidence import evidence
from chaos.faults import FAULTS, Fault
from chaos.plan import Plan, Step
from kuproxy.client import Client, Refusal
from netns.cluster import NAMESPACE, Cluster, Node, Pod, _route, cluster, ip
from netns.many_connections import Load, _line, _start
from netns.processes import children_that_run
from netns.world import web

WEB, KEPT = ("10.96.0.80", "fd00:10:96::80"), ("10.96.0.90", "fd00:10:96::90")
NODE_PORT = 30080
KEPT_PORT = 9000
CONNECTIONS, MESSAGES_PER_S = 100, 400
FAMILIES = ("IPv4", "IPv6")
DISK_BYTES = 64 << 10
CONVERGED_WITHIN_S = 30.0  # back-offs of the keeper (at most 10 s here) and of watches (6 s), on a busy machine
TRIES = 200  # new connections until each of three pods has answered one: it takes a handful
_ON_CONTROL = ("stop_control", "lose_netlink", "few_files", "little_memory", "kill_control")


@dataclass
class Rig:
    """`run` carries out a plan, and checks everything."""

    cluster: Cluster
    load: Load
    wanted: dict[str, list[Pod]]  # Service → its pods
    active: dict[str, Fault] = field(default_factory=dict)
    allowed: set[str] = field(default_factory=set)  # pods that may answer while changes are under way
    counts: dict[str, int] = field(default_factory=dict)  # what was checked, for the report
    extra: list[str] = field(default_factory=list)  # addresses that the node has got in this seed
    refused: int = 0
    evidence: str = ""  # of the last new connection that failed

    def __post_init__(self) -> None:
        self.workers = self._listed("worker")
        self.keepers = self._listed("keeper")
        self.roles = sorted(each["role"] for each in self.client.request("GET", "/v1/health")["processes"])

    @property
    def node(self) -> Node:
        return self.cluster.nodes[0]

    @property
    def client(self) -> Client:
        return Client(str(self.node.directory / "ku.sock"), 5.0)

    # ------------------------------------------------------------------------------------------- processes

    def _listed(self, role: str) -> list[int]:
        processes = self.client.request("GET", "/v1/health")["processes"]
        return [each["pid"] for each in processes if each["role"] == role]

    def processes(self, role: str) -> list[int]:
        """Control as the kernel lists it, workers as they were when the seed began."""
        if role == "worker":
            return self.workers
        return children_that_run("kuproxy.kubeproxy.service", self.keepers[0])

    # -------------------------------------------------------------------------------------- what faults do

    def carrier(self, state: str) -> None:
        ip(self.cluster.lan, f"link set lan1 {state}")

    def interface(self, there: bool) -> None:
        with suppress(subprocess.CalledProcessError):  # gone already
            if there:
                ip(self.node.host, "link add chaos0 up type veth peer name chaos1")
            else:
                ip(self.node.host, "link del chaos0")

    def change_addresses(self, times: int) -> None:
        """As many events as that, twice, and nothing else."""

        def act(netlink: Any) -> None:
            (index,) = netlink.link_lookup(ifname="lan")
            for number in range(times):
                for command in ("add", "del"):
                    netlink.addr(command, index=index, address=f"198.51.100.{number % 250 + 1}", prefixlen=32)

        self.node.host.netlink(act)

    def add_address(self, number: int) -> None:
        """One more for the node, which serves node ports in the end."""
        address = f"192.168.50.{110 + number % 80}"
        if address not in self.extra:
            ip(self.node.host, f"addr add {address}/24 dev lan")
            self.extra.append(address)

    def start_api(self) -> None:
        if self.cluster.api._thread is None:
            self.cluster.api.start()

    def stall_api(self, seconds: float) -> None:
        """Its loop does nothing for a while: connections stay, and are silent."""
        if self.cluster.api._thread is not None:
            self.cluster.api._loop.call_soon_threadsafe(threading.Event().wait, seconds)

    @property
    def _filler(self) -> Path:
        return self.node.directory / "state" / "filler"

    def fill_disk(self) -> None:
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def empty_disk(self) -> None:
        self._filler.unlink(missing_ok=True)

    def expect_refusal(self) -> None:
        """What cannot be kept is refused in one line that names the reason, and changes nothing."""
        if any(kind in self.active for kind in _ON_CONTROL):
            return  # it may not answer at all
        before = self.client.request("GET", "/v1/state")
        try:
            self.client.request("POST", "/v1/ku", {"lines": "ku vip 10.97.0.9/32 protocol tcp port 80"})
        except Refusal as error:
            assert "No space left on device" in str(error), error
        else:
            raise AssertionError("a change was accepted that cannot be kept")
        assert self.client.request("GET", "/v1/state") == before
        self.refused += 1

    # --------------------------------------------------------------------------------------------- changes

    def change(self, number: int) -> None:
        """Each Service gets a subset of the pods, never none."""
        pods = self.cluster.pods
        for place, service in enumerate(self.wanted):
            bits = 1 + (number >> 4 * place) % ((1 << len(pods)) - 1)
            chosen = [pod for bit, pod in enumerate(pods) if bits >> bit & 1]
            self.wanted[service] = chosen
            self._tell_api(service, chosen)
        self.allowed |= _names(self.wanted["web"])

    def _tell_api(self, service: str, pods: list[Pod]) -> None:
        api = self.cluster.api
        target = KEPT_PORT if service == "kept" else 8080

        def act() -> None:
            for family in FAMILIES:
                new = self.cluster._slice(service, family, pods, target=target)
                old = api.store.get("endpointslices", NAMESPACE, new["metadata"]["name"])
                api.store.update("endpointslices", {**old, "endpoints": new["endpoints"]})

        if api._thread is None:
            act()  # nobody else touches the store
        else:
            api.do(act)

    # ------------------------------------------------------------------------------------------------- run

    def run(self, plan: Plan) -> None:
        """Raises AssertionError.  Whatever happens, all faults have ended."""
        self.allowed = _names(self.wanted["web"])
        self.workers = self._listed("worker")
        self.load.begin()
        began = time.monotonic()
        try:
            for step in plan.steps:
                time.sleep(max(0.0, began + step.at_s - time.monotonic()))
                self._step(step)
        finally:
            for fault in self.active.values():
                fault.end()
            self.active.clear()
        self._settled()

    def _step(self, step: Step) -> None:
        if step.act == "change":
            self.change(step.number)
        elif step.act == "begin":
            self.active[step.kind] = fault = FAULTS[step.kind](self, step.number)
            fault.begin()
            if all(each.forwards for each in self.active.values()):
                self._new_connection(self.allowed)
        else:
            self.active.pop(step.kind).end()

    # ---------------------------------------------------------------------------------------------- checks

    def _new_connection(self, allowed: set[str], address: str = WEB[0], port: int = 80) -> str:
        try:
            name = web(self.cluster.client, address, port)
        except OSError:
            self.evidence = evidence(self)
            raise
        assert name in allowed, f"{name} answered at {address}:{port}, and not one of {sorted(allowed)}"
        self.counts["connections"] = self.counts.get("connections", 0) + 1
        return name

    def _settled(self) -> None:
        """Control's view, the configuration and what the tables do are the same; nothing was broken on the way."""
        within(self._is_converged)
        wanted = _names(self.wanted["web"])
        for address in WEB:
            self._all_answer(wanted, address, 80)
        for address in (self.node.ipv4, self.node.ipv6, *self.extra):
            within(lambda address=address: self._serves(wanted, address))
        for address in self.extra:
            ip(self.node.host, f"addr del {address}/24 dev lan")
        self.extra.clear()
        report = self.load.report()
        assert not report.broken, report
        assert (report.connections, report.unanswered) == (CONNECTIONS, 0), report
        assert report.answered > 0, report
        assert self.keepers == self._listed("keeper")
        # It can still change what it keeps.
        vip = "ku vip 10.97.0.8/32 protocol tcp port 80"
        for lines in (vip, f"{vip} del"):
            self.client.request("POST", "/v1/ku", {"lines": lines})

    def _is_converged(self) -> None:
        health = self.client.request("GET", "/v1/health")
        assert health["ready"], health
        assert sorted(each["role"] for each in health["processes"]) == self.roles, health
        for each in health["processes"]:
            assert Path(f"/proc/{each['pid']}").exists(), health
        vips = self.client.request("GET", "/v1/vips?limit=1000")["vips"]
        for service, pods in self.wanted.items():
            mine = [each for each in vips if each["owner"].startswith(f"{NAMESPACE}/{service}:")]
            assert len(mine) >= 2 * len(FAMILIES), (service, mine)
            for vip in mine:
                served = {each["address"] for each in vip["pods"] if not each["draining"]}
                assert served in ({pod.ipv4 for pod in pods}, {pod.ipv6 for pod in pods}), (service, vip)

    def _all_answer(self, wanted: set[str], address: str, port: int) -> None:
        seen: set[str] = set()
        for _ in range(TRIES):
            seen.add(self._new_connection(wanted, address, port))
            if seen == wanted:
                return
        raise AssertionError(f"of {sorted(wanted)} only {sorted(seen)} answered at {address}:{port}")

    def _serves(self, wanted: set[str], address: str) -> None:
        self._new_connection(wanted, address, NODE_PORT)


def within(check: Callable[[], None], seconds: float = CONVERGED_WITHIN_S) -> None:
    """The check passes in time; else what it said last is raised."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except (AssertionError, Refusal, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _names(pods: list[Pod]) -> set[str]:
    return {pod.name for pod in pods}


@contextmanager
def rig() -> Iterator[Rig]:
    """Everything runs; afterwards nothing does."""
    with cluster(3) as made:
        node = made.nodes[0]
        state = node.directory / "state"
        state.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "kuchaos", str(state)], check=True
        )
        processes: list[subprocess.Popen[str]] = []
        try:
            made.service("web", WEB, made.pods, type="NodePort", node_ports=(NODE_PORT, 30007))
            made.service("kept", KEPT, made.pods, target=KEPT_PORT)
            made.start("clusterCIDR: 10.244.0.0/16,fd00:10:244::/56\n")
            for pod in made.pods:
                processes.append(_start(pod.host, "serve", str(KEPT_PORT)))
            for each in processes:
                assert _line(each) == "ready"
            _route(made.client, "10.96.0.0/16", node.ipv4)
            _route(made.client, "fd00:10:96::/64", node.ipv6)
            targets = [[KEPT[0], 80, "192.168.50.100"], [KEPT[1], 80, "fd00:50::100"]]
            plan = {"connections": CONNECTIONS, "targets": targets, "rate": MESSAGES_PER_S}
            processes.append(_start(made.client, "ask", json.dumps(plan)))
            assert _line(processes[-1]) == "ready"
            yield Rig(made, Load(processes[-1], processes[:-1]), {"web": made.pods, "kept": made.pods})
        finally:
            for each in reversed(processes):
                each.kill()
                each.wait()
                for pipe in (each.stdin, each.stdout, each.stderr):
                    if pipe is not None:
                        pipe.close()
            made.close()
            subprocess.run(["umount", str(state)], check=True)

