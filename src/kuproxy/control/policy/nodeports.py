"""At which addresses of the node its node ports answer.

Rule: `nodePortAddresses` (k8s.io/kube-proxy/config/v1alpha1; pkg/proxy/util/nodeport_addresses.go). Loopback never
does: a packet from 127.0.0.1 cannot leave the node (kernel martian check), and nftables mode refuses it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network

from kuproxy.codes import Family
from kuproxy.model.node import NodeView
from kuproxy.model.vip import Address, Prefix, host_prefix

__all__ = ["node_port_addresses", "node_port_networks"]

_EVERY_ADDRESS = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def node_port_addresses(view: NodeView, present: Iterable[Address]) -> frozenset[Address]:
    """Of the addresses `present` on the node's interfaces, those that accept node ports.

    `primary`: the first of each family that the Node object names, whether present or not (a cloud may translate
    it).  Prefixes: those within one of them; of a family that no prefix is of, all.
    """
    prefixes = view.settings.node_port_addresses
    if prefixes is None:
        primary = (view.node.address(family) for family in (Family.IPV4, Family.IPV6))
        return frozenset(address for address in primary if address is not None)
    return frozenset(
        address
        for address in present
        if not (address.is_loopback or address.is_multicast or address.is_unspecified)
        and _is_within(address, [prefix for prefix in prefixes if prefix.version == address.version])
    )


def node_port_networks(view: NodeView) -> frozenset[Prefix] | None:
    """The same as networks, for whoever knows the addresses that are present; None: all of them.

    Of `primary` only those addresses that are present: what a cloud translates arrives as one of these.
    """
    prefixes = view.settings.node_port_addresses
    if prefixes is None:
        primary = (view.node.address(family) for family in (Family.IPV4, Family.IPV6))
        return frozenset(host_prefix(address) for address in primary if address is not None)
    if not prefixes:
        return None
    versions = {prefix.version for prefix in prefixes}
    return frozenset(prefixes) | {every for every in _EVERY_ADDRESS if every.version not in versions}


def _is_within(address: Address, prefixes: Sequence[Prefix]) -> bool:
    """No prefix of the family stands for 0.0.0.0/0 or ::/0, even beside prefixes of the other one."""
    return not prefixes or any(address in prefix for prefix in prefixes)
