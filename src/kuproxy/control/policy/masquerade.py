"""Whose source address pods must not see, and how pods' packets are recognised.

Rules: kube-proxy's pkg/proxy/nftables/proxier.go (chains `services` and `external-…`) and its local detectors,
cmd/kube-proxy/app/server_linux.go, getLocalDetector and pkg/proxy/util/localdetector.go.
"""

from __future__ import annotations

from dataclasses import dataclass

from kuproxy.codes import Family, Origin
from kuproxy.model.node import DetectLocalMode, NodeView
from kuproxy.model.vip import Address, Prefix

__all__ = [
    "PodTraffic",
    "masquerade_cluster_ip",
    "masquerade_external",
    "origin_of",
    "pod_ranges",
    "pod_traffic",
]


@dataclass(frozen=True, slots=True)
class PodTraffic:
    """How packets from pods are recognised: by source prefix or by interface; by neither, nobody knows."""

    prefixes: tuple[Prefix, ...] = ()
    interface: str = ""
    interface_prefix: str = ""

    def __bool__(self) -> bool:
        return bool(self.prefixes or self.interface or self.interface_prefix)

    def matches(self, source: Address, interface: str = "") -> bool:
        """Does a packet with this source, from this interface, come from a pod?"""
        if self.interface:
            return interface == self.interface
        if self.interface_prefix:
            return interface.startswith(self.interface_prefix)
        return any(source in prefix for prefix in self.prefixes if prefix.version == source.version)


def pod_traffic(view: NodeView | None, family: Family) -> PodTraffic:
    """What `detectLocalMode` means in one family.

    A mode whose prefixes are missing recognises nothing, as upstream's no-op detector: then pods count as
    outside, and traffic to cluster IPs is masqueraded only by masqueradeAll.
    """
    if view is None:
        return PodTraffic()
    settings = view.settings
    mode = settings.detect_local_mode
    if mode is DetectLocalMode.BRIDGE_INTERFACE:
        return PodTraffic(interface=settings.bridge_interface)
    if mode is DetectLocalMode.INTERFACE_NAME_PREFIX:
        return PodTraffic(interface_prefix=settings.interface_name_prefix)
    prefixes = settings.cluster_cidrs if mode is DetectLocalMode.CLUSTER_CIDR else view.node.pod_cidrs
    # Of several pod CIDRs of a family the first one counts (PodCIDRs by family, getLocalDetector).
    return PodTraffic(tuple(prefix for prefix in prefixes if prefix.version == family)[:1])


def pod_ranges(view: NodeView | None) -> tuple[Prefix, ...]:
    """Pods' prefixes of both families, for the tables: they tell a packet's origin by its source alone (ADR 010).

    None for the modes by interface: there the node's routes say which addresses are behind it (steering.pod_routes).
    """
    return tuple(
        prefix for family in (Family.IPV4, Family.IPV6) for prefix in pod_traffic(view, family).prefixes
    )


def origin_of(
    source: Address, pods: PodTraffic, node_addresses: frozenset[Address], interface: str = ""
) -> Origin:
    """Where a packet comes from.  Pods go first: a node's address on the pods' bridge lies in their prefix."""
    if pods.matches(source, interface):
        return Origin.POD
    return Origin.NODE if source in node_addresses else Origin.OUTSIDE


def masquerade_cluster_ip(view: NodeView | None, family: Family) -> Origin:
    """From whom traffic to a cluster IP is masqueraded.

    From everybody with masqueradeAll; else from whoever is no pod, since the pod that answers may be on another node
    and would answer such a client past us.  Where pods cannot be recognised, from nobody.
    """
    if view is None:
        return Origin(0)
    if view.settings.masquerade_all:
        return Origin.ANYWHERE
    return Origin.NODE | Origin.OUTSIDE if pod_traffic(view, family) else Origin(0)


def masquerade_external(view: NodeView | None, is_local: bool) -> Origin:
    """From whom traffic to node ports, external and load-balancer addresses is masqueraded.

    From everybody with externalTrafficPolicy Cluster; with Local from the node alone, whose source may be the
    very address that it talks to.  masqueradeAll does not concern it.
    """
    if view is None:
        return Origin(0)
    return Origin.NODE if is_local else Origin.ANYWHERE
