"""From the API server's objects to VIPs: only the services that a change concerns are converted and decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kuproxy.control.book import Claimant, Difference, ServiceBook, Wanted
from kuproxy.control.policy import ServiceVips, local_ready, service_range_guards, translate
from kuproxy.kube.cluster import Cluster
from kuproxy.kube.convert import convert_endpoint_slice, convert_service
from kuproxy.kube.node import convert_node, convert_service_cidr
from kuproxy.kube.objects import Service as ServiceObject
from kuproxy.kube.objects import document
from kuproxy.kube.plain import plain_service, plain_slice
from kuproxy.kube.reader import Finding
from kuproxy.model.node import NodeInfo, NodeView
from kuproxy.model.service import EndpointSlice, Service, ServiceObjects
from kuproxy.model.vip import Prefix

__all__ = ["Decider", "HealthCheck", "read_node", "read_service_cidrs"]


# Whoever claims what a service has too comes after every service.
GUARDS: Claimant = ("", "ServiceCIDR")
_LAST_RANK = ("~", *GUARDS)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A service whose load balancer asks this node at `port` whether it has endpoints."""

    namespace: str
    name: str
    port: int  # healthCheckNodePort
    local_endpoints: int


class Decider:
    """What the services come to on this node."""

    def __init__(self) -> None:
        self.book = ServiceBook()
        self.health: dict[Claimant, HealthCheck] = {}  # replaced as a whole when it changes
        self.faults: dict[Claimant, tuple[str, ...]] = {}  # what is wrong with the objects of a service

    def decide(
        self, cluster: Cluster, services: Iterable[Claimant], view: NodeView, *, everything: bool = False
    ) -> tuple[Difference, set[Claimant]]:
        """Decide these services anew, or all; also tells whose objects have other faults than before."""
        concerned = set(services)
        changes: dict[Claimant, Wanted | None] = {}
        if everything:
            concerned |= cluster.services.keys()
            guards = ServiceVips(tuple(service_range_guards(view.settings.service_cidrs)))
            changes[GUARDS] = Wanted(_LAST_RANK, guards)
        health = dict(self.health)
        other_faults = set()
        for key in concerned:
            found: list[Finding] = []
            changes[key] = self._wanted(cluster, key, view, found, health)
            faults = tuple(f"{finding.field}: {finding.message}" for finding in found)
            if faults != self.faults.get(key, ()):
                other_faults.add(key)
                self.faults[key] = faults
                if not faults:
                    del self.faults[key]
        if health != self.health:
            self.health = health
        return self.book.update(changes), other_faults

    def objects(self, cluster: Cluster, key: Claimant) -> ServiceObjects | None:
        """A service as it is decided by, with its slices; None: there is none, or it has faults."""
        service = self._service(cluster, key, [])
        return None if service is None else ServiceObjects(service, tuple(_slices(cluster, key, [])))

    @staticmethod
    def _service(cluster: Cluster, key: Claimant, found: list[Finding]) -> Service | None:
        raw = cluster.services.get(key)
        if raw is None:
            return None
        service = plain_service(raw) or convert_service(document(raw), found)
        if service is not None and service.proxy_name is not None:  # the selector let it through: it is ours
            service = replace(service, proxy_name=None)
        return service

    def _wanted(
        self,
        cluster: Cluster,
        key: Claimant,
        view: NodeView,
        found: list[Finding],
        health: dict[Claimant, HealthCheck],
    ) -> Wanted | None:
        health.pop(key, None)
        service = self._service(cluster, key, found)
        if service is None:
            return None
        raw = cluster.services[key]
        slices = _slices(cluster, key, found)
        ready = local_ready(service, slices, view)
        if ready is not None:
            health[key] = HealthCheck(service.namespace, service.name, service.health_check_node_port, ready)
        return Wanted(_rank(raw, service), translate(service, slices, view))


def _rank(raw: ServiceObject, service: Service) -> tuple[str, str, str]:
    return (raw.metadata.creation_timestamp or "", service.namespace, service.name)


def _slices(cluster: Cluster, key: Claimant, found: list[Finding]) -> list[EndpointSlice]:
    notes: list[Finding] = []  # what is skipped on purpose
    converted = [
        plain_slice(raw) or convert_endpoint_slice(document(raw), found, notes)
        for raw in cluster.slices_of(key)
    ]
    return [each for each in converted if each is not None]


def read_node(cluster: Cluster, found: list[Finding]) -> NodeInfo:
    """The own Node; its name alone if the API server has none, or one with faults."""
    node = None if cluster.node is None else convert_node(document(cluster.node), found)
    return node or NodeInfo(cluster.node_name)


def read_service_cidrs(cluster: Cluster, found: list[Finding]) -> tuple[Prefix, ...]:
    """The ranges of all ServiceCIDRs; one with faults is left out."""
    ranges = (convert_service_cidr(document(each), found) for each in cluster.service_cidrs)
    return tuple(dict.fromkeys(prefix for each in ranges if each is not None for prefix in each))
