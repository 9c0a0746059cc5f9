"""From the compiler's records to what steering must bring up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from kuproxy.codes import Encap, Protocol, VipType
from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.model.config import InterfaceMark, ReplyPath, Settings
from kuproxy.model.vip import Pod, Prefix, Vip
from kuproxy.steering.keys import MARK4, MARK6
from kuproxy.steering.targets import Asked, Targets


def steering_marks(marks: tuple[InterfaceMark, ...]) -> Mapping[str, int] | None:
    """Without any `set interface` line, replies are looked for on every interface."""
    if not marks:
        return None
    return {mark.name: (MARK4 if mark.nat4_in else 0) | (MARK6 if mark.nat6_in else 0) for mark in marks}


def strict_replies(settings: Settings) -> bool:
    """Whether replies come up only where this node would send to their pod, as long as nothing is marked."""
    return settings.reply_path is ReplyPath.STRICT


ICMP = {4: int(Protocol.ICMP), 6: int(Protocol.ICMP6)}


class Asking(NamedTuple):
    """Of a VIP, what says what it asks for: all of it is there anyway, so that keeping it costs nothing."""

    vip: Vip
    removed: bool
    draining: tuple[Pod, ...]

    @classmethod
    def of(cls, record: VipRecord) -> Asking:
        return cls(record.vip, record.removed, tuple(record.draining))

    @property
    def tunnels(self) -> bool:
        """Do its packets go out in tunnels?"""
        return self.vip.encap.is_tunnel and not self.removed

    def asked(self, settings: Settings) -> Asked:
        vip, key = self.vip, self.vip.key
        protocol = int(key.protocol)
        vips: list[tuple[Prefix, int, int]] = []
        node_ports = []
        if not self.removed:
            if not vip.on_node_only:
                vips += [(key.prefix, protocol, key.port), (key.prefix, ICMP[key.id[0]], 0)]
            if vip.node_port:
                node_ports.append((key.id[0], protocol, vip.node_port))
        if vip.encap is not Encap.NAT:
            return Asked(vips, node_ports)  # direct return: the pods' replies are none of ours
        serving = () if self.removed else vip.all_pods
        pods = [(pod.address, protocol, vip.pod_port(pod)) for pod in serving]
        pods += [(pod.address, protocol, pod.port) for pod in self.draining]
        if protocol in ICMP.values() or (protocol == 0 and key.port == 0):
            pods += [(address, ICMP[address.version], 0) for address, _, _ in pods]
        pools: dict[VipType, Prefix] = {
            VipType.IP4_NAT46: settings.nat46_prefix, VipType.IP6_NAT64: settings.nat64_pool
        }  # fmt: skip
        return Asked(vips, node_ports, pods, [pools[vip.type]] if vip.type in pools else [])


def steering_targets(compiler: Compiler, marks: tuple[InterfaceMark, ...], settings: Settings) -> Targets:
    """VIPs in use, their node ports, and every pod that still has flows: draining ones answer too.

    Echo requests for a VIP come up whatever its port; echo replies of pods only where a VIP hands echo requests on.
    With pods of the other family, so does everything that goes to what clients are called there, as their replies.
    """
    asking = [Asking.of(record) for record in compiler.records()]
    asked = joined(asking, settings)
    return Targets(
        frozenset(asked.vips),
        frozenset(asked.node_ports),
        frozenset(asked.pods),
        frozenset(asked.translated),
        steering_marks(marks),
        strict_replies(settings),
        tunnels=any(each.tunnels for each in asking),
    )


class TargetBook:
    """What the VIPs ask steering for, VIP by VIP, so that the cost of a change follows the change."""

    def __init__(self) -> None:
        self._told: dict[int, Asking] = {}  # by the VIP's index
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
        told = {index: Asking.of(record) for index, record in touched.items()}
        tunnels = self._tunnels - told.keys() | {index for index, each in told.items() if each.tunnels}
        former = (self._told[index] for index in told if index in self._told)
        before, now = joined(former, self._settings), joined(told.values(), settings)

        def done() -> None:
            for index, asking in told.items():
                self._told[index] = asking
                if asking.removed and not asking.draining:
                    del self._told[index]
            self._tunnels, self._settings = tunnels, settings
            compiler.forget_touched()

        return before, now, bool(tunnels), done


def joined(parts: Iterable[Asking], settings: Settings) -> Asked:
    """What all of them ask for."""
    each_asked = [part.asked(settings) for part in parts]
    return Asked(*(list(chain(*part)) for part in zip(*each_asked, strict=True)))
