"""The API server's objects into the model, where there is nothing unusual about them: in a fifth of the time.

After the first list there are ten thousand services and a hundred thousand endpoints, and all but a few are written as
controllers write them.  What these functions return is what `kube.convert` would make of the same object; None says
that they do not know, and that the careful reader, who also finds words for every fault, has to look.
"""

from __future__ import annotations

import functools
from ipaddress import IPv4Address
from socket import AF_INET, inet_pton

from kuproxy.codes import Family, Protocol
from kuproxy.kube import objects
from kuproxy.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from kuproxy.model.vip import MAX_PORT, Address, parse_address

__all__ = ["plain_service", "plain_slice"]

_PROTOCOLS = {None: Protocol.TCP, "TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_FAMILIES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}
_DEFAULT = (None, "Cluster")


def plain_service(raw: objects.Service) -> Service | None:
    """A service that is reached at its cluster IPs alone, and asks for nothing else."""
    metadata, spec = raw.metadata, raw.spec
    if spec is None or not metadata.name or not _is_plain(raw, spec):
        return None
    addresses = _cluster_ips(spec)
    ports = _ports(spec.ports or [])
    if addresses is None or ports is None:
        return None
    return Service(
        metadata.namespace or "default",
        metadata.name,
        ports=ports,
        cluster_ips=addresses,
        traffic_distribution=spec.traffic_distribution or "",
    )


def _is_plain(raw: objects.Service, spec: objects.ServiceSpec) -> bool:
    labels, annotations, status = raw.metadata.labels, raw.metadata.annotations, raw.status
    return not (
        spec.type not in (None, "ClusterIP")
        or spec.external_ips
        or spec.load_balancer_source_ranges
        or spec.load_balancer_class
        or spec.allocate_load_balancer_node_ports is not None
        or spec.internal_traffic_policy not in _DEFAULT
        or spec.external_traffic_policy not in _DEFAULT
        or spec.health_check_node_port
        or spec.session_affinity not in (None, "None")
        or spec.session_affinity_config is not None
        or spec.publish_not_ready_addresses
        or (labels is not None and labels.proxy_name is not None)
        or (annotations is not None and annotations.topology_mode)
        or (status is not None and status.load_balancer is not None and status.load_balancer.ingress)
    )


def _cluster_ips(spec: objects.ServiceSpec) -> tuple[Address, ...] | None:
    several = spec.cluster_ips
    if not several or several[0] != spec.cluster_ip:
        return None
    try:
        addresses = tuple([parse_address(text) for text in several])
    except ValueError:  # `None`, for one
        return None
    return addresses if len({address.version for address in addresses}) == len(addresses) else None


def _ports(raw: list[objects.ServicePort]) -> tuple[ServicePort, ...] | None:
    ports = []
    for each in raw:
        protocol, target = _PROTOCOLS.get(each.protocol), each.target_port
        if protocol is None or not 1 <= each.port <= MAX_PORT or isinstance(target, str):
            return None
        if not 0 <= (target or 0) <= MAX_PORT or not 0 <= (each.node_port or 0) <= MAX_PORT:
            return None
        ports.append(
            ServicePort(
                each.name or "",
                protocol,
                each.port,
                target or each.port,
                each.node_port or 0,
                each.app_protocol or "",
            )
        )
    if len(ports) > 1 and (
        not all(port.name for port in ports)
        or len({port.name for port in ports}) < len(ports)
        or len({(port.protocol, port.port) for port in ports}) < len(ports)
    ):
        return None
    return tuple(ports)


def plain_slice(raw: objects.EndpointSlice) -> EndpointSlice | None:
    """A slice of a service, of endpoints with one address each and without hints."""
    metadata, labels = raw.metadata, raw.metadata.labels
    family = _FAMILIES.get(raw.address_type or "")
    if family is None or not metadata.name or labels is None or not labels.service_name:
        return None
    try:
        ports = tuple([_endpoint_port(each.name or "", each.protocol, each.port) for each in raw.ports or ()])
        endpoints = _endpoints(raw.endpoints or [], family)
    except (KeyError, ValueError, OSError):
        return None
    if endpoints is None:
        return None
    namespace = metadata.namespace or "default"
    return EndpointSlice(namespace, metadata.name, labels.service_name, family, ports, endpoints)


@functools.lru_cache(1024)
def _endpoint_port(name: str, protocol: str | None, port: int | None) -> EndpointPort:
    """Raises KeyError or ValueError."""
    if port is not None and not 1 <= port <= MAX_PORT:
        raise ValueError(f"{port} is not a port")
    return EndpointPort(name, _PROTOCOLS[protocol], port)


def _endpoints(raw: list[objects.Endpoint], family: Family) -> tuple[Endpoint, ...] | None:
    """Raises ValueError or OSError for what is no address."""
    endpoints = []
    for each in raw:
        addresses, state = each.addresses, each.conditions
        if each.hints is not None or addresses is None or len(addresses) != 1:
            return None
        (text,) = addresses
        if family is Family.IPV4:
            address: Address = IPv4Address(inet_pton(AF_INET, text))
        else:
            address = parse_address(text)
            if address.version != int(family):
                return None
        ready, serving, terminating = (
            (True, True, False)
            if state is None
            else (state.ready is not False, state.serving is not False, state.terminating is True)
        )
        endpoints.append(
            Endpoint(
                (address,),
                ready,
                serving,
                terminating,
                each.node_name or "",
                each.zone or "",
                each.hostname or "",
            )
        )
    return tuple(endpoints)
