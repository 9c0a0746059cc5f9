"""From VIPs to what steering brings up."""

from __future__ import annotations

from kuproxy.daemon.targets import steering_targets
from kuproxy.engine.local import LocalEngine
from kuproxy.plane import Plane
from kuproxy.steering.targets import Targets
from kuproxy.vppcli.apply import Desired


def targets(script: str) -> Targets:
    desired = Desired()
    desired.run("ku conf ip4-src-address 192.0.2.1\n" + script)
    plane = Plane(LocalEngine(0), decrement_ttl=False, any_node_address=False)
    plane.apply(desired.config())
    return steering_targets(plane.compiler, ())


def test_pods_that_answer_themselves_are_left_alone() -> None:
    told = targets("ku vip 90.0.0.1 encap gre4\nku pod 90.0.0.1 10.0.0.1\nku vip 90.0.0.2\nku pod 90.0.0.2 10.0.0.2")
    assert {str(network) for network, _, _ in told.vips} == {"90.0.0.1/32", "90.0.0.2/32"}
    assert {str(address) for address, _, _ in told.pods} == {"10.0.0.2"}


def test_only_tunnels_need_split_segments() -> None:
    assert targets("ku vip 90.0.0.1 encap ipip").tunnels
    assert not targets("ku vip 90.0.0.1 encap l3dsr dscp 1").tunnels
    assert not targets("ku vip 90.0.0.1").tunnels
