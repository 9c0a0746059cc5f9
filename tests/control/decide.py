"""What a set of VIPs says about one new packet: the way of kp-lookup and kp-balance, in a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from control.nft import Verdict
from kuproxy.codes import Origin, Protocol
from kuproxy.model.vip import Address, Vip, VipKey


class Decisions:
    """Lookup over VIPs, and the verdict of the one that is found."""

    def __init__(self, vips: Iterable[Vip], node_port_addresses: frozenset[Address]) -> None:
        self.by_key = {vip.key: vip for vip in vips}
        self.by_node_port = {
            (vip.key.family, vip.key.protocol, vip.node_port): vip
            for vip in self.by_key.values()
            if vip.node_port
        }
        self.node_port_addresses = node_port_addresses

    def find(self, target: Address, protocol: Protocol, port: int) -> tuple[Vip | None, bool]:
        """(VIP, whether by its node port)"""
        for length in range(target.max_prefixlen, -1, -1):
            prefix = ip_network((target, length), strict=False)
            for key in (VipKey(prefix, protocol, port), VipKey(prefix)):
                if key in self.by_key:
                    return self.by_key[key], False
        if target in self.node_port_addresses:
            return self.by_node_port.get((target.version, protocol, port)), True
        return None, False

    def ask(self, source: Address, origin: Origin, target: Address, protocol: Protocol, port: int) -> Verdict:
        vip, by_node_port = self.find(target, protocol, port)
        if vip is None:
            return Verdict("pass")
        if vip.source_ranges and not by_node_port and not any(source in each for each in vip.source_ranges):
            return Verdict("drop")
        pods = vip.pods_for(origin)
        if not pods:
            # Clients that may be served by others are dropped, whatever the flag says of everybody.
            return Verdict("reject" if vip.reject else "drop")
        reached = frozenset((str(pod.address), vip.pod_port(pod)) for pod in pods)
        return Verdict("pods", reached, vip.masquerades(origin))
