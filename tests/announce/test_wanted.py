"""What is announced: prefixes with a pod for clients from outside, within the ranges."""

from __future__ import annotations

import itertools
from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from kuproxy.announce.wanted import can_serve, wanted
from kuproxy.codes import Family, Protocol
from kuproxy.control.policy import service_vips
from kuproxy.model.node import NodeInfo, NodeView
from kuproxy.model.service import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, TrafficPolicy
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix, vip_type

ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def vip(prefix: str, *pods: str, outside: tuple[str, ...] | None = None, port: int = 80, weight: int = 1) -> Vip:
    made = parse_prefix(prefix)

    def all_of(texts: tuple[str, ...]) -> tuple[Pod, ...]:
        return tuple(Pod(parse_address(text), weight=weight) for text in texts)

    return Vip(
        VipKey(made, Protocol.TCP, port), vip_type(made), pods=all_of(pods),
        outside_pods=None if outside is None else all_of(outside), reject=True,
    )  # fmt: skip


def texts(*vips: Vip, ranges: tuple[str, ...] = ()) -> list[str]:
    return [str(each) for each in wanted(vips, tuple(map(ip_network, ranges)) or ANYWHERE)]


def test_with_pods_and_in_order() -> None:
    assert texts(vip("2001:db8::1", "fd00::1"), vip("90.0.1.0/24", "10.0.0.1"), vip("90.0.0.9", "10.0.0.1")) == [
        "90.0.0.9/32", "90.0.1.0/24", "2001:db8::1/128",
    ]  # fmt: skip


def test_one_port_with_pods_is_enough_and_none_is_not() -> None:
    assert texts(vip("90.0.0.1"), vip("90.0.0.1", "10.0.0.1", port=81)) == ["90.0.0.1/32"]
    assert texts(vip("90.0.0.1"), vip("90.0.0.1", port=81)) == []
    assert texts(vip("90.0.0.1", "10.0.0.1", weight=0)) == []


def test_what_clients_from_outside_reach_counts() -> None:
    """externalTrafficPolicy Local without a local endpoint: others shall have the traffic."""
    assert texts(vip("90.0.0.1", "10.0.0.1", outside=())) == []
    assert texts(vip("90.0.0.1", outside=("10.0.0.1",))) == ["90.0.0.1/32"]


def test_ranges_are_a_fence() -> None:
    all_of = (vip("90.0.0.1", "10.0.0.1"), vip("10.96.0.1", "10.0.0.1"), vip("90.0.0.0/8", "10.0.0.1", port=81))
    assert texts(*all_of, ranges=("90.0.0.0/24",)) == ["90.0.0.1/32"]
    assert texts(*all_of, ranges=("2001:db8::/32",)) == []
    key = VipKey(ip_network("0.0.0.0/32"), Protocol.TCP, 80)
    node_port = Vip(key, vip_type(key.prefix), node_port=30080, pods=(Pod(parse_address("10.0.0.1")),))
    assert texts(node_port) == []


def test_a_service_with_local_policy_is_announced_where_its_endpoints_are() -> None:
    service = Service(
        namespace="shop", name="web", cluster_ips=(parse_address("10.96.0.1"),),
        external_ips=(parse_address("90.0.0.1"),), external_traffic_policy=TrafficPolicy.LOCAL,
        ports=(ServicePort(name="http", protocol=Protocol.TCP, port=80, target_port=8080, node_port=30080),),
    )  # fmt: skip
    endpoints = EndpointSlice(
        namespace="shop", name="web-1", service="web", family=Family.IPV4,
        endpoints=(Endpoint(addresses=(parse_address("10.244.1.2"),), node_name="one"),),
        ports=(EndpointPort(name="http", protocol=Protocol.TCP, port=8080),),
    )  # fmt: skip
    for node, expected in (("one", ["90.0.0.1/32"]), ("two", [])):
        vips = service_vips(service, [endpoints], NodeView(NodeInfo(node)))
        assert texts(*vips, ranges=("90.0.0.0/24",)) == expected


@given(st.data())
def test_a_prefix_is_there_exactly_if_one_of_its_vips_can_serve(data: st.DataObject) -> None:
    prefixes = ["90.0.0.1", "90.0.0.0/24", "91.0.0.0/8", "2001:db8::1", "2001:db8::/64"]
    vips = []
    for prefix, port in itertools.product(prefixes, (80, 81)):
        pods = st.sampled_from([(), ("fd00::1",)] if ":" in prefix else [(), ("10.0.0.1",)])
        outside = data.draw(st.none() | pods)
        vips.append(vip(prefix, *data.draw(pods), outside=outside, port=port))
    ranges = data.draw(st.sets(st.sampled_from(["90.0.0.0/16", "90.0.0.0/25", "::/0", "91.0.0.0/8"])))
    found = set(wanted(data.draw(st.permutations(vips)), tuple(map(ip_network, sorted(ranges)))))
    for prefix in map(parse_prefix, prefixes):
        served = any(can_serve(each) for each in vips if each.key.prefix == prefix)
        inside = any(
            prefix.version == each.version and prefix.network_address in each and prefix.prefixlen >= each.prefixlen
            for each in map(ip_network, ranges)
        )
        assert (prefix in found) == (served and inside)
