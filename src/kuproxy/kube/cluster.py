"""All that a proxy watches, together: nothing is told before every resource has been listed once.

The next stage works service by service.  A batch names the services that a change concerns, be it their own or that
of one of their slices, and `slices_of` finds a service's slices without looking at any other: the work follows the
size of the change.  Cluster and batches agree: between two calls of `take` the views do not move, however much has
arrived meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from kuproxy.kube.collection import Change
from kuproxy.kube.objects import EndpointSlice, Key, Node, Service, ServiceCIDR
from kuproxy.kube.pace import Pace
from kuproxy.kube.reflector import Reflector
from kuproxy.kube.resources import SERVICE_CIDRS, endpoint_slices, own_node, services

__all__ = ["Batch", "Cluster"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What has changed since the batch before; the first one has everything."""

    first: bool
    services: frozenset[Key]  # concerned by any change: their own, or a slice that they have or had
    service_changes: tuple[Change[Service], ...]
    slice_changes: tuple[Change[EndpointSlice], ...]
    node_changed: bool
    service_cidrs_changed: bool


class Cluster:
    """The reflectors of one node, and what they know."""

    def __init__(
        self,
        node_name: str,
        random: Random,
        now: float,
        pace: Pace | None = None,
        proxy_name: str | None = None,
    ) -> None:
        self.node_name = node_name
        self._services = Reflector(services(proxy_name), random, now, pace)
        self._slices = Reflector(endpoint_slices(proxy_name), random, now, pace)
        self._node = Reflector(own_node(node_name), random, now, pace)
        self._cidrs = Reflector(SERVICE_CIDRS, random, now, pace)
        self.reflectors: tuple[Reflector[Any], ...] = (self._services, self._slices, self._node, self._cidrs)
        self.services: dict[Key, Service] = {}  # these three: to be read only
        self.node: Node | None = None
        self.service_cidrs: tuple[ServiceCIDR, ...] = ()
        self._by_service: dict[Key, dict[str, EndpointSlice]] = {}
        self._told = False

    @property
    def synced(self) -> bool:
        """Whether everything has been listed once."""
        return all(reflector.synced for reflector in self.reflectors)

    @property
    def changed(self) -> bool:
        """Whether `take` may have something."""
        if not self._told:
            return self.synced
        return any(reflector.changed for reflector in self.reflectors)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many services and slices have changed since the last `take`."""
        return self._services.waiting, self._slices.waiting

    def problems(self) -> list[str]:
        """Why news may be missing, a line for each resource that has trouble: `services: 403 Forbidden: …`."""
        lines = [f"{each.resource.plural}: {each.problem}" for each in self.reflectors if each.problem]
        for each in self.reflectors:
            lines += [
                f"{each.resource.plural} {namespace}/{name}: left out: {why}"
                for (namespace, name), why in each.rejected.items()
            ]
        return lines

    @property
    def slice_count(self) -> int:
        return len(self._slices.objects)

    def slices_of(self, service: Key) -> list[EndpointSlice]:
        """A service's slices by its namespace and name, in the order of their names."""
        slices = self._by_service.get(service, {})
        if len(slices) < 2:
            return list(slices.values())
        return [slices[name] for name in sorted(slices)]

    def take(self) -> Batch | None:
        """The changes since the last call; None before all have synced, and when there are none."""
        if not self.synced:
            return None
        service_changes = self._services.take()
        slice_changes = self._slices.take()
        node_changes = self._node.take()
        cidr_changes = self._cidrs.take()
        first, self._told = not self._told, True
        if not (first or service_changes or slice_changes or node_changes or cidr_changes):
            return None
        for change in service_changes:
            if change.new is None:
                del self.services[change.key]
            else:
                self.services[change.key] = change.new
        concerned = {change.key for change in service_changes}
        for slice_change in slice_changes:
            concerned |= self._index(slice_change)
        if node_changes:
            self.node = self._node.objects.get(("", self.node_name))
        if cidr_changes:
            self.service_cidrs = tuple(cidr for _key, cidr in sorted(self._cidrs.objects.items()))
        return Batch(
            first=first,
            services=frozenset(concerned),
            service_changes=tuple(service_changes),
            slice_changes=tuple(slice_changes),
            node_changed=bool(node_changes),
            service_cidrs_changed=bool(cidr_changes),
        )

    def _index(self, change: Change[EndpointSlice]) -> set[Key]:
        """Keep the slices by service; a slice may change its service, and belong to none."""
        concerned = set()
        _namespace, name = change.key
        if change.old is not None and (service := change.old.service) is not None:
            concerned.add(service)
            slices = self._by_service[service]
            del slices[name]
            if not slices:
                del self._by_service[service]
        if change.new is not None and (service := change.new.service) is not None:
            concerned.add(service)
            self._by_service.setdefault(service, {})[name] = change.new
        return concerned
