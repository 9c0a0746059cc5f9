"""A live service while somebody floods it: keep-alive requests over veth, and raw frames beside them at a fixed rate.

A round is quiet (requests alone), then mixed (the flood beside them), for so long each. What the data plane's processes
take for a packet is divided evenly: a packet of the flood counts as much as one of a request. The rate that requests
keep at the same share of the processor is that of a packet, quiet by mixed. It may be above 100 %: packets that wait
together are cheaper. The rate itself falls by what the sender, the flood and the pod take of the machine besides.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bench.floods import sender
from bench.floods.traffic import FLOODS, Aim
from bench.live.bed import BUCKETS, ECHO, HTTP, Bed, Peer
from kuproxy.codes import Outcome as Fate
from kuproxy.demo.manifest import CLUSTER4, Endpoint, Port, service
from kuproxy.errors import KuError

CONNECTIONS = 32
NODE, CLIENT, POD = "10.244.0.1", "10.244.0.2", "10.244.1.2"
NODE_PORT = 30080
_DENYING = "10.96.0.81"
_PATIENCE_S = 30.0
_ROOT = Path(__file__).resolve().parent.parent.parent
AIM = Aim(
    vip=int(ip_address(CLUSTER4)), tcp_port=HTTP.port, udp_port=ECHO.port, node=int(ip_address(NODE)),
    node_port=NODE_PORT, pod=int(ip_address(POD)), pods=1, pod_port=HTTP.target, client=int(ip_address(CLIENT)),
)  # fmt: skip


def _denied_service() -> list[dict[str, Any]]:
    """externalTrafficPolicy Local, and its pod on another node: clients from outside are not served here."""
    port = Port("http", "TCP", 80, 8080, NODE_PORT)
    head, *slices = service("denied", (_DENYING,), (port,), [Endpoint("far", "10.245.9.9", "")])
    head["spec"]["externalTrafficPolicy"] = "Local"
    for each in slices:
        each["endpoints"][0]["nodeName"] = "elsewhere"
    # Whoever is not denied counts as a pod: clients from outside would be masqueraded, as kube-proxy does it.
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "here"},
        "spec": {"podCIDRs": ["0.0.0.0/2"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    }
    return [node, head, *slices]


def peer(flow_hash: str) -> Peer:
    """kuproxy with pods behind pod1 alone, so that nobody else's packets count as pods'."""
    lines = f"ku conf flow-hash {flow_hash}\nku set interface nat4 in pod1\n"
    return Peer("kuproxy", "kuproxy", lines=lines, documents=tuple(_denied_service()))


@dataclass
class Measured:
    """The rounds of one flood: seconds of the plane's processes for a packet, packets, requests a second."""

    quiet_s: list[float] = field(default_factory=list)
    mixed_s: list[float] = field(default_factory=list)
    quiet_rate: list[float] = field(default_factory=list)
    mixed_rate: list[float] = field(default_factory=list)
    failures: int = 0
    sent: int = 0
    received: int = 0  # by the data plane while the flood went on, requests and answers included

    @property
    def share(self) -> list[float]:
        """Per cent of the rate that is left at the same share of the processor, round by round."""
        return [100 * a / b for a, b in zip(self.quiet_s, self.mixed_s, strict=True)]

    @property
    def rate(self) -> list[float]:
        """Per cent of the rate that is left, whatever took the rest."""
        return [100 * b / a for a, b in zip(self.quiet_rate, self.mixed_rate, strict=True)]


class Attacker:
    """The sender in the client's namespace."""

    def __init__(self, bed: Bed) -> None:
        links = bed.network.node.netlink(lambda netlink: netlink.get_links(ifname="client0"))
        mac = dict(links[0]["attrs"])["IFLA_ADDRESS"]
        words = (sys.executable, "-m", sender.__name__, "eth0", mac)
        self._process = bed.network.client.start(
            *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        bed.join(self._process)
        self._read()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Raises KuError."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE_S)[0]:
            raise KuError("the sender of the flood does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise KuError(f"the sender of the flood ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _requests(bed: Bed, seconds: float) -> tuple[float, int, float, int]:
    """(plane's seconds for a packet, packets, requests a second, failures)."""
    assert bed.data_plane is not None
    before = int(bed.data_plane.report()["received"])
    outcome = bed.http("keep", seconds, CONNECTIONS)
    packets = int(bed.data_plane.report()["received"]) - before
    answer = outcome.answer
    each = outcome.cpu_by_role["plane"] / max(1, packets)
    return each, packets, answer["requests"] / answer["seconds"], int(answer["failures"])


def _round(bed: Bed, attacker: Attacker, seconds: float, rate: int, into: Measured) -> None:
    each, _, requests, failures = _requests(bed, seconds)
    into.quiet_s.append(each)
    into.quiet_rate.append(requests)
    into.failures += failures
    said: list[dict[str, Any]] = []
    order = {"seconds": seconds, "rate": rate}
    thread = threading.Thread(target=lambda: said.append(attacker.ask(order)))
    thread.start()
    each, packets, requests, failures = _requests(bed, seconds)
    thread.join()
    into.mixed_s.append(each)
    into.mixed_rate.append(requests)
    into.failures += failures
    into.received += packets
    into.sent += int(said[0]["sent"])


def run(rounds: int, seconds: float, rate: int, flow_hash: str) -> tuple[dict[str, Measured], dict[str, Any]]:
    """Every flood in turn, round after round; and the data plane's last report.  Raises KuError."""
    found = {name: Measured() for name in FLOODS}
    with Bed(peer(flow_hash)) as bed:
        bed.await_ready()
        attacker = Attacker(bed)
        log2 = BUCKETS.bit_length() - 1
        for _ in range(rounds):
            for name, into in found.items():
                attacker.ask({"flood": name, "aim": asdict(AIM), "log2": log2})
                _round(bed, attacker, seconds, rate, into)
        assert bed.data_plane is not None
        report = bed.data_plane.report()
    return found, report


def unaccounted(report: dict[str, Any]) -> int:
    """Packets that were received and have no outcome, or more than one."""
    outcomes = report["outcomes"]
    return int(report["received"]) - sum(int(outcomes[fate.name.lower()]) for fate in Fate if fate)
