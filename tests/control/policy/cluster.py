"""Builders for policy tests: a node's view, a service and its slices in few words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from kuproxy.codes import Family, Protocol
from kuproxy.control.policy import Candidate
from kuproxy.model.node import NodeInfo, NodeView, ProxySettings
from kuproxy.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceType
from kuproxy.model.vip import Pod

HERE = NodeInfo(
    "here",
    "zone-a",
    (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
    (ip_network("10.1.0.0/24"), ip_network("fd01::/64")),
)
SETTINGS = ProxySettings(cluster_cidrs=(ip_network("10.0.0.0/8"), ip_network("fd01::/16")))
VIEW = NodeView(HERE, SETTINGS)
HTTP = ServicePort("http", Protocol.TCP, 80, 8080)
WEB = Service("shop", "web", ports=(HTTP,), cluster_ips=(ip_address("10.96.0.1"),))
NODE_PORT = replace(WEB, type=ServiceType.NODE_PORT, ports=(replace(HTTP, node_port=30080),))


def an_endpoint(number: int, state: str = "ready", node: str = "there", **hints: tuple[str, ...]) -> Endpoint:
    """10.0.0.`number`; state: ready, unready, serving (and terminating), terminating (and not serving)."""
    return Endpoint(
        (ip_address(f"10.0.0.{number}"),),
        ready=state == "ready",
        serving=state in ("ready", "serving"),
        terminating=state in ("serving", "terminating"),
        node_name=node,
        hint_zones=hints.get("zones", ()),
        hint_nodes=hints.get("nodes", ()),
    )


def candidates(*endpoints: Endpoint) -> list[Candidate]:
    return [Candidate(each, Pod(each.addresses[0], 8080)) for each in endpoints]


def a_slice(*endpoints: Endpoint, name: str = "web-1", **other: object) -> EndpointSlice:
    ports = (EndpointPort("http", Protocol.TCP, 8080),)
    return replace(EndpointSlice("shop", name, "web", Family.IPV4, ports, endpoints), **other)


def numbers(found: object) -> list[int]:
    """The last bytes of candidates' or pods' addresses."""
    pods = [getattr(each, "pod", each) for each in found]  # type: ignore[attr-defined]
    return sorted(int(pod.address) & 0xFF for pod in pods)
