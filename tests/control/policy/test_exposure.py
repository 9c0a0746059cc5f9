"""What a service looks like from inside and from outside: who is refused, dropped, masqueraded, let in.

Rules: FEATURES rows are those of kube-proxy's nftables mode (kubernetes.io/docs/reference/networking/virtual-ips;
pkg/proxy/nftables/proxier.go; KEP-1860 for ipMode; KEP-3866 for the treatment of cluster IPs).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.policy.cluster import HERE, HTTP, NODE_PORT, SETTINGS, VIEW, WEB, a_slice, an_endpoint, numbers
from kuproxy.codes import Family, Origin, Protocol
from kuproxy.control.policy import (
    health_answer,
    local_ready,
    node_port_addresses,
    origin_of,
    pod_ranges,
    pod_traffic,
    service_range_guards,
    service_vips,
    stale_udp,
    translate,
    vips_of,
)
from kuproxy.model.node import DetectLocalMode, NodeView
from kuproxy.model.service import EndpointPort, LoadBalancerIngress, ServicePort, ServiceType, TrafficPolicy
from kuproxy.model.vip import Pod, Vip

LOCAL = TrafficPolicy.LOCAL
NOBODY = Origin(0)
NOT_PODS = Origin.NODE | Origin.OUTSIDE
BALANCED = replace(
    NODE_PORT,
    type=ServiceType.LOAD_BALANCER,
    external_ips=(ip_address("198.51.100.1"),),
    ingress=(LoadBalancerIngress(ip_address("203.0.113.1")),),
)
INSIDE, EXTERNAL, BALANCER, ON_NODE = "10.96.0.1", "198.51.100.1", "203.0.113.1", "0.0.0.0"


def by_address(service, *endpoints, view=VIEW) -> dict[str, Vip]:
    """The VIPs of the only port, by address; guards apart."""
    vips = service_vips(service, [a_slice(*endpoints)], view)
    return {str(vip.key.prefix.network_address): vip for vip in vips if vip.key.port}


def masqueraded(vip: Vip) -> Origin:
    return Origin.ANYWHERE if vip.masquerade else vip.masquerade_from


# rule, service's policies, endpoints, then for each side (from a pod, from outside): endpoints, or what else
POLICIES = [
    ("Cluster and Cluster: everybody gets everything", {}, [("ready", "here"), ("ready", "there")],
     ([1, 2], [1, 2]), ([1, 2], [1, 2])),
    ("nothing anywhere: refused", {}, [("unready", "here")], ("reject", "reject"), ("reject", "reject")),
    ("nothing anywhere, both Local: refused, not dropped",
     {"internal_traffic_policy": LOCAL, "external_traffic_policy": LOCAL}, [],
     ("reject", "reject"), ("reject", "reject")),
    ("externalTrafficPolicy Local: pods use all, others the local ones",
     {"external_traffic_policy": LOCAL}, [("ready", "here"), ("ready", "there")], ([1, 2], [1, 2]), ([1, 2], [1])),
    ("externalTrafficPolicy Local and none here: dropped for others, served to pods",
     {"external_traffic_policy": LOCAL}, [("ready", "there")], ([1], [1]), ([1], "drop")),
    ("internalTrafficPolicy Local: the cluster IP for everybody, external addresses unchanged",
     {"internal_traffic_policy": LOCAL}, [("ready", "here"), ("ready", "there")], ([1], [1]), ([1, 2], [1, 2])),
    ("internalTrafficPolicy Local and none here: the cluster IP drops, the node port answers",
     {"internal_traffic_policy": LOCAL}, [("ready", "there")], ("drop", "drop"), ([1], [1])),
    ("both Local, the local pod terminating: it serves",
     {"internal_traffic_policy": LOCAL, "external_traffic_policy": LOCAL}, [("serving", "here"), ("ready", "there")],
     ([1], [1]), ([2], [1])),
]  # fmt: skip


def fate(vip: Vip, origin: Origin) -> object:
    return numbers(vip.pods_for(origin)) or ("reject" if vip.reject else "drop")


@pytest.mark.parametrize(("rule", "policies", "states", "inside", "outside"), POLICIES)
def test_traffic_policies_at_every_address(rule, policies, states, inside, outside) -> None:
    endpoints = [an_endpoint(n, state, node) for n, (state, node) in enumerate(states, 1)]
    vips = by_address(replace(BALANCED, **policies), *endpoints)
    assert vips.keys() == {INSIDE, EXTERNAL, BALANCER, ON_NODE}
    for address, vip in vips.items():
        expected = inside if address == INSIDE else outside
        assert (fate(vip, Origin.POD), fate(vip, Origin.OUTSIDE)) == expected, rule
        assert fate(vip, Origin.NODE) == fate(vip, Origin.POD), (
            "the node itself is short-circuited as pods are"
        )


NO_CIDR = replace(SETTINGS, cluster_cidrs=())
BY_NODE = replace(SETTINGS, detect_local_mode=DetectLocalMode.NODE_CIDR)
BY_BRIDGE = replace(
    SETTINGS, detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, bridge_interface="cni0", cluster_cidrs=()
)
MASQUERADE = [
    ("cluster IP: whoever is no pod", SETTINGS, NOT_PODS),
    ("the same by the node's pod CIDRs", BY_NODE, NOT_PODS),
    ("the same by bridge", BY_BRIDGE, NOT_PODS),
    ("no way to recognise pods: nobody", NO_CIDR, NOBODY),
    ("masqueradeAll: everybody", replace(SETTINGS, masquerade_all=True), Origin.ANYWHERE),
    ("masqueradeAll needs no way to recognise pods", replace(NO_CIDR, masquerade_all=True), Origin.ANYWHERE),
]


@pytest.mark.parametrize(("rule", "settings", "inside"), MASQUERADE)
@pytest.mark.parametrize("is_local", [False, True])
def test_masquerading(rule, settings, inside, is_local) -> None:
    service = replace(BALANCED, external_traffic_policy=LOCAL) if is_local else BALANCED
    vips = by_address(service, an_endpoint(1), view=NodeView(HERE, settings))
    assert masqueraded(vips[INSIDE]) == inside, rule
    outside = Origin.NODE if is_local else Origin.ANYWHERE
    for address in (EXTERNAL, BALANCER):
        assert masqueraded(vips[address]) == outside, (
            "external traffic: policy Cluster masquerades, Local the node only"
        )
    node_port = vips[ON_NODE] if ON_NODE in vips else vips[INSIDE]
    assert node_port.node_port == 30080
    assert masqueraded(node_port) == outside


DETECT = [
    (SETTINGS, "10.200.0.1", "", True),
    (SETTINGS, "11.0.0.1", "", False),
    (BY_NODE, "10.1.0.7", "", True),
    (BY_NODE, "10.2.0.7", "", False),
    (BY_BRIDGE, "40.0.0.1", "cni0", True),
    (BY_BRIDGE, "10.1.0.7", "cni01", False),
    (replace(BY_BRIDGE, detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth"),
     "40.0.0.1", "veth12ab", True),
    (replace(BY_BRIDGE, detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth"),
     "10.1.0.7", "eth0", False),
    (NO_CIDR, "10.1.0.7", "", False),
    (SETTINGS, "fd01::9", "", True),
    (SETTINGS, "fe00::9", "", False),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "source", "interface", "is_pod"), DETECT)
def test_detect_local_mode(settings, source, interface, is_pod) -> None:
    address = ip_address(source)
    pods = pod_traffic(NodeView(HERE, settings), Family(address.version))
    assert pods.matches(address, interface) == is_pod
    assert origin_of(address, pods, frozenset(), interface) == (Origin.POD if is_pod else Origin.OUTSIDE)


def test_pod_ranges_are_of_both_families_and_no_interfaces() -> None:
    assert list(map(str, pod_ranges(VIEW))) == ["10.0.0.0/8", "fd01::/16"]
    assert list(map(str, pod_ranges(NodeView(HERE, BY_NODE)))) == ["10.1.0.0/24", "fd01::/64"]
    assert pod_ranges(NodeView(HERE, NO_CIDR)) == pod_ranges(None) == ()
    assert pod_ranges(NodeView(HERE, BY_BRIDGE)) == ()


def test_the_nodes_address_among_the_pods_is_a_pods() -> None:
    bridge = ip_address("10.1.0.1")
    pods = pod_traffic(VIEW, Family.IPV4)
    assert origin_of(bridge, pods, frozenset({bridge})) is Origin.POD
    assert origin_of(HERE.addresses[0], pods, frozenset(HERE.addresses)) is Origin.NODE


def test_a_node_port_joins_the_cluster_ip_where_both_are_told_the_same() -> None:
    everybody = NodeView(HERE, replace(SETTINGS, masquerade_all=True))
    vips = by_address(NODE_PORT, an_endpoint(1), view=everybody)
    assert vips.keys() == {INSIDE}
    assert vips[INSIDE].node_port == 30080
    apart = by_address(NODE_PORT, an_endpoint(1))
    assert {address: vip.node_port for address, vip in apart.items()} == {INSIDE: 0, ON_NODE: 30080}
    assert str(apart[ON_NODE].key) == "0.0.0.0/32 protocol tcp port 30080"
    assert [vip.pod_port(pod) for vip in apart.values() for pod in vip.pods] == [8080, 8080]


def test_external_policy_says_nothing_without_external_traffic() -> None:
    """apiservice.ExternalPolicyLocal"""
    vips = by_address(replace(WEB, external_traffic_policy=LOCAL), an_endpoint(1))
    assert [fate(vip, Origin.OUTSIDE) for vip in vips.values()] == [[1]]


def test_source_ranges_let_in_a_node_at_its_balancer_address() -> None:
    """nftables/proxier.go, usesFWChain: where the VIP is a local address, it is the node's source."""
    ranges = (ip_network("192.0.2.0/24"), ip_network("4000::/16"))
    vips = by_address(replace(BALANCED, source_ranges=ranges), an_endpoint(1))
    assert set(vips[BALANCER].source_ranges) == {ranges[0], ip_network("203.0.113.1/32")}
    assert not vips[EXTERNAL].source_ranges
    assert not vips[ON_NODE].source_ranges
    elsewhere = by_address(replace(BALANCED, source_ranges=(ip_network("40.0.0.0/8"),)), an_endpoint(1))
    assert elsewhere[BALANCER].source_ranges == (ip_network("40.0.0.0/8"),)


def test_guards() -> None:
    """KEP-3866: unknown ports of a cluster IP are refused, addresses that no service has are dropped."""
    vips = vips_of(
        [WEB], [], NodeView(HERE, replace(SETTINGS, service_cidrs=(ip_network("10.96.0.0/16"),) * 2))
    )
    told = {str(vip.key): (vip.reject, vip.pods, vip.owner) for vip in vips}
    assert told == {
        "10.96.0.1/32 protocol tcp port 80": (True, (), "shop/web:http"),
        "10.96.0.1/32": (True, (), "shop/web"),
        "10.96.0.0/16": (False, (), "ServiceCIDR"),
    }
    assert service_range_guards(()) == []
    assert not [vip for vip in vips_of([WEB], []) if not vip.key.port], "no view, no guards"


# ------------------------------------------------------------------------------------------- node ports

PRESENT = [*HERE.addresses, ip_address("172.16.0.1"), ip_address("127.0.0.1"), ip_address("::1")]
NODE_PORTS = [
    ("primary", None, {"192.0.2.1", "2001:db8::1"}),
    ("empty: all but loopback", (), {"192.0.2.1", "2001:db8::1", "172.16.0.1"}),
    ("by prefix; the other family has none, so all of it", ("172.16.0.0/12",), {"172.16.0.1", "2001:db8::1"}),
    ("everything, loopback excepted", ("0.0.0.0/0", "::/0"), {"192.0.2.1", "2001:db8::1", "172.16.0.1"}),
    ("127.0.0.1 asked for by name is refused all the same", ("127.0.0.0/8", "2001:db8:f::/48"), set()),
]


@pytest.mark.parametrize(("rule", "prefixes", "expected"), NODE_PORTS)
def test_node_port_addresses(rule, prefixes, expected) -> None:
    told = None if prefixes is None else tuple(map(ip_network, prefixes))
    view = NodeView(HERE, replace(SETTINGS, node_port_addresses=told))
    assert set(map(str, node_port_addresses(view, PRESENT))) == expected, rule


# --------------------------------------------------------------------------------------------- clean-up

DNS = replace(WEB, ports=(ServicePort("dns", Protocol.UDP, 53, 53),))


def dns_slice(*states: str):
    endpoints = [an_endpoint(n, state) for n, state in enumerate(states, 1) if state]
    return a_slice(*endpoints, ports=(EndpointPort("dns", Protocol.UDP, 5353),))


CLEANUP = [
    ("gone", ["ready", "ready"], ["ready"], [2]),
    ("no longer serving", ["ready", "ready"], ["ready", "terminating"], [2]),
    ("still serving, though no longer chosen: its flows stay", ["ready", "ready"], ["ready", "serving"], []),
    ("chosen no more before, gone now", ["ready", "serving"], ["ready"], [2]),
    ("down to zero", ["ready", "ready"], [], [1, 2]),
    ("nothing to do when one comes", ["ready"], ["ready", "ready"], []),
    ("from zero", [], ["ready"], []),
]


@pytest.mark.parametrize(("rule", "before", "after", "stale"), CLEANUP)
def test_stale_udp(rule, before, after, stale) -> None:
    old, new = (translate(DNS, [dns_slice(*states)], VIEW) for states in (before, after))
    assert stale_udp(old, new) == [
        (old.serving[0][0], Pod(ip_address(f"10.0.0.{n}"), 5353)) for n in stale
    ], rule
    assert stale_udp(old, translate(replace(DNS, headless=True), [], VIEW)) == [], (
        "a VIP that goes ends its flows"
    )
    tcp = [translate(WEB, [a_slice(an_endpoint(1, state))], VIEW) for state in ("ready", "terminating")]
    assert stale_udp(*tcp) == []


# ----------------------------------------------------------------------------------------------- health


def test_health_counts_ready_addresses_here_once() -> None:
    service = replace(BALANCED, external_traffic_policy=LOCAL, health_check_node_port=32000)
    endpoints = [
        an_endpoint(1, node="here"), an_endpoint(2, node="here"), an_endpoint(3), an_endpoint(4, "serving", "here"),
    ]  # fmt: skip
    slices = [a_slice(*endpoints), a_slice(endpoints[0], name="again")]
    assert local_ready(service, slices, VIEW) == 2
    assert local_ready(replace(service, external_traffic_policy=TrafficPolicy.CLUSTER), slices, VIEW) is None
    assert local_ready(replace(service, type=ServiceType.NODE_PORT), slices, VIEW) is None
    assert local_ready(replace(service, health_check_node_port=0), slices, VIEW) is None


@pytest.mark.parametrize(("count", "healthy", "status"), [(1, True, 200), (0, True, 503), (1, False, 503)])
def test_health_status(count, healthy, status) -> None:
    answer = health_answer(WEB, count, healthy)
    assert answer.status == status
    assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == str(count)


# ------------------------------------------------------------------------------------------- properties

SERVICES = st.builds(
    lambda kind, ports, external, internal, outside: replace(
        BALANCED, type=kind, ports=ports, external_ips=external, internal_traffic_policy=internal,
        external_traffic_policy=outside, ingress=BALANCED.ingress if kind is ServiceType.LOAD_BALANCER else (),
    ),
    st.sampled_from([ServiceType.CLUSTER_IP, ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER]),
    st.sampled_from([(HTTP,), (replace(HTTP, node_port=30080),)]),
    st.sampled_from([(), BALANCED.external_ips]),
    st.sampled_from(list(TrafficPolicy)),
    st.sampled_from(list(TrafficPolicy)),
)  # fmt: skip
STATES = st.lists(
    st.tuples(
        st.sampled_from(["ready", "unready", "serving", "terminating"]), st.sampled_from(["here", "there"])
    ),
    max_size=4,
)
VIEWS = st.sampled_from([None, *(NodeView(HERE, settings) for _, settings, _ in MASQUERADE)])


@given(SERVICES, STATES, VIEWS)
def test_every_side_obeys_its_policy(service, states, view) -> None:
    """virtual-ips, "Traffic policies", told anew from the outside: who reaches whom, and who hears what."""
    endpoints = {n: an_endpoint(n, *each) for n, each in enumerate(states, 1)}
    ready = {n for n, e in endpoints.items() if e.ready} or {
        n for n, e in endpoints.items() if e.serving and e.terminating
    }
    here = {n for n, e in endpoints.items() if e.node_name == "here"}
    at_home = {n for n in here if endpoints[n].ready} or {
        n for n in here if endpoints[n].serving and endpoints[n].terminating
    }
    for address, vip in by_address(service, *endpoints.values(), view=view).items():
        for origin in (Origin.POD, Origin.NODE, Origin.OUTSIDE):
            if address == INSIDE:
                local = service.internal_traffic_policy is LOCAL
            else:
                reachable = service.type is not ServiceType.CLUSTER_IP or bool(service.external_ips)
                local = service.external_traffic_policy is LOCAL and reachable and origin is Origin.OUTSIDE
            expected = at_home if local and view is not None else ready
            assert fate(vip, origin) == (sorted(expected) or ("drop" if ready else "reject"))
            if not view:
                assert not vip.masquerades(origin)


@given(SERVICES, STATES, STATES, VIEWS)
def test_what_a_service_comes_to_does_not_depend_on_others(service, mine, others, view) -> None:
    slices = [a_slice(*(an_endpoint(n, *each) for n, each in enumerate(mine, 1)))]
    stranger = replace(WEB, name="other", cluster_ips=(ip_address("10.96.0.2"),))
    foreign = a_slice(
        *(an_endpoint(n, *each) for n, each in enumerate(others, 1)), service="other", name="other-1"
    )
    alone = service_vips(service, slices, view)
    together = vips_of([stranger, service], [foreign, *slices], view)
    assert [vip for vip in together if vip.owner.startswith("shop/web")] == alone
    assert len({vip.key for vip in together}) == len(together)
