"""From the compiler's records to what steering must bring up."""

from collections.abc import Mapping

from kuproxy.codes import Encap, Protocol, VipType
from kuproxy.control.compile import Compiler
from kuproxy.model.config import InterfaceMark, Settings
from kuproxy.steering.keys import MARK4, MARK6
from kuproxy.steering.targets import Targets


def steering_marks(marks: tuple[InterfaceMark, ...]) -> Mapping[str, int] | None:
    """Without any `set interface` line, replies are looked for on every interface."""
    if not marks:
        return None
    return {mark.name: (MARK4 if mark.nat4_in else 0) | (MARK6 if mark.nat6_in else 0) for mark in marks}


ICMP = {4: int(Protocol.ICMP), 6: int(Protocol.ICMP6)}


def steering_targets(
    compiler: Compiler, marks: tuple[InterfaceMark, ...], settings: Settings
) -> Targets:
    """VIPs in use, their node ports, and every pod that still has flows: draining ones answer too.

    Echo requests for a VIP come up whatever its port; echo replies of pods only where a VIP hands echo requests on.
    With pods of the other family, so does everything that goes to what clients are called there.
    """
    vips, node_ports, pods = set(), set(), set()
    tunnels = False
    for record in compiler.records():
        key = record.vip.key
        protocol = int(key.protocol)
        if not record.removed:
            tunnels = tunnels or record.vip.encap.is_tunnel
            if not record.vip.on_node_only:
                vips.add((key.prefix, protocol, key.port))
                vips.add((key.prefix, ICMP[key.family], 0))
            if record.vip.node_port:
                node_ports.add((int(key.family), protocol, record.vip.node_port))
        if record.vip.encap is not Encap.NAT:
            continue  # direct return: their replies are none of ours
        for pod in (*record.pods, *record.draining):
            pods.add((pod.address, protocol, pod.port))
            if protocol in ICMP.values() or (protocol == 0 and key.port == 0):
                pods.add((pod.address, ICMP[pod.address.version], 0))
        if record.vip.type == VipType.IP4_NAT46:
            vips.add((settings.nat46_prefix, 0, 0))
        elif record.vip.type == VipType.IP6_NAT64:
            vips.add((settings.nat64_pool, 0, 0))
    return Targets(
        frozenset(vips), frozenset(node_ports), frozenset(pods), steering_marks(marks), tunnels=tunnels
    )
