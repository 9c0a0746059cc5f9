"""Settings of kube-proxy that say nothing to this one, and why.

Each is accepted, so that a file that serves kube-proxy serves here; each that was changed from its default gets a
warning at the start.  `docs/kubernetes.md` has the same table, held to it by a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kuproxy.kubeproxy.config import complete, document_of
from kuproxy.kubeproxy.schema import KubeProxyConfiguration

__all__ = ["NO_EFFECT", "without_effect"]

# By path; a path stands for everything below it.
NO_EFFECT = {
    "clientConnection.acceptContentTypes": "the API server is asked for JSON",
    "clientConnection.burst": "a proxy has four watches and few events: there is nothing to limit",
    "clientConnection.contentType": "the API server is asked for JSON",
    "clientConnection.qps": "a proxy has four watches and few events: there is nothing to limit",
    "configSyncPeriod": "watches that fall silent are followed by a list, whatever the period",
    "conntrack.tcpBeLiberal": "any sequence number is taken",
    "conntrack.tcpCloseWaitTimeout": "half-closed connections count as established",
    "conntrack.udpTimeout": "flows without replies are remembered like others",
    "enableProfiling": "there is no such handler",
    "featureGates": "they are those of kube-proxy's own code",
    "iptables.localhostNodePorts": "node ports do not answer at 127.0.0.1, as in nftables mode",
    "iptables.masqueradeBit": "packets are not marked",
    "iptables.minSyncPeriod": "every change is applied at once",
    "ipvs": "there is no IPVS: pods are chosen by Maglev, and neighbours are answered as the kernel does",
    "logging.flushFrequency": "lines are written at once",
    "logging.options": "lines are written at once",
    "logging.verbosity": "there is one level for everything",
    "logging.vmodule": "there is one level for everything",
    "nftables.masqueradeBit": "packets are not marked",
    "nftables.minSyncPeriod": "every change is applied at once",
    "portRange": "the userspace mode that it was for is gone",
    "showHiddenMetricsForVersion": "no metric is hidden",
    "windowsRunAsService": "this is Linux",
    "winkernel": "this is Linux",
}


def without_effect(config: KubeProxyConfiguration) -> Iterator[tuple[str, str]]:
    """Paths of settings that differ from the default and mean nothing here, with the reason."""
    given = dict(_leaves(document_of(config)))
    usual = dict(_leaves(document_of(complete(KubeProxyConfiguration(mode=config.mode)))))
    told = set()
    for path, value in given.items():
        if usual.get(path) == value:
            continue
        parts = path.split(".")
        heads = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        head = next((each for each in heads if each in NO_EFFECT), None)
        if head is not None and head not in told:
            told.add(head)
            yield head, NO_EFFECT[head]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _leaves(below, f"{path}.{name}" if path else name)
    else:
        yield path, value
