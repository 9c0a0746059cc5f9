"""The Service behind a VIP: its endpoints with their verdicts, and its VIPs under another traffic policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from kuproxy.codes import Family, Origin
from kuproxy.control.policy import Verdict, candidates_for, service_vips, verdicts
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.node import NodeView
from kuproxy.model.service import Service, ServiceObjects, ServicePort, TrafficPolicy
from kuproxy.model.vip import Vip

__all__ = ["ServiceFinder", "Source", "finder", "policies", "service_verdicts", "vips_under", "with_policy"]

Source = tuple[ServiceObjects, NodeView | None]
ServiceFinder = Callable[[str], Source | None]  # by a VIP's owner, `namespace/service:port`


def finder(objects: Iterable[ServiceObjects], view: NodeView | None) -> ServiceFinder:
    """Over objects that were read from files."""
    by_name = {each.service.full_name: each for each in objects}

    def find(owner: str) -> Source | None:
        found = by_name.get(owner.partition(":")[0])
        return None if found is None else (found, view)

    return find


def _port_of(service: Service, vip: Vip) -> ServicePort | None:
    return next((port for port in service.ports if service.port_name(port) == vip.owner), None)


def _uses_local(service: Service, vip: Vip, origin: Origin, view: NodeView | None) -> bool:
    """Whether clients from there get the pods of the policy Local."""
    if view is None:
        return False
    if vip.outside_pods is not None:
        return origin is Origin.OUTSIDE
    if vip.key.prefix.network_address in service.cluster_ips:
        return service.is_internal_local
    # An external address whose two groups of pods are the same: they are those of either policy.
    return service.is_external_local and origin is Origin.OUTSIDE


def service_verdicts(source: Source, vip: Vip, origin: Origin) -> list[Verdict]:
    """What becomes of each endpoint of the VIP's port, for clients of this origin."""
    objects, view = source
    port = _port_of(objects.service, vip)
    if port is None:
        return []
    candidates = candidates_for(objects.service, port, Family(vip.type.pod_family), objects.slices)
    local = _uses_local(objects.service, vip, origin, view)
    return verdicts(candidates, None if view is None else view.node, local=local)


def policies(source: Source) -> str:
    """`shop/web, internalTrafficPolicy Cluster, externalTrafficPolicy Local, seen from node a in zone z`."""
    objects, view = source
    service = objects.service
    parts = [
        service.full_name,
        f"internalTrafficPolicy {service.internal_traffic_policy.value}",
        f"externalTrafficPolicy {service.external_traffic_policy.value}",
    ]
    if view is None:
        parts.append("seen from no node: policies and hints do not count")
    else:
        zone = f" in zone {view.node.zone}" if view.node.zone else ""
        parts.append(f"seen from node {view.node.name}{zone}")
    return ", ".join(parts)


def with_policy(service: Service, policy: str) -> Service:
    """The same Service with `policy`: `Cluster` or `Local` for both sides, or `internal=...`, `external=...`.

    Raises ConfigError.
    """
    side, _, word = policy.rpartition("=")
    chosen = {each.value.lower(): each for each in TrafficPolicy}.get(word.lower())
    if chosen is None or side not in ("", "internal", "external"):
        hint = "say Cluster or Local, for one side internal=... or external=..."
        raise ConfigError(Problem(f"{policy!r} is no traffic policy", field="--policy", hint=hint))
    if side != "external":
        service = replace(service, internal_traffic_policy=chosen)
    if side != "internal":
        service = replace(service, external_traffic_policy=chosen)
    return service


def vips_under(source: Source, policy: str) -> list[Vip]:
    """The Service's VIPs with another policy.  Raises ConfigError."""
    objects, view = source
    service = with_policy(objects.service, policy)
    if view is None:
        message = "no Node object says which node this is, so every policy is Cluster"
        raise ConfigError(Problem(message, field="--policy", hint="give this node's object too"))
    return service_vips(service, objects.slices, view)
