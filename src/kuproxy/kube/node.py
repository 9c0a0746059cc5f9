"""The own Node and the ServiceCIDRs, as JSON has them, into the model.

As in `kube.convert`, nothing raises: faults are collected, and an object with a fault is left out.
Sources: k8s.io/api core/v1 and networking/v1; kube-proxy's pkg/proxy/node.go for what says that a node is going.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kuproxy.kube.reader import Finding, Path, Reader
from kuproxy.model.node import NodeInfo
from kuproxy.model.vip import Address, Prefix, parse_address

__all__ = ["convert_node", "convert_service_cidr"]

ZONE_LABEL = "topology.kubernetes.io/zone"
LEAVING_TAINT = "ToBeDeletedByClusterAutoscaler"  # the autoscaler is about to take the node away


def convert_node(document: Mapping[Any, Any], problems: list[Finding], path: Path = ()) -> NodeInfo | None:
    """A v1 Node; None, with problems, if a field that matters is wrong."""
    faults: list[Finding] = []
    root = Reader(document, path, faults, depth=len(path))
    metadata, spec = root.child("metadata"), root.child("spec")
    name = metadata.text("name")
    root.subject = metadata.subject = spec.subject = f"Node {name or '?'}"
    if not name:
        root.fault(("metadata", "name"), "the object has no name")
    taints = {taint.text("key") for taint in spec.children("taints")}
    info = NodeInfo(
        name=name,
        zone=metadata.child("labels").text(ZONE_LABEL),
        addresses=_addresses(root),
        # podCIDR is what podCIDRs begins with; old API servers send only that.
        pod_cidrs=spec.prefixes("podCIDRs") or _single_pod_cidr(spec),
        being_deleted=metadata.raw.get("deletionTimestamp") is not None or LEAVING_TAINT in taints,
    )
    problems.extend(faults)
    return None if faults else info


def _single_pod_cidr(spec: Reader) -> tuple[Prefix, ...]:
    value = spec.raw.get("podCIDR")
    if not value:
        return ()
    alone = Reader({"podCIDR": [value]}, spec.path, spec.findings, spec.subject, spec.depth)
    return alone.prefixes("podCIDR")


def _addresses(root: Reader) -> tuple[Address, ...]:
    """InternalIPs before ExternalIPs; host names, and addresses that are none, are not looked at."""
    found: dict[str, list[Address]] = {"InternalIP": [], "ExternalIP": []}
    for reader in root.child("status").children("addresses"):
        kind = reader.text("type")
        if kind in found:
            try:
                found[kind].append(parse_address(reader.text("address")))
            except ValueError as error:
                reader.fault("address", str(error))
    return tuple(dict.fromkeys(found["InternalIP"] + found["ExternalIP"]))


def convert_service_cidr(
    document: Mapping[Any, Any], problems: list[Finding], path: Path = ()
) -> tuple[Prefix, ...] | None:
    """The ranges of a networking/v1 ServiceCIDR; None, with problems, if one of them is wrong."""
    faults: list[Finding] = []
    root = Reader(document, path, faults, depth=len(path))
    name = root.child("metadata").text("name")
    root.subject = f"ServiceCIDR {name or '?'}"
    prefixes = root.child("spec").prefixes("cidrs")
    problems.extend(faults)
    return None if faults else prefixes
