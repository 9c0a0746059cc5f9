"""Where a client is: a pod, the node itself, or outside."""

from __future__ import annotations

from collections.abc import Iterable

from kuproxy.codes import Origin
from kuproxy.model.vip import Address, Prefix


class Origins:
    """Pods are asked for first: a node's address on the pods' bridge lies in the pods' prefix."""

    def __init__(self) -> None:
        self.pod_ranges: tuple[Prefix, ...] = ()
        self.node_addresses: frozenset[Address] = frozenset()

    def set(self, pod_ranges: Iterable[Prefix], node_addresses: Iterable[Address]) -> None:
        """Prefixes and addresses of both families."""
        self.pod_ranges, self.node_addresses = tuple(pod_ranges), frozenset(node_addresses)

    def of(self, client: Address) -> Origin:
        """One of the three."""
        if any(client in prefix for prefix in self.pod_ranges if prefix.version == client.version):
            return Origin.POD
        return Origin.NODE if client in self.node_addresses else Origin.OUTSIDE
