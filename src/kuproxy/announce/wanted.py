"""What this node should announce: a pure function of the VIPs, as they are seen from here.

A prefix is announced while at least one VIP of it has a pod for a client from outside.  With externalTrafficPolicy
Local those pods are the node's own (`Vip.outside_pods`), so a node without any stays out of it.  A service that
rejects for want of pods is not announced either: the network then says at its edge that nobody serves, for all ports
at once, and a node with pods is never hidden behind one that only refuses.
"""

from __future__ import annotations

from collections.abc import Iterable

from kuproxy.model.vip import Prefix, Vip

__all__ = ["can_serve", "wanted"]


def can_serve(vip: Vip) -> bool:
    """Whether a new connection from outside would reach a pod."""
    pods = vip.pods if vip.outside_pods is None else vip.outside_pods
    return any(pod.weight for pod in pods)


def wanted(vips: Iterable[Vip], ranges: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Prefixes, in order: those of VIPs that can serve, within one of these ranges."""
    allowed: dict[int, list[Prefix]] = {4: [], 6: []}
    for each in ranges:
        allowed[each.version].append(each)
    found: set[Prefix] = set()
    for vip in vips:
        prefix = vip.key.prefix
        if prefix in found or vip.on_node_only or not can_serve(vip):
            continue
        if any(prefix.subnet_of(each) for each in allowed[prefix.version]):  # type: ignore[arg-type]
            found.add(prefix)
    return tuple(sorted(found, key=lambda prefix: (prefix.version, prefix)))
