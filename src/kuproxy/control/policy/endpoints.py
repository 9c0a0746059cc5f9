"""Which endpoints may serve one port of a service: readiness, traffic policy, topology.

The rules are those of kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go) over what its endpointslicecache.go
makes of the slices; KEP-1669 (terminating endpoints), KEP-2433 (hints), KEP-3015 (same node before same zone) and
KEP-2086 (internalTrafficPolicy) say why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from kuproxy.codes import Family
from kuproxy.model.node import NodeInfo
from kuproxy.model.service import Endpoint, EndpointSlice, Service, ServicePort
from kuproxy.model.vip import Pod

__all__ = ["Candidate", "Categories", "candidates_for", "categorize", "preferred_by_topology"]


class Candidate(NamedTuple):
    """An endpoint as one port of a service may use it."""

    endpoint: Endpoint
    pod: Pod


class Categories(NamedTuple):
    """The endpoints of one port in one family, by the policy that uses them."""

    cluster: Sequence[Candidate]  # for the policy Cluster, narrowed by topology
    local: Sequence[Candidate]  # for the policy Local; empty without a node
    has_any: bool  # does anything serve, be it where this node must not go?


def candidates_for(
    service: Service, port: ServicePort, family: Family, slices: Iterable[EndpointSlice]
) -> list[Candidate]:
    """Every endpoint that could serve this port, ready or not, duplicates merged, in the order of their pods.

    As in a VIP, a pod whose port is the service's target port has the port 0.

    A slice serves a port of the service if one of its ports has the same *name* and protocol; the number is the
    slice's, and may differ from slice to slice.  The same address and port in two slices is one endpoint, and as
    in kube-proxy the one that comes last in the order of the slices' names counts.
    """
    merged: dict[tuple[int, ...], Candidate] = {}
    usual = port.target_port if isinstance(port.target_port, int) else port.port
    for endpoint_slice in sorted(slices, key=lambda item: item.name):
        if endpoint_slice.family != family or not endpoint_slice.belongs_to(service):
            continue
        numbers = {
            item.port
            for item in endpoint_slice.ports
            if item.name == port.name and item.protocol == port.protocol and item.port is not None
        }
        for number in numbers:
            own_port = 0 if number == usual else number
            for endpoint in endpoint_slice.endpoints:
                if endpoint.addresses:
                    pod = Pod(endpoint.addresses[0], own_port)
                    merged[pod.id] = Candidate(endpoint, pod)
    return [merged[place] for place in sorted(merged)]


def preferred_by_topology(
    ready: Sequence[Candidate], node: NodeInfo | None
) -> Callable[[Endpoint], bool] | None:
    """Which of the ready endpoints this node should use; None if all of them.

    Node hints hold if every ready endpoint has some and one names this node; else zone hints, if every ready
    endpoint has some and one names this node's zone (topologyModeFromHints).
    """
    if node is None or not ready or not (ready[0].endpoint.hint_nodes or ready[0].endpoint.hint_zones):
        return None
    name, zone = node.name, node.zone
    if all(c.endpoint.hint_nodes for c in ready) and any(name in c.endpoint.hint_nodes for c in ready):
        return lambda endpoint: name in endpoint.hint_nodes
    if all(c.endpoint.hint_zones for c in ready) and any(zone in c.endpoint.hint_zones for c in ready):
        return lambda endpoint: zone in endpoint.hint_zones
    return None


def _usable(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that are ready; if none is, those that still serve while they terminate (KEP-1669)."""
    candidates = list(candidates)
    return [c for c in candidates if c.endpoint.ready] or [
        c for c in candidates if c.endpoint.serving and c.endpoint.terminating
    ]


def categorize(candidates: Sequence[Candidate], node: NodeInfo | None) -> Categories:
    """The endpoints for each traffic policy, as seen from `node` (None: unknown, so that nothing is local).

    Readiness falls back for each policy on its own: while a pod of this node still terminates it may serve the
    policy Local although ready ones elsewhere serve the policy Cluster.
    """
    cluster = _usable(candidates)
    has_any = bool(cluster)
    if has_any and cluster[0].endpoint.ready:
        is_preferred = preferred_by_topology(cluster, node)
        if is_preferred is not None:
            cluster = [c for c in cluster if is_preferred(c.endpoint)]
    if node is None:
        return Categories(cluster, (), has_any)
    return Categories(cluster, _usable(c for c in candidates if c.endpoint.node_name == node.name), has_any)
