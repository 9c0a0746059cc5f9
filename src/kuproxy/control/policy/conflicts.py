"""Services that claim what another one has: the first keeps it, and the rest of the second works.

The API server keeps cluster IPs and node ports apart, but anybody may write any external IP into a Service, and load
balancers may share addresses.  The store refuses contradictions as a whole, as it must for files; one namespace's
mistake or malice must not stop every other service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kuproxy.codes import Family, Protocol
from kuproxy.errors import Problem
from kuproxy.model.vip import Vip, VipKey

__all__ = ["settle"]


def settle(vips: Iterable[Vip]) -> tuple[list[Vip], list[Problem]]:
    """The VIPs that the store will accept, in the order given, and what was left out and for whose sake.

    Earlier ones win: give the VIPs in an order that does not change by itself, as by the age of their services.
    """
    kept: dict[VipKey, Vip] = {}
    node_ports: dict[tuple[Family, Protocol, int], Vip] = {}
    problems = []
    for vip in vips:
        settled = vip
        place = (vip.key.family, vip.key.protocol, vip.node_port)
        owner = kept.get(vip.key)
        if owner is not None:
            if owner != vip:
                problems.append(_problem(f"VIP {vip.key}", owner, vip))
            continue
        if vip.node_port and place in node_ports:
            problems.append(_problem(f"node port {vip.node_port}", node_ports[place], vip))
            if vip.on_node_only:
                continue
            settled = replace(vip, node_port=0)
        elif vip.node_port:
            node_ports[place] = vip
        kept[vip.key] = settled
    return list(kept.values()), problems


def _problem(what: str, owner: Vip, other: Vip) -> Problem:
    return Problem(f"{what} belongs to {owner.owner}; {other.owner} does not get it")
