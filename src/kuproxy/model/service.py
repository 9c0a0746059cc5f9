"""Services and EndpointSlices in Kubernetes' own words.

Wider than what is used today: everything that decides where a packet may go is kept, so that a new rule in
`control.policy` needs no new parser.  Field names are Kubernetes' names in snake case; what the API leaves out or
sets to null has the meaning that the API gives to its absence.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from kuproxy.codes import Family, Protocol
from kuproxy.model.vip import Address, Prefix

__all__ = [
    "DEFAULT_AFFINITY_TIMEOUT_S",
    "Endpoint",
    "EndpointPort",
    "EndpointSlice",
    "IpMode",
    "LoadBalancerIngress",
    "Service",
    "ServiceObjects",
    "ServicePort",
    "ServiceType",
    "SessionAffinity",
    "TrafficPolicy",
]

DEFAULT_AFFINITY_TIMEOUT_S = 10800  # three hours: v1.DefaultClientIPServiceAffinitySeconds


class ServiceType(enum.Enum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class TrafficPolicy(enum.Enum):
    CLUSTER = "Cluster"
    LOCAL = "Local"


class SessionAffinity(enum.Enum):
    NONE = "None"
    CLIENT_IP = "ClientIP"


class IpMode(enum.Enum):
    VIP = "VIP"
    PROXY = "Proxy"  # the load balancer must see the traffic first: the address is none of ours


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str  # empty when the service has one port only
    protocol: Protocol
    port: int
    target_port: int | str  # a number, or the name of a container port that the slices resolve
    node_port: int = 0
    app_protocol: str = ""


@dataclass(frozen=True, slots=True)
class LoadBalancerIngress:
    ip: Address | None = None
    hostname: str = ""
    ip_mode: IpMode = IpMode.VIP


@dataclass(frozen=True, slots=True)
class Service:
    namespace: str
    name: str
    type: ServiceType = ServiceType.CLUSTER_IP
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[Address, ...] = ()  # at most one of each family; empty also for a headless service
    headless: bool = False  # clusterIP: None
    external_ips: tuple[Address, ...] = ()
    ingress: tuple[LoadBalancerIngress, ...] = ()
    source_ranges: tuple[Prefix, ...] = ()
    load_balancer_class: str = ""
    allocate_node_ports: bool = True
    internal_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    health_check_node_port: int = 0
    session_affinity: SessionAffinity = SessionAffinity.NONE
    affinity_timeout_s: int = DEFAULT_AFFINITY_TIMEOUT_S
    publish_not_ready_addresses: bool = False
    traffic_distribution: str = ""
    topology_mode: str = ""  # annotation service.kubernetes.io/topology-mode
    proxy_name: str | None = None  # label service.kubernetes.io/service-proxy-name: another proxy's service

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def is_externally_accessible(self) -> bool:
        """Is it reached by anything but cluster IPs?  (pkg/api/v1/service/util.go, ExternallyAccessible)"""
        return self.type in (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER) or (
            self.type is ServiceType.CLUSTER_IP and bool(self.external_ips)
        )

    @property
    def is_external_local(self) -> bool:
        """Does externalTrafficPolicy: Local hold?  It says nothing where there is no external traffic."""
        return self.is_externally_accessible and self.external_traffic_policy is TrafficPolicy.LOCAL

    @property
    def is_internal_local(self) -> bool:
        """Does internalTrafficPolicy: Local hold?"""
        return self.internal_traffic_policy is TrafficPolicy.LOCAL

    @property
    def needs_health_check(self) -> bool:
        """Does a load balancer ask this node whether it has endpoints?  (NeedsHealthCheck)"""
        return (
            self.type is ServiceType.LOAD_BALANCER
            and self.is_external_local
            and self.health_check_node_port != 0
        )

    def port_name(self, port: ServicePort) -> str:
        """`namespace/service:port`, as kube-proxy names it; without the colon for an unnamed port."""
        return f"{self.full_name}:{port.name}" if port.name else self.full_name

    def cluster_ip(self, family: Family) -> Address | None:
        return next((address for address in self.cluster_ips if address.version == family), None)


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a slice.  kube-proxy uses the first address only, and so do we: the others mean the same.

    A struct, because there may be a hundred thousand: it is made ten times faster than a dataclass, and having no
    cycles it is none of the garbage collector's business.
    """

    addresses: tuple[Address, ...]
    ready: bool = True  # null means true
    serving: bool = True  # null means true
    terminating: bool = False  # null means false
    node_name: str = ""
    zone: str = ""
    hostname: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()
    target: str = ""  # `Pod shop/web-0`, from targetRef


@dataclass(frozen=True, slots=True)
class EndpointPort:
    name: str
    protocol: Protocol
    port: int | None  # null in the API: "all ports", which no proxy serves


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    namespace: str
    name: str
    service: str  # label kubernetes.io/service-name
    family: Family
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()

    def belongs_to(self, service: Service) -> bool:
        return self.service == service.name and self.namespace == service.namespace

    @property
    def service_full_name(self) -> str:
        return f"{self.namespace}/{self.service}"


@dataclass(frozen=True, slots=True)
class ServiceObjects:
    """A Service with the slices that belong to it."""

    service: Service
    slices: tuple[EndpointSlice, ...] = ()
