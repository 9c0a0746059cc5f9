"""The two that are compared, each on a node of its own: kuproxy, and the kernel with kube-proxy's rules."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from control.nft import Ruleset
from kuproxy.demo.manifest import write_manifest
from oracle.kube_nft import Node, Object, table
from oracle.wires import NODE, POD_PREFIX, Wires

START_LIMIT_S = 200  # the kernels may have to be compiled
SERVICE_RANGE = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
NODE_NAME = "here"
NODE_OBJECTS: list[Object] = [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "spec": {"podCIDRs": list(POD_PREFIX.values())},
        "status": {"addresses": [{"type": "InternalIP", "address": each} for each in NODE.values()]},
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": list(SERVICE_RANGE.values())},
    },
]


class Ours:
    """`ku run`."""

    def __init__(self, directory: Path) -> None:
        self.wires = Wires()
        self._manifest, self._log = directory / "services.yaml", directory / "log"
        settings = directory / "settings.ku"
        settings.write_text("ku conf buckets 65536\n")
        write_manifest(self._manifest, NODE_OBJECTS)
        files = [word for each in (self._manifest, settings) for word in ("--config", str(each))]
        command = (sys.executable, "-m", "kuproxy.daemon.foreground", *files)
        with self._log.open("wb") as log:
            self._process = self.wires.node.run(
                lambda: subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )
        self._wait("forwarding", 1, START_LIMIT_S)

    def serve(self, objects: Sequence[Object]) -> None:
        """These Services and EndpointSlices, in place of those before."""
        before = self._count("applied")
        write_manifest(self._manifest, [*NODE_OBJECTS, *objects])
        self._process.send_signal(signal.SIGHUP)
        self._wait("applied", before + 1, 10)

    def _count(self, event: str) -> int:
        return self._log.read_text().count(f"event={event}")

    def _wait(self, event: str, count: int, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while self._count(event) < count:
            assert self._process.poll() is None and time.monotonic() < until, self._log.read_text()
            time.sleep(0.01)

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self.wires.close()


class Theirs:
    """nftables."""

    def __init__(self) -> None:
        self.wires = Wires()
        ranges = list(SERVICE_RANGE.values())
        self._node = Node(NODE_NAME, list(NODE.values()), list(POD_PREFIX.values()), ranges)
        self.rules: dict[int, Ruleset] = {}

    def serve(self, objects: Sequence[Object]) -> None:
        """The same. `rules` tells afterwards what each table says of a new flow, as the kernel lists it."""
        services = [each for each in objects if each["kind"] == "Service"]
        slices = [each for each in objects if each["kind"] == "EndpointSlice"]
        text = "".join(table(services, slices, self._node, version).text() for version in (4, 6))
        self.wires.nft(text)
        for version, word in ((4, "ip"), (6, "ip6")):
            self.rules[version] = Ruleset(self.wires.nft(f"list table {word} kube-proxy"))

    def close(self) -> None:
        self.wires.close()
