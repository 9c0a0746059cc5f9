"""Accounts to the last packet: what clients sent is what was counted, everywhere that it is counted.

Packets of a VIP that nobody else asks are counted by its clients, by the VIP and by its pods, both ways, in packets and
in bytes; a single one too many or too few is a fault. At the end, when all is quiet, the sums over everything agree.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from kuproxy.demo.topology import Host
from kuproxy.errors import KuError

from .daemon import Daemon

FLOWS, DATAGRAMS = 8, 5  # of each flow
PORT, TARGET = 7, 7007
TIMEOUT_S = 3.0
QUIET_S, PATIENCE_S = 0.3, 20.0
_HEADERS = {4: 28, 6: 48}  # IP and UDP


@dataclass(frozen=True)
class Sums:
    """Of one VIP, as its clients or as the data plane have them."""

    flows: int
    to_pod_packets: int
    to_pod_bytes: int
    from_pod_packets: int
    from_pod_bytes: int


def converse(client: Host, address: str) -> Sums:
    """Every datagram is answered before the next is sent.  Raises OSError when one is not."""
    version = ip_address(address).version
    family, headers = (socket.AF_INET if version == 4 else socket.AF_INET6), _HEADERS[version]
    sent = received = 0
    ports = set()  # the kernel may give one twice, and then it is one flow
    for flow in range(FLOWS):
        with client.call(socket.socket, family, socket.SOCK_DGRAM) as opened:
            opened.settimeout(TIMEOUT_S)
            opened.connect((address, PORT))
            ports.add(opened.getsockname()[1])
            for number in range(DATAGRAMS):
                data = b"x" * (20 + 7 * number + flow)
                opened.send(data)
                sent += headers + len(data)
                received += headers + len(opened.recv(2048))
    packets = FLOWS * DATAGRAMS
    return Sums(len(ports), packets, sent, packets, received)


def _vips(daemon: Daemon) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    target = "/v1/vips"
    while True:
        page = daemon.request("GET", target)
        found += page["vips"]
        if page["next"] is None:
            return found
        target = f"/v1/vips?after={page['next']}"


def _of_vip(row: dict[str, Any]) -> Sums:
    """By the VIP's own counters."""
    counters = row["counters"]
    towards = sum(counters[name] for name in ("first_packet", "next_packet", "untracked_packet"))
    return Sums(
        counters["first_packet"], towards, counters["to_pod_bytes"], counters["from_pod_packets"],
        counters["from_pod_bytes"],
    )  # fmt: skip


def _of_pods(row: dict[str, Any]) -> Sums:
    """By those of its pods together."""
    names = ("flows", "to_pod_packets", "to_pod_bytes", "from_pod_packets", "from_pod_bytes")
    return Sums(*(sum(pod["counters"][name] for pod in row["pods"]) for name in names))


def compare(daemon: Daemon, prefix: str, said: Sums) -> None:
    """Raises KuError if somebody has counted something else than the clients."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        row = next(each for each in _vips(daemon) if each["vip"]["prefix"] == prefix)
        counted = {"the VIP": _of_vip(row), "its pods": _of_pods(row)}
        if all(each == said for each in counted.values()):
            return
        if time.monotonic() > deadline:  # the last answer may be on its way while its counter is written
            told = "; ".join(f"{who} counted {each}" for who, each in counted.items() if each != said)
            raise KuError(f"{prefix}: the clients counted {said}; {told}")


def _listed_flows(daemon: Daemon) -> int:
    """Those that live, read one by one."""
    found, target = 0, "/v1/flows?limit=10000"
    while True:
        page = daemon.request("GET", target)
        found += len(page["flows"])
        if page["next"] is None:
            return found
        target = f"/v1/flows?limit=10000&after={page['next']}"


def _faults(daemon: Daemon) -> list[str]:
    """Sums that do not agree, at this moment."""
    counters, vips = daemon.request("GET", "/v1/counters"), _vips(daemon)
    received, outcomes = counters["received"], counters["outcomes"]
    flows = sum(worker["flows"] for worker in counters["workers"])
    by_state = sum(sum(worker["states"].values()) for worker in counters["workers"])
    by_vip = sum(row["flows"] for row in vips)
    by_pod = sum(pod["flows"] for row in vips for pod in row["pods"])
    found = []
    if received != sum(outcomes.values()):
        found.append(f"{received} packets received, outcomes {outcomes}")
    if outcomes["held"]:
        found.append(f"{outcomes['held']} fragments still wait")
    listed = _listed_flows(daemon)
    # Those of a deleted VIP or flushed pod are nobody's, and those that have expired are not listed: until the sweep.
    if not (flows == by_state and by_vip == by_pod <= flows and listed <= flows):
        told = f"{by_state} by state, {listed} listed, {by_vip} by VIP, {by_pod} by pod"
        found.append(f"{flows} flows in the tables, {told}")
    return found


def balance(daemon: Daemon) -> list[str]:
    """When nothing comes any more: what does not agree, empty if everything does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        before = daemon.request("GET", "/v1/counters")["received"]
        found = _faults(daemon)
        time.sleep(QUIET_S)
        quiet = daemon.request("GET", "/v1/counters")["received"] == before
        if not found and quiet:
            return []
        if time.monotonic() > deadline:
            return found or [f"packets have gone on for {PATIENCE_S:g} s after the load's end"]


def emptied(daemon: Daemon) -> list[str]:
    """After a flush: what is left of flows."""
    daemon.request("POST", "/v1/flows/flush")
    counters = daemon.request("GET", "/v1/counters")
    left = {str(worker["index"]): worker["flows"] for worker in counters["workers"] if worker["flows"]}
    return [f"flows after a flush, by worker: {left}"] if left else []
