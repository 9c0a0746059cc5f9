"""From the compiler's records to what steering must bring up."""

from collections.abc import Callable, Iterable, Mapping

from kuproxy.codes import Encap, Protocol, VipType
from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.model.config import InterfaceMark, Settings
from kuproxy.model.vip import Prefix
from kuproxy.steering.keys import MARK4, MARK6
from kuproxy.steering.targets import Asked, NodePort, Pod, Targets, Vip


def steering_marks(marks: tuple[InterfaceMark, ...]) -> Mapping[str, int] | None:
    """Without any `set interface` line, replies are looked for on every interface."""
    if not marks:
        return None
    return {mark.name: (MARK4 if mark.nat4_in else 0) | (MARK6 if mark.nat6_in else 0) for mark in marks}


ICMP = {4: int(Protocol.ICMP), 6: int(Protocol.ICMP6)}


def asked_by(record: VipRecord, settings: Settings) -> tuple[Asked, bool]:
    """What one VIP asks for, and whether its packets go out in tunnels."""
    key = record.vip.key
    protocol = int(key.protocol)
    vips: list[tuple[Prefix, int, int]] = []
    node_ports = []
    if not record.removed:
        if not record.vip.on_node_only:
            vips += [(key.prefix, protocol, key.port), (key.prefix, ICMP[key.id[0]], 0)]
        if record.vip.node_port:
            node_ports.append((key.id[0], protocol, record.vip.node_port))
    tunnels = record.vip.encap.is_tunnel and not record.removed
    if record.vip.encap is not Encap.NAT:
        return Asked(vips, node_ports), tunnels  # direct return: the pods' replies are none of ours
    pods = [(pod.address, protocol, pod.port) for pod in (*record.pods, *record.draining)]
    if protocol in ICMP.values() or (protocol == 0 and key.port == 0):
        pods += [(address, ICMP[address.version], 0) for address, _, _ in pods]
    if record.vip.type == VipType.IP4_NAT46:
        vips.append((settings.nat46_prefix, 0, 0))
    elif record.vip.type == VipType.IP6_NAT64:
        vips.append((settings.nat64_pool, 0, 0))
    return Asked(vips, node_ports, pods), tunnels


def steering_targets(compiler: Compiler, marks: tuple[InterfaceMark, ...], settings: Settings) -> Targets:
    """VIPs in use, their node ports, and every pod that still has flows: draining ones answer too.

    Echo requests for a VIP come up whatever its port; echo replies of pods only where a VIP hands echo requests on.
    With pods of the other family, so does everything that goes to what clients are called there.
    """
    asked = [asked_by(record, settings) for record in compiler.records()]
    return Targets(
        frozenset(vip for each, _ in asked for vip in each.vips),
        frozenset(node_port for each, _ in asked for node_port in each.node_ports),
        frozenset(pod for each, _ in asked for pod in each.pods),
        steering_marks(marks),
        tunnels=any(tunnels for _, tunnels in asked),
    )


class TargetBook:
    """What the VIPs ask steering for, VIP by VIP, so that the cost of a change follows the change."""

    def __init__(self) -> None:
        self._asked: dict[int, Asked] = {}  # by the VIP's index
        self._tunnels: set[int] = set()
        self._settings = Settings()

    def change(self, compiler: Compiler, settings: Settings) -> tuple[Asked, Asked, bool, Callable[[], None]]:
        """What is asked for no more, what is asked for now, whether there are tunnels, and what to call when it is so.

        Whatever is not taken over with that call is told again the next time.
        """
        pools = (settings.nat46_prefix, settings.nat64_pool)
        touched: Mapping[int, VipRecord] = compiler.touched
        if pools != (self._settings.nat46_prefix, self._settings.nat64_pool):
            touched = {record.index: record for record in compiler.records()}
        told = {index: asked_by(record, settings) for index, record in touched.items()}
        tunnels = self._tunnels - told.keys() | {index for index, (_, tunnel) in told.items() if tunnel}
        before, now = (
            joined(self._asked.get(index) for index in told),
            joined(each for each, _ in told.values()),
        )

        def done() -> None:
            for index, (asked, _) in told.items():
                self._asked[index] = asked
                if not any(asked):
                    del self._asked[index]
            self._tunnels, self._settings = tunnels, settings
            compiler.forget_touched()

        return before, now, bool(tunnels), done


def joined(parts: Iterable[Asked | None]) -> Asked:
    vips: list[Vip] = []
    node_ports: list[NodePort] = []
    pods: list[Pod] = []
    for part in parts:
        if part is not None:
            vips += part.vips
            node_ports += part.node_ports
            pods += part.pods
    return Asked(vips, node_ports, pods)
