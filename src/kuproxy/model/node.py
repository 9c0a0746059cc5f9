"""The node that we serve, and how its proxy was told to behave: what Kubernetes' rules need besides services.

Words and defaults are those of v1.Node and of KubeProxyConfiguration v1alpha1 (k8s.io/kube-proxy/config/v1alpha1).
A node that has not been read yet, or that nobody named, is no `NodeView` at all: rules that ask "is this endpoint
here?" cannot be applied without one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kuproxy.codes import Family
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import Address, Prefix

__all__ = ["DetectLocalMode", "NodeInfo", "NodeView", "ProxySettings"]

MAX_INTERFACE_NAME = 15  # IFNAMSIZ, less the zero byte


class DetectLocalMode(enum.Enum):
    """How traffic from pods of this node or cluster is told from the rest (`detectLocalMode`)."""

    CLUSTER_CIDR = "ClusterCIDR"  # by source, in `clusterCIDR`
    NODE_CIDR = "NodeCIDR"  # by source, in the node's `spec.podCIDRs`
    BRIDGE_INTERFACE = "BridgeInterface"  # it comes in through this interface
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"  # it comes in through an interface whose name begins so


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The own Node object, as far as a proxy asks."""

    name: str
    zone: str = ""  # label topology.kubernetes.io/zone; empty: none
    addresses: tuple[Address, ...] = ()  # status.addresses, InternalIP before ExternalIP
    pod_cidrs: tuple[Prefix, ...] = ()
    being_deleted: bool = (
        False  # deletionTimestamp, or the cluster autoscaler's taint: no new traffic, please
    )

    def address(self, family: Family) -> Address | None:
        """The primary address of a family."""
        return next((address for address in self.addresses if address.version == family), None)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What of KubeProxyConfiguration decides where packets go.  Raises ConfigError with every problem."""

    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[Prefix, ...] = ()  # clusterCIDR, at most one of each family
    bridge_interface: str = ""  # detectLocal.bridgeInterface
    interface_name_prefix: str = ""  # detectLocal.interfaceNamePrefix
    masquerade_all: bool = False
    # nodePortAddresses: None is `primary`, the addresses of the Node object; empty: all that the node has.
    node_port_addresses: tuple[Prefix, ...] | None = None
    service_cidrs: tuple[
        Prefix, ...
    ] = ()  # of all ServiceCIDR objects; unallocated addresses in them are dropped

    def __post_init__(self) -> None:
        problems = []
        families = [prefix.version for prefix in self.cluster_cidrs]
        if len(set(families)) < len(families):
            problems.append(
                Problem(
                    "two prefixes of one family",
                    field="clusterCIDR",
                    hint="at most one IPv4 and one IPv6 prefix",
                )
            )
        for field, mode, name in (
            ("detectLocal.bridgeInterface", DetectLocalMode.BRIDGE_INTERFACE, self.bridge_interface),
            (
                "detectLocal.interfaceNamePrefix",
                DetectLocalMode.INTERFACE_NAME_PREFIX,
                self.interface_name_prefix,
            ),
        ):
            if self.detect_local_mode is mode and not name:
                problems.append(
                    Problem("is empty", field=field, hint=f"detectLocalMode {mode.value} needs it")
                )
            if len(name) > MAX_INTERFACE_NAME:
                problems.append(
                    Problem(
                        f"{name!r} is not an interface name",
                        field=field,
                        hint=f"it has at most {MAX_INTERFACE_NAME} characters",
                    )
                )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True)
class NodeView:
    """From where, and by which settings, services are looked at."""

    node: NodeInfo
    settings: ProxySettings = ProxySettings()
