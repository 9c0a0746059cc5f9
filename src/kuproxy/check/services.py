"""Services and EndpointSlices that do not find each other."""

from __future__ import annotations

from collections.abc import Iterator

from kuproxy.check.finding import Finding, Severity, Subject
from kuproxy.control.policy import skip_reason
from kuproxy.model.service import ServiceObjects, TrafficPolicy

__all__ = ["services"]


def services(subject: Subject) -> Iterator[Finding]:
    for objects in subject.config.services:
        if skip_reason(objects.service) is None:
            yield from _ports(subject, objects)
            yield from _hints(subject, objects)


def _finding(subject: Subject, objects: ServiceObjects, rule: str, message: str, hint: str) -> Finding:
    service = objects.service
    vip = next((vip for vip in subject.config.vips if vip.owner.partition(":")[0] == service.full_name), None)
    place = None if vip is None else subject.place(vip)
    name = f"Service {service.full_name}"
    if place is None:
        return Finding(rule, Severity.WARNING, name, message, hint)
    return Finding(rule, Severity.WARNING, name, message, hint, place.file, place.line)


def _ports(subject: Subject, objects: ServiceObjects) -> Iterator[Finding]:
    service = objects.service
    if not objects.slices:
        hint = "EndpointSlices name their Service by the label kubernetes.io/service-name"
        yield _finding(subject, objects, "no-slices", "no EndpointSlice belongs to it", hint)
        return
    offered = {(port.name, port.protocol) for each in objects.slices for port in each.ports}
    for port in service.ports:
        if (port.name, port.protocol) in offered:
            continue
        names = (
            ", ".join(f"{name or 'unnamed'}/{protocol.name}" for name, protocol in sorted(offered)) or "none"
        )
        message = f"no slice has its port {port.name or 'unnamed'}/{port.protocol.name}; they have {names}"
        hint = "the names of the ports must be the same, not their numbers"
        yield _finding(subject, objects, "port-not-in-slices", message, hint)


def _hints(subject: Subject, objects: ServiceObjects) -> Iterator[Finding]:
    """Topology hints hold for all ready endpoints, or for none."""
    service, view = objects.service, subject.config.view
    ready = [each for part in objects.slices for each in part.endpoints if each.ready]
    with_hints = [each for each in ready if each.hint_zones or each.hint_nodes]
    if with_hints and len(with_hints) < len(ready):
        message = (
            f"{len(ready) - len(with_hints)} of {len(ready)} ready endpoints have no hint, so none counts"
        )
        yield _finding(subject, objects, "hints-in-part", message, "give each a hint, or none")
    local = TrafficPolicy.LOCAL
    if view is not None and service.internal_traffic_policy is local:
        here = any(each.node_name == view.node.name for each in ready)
        if ready and not here:
            message = f"internalTrafficPolicy: Local, and no ready endpoint is on node {view.node.name}"
            hint = "run one on each node, or say Cluster"
            yield _finding(subject, objects, "no-local-endpoint", message, hint)
