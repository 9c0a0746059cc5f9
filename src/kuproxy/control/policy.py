"""Which endpoints serve which address: Services and EndpointSlices in, VIPs out.

Pure functions, as in kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go), so that a table can test every
case.  Everything that narrows the choice of endpoints (readiness now; traffic policies and topology to come) goes
through `select_endpoints` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from kuproxy.codes import Family
from kuproxy.model.service import (
    Endpoint,
    EndpointSlice,
    IpMode,
    Service,
    ServicePort,
    ServiceType,
    SessionAffinity,
    TrafficPolicy,
)
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey, vip_type

__all__ = [
    "Candidate",
    "not_honoured",
    "recommended_new_len",
    "select_endpoints",
    "service_vips",
    "skip_reason",
    "vips_of",
]

MIN_NEW_LEN = 1024
MAX_NEW_LEN = 65536
SLOTS_PER_POD = 100


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint as one port of a service may use it."""

    endpoint: Endpoint
    pod: Pod


def recommended_new_len(pods: int) -> int:
    """Size of the new-flow table for so many pods.

    VPP recommends one to two orders of magnitude more slots than pods.  We take the second: with 100 slots for
    each, shares differ by at most 1 %.  Never below VPP's default, 1024, so that small services do not change
    their size (and with it the place of every new flow) with each pod; never above 65536, Maglev's own choice
    (65537), which takes 256 KiB per VIP.
    """
    wanted = SLOTS_PER_POD * pods
    return min(MAX_NEW_LEN, max(MIN_NEW_LEN, 1 << max(wanted - 1, 0).bit_length()))


def skip_reason(service: Service) -> str | None:
    """Why a service gets no VIP, or None if it does."""
    if service.proxy_name is not None:
        return f"it belongs to another proxy, {service.proxy_name!r}"
    if service.type is ServiceType.EXTERNAL_NAME:
        return "it is an ExternalName, which the DNS serves"
    if service.headless:
        return "it is headless"
    if not service.cluster_ips:
        return "it has no clusterIP; the API server would give it one"
    if not service.ports:
        return "it has no ports"
    return None


def not_honoured(service: Service) -> list[str]:
    """What the service asks for and does not get yet: said aloud, because traffic would go where it should not."""
    texts = []
    if service.external_traffic_policy is TrafficPolicy.LOCAL:
        texts.append("externalTrafficPolicy: Local is treated as Cluster")
    if service.internal_traffic_policy is TrafficPolicy.LOCAL:
        texts.append("internalTrafficPolicy: Local is treated as Cluster")
    return texts


def affinity_of(service: Service) -> float:
    """Seconds for which a client keeps its pod; 0 without affinity."""
    return float(service.affinity_timeout_s) if service.session_affinity is SessionAffinity.CLIENT_IP else 0.0


def source_ranges_of(service: Service, address: Address) -> tuple[Prefix, ...]:
    """Clients that may use this address: loadBalancerSourceRanges concern the load balancer's addresses alone."""
    if not any(ingress.ip == address for ingress in service.ingress):
        return ()
    return tuple(prefix for prefix in service.source_ranges if prefix.version == address.version)


def candidates_for(
    service: Service, port: ServicePort, family: Family, slices: Iterable[EndpointSlice]
) -> list[Candidate]:
    """Every endpoint that could serve this port, ready or not, duplicates merged.

    A slice serves a port of the service if one of its ports has the same *name* and protocol; the number is the
    slice's, and may differ from slice to slice.  The same address and port in two slices is one endpoint, and as
    in kube-proxy the one that comes last in the order of the slices' names counts.
    """
    merged: dict[Pod, Candidate] = {}
    for endpoint_slice in sorted(slices, key=lambda item: item.name):
        if endpoint_slice.family != family or endpoint_slice.service_full_name != service.full_name:
            continue
        numbers = {
            item.port
            for item in endpoint_slice.ports
            if item.name == port.name and item.protocol == port.protocol and item.port is not None
        }
        for number in sorted(numbers):
            for endpoint in endpoint_slice.endpoints:
                if endpoint.addresses:
                    pod = Pod(endpoint.addresses[0], number)
                    merged[pod] = Candidate(endpoint, pod)
    return list(merged.values())


def select_endpoints(service: Service, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The endpoints that get new flows.

    Those that are ready; if none is, those that still serve while they terminate (KEP-1669), so that a service
    whose last pods shut down keeps answering.  `publishNotReadyAddresses` asks to disregard readiness.
    """
    ready = [c for c in candidates if c.endpoint.ready or service.publish_not_ready_addresses]
    return ready or [c for c in candidates if c.endpoint.serving and c.endpoint.terminating]


def _addresses(service: Service, family: Family) -> Iterator[Address]:
    """Where the service is reached in this family, the cluster IP first; nothing without a cluster IP."""
    cluster_ip = service.cluster_ip(family)
    if cluster_ip is None:
        return
    yield cluster_ip
    yield from (address for address in service.external_ips if address.version == family)
    for ingress in service.ingress:
        if ingress.ip is not None and ingress.ip.version == family and ingress.ip_mode is IpMode.VIP:
            yield ingress.ip


def service_vips(service: Service, slices: Iterable[EndpointSlice]) -> list[Vip]:
    """The VIPs of one service: each of its addresses, in each family, for each of its ports.

    The node port is put on the VIP of the cluster IP: one record serves both, since both lead to the same pods.
    """
    if skip_reason(service) is not None:
        return []
    slices = list(slices)
    vips = []
    for port in service.ports:
        for family in (Family.IPV4, Family.IPV6):
            addresses = list(dict.fromkeys(_addresses(service, family)))
            if not addresses:
                continue
            selected = select_endpoints(service, candidates_for(service, port, family, slices))
            for index, address in enumerate(addresses):
                prefix = ip_network(address)
                vips.append(
                    Vip(
                        key=VipKey(prefix, port.protocol, port.port),
                        type=vip_type(prefix),
                        # A named target is resolved by the slices; every pod then carries its own number.
                        target_port=port.target_port if isinstance(port.target_port, int) else port.port,
                        node_port=0 if index else port.node_port,
                        new_len=recommended_new_len(len(selected)),
                        pods=tuple(candidate.pod for candidate in selected),
                        reject=True,
                        affinity_s=affinity_of(service),
                        source_ranges=source_ranges_of(service, address),
                        owner=service.port_name(port),
                    )
                )
    return vips


def vips_of(services: Iterable[Service], slices: Iterable[EndpointSlice]) -> list[Vip]:
    """The VIPs of all services."""
    by_service: dict[str, list[EndpointSlice]] = {}
    for endpoint_slice in slices:
        by_service.setdefault(endpoint_slice.service_full_name, []).append(endpoint_slice)
    return [
        vip for service in services for vip in service_vips(service, by_service.get(service.full_name, ()))
    ]
