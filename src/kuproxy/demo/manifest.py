"""Services and EndpointSlices as a Kubernetes API server would hold them, and those of the demo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

NAMESPACE = "demo"
CLUSTER4, CLUSTER6 = "10.96.0.80", "fd00:10:96::80"


class Port(NamedTuple):
    """A Service's port. `node_port` 0: none."""

    name: str
    protocol: str
    port: int
    target: int
    node_port: int = 0


class Endpoint(NamedTuple):
    """A pod as EndpointSlices know it."""

    name: str
    ipv4: str
    ipv6: str


HTTP = Port("http", "TCP", 80, 8080, 30080)
ECHO = Port("echo", "UDP", 7, 7007, 30007)


def service(
    name: str, cluster_ips: Sequence[str], ports: Sequence[Port], pods: Sequence[Endpoint]
) -> list[dict[str, Any]]:
    """A Service, and an EndpointSlice for each of its families."""
    families = [f"IPv{ip_address(address).version}" for address in cluster_ips]
    with_node_ports = any(port.node_port for port in ports)
    head: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {
            "type": "NodePort" if with_node_ports else "ClusterIP",
            "ipFamilyPolicy": "RequireDualStack" if len(families) == 2 else "SingleStack",
            "ipFamilies": families,
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ports": [_service_port(port) for port in ports],
        },
    }
    return [head, *(_slice(name, family, ports, pods) for family in families)]


def _service_port(port: Port) -> dict[str, Any]:
    written = {"name": port.name, "protocol": port.protocol, "port": port.port, "targetPort": port.target}
    return written | ({"nodePort": port.node_port} if port.node_port else {})


def _slice(name: str, family: str, ports: Sequence[Port], pods: Sequence[Endpoint]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE,
            "name": f"{name}-{family.lower()}",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family,
        "ports": [{"name": port.name, "protocol": port.protocol, "port": port.target} for port in ports],
        "endpoints": [
            {
                "addresses": [pod.ipv4 if family == "IPv4" else pod.ipv6],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": pod.name},
            }
            for pod in pods
        ],
    }


def demo_service(pods: Sequence[Endpoint]) -> list[dict[str, Any]]:
    """HTTP and UDP echo, in both families, with node ports."""
    return service("web", (CLUSTER4, CLUSTER6), (HTTP, ECHO), pods)


def write_manifest(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Replace the file in one step, so that nobody reads half of it."""
    import yaml

    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    temporary.replace(path)
