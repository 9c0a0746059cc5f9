"""Whose ICMP comes up: of VIPs always, of pods only where a VIP hands echo requests on to them."""

from __future__ import annotations

import pytest

from kuproxy.daemon.targets import steering_targets
from kuproxy.engine.local import LocalEngine
from kuproxy.plane import Plane
from kuproxy.steering.targets import Targets
from kuproxy.vppcli.apply import Desired


def targets(script: str) -> Targets:
    desired = Desired()
    desired.run(script)
    config = desired.config()
    plane = Plane(LocalEngine(0), decrement_ttl=False, any_node_address=False)
    plane.apply(config)
    return steering_targets(plane.compiler, (), config.settings)


@pytest.mark.parametrize(
    ("vip", "pod", "vip_icmp", "pod_icmp"),
    [
        ("90.0.0.1/32 port 80", "10.0.0.1", 1, None),
        ("90.0.0.1/32", "10.0.0.1", 1, 1),
        ("2003::1/128 port 80", "fd02::1", 58, None),
        ("2003::1/128", "fd02::1", 58, 58),
        ("90.0.0.1/32 port 80 nat6", "fd02::1", 1, None),
        ("90.0.0.1/32 nat6", "fd02::1", 1, 58),
        ("2003::1/128 nat4", "10.0.0.1", 58, 1),
    ],
)
def test_icmp(vip: str, pod: str, vip_icmp: int, pod_icmp: int | None) -> None:
    network, *words = vip.split()
    key = [network, *(word for word in words if not word.startswith("nat"))]
    told = targets(f"ku vip {vip}\nku pod {' '.join(key)} {pod}")
    assert (network, vip_icmp, 0) in {(str(each), protocol, port) for each, protocol, port in told.vips}
    wanted = {protocol for _, protocol, _ in told.pods} & {1, 58}
    assert wanted == ({pod_icmp} if pod_icmp else set())
