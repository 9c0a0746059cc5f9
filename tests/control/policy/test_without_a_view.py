"""Which endpoints serve, as a table of cases; and which addresses they serve."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from kuproxy.codes import Family, Protocol, VipType
from kuproxy.control.policy import (
    Candidate,
    categorize,
    not_honoured,
    recommended_new_len,
    service_vips,
    skip_reason,
    vips_of,
)
from kuproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IpMode,
    LoadBalancerIngress,
    Service,
    ServicePort,
    ServiceType,
    SessionAffinity,
    TrafficPolicy,
)
from kuproxy.model.vip import Pod

HTTP = ServicePort("http", Protocol.TCP, 80, 8080)
WEB = Service("shop", "web", ports=(HTTP,), cluster_ips=(ip_address("10.96.0.1"),))


def endpoint(address: str, ready: bool = True, serving: bool = True, terminating: bool = False) -> Endpoint:
    return Endpoint((ip_address(address),), ready, serving, terminating)


def a_slice(*addresses: str, name: str = "web-1", port: int | None = 8080, **other: object) -> EndpointSlice:
    family = Family(ip_address(addresses[0]).version) if addresses else Family.IPV4
    ports = (EndpointPort("http", Protocol.TCP, port),)
    whole = EndpointSlice("shop", name, "web", family, ports, tuple(map(endpoint, addresses)))
    return replace(whole, **other)


def served(service: Service, *slices: EndpointSlice) -> dict[str, str]:
    """VIP → pods with the ports that packets to them get."""
    return {
        str(vip.key): " ".join(f"{pod.address}:{vip.pod_port(pod)}" for pod in vip.pods)
        for vip in service_vips(service, slices)
    }


@pytest.mark.parametrize(
    ("ready", "serving", "terminating"), list(itertools.product([True, False], repeat=3))
)
@pytest.mark.parametrize("beside_ready", [True, False])
def test_ready_then_serving_and_terminating(ready, serving, terminating, beside_ready) -> None:
    probe = endpoint("10.0.0.1", ready, serving, terminating)
    others = [endpoint("10.0.0.2", ready=beside_ready, serving=False)]
    candidates = [Candidate(each, Pod(each.addresses[0])) for each in (probe, *others)]
    selected = {candidate.endpoint for candidate in categorize(candidates, None).cluster}
    expected = {each for each in (probe, *others) if each.ready}
    if not expected and serving and terminating:
        expected = {probe}
    assert selected == expected


def test_readiness_is_the_slices_affair_whatever_publish_not_ready_addresses_says() -> None:
    """The EndpointSlice controller sets `ready` for such services; CategorizeEndpoints does not know the field."""
    wanted = replace(WEB, publish_not_ready_addresses=True)
    unready = a_slice("10.0.0.1", endpoints=(endpoint("10.0.0.1", False, False),))
    assert served(wanted, unready) == {"10.96.0.1/32 protocol tcp port 80": ""}


def test_the_fallback_is_per_port_and_family() -> None:
    dual = replace(WEB, cluster_ips=(ip_address("10.96.0.1"), ip_address("fd00::1")))
    leaving = a_slice("2001::1", name="b", endpoints=(endpoint("2001::1", False, True, True),))
    assert served(dual, a_slice("10.0.0.1"), leaving) == {
        "10.96.0.1/32 protocol tcp port 80": "10.0.0.1:8080",
        "fd00::1/128 protocol tcp port 80": "2001::1:8080",
    }


def test_slices_are_merged_and_each_has_its_own_port() -> None:
    slices = [
        a_slice("10.0.0.1", "10.0.0.2"),
        a_slice("10.0.0.2", "10.0.0.3", name="web-2"),
        a_slice("10.0.0.3", name="web-3", port=9090),
        a_slice(name="web-4"),
    ]
    expected = {
        "10.96.0.1/32 protocol tcp port 80": "10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080 10.0.0.3:9090"
    }
    for order in itertools.permutations(slices):
        assert served(WEB, *order) == expected


def test_of_two_reports_about_one_endpoint_the_last_slice_by_name_counts() -> None:
    gone = a_slice("10.0.0.1", name="web-2", endpoints=(endpoint("10.0.0.1", ready=False, serving=False),))
    for order in itertools.permutations([a_slice("10.0.0.1"), gone]):
        assert served(WEB, *order) == {"10.96.0.1/32 protocol tcp port 80": ""}
    assert served(WEB, a_slice("10.0.0.1", name="web-3"), gone) == {
        "10.96.0.1/32 protocol tcp port 80": "10.0.0.1:8080"
    }


@pytest.mark.parametrize(
    "ports",
    [
        (EndpointPort("other", Protocol.TCP, 8080),),
        (EndpointPort("http", Protocol.UDP, 8080),),
        (EndpointPort("http", Protocol.TCP, None),),
        (),
    ],
)
def test_ports_match_by_name_and_protocol(ports) -> None:
    assert served(WEB, a_slice("10.0.0.1", ports=ports)) == {"10.96.0.1/32 protocol tcp port 80": ""}


def test_slices_of_other_services_and_families_do_not_count() -> None:
    for other in (
        a_slice("10.0.0.1", service="api"),
        a_slice("10.0.0.1", namespace="edge"),
        a_slice("2001::1"),
    ):
        assert served(WEB, other) == {"10.96.0.1/32 protocol tcp port 80": ""}
        assert [vip.pods for vip in vips_of([WEB], [other])] == [()]


def test_the_target_port_is_shown_but_the_slices_decide() -> None:
    [vip] = service_vips(WEB, [a_slice("10.0.0.1"), a_slice("10.0.0.2", name="b", port=9090)])
    assert vip.target_port == 8080
    assert [pod.port for pod in vip.pods] == [0, 9090]
    [named] = service_vips(replace(WEB, ports=(replace(HTTP, target_port="http"),)), [a_slice("10.0.0.1")])
    assert (named.target_port, [str(pod) for pod in named.pods]) == (80, ["10.0.0.1:8080"])


EXPOSED = replace(
    WEB,
    type=ServiceType.LOAD_BALANCER,
    ports=(replace(HTTP, node_port=30080), ServicePort("dns", Protocol.UDP, 53, 53)),
    cluster_ips=(ip_address("10.96.0.1"), ip_address("fd00::1")),
    external_ips=(ip_address("198.51.100.1"), ip_address("2001:db8::1"), ip_address("10.96.0.1")),
    ingress=(
        LoadBalancerIngress(ip_address("203.0.113.1")),
        LoadBalancerIngress(ip_address("203.0.113.2"), ip_mode=IpMode.PROXY),
        LoadBalancerIngress(hostname="lb.example.com"),
        LoadBalancerIngress(ip_address("203.0.113.1")),
    ),
)


def test_every_address_of_a_service() -> None:
    vips = service_vips(EXPOSED, [a_slice("10.0.0.1")])
    v4 = ["10.96.0.1/32", "198.51.100.1/32", "203.0.113.1/32"]
    v6 = ["fd00::1/128", "2001:db8::1/128"]
    assert [str(vip.key) for vip in vips] == [
        *(f"{prefix} protocol tcp port 80" for prefix in v4 + v6),
        *(f"{prefix} protocol udp port 53" for prefix in v4 + v6),
    ]
    assert {str(vip.key): vip.node_port for vip in vips if vip.node_port} == {
        "10.96.0.1/32 protocol tcp port 80": 30080,
        "fd00::1/128 protocol tcp port 80": 30080,
    }
    assert {vip.owner for vip in vips} == {"shop/web:http", "shop/web:dns"}
    assert {vip.type for vip in vips} == {VipType.IP4_NAT44, VipType.IP6_NAT66}
    assert all(vip.reject for vip in vips)
    assert [len(vip.pods) for vip in vips] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_family_without_cluster_ip_is_not_served() -> None:
    single = replace(EXPOSED, cluster_ips=(ip_address("10.96.0.1"),))
    assert {vip.key.family for vip in service_vips(single, [])} == {Family.IPV4}


def test_an_unnamed_port_has_the_services_name() -> None:
    unnamed = replace(WEB, ports=(replace(HTTP, name=""),))
    assert [vip.owner for vip in service_vips(unnamed, [])] == ["shop/web"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": ServiceType.EXTERNAL_NAME}, "ExternalName"),
        ({"headless": True, "cluster_ips": ()}, "headless"),
        ({"proxy_name": "mesh"}, "'mesh'"),
        ({"proxy_name": ""}, "another proxy"),
        ({"cluster_ips": ()}, "no clusterIP"),
        ({"ports": ()}, "no ports"),
    ],
)
def test_services_that_get_no_vip(change, reason) -> None:
    service = replace(WEB, **change)
    assert reason in (skip_reason(service) or "")
    assert service_vips(service, [a_slice("10.0.0.1")]) == []
    assert skip_reason(WEB) is None


def test_what_is_not_honoured_yet_is_said() -> None:
    assert not_honoured(WEB) == []
    demanding = replace(
        WEB,
        type=ServiceType.NODE_PORT,
        external_traffic_policy=TrafficPolicy.LOCAL,
        internal_traffic_policy=TrafficPolicy.LOCAL,
        session_affinity=SessionAffinity.CLIENT_IP,
        source_ranges=("10.0.0.0/8",),
    )
    assert len(not_honoured(demanding)) == 2


@pytest.mark.parametrize(
    ("pods", "new_len"),
    [
        (0, 1024),
        (1, 1024),
        (10, 1024),
        (11, 2048),
        (20, 2048),
        (21, 4096),
        (655, 65536),
        (656, 65536),
        (5000, 65536),
    ],
)
def test_size_of_the_new_flow_table(pods, new_len) -> None:
    assert recommended_new_len(pods) == new_len


def test_affinity_of_every_address_by_default_three_hours() -> None:
    sticky = replace(WEB, session_affinity=SessionAffinity.CLIENT_IP)
    assert {vip.affinity_s for vip in service_vips(sticky, [])} == {10800.0}
    assert {vip.affinity_s for vip in service_vips(replace(sticky, affinity_timeout_s=60), [])} == {60.0}
    assert {vip.affinity_s for vip in service_vips(WEB, [])} == {0.0}


def test_source_ranges_concern_load_balancer_addresses_of_their_family() -> None:
    ranges = (ip_network("40.0.0.0/8"), ip_network("4000::/16"))
    ingress = (LoadBalancerIngress(ip_address("203.0.113.9")),)
    vips = service_vips(replace(WEB, source_ranges=ranges, ingress=ingress), [])
    found = {str(vip.key.prefix.network_address): vip.source_ranges for vip in vips}
    assert found.pop("203.0.113.9") == ranges[:1]
    assert set(found.values()) == {()}
