"""The VIPs of a service: at which addresses and ports it is reached, by whose endpoints, and what else happens there.

A service is reached from inside at its cluster IPs and from outside at external IPs, load-balancer addresses and node
ports; each side has its traffic policy and its masquerading (pkg/proxy/serviceport.go, nftables/proxier.go).  Where
both are told the same, the node port is put on the cluster IP's VIP; else it has a VIP of its own, at 0.0.0.0/32 or
::/128.

All functions are pure, and the result depends on one service, its slices and the node's view alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from kuproxy.codes import Family, Origin, Protocol
from kuproxy.control.policy.endpoints import Candidate, Categories, candidates_for, categorize
from kuproxy.control.policy.masquerade import masquerade_cluster_ip, masquerade_external
from kuproxy.model.node import NodeView
from kuproxy.model.service import (
    EndpointSlice,
    IpMode,
    Service,
    ServicePort,
    ServiceType,
    SessionAffinity,
    TrafficPolicy,
)
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey, host_prefix, vip_type

__all__ = [
    "ServiceVips",
    "cluster_ip_guards",
    "not_honoured",
    "recommended_new_len",
    "service_range_guards",
    "service_vips",
    "skip_reason",
    "translate",
    "vips_of",
]

MIN_NEW_LEN = 1024
MAX_NEW_LEN = 65536
SLOTS_PER_POD = 100
ANY_ADDRESS = {Family.IPV4: ip_network("0.0.0.0/32"), Family.IPV6: ip_network("::/128")}
RANGE_OWNER = "ServiceCIDR"
_WITHOUT_NODE = ": which node this is, no Node object says"


@dataclass(frozen=True, slots=True)
class ServiceVips:
    """What one service comes to."""

    vips: tuple[Vip, ...] = ()
    # By VIP of UDP: the pods that serve, chosen or not; flows to others must end (control.policy.cleanup).
    serving: tuple[tuple[VipKey, frozenset[Pod]], ...] = ()


@dataclass(frozen=True, slots=True)
class _Side:
    """How a service behaves to the inside or to the outside."""

    is_local: bool
    masquerade: Origin


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
    """What a service asks for and does not get without a node's view: said aloud, traffic goes elsewhere."""
    texts = []
    if service.external_traffic_policy is TrafficPolicy.LOCAL:
        texts.append(f"externalTrafficPolicy: Local is treated as Cluster{_WITHOUT_NODE}")
    if service.internal_traffic_policy is TrafficPolicy.LOCAL:
        texts.append(f"internalTrafficPolicy: Local is treated as Cluster{_WITHOUT_NODE}")
    return texts


def affinity_of(service: Service) -> float:
    """Seconds for which a client keeps its pod; 0 without affinity."""
    return float(service.affinity_timeout_s) if service.session_affinity is SessionAffinity.CLIENT_IP else 0.0


def source_ranges_of(service: Service, address: Address, view: NodeView | None = None) -> tuple[Prefix, ...]:
    """Clients that may use this address: loadBalancerSourceRanges concern the load balancer's addresses alone.

    A node that may use them may also do so with a load-balancer address as its source, which is what it has where
    that address was added to the node.
    """
    balancer = {item.ip for item in service.ingress if item.ip_mode is IpMode.VIP and item.ip is not None}
    if address not in balancer:
        return ()
    ranges = tuple(prefix for prefix in service.source_ranges if prefix.version == address.version)
    own = None if view is None else view.node.address(Family(address.version))
    if ranges and own is not None and any(own in prefix for prefix in ranges):
        ranges += tuple(host_prefix(each) for each in balancer if each.version == address.version)
    return ranges


def _outside_addresses(service: Service, family: Family) -> Iterator[Address]:
    yield from (address for address in service.external_ips if address.version == family)
    for ingress in service.ingress:
        if ingress.ip is not None and ingress.ip.version == family and ingress.ip_mode is IpMode.VIP:
            yield ingress.ip


def _sides(service: Service, family: Family, view: NodeView | None) -> tuple[_Side, _Side]:
    """Inside and outside.  Without a view every policy is Cluster, and nothing is masqueraded."""
    if view is None:
        same = _Side(False, Origin(0))
        return same, same
    outside = service.is_external_local
    return (
        _Side(service.is_internal_local, masquerade_cluster_ip(view, family)),
        _Side(outside, masquerade_external(view, outside)),
    )


def _pods(candidates: Iterable[Candidate]) -> tuple[Pod, ...]:
    return tuple([candidate.pod for candidate in candidates])


def _vip(
    service: Service,
    port: ServicePort,
    prefix: Prefix,
    categories: Categories,
    side: _Side,
    *,
    inside: bool,
    node_port: int = 0,
    source_ranges: tuple[Prefix, ...] = (),
) -> Vip:
    """One VIP.  Without any endpoint clients are refused; where only others may serve them, they are not answered."""
    outside_pods = None
    pods = _pods(categories.cluster)
    if side.is_local:
        local = _pods(categories.local)
        if inside:
            pods = local
        else:
            outside_pods = local
    usable = pods if outside_pods is None else outside_pods
    number = node_port if prefix == ANY_ADDRESS[Family(prefix.version)] else port.port
    return Vip(
        key=VipKey(prefix, port.protocol, number),
        type=vip_type(prefix),
        # A named target is resolved by the slices; every pod then carries its own number.
        target_port=port.target_port if isinstance(port.target_port, int) else port.port,
        node_port=node_port,
        new_len=recommended_new_len(len(pods)),
        pods=pods,
        outside_pods=outside_pods,
        reject=bool(usable) or not categories.has_any,
        masquerade_from=side.masquerade,
        affinity_s=affinity_of(service),
        source_ranges=source_ranges,
        owner=service.port_name(port),
    )


def _port_vips(
    service: Service, port: ServicePort, family: Family, categories: Categories, view: NodeView | None
) -> Iterator[Vip]:
    cluster_ip = service.cluster_ip(family)
    assert cluster_ip is not None
    inside, outside = _sides(service, family, view)
    shared = port.node_port if inside == outside else 0
    yield _vip(service, port, host_prefix(cluster_ip), categories, inside, inside=True, node_port=shared)
    for address in dict.fromkeys(_outside_addresses(service, family)):
        if address != cluster_ip:
            ranges = source_ranges_of(service, address, view)
            yield _vip(
                service, port, host_prefix(address), categories, outside, inside=False, source_ranges=ranges
            )
    if port.node_port and not shared:
        yield _vip(
            service,
            port,
            ANY_ADDRESS[family],
            categories,
            outside,
            inside=False,
            node_port=port.node_port,
        )


def cluster_ip_guards(service: Service) -> list[Vip]:
    """VIPs that refuse what comes to a cluster IP and is for none of its ports (nftables: cluster-ips-check).

    They have every protocol and port, and no pods: kp-lookup prefers what is more specific.
    """
    prefixes = map(host_prefix, service.cluster_ips)
    return [
        Vip(VipKey(prefix), vip_type(prefix), reject=True, owner=service.full_name) for prefix in prefixes
    ]


def service_range_guards(service_cidrs: Iterable[Prefix]) -> list[Vip]:
    """VIPs that drop what is sent to addresses of the service ranges that no service has.

    Dropped, not refused: the service may exist already, and not be known here yet (cluster-ips-check).
    """
    return [
        Vip(VipKey(prefix), vip_type(prefix), owner=RANGE_OWNER) for prefix in dict.fromkeys(service_cidrs)
    ]


def translate(service: Service, slices: Iterable[EndpointSlice], view: NodeView | None = None) -> ServiceVips:
    """Everything that one service comes to, as seen from a node; without a view, from nowhere in particular.

    Without a view, endpoints are told apart by readiness alone, and nobody is masqueraded.
    """
    if skip_reason(service) is not None:
        return ServiceVips()
    slices = list(slices)
    vips: list[Vip] = []
    serving: list[tuple[VipKey, frozenset[Pod]]] = []
    node = None if view is None else view.node
    for port in service.ports:
        for family in (Family.IPV4, Family.IPV6):
            if service.cluster_ip(family) is None:
                continue
            candidates = candidates_for(service, port, family, slices)
            made = list(_port_vips(service, port, family, categorize(candidates, node), view))
            vips += made
            if port.protocol is Protocol.UDP:
                alive = [c.pod for c in candidates if c.endpoint.serving or c.endpoint.ready]
                own = frozenset(Pod(pod.address, made[0].pod_port(pod)) for pod in alive)
                serving += [(vip.key, own) for vip in made]
    if view is not None:
        vips += cluster_ip_guards(service)
    return ServiceVips(tuple(vips), tuple(serving))


def service_vips(
    service: Service, slices: Iterable[EndpointSlice], view: NodeView | None = None
) -> list[Vip]:
    """The VIPs of one service: each of its addresses, in each family, for each of its ports; and its guards."""
    return list(translate(service, slices, view).vips)


def vips_of(
    services: Iterable[Service], slices: Iterable[EndpointSlice], view: NodeView | None = None
) -> list[Vip]:
    """The VIPs of all services, and those that guard the service ranges."""
    by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
    for endpoint_slice in slices:
        by_service.setdefault((endpoint_slice.namespace, endpoint_slice.service), []).append(endpoint_slice)
    vips = [
        vip
        for service in services
        for vip in service_vips(service, by_service.get((service.namespace, service.name), ()), view)
    ]
    return vips if view is None else vips + service_range_guards(view.settings.service_cidrs)
