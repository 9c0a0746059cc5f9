"""What an API server fills in: the fields that kube-proxy counts on, addresses and node ports included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import ApiError
from .kinds import Kind

Object = dict[str, Any]
FIRST_NODE_PORT = 30000


def apply_defaults(kind: Kind, obj: Object, services: Iterable[Object], seed: int) -> None:
    if kind.kind == "Service":
        _service(obj, list(services), seed)
    elif kind.kind == "EndpointSlice":
        if obj.get("addressType") not in ("IPv4", "IPv6", "FQDN"):
            message = (
                f'EndpointSlice.discovery.k8s.io "{obj["metadata"]["name"]}" is invalid: addressType: '
                'Unsupported value; supported values: "FQDN", "IPv4", "IPv6"'
            )
            raise ApiError(422, "Invalid", message)
        obj.setdefault("endpoints", None)
        obj.setdefault("ports", None)
        for port in obj["ports"] or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")


def _service(obj: Object, services: list[Object], seed: int) -> None:
    spec = obj.setdefault("spec", {})
    obj.setdefault("status", {"loadBalancer": {}})
    kind = spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        if not isinstance(port.get("port"), int) or not 1 <= port["port"] <= 65535:
            name = obj["metadata"]["name"]
            message = (
                f'Service "{name}" is invalid: spec.ports[0].port: Invalid value: must be between 1 and 65535'
            )
            raise ApiError(422, "Invalid", message)
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])
    if kind == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    if not spec.get("clusterIP"):
        taken = {other["spec"].get("clusterIP") for other in services}
        number = seed
        while (address := f"10.96.{number // 250 % 256}.{number % 250 + 1}") in taken:
            number += 1
        spec["clusterIP"] = address
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    if kind in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
        ports = [port for other in services for port in other["spec"].get("ports") or ()]
        used = {port.get("nodePort") for port in ports}
        for port in spec.get("ports") or ():
            if not port.get("nodePort") and spec.get("allocateLoadBalancerNodePorts", True):
                port["nodePort"] = next(n for n in range(FIRST_NODE_PORT, 32768) if n not in used)
                used.add(port["nodePort"])
