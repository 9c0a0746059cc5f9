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
    config = desired.config()
    plane.apply(config)
    return steering_targets(plane.compiler, config.interfaces, config.settings)


def test_pods_that_answer_themselves_are_left_alone() -> None:
    told = targets(
        "ku vip 90.0.0.1 encap gre4\nku pod 90.0.0.1 10.0.0.1\nku vip 90.0.0.2\nku pod 90.0.0.2 10.0.0.2"
    )
    assert {str(network) for network, _, _ in told.vips} == {"90.0.0.1/32", "90.0.0.2/32"}
    assert {str(address) for address, _, _ in told.pods} == {"10.0.0.2"}


def test_a_vip_of_node_ports_alone_steers_no_address() -> None:
    told = targets("ku vip 0.0.0.0/32 protocol tcp port 30080 node_port 30080\nku pod 0.0.0.0/32 10.0.0.1")
    assert told.vips == frozenset()
    assert told.node_ports == {(4, 6, 30080)}
    assert {str(address) for address, _, _ in told.pods} == {"10.0.0.1"}


def test_only_tunnels_need_split_segments() -> None:
    assert targets("ku vip 90.0.0.1 encap ipip").tunnels
    assert not targets("ku vip 90.0.0.1 encap l3dsr dscp 1").tunnels
    assert not targets("ku vip 90.0.0.1").tunnels


def test_replies_come_up_where_their_pod_is_unless_told_otherwise() -> None:
    assert targets("ku vip 90.0.0.1").strict_replies
    assert not targets("ku conf reply-path any").strict_replies
