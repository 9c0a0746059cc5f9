"""What a load balancer hears at a service's health-check node port: does this node have endpoints for it?

Rule and form: kube-proxy's pkg/proxy/healthcheck/service_health.go, and LocalReadyEndpoints in
endpointschangetracker.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from kuproxy.control.policy.exposure import skip_reason
from kuproxy.model.node import NodeView
from kuproxy.model.service import EndpointSlice, Service

__all__ = ["HealthAnswer", "health_answer", "local_ready"]

WEIGHT_HEADER = "X-Load-Balancing-Endpoint-Weight"


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    status: int  # 200 or 503
    headers: dict[str, str]
    body: str


def local_ready(service: Service, slices: Iterable[EndpointSlice], view: NodeView) -> int | None:
    """Ready endpoints of this service on this node, or None if nobody asks for them.

    Each address counts once, whatever ports it serves, and of a dual-stack pod's two addresses one: a load balancer
    that weighs nodes by this number must not take two families for two pods.
    """
    if skip_reason(service) is not None or not service.needs_health_check:
        return None
    found: dict[int, set[object]] = {4: set(), 6: set()}
    for endpoint_slice in slices:
        if not endpoint_slice.belongs_to(service) or all(port.port is None for port in endpoint_slice.ports):
            continue
        for endpoint in endpoint_slice.endpoints:
            if endpoint.ready and endpoint.addresses and endpoint.node_name == view.node.name:
                found[endpoint_slice.family].add(endpoint.addresses[0])
    return max(map(len, found.values()))


def health_answer(service: Service, local_endpoints: int, proxy_healthy: bool) -> HealthAnswer:
    """200 with endpoints and a healthy proxy, else 503; the body is the same, and the weight always told."""
    body = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    }
    headers = {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        WEIGHT_HEADER: str(local_endpoints),
    }
    return HealthAnswer(
        200 if local_endpoints and proxy_healthy else 503, headers, json.dumps(body, indent="\t")
    )
