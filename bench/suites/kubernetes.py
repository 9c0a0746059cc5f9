"""Kubernetes: from an API server over HTTP on loopback to the tables and the kernel's maps.

Everything that a node's control process does is in it: receiving, decoding, conversion, policy, tables, steering.  The
engine is in the control process, so that adoption is the next quiescent point; idle live workers look up every 50 ms.
"""

import multiprocessing
import os
import time
from typing import Any

from bench.cluster import control, serve
from bench.harness import Count, Figure, Sample, Scale
from bench.suites.graph import count_name
from bench.suites.policy import PODS_EACH

SERVICES = 10_000
BURST_S = 5.0
# kube-proxy 1.36.3, nftables mode, 10,000 services with 100,000 endpoints (issue 5).
PEER = {
    "first sync": "kube-proxy: 87.6 s",
    "one change, p50": "kube-proxy: 9.1 s",
    "burst, last one": "kube-proxy: 16.5 s",
    "resident": "kube-proxy: 558 MB",
}


class ClusterCase(Count):
    """First list, single changes, a burst of changes; one after the other in the same two processes."""

    unit = "ms"
    units = {  # noqa: RUF012
        "resident": "MB",
        "resident, shared with workers": "MB",
        "resident at most": "MB",
        "VIPs": "VIPs",
        "updates in the burst": "updates",
    }

    def __init__(self, services: int, changes: int, burst: int):
        steering = "real steering maps" if os.geteuid() == 0 else "no steering (not root)"
        name = f"kubernetes-{count_name(services)}service-{PODS_EACH}pod"
        super().__init__(name, f"engine in the control process, {steering}")
        self._services, self._changes, self._burst = services, changes, min(burst, services)

    def sample(self) -> Sample:
        context = multiprocessing.get_context("spawn")
        server, server_end = context.Pipe()
        node, node_end = context.Pipe()
        serving = context.Process(target=serve, args=(server_end, self._services), daemon=True)
        serving.start()
        server_end.close()  # so that the end of a process is noticed
        kubeconfig = server.recv()
        controlling = context.Process(target=control, args=(node_end, kubeconfig), daemon=True)
        controlling.start()
        node_end.close()
        try:
            return self._measure(server, node)
        finally:
            for process in (controlling, serving):
                process.terminate()
                process.join()

    def _measure(self, server: Any, node: Any) -> Sample:
        first = _next(node, 300)
        sample = {
            "first sync": (first["done"] - first["first_byte"]) * 1e3,
            "first sync, processor time": first["processor"] * 1e3,
            "first sync, without receiving and decoding": first["took"] * 1e3,
            "VIPs": first["vips"],
        }
        time.sleep(1.0)
        spent, handled = [], []
        for number in range(self._changes):
            server.send(number * 7 % self._services)
            begun, told = server.recv(), _next(node)
            spent.append((told["done"] - begun) * 1e3)
            handled.append((told["done"] - told["arrived"]) * 1e3)
            time.sleep(0.003)
        for name, values in (("one change", spent), ("one change, from its arrival", handled)):
            values.sort()
            sample[f"{name}, p50"] = values[len(values) // 2]
            sample[f"{name}, p99"] = values[min(len(values) - 1, len(values) * 99 // 100)]
        # After the changes: when the first update is told, memory is still to be given back.
        sample |= {
            "resident": told["resident"] / 1e6,
            "resident, shared with workers": told["shared"] / 1e6,
            "resident at most": told["peak"] / 1e6,
        }
        sample |= self._measure_burst(server, node)
        return sample

    def _measure_burst(self, server: Any, node: Any) -> Sample:
        seen = updates = 0
        start = begun = time.monotonic()
        told: dict[str, Any] = {}
        for number in range(self._burst):
            time.sleep(max(0.0, start + number * BURST_S / self._burst - time.monotonic()))
            server.send(number)
            begun = server.recv()
            while node.poll():
                told = _next(node)
                seen, updates = seen + told["slices"], updates + 1
        while seen < self._burst:
            told = _next(node)
            seen, updates = seen + told["slices"], updates + 1
        return {"burst, last one": (told["done"] - begun) * 1e3, "updates in the burst": updates}

    def figure(self, metric: str, values: list[float], note: str = "") -> Figure:
        return super().figure(metric, values, f"{PEER[metric]}; {self.note}" if metric in PEER else note)


def _next(node: Any, timeout_s: float = 30.0) -> dict[str, Any]:
    if not node.poll(timeout_s):
        raise TimeoutError("the control process says nothing")
    told: dict[str, Any] = node.recv()
    if told["error"] or not told["adopted"]:
        raise RuntimeError(f"not everything was programmed: {told}")
    return told


def cases(scale: Scale) -> list[ClusterCase]:
    """One cluster, as large as the scale allows."""
    services = min(SERVICES, scale.most_vips)
    changes = {"full": 1000, "quick": 300}.get(scale.name, 5)
    return [ClusterCase(services, changes, 500 if scale.name != "tiny" else 4)]
