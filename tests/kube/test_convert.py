"""Kubernetes' objects into the model: what the API server really sends, and what people really mistype."""

# ruff: noqa: E501 (a case is a line)

from __future__ import annotations

import copy
import itertools
import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.codes import Family, Protocol
from kuproxy.errors import ConfigError
from kuproxy.kube.convert import Converted, convert_document
from kuproxy.kube.manifest import Manifest, read_manifest
from kuproxy.model.service import (
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
from kuproxy.model.vip import parse_address

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"


def fixture(name: str) -> Converted:
    converted = convert_document(json.loads((FIXTURES / name).read_text()))
    assert converted.problems == []
    return converted


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return {service.full_name: service for service, _path in fixture("lists/services.json").services}


@pytest.fixture(scope="module")
def slices() -> dict[str, EndpointSlice]:
    return {item.name: item for item, _path in fixture("lists/endpointslices.json").slices}


def messages(text: str, file: str = "svc.yaml") -> list[str]:
    try:
        manifest = read_manifest(text, file)
    except ConfigError as error:
        return str(error).splitlines()
    return list(map(str, manifest.place(manifest.converted.problems)))


def notes(manifest: Manifest) -> list[str]:
    return list(map(str, manifest.place(manifest.converted.notes)))


def test_everything_in_the_lists_is_understood(services, slices) -> None:
    assert len(services) == 52
    assert len(slices) == 65  # of 67: one has no service, one has names for addresses


def test_a_plain_service(services) -> None:
    assert services["shop/frontend"] == Service(
        "shop", "frontend", ServiceType.CLUSTER_IP, (ServicePort("http", Protocol.TCP, 80, 8080),),
        (ip_address("10.96.10.1"),),
    )  # fmt: skip


def test_ports(services) -> None:
    assert services["shop/dns"].ports == (
        ServicePort("dns", Protocol.UDP, 53, "dns"),
        ServicePort("dns-tcp", Protocol.TCP, 53, "dns-tcp"),
    )
    assert services["shop/sctp-gw"].ports[0].protocol is Protocol.SCTP
    assert services["shop/unnamed-port"].ports == (ServicePort("", Protocol.TCP, 8443, 8443),)
    assert services["edge/nodeport"].ports[0].node_port == 30080


def test_families(services) -> None:
    dual = services["shop/dual-require"]
    assert [address.version for address in dual.cluster_ips] == [6, 4]
    assert dual.cluster_ip(Family.IPV4) == ip_address("10.96.166.236")
    assert services["shop/v6-only"].cluster_ip(Family.IPV4) is None


def test_services_without_addresses(services) -> None:
    assert services["shop/db"].headless
    assert services["shop/db"].publish_not_ready_addresses
    assert services["shop/external-name"].type is ServiceType.EXTERNAL_NAME
    assert not services["shop/external-name"].headless


def test_everything_that_later_rules_need(services) -> None:
    assert services["shop/affinity"].session_affinity is SessionAffinity.CLIENT_IP
    assert services["shop/affinity"].affinity_timeout_s == 600
    assert services["shop/affinity-default"].affinity_timeout_s == 10800
    assert services["shop/itp-local"].internal_traffic_policy is TrafficPolicy.LOCAL
    assert services["edge/lb-local"].external_traffic_policy is TrafficPolicy.LOCAL
    assert services["edge/lb-local"].health_check_node_port == 32100
    assert services["edge/lb-dual"].source_ranges == (
        ip_network("198.51.100.0/24"),
        ip_network("2001:db8:1::/48"),
    )
    assert services["edge/external-ips"].external_ips == (
        ip_address("198.51.100.200"),
        ip_address("198.51.100.201"),
    )
    assert services["edge/lb-several"].ingress == (
        LoadBalancerIngress(ip_address("203.0.113.12")),
        LoadBalancerIngress(ip_address("203.0.113.13"), ip_mode=IpMode.PROXY),
        LoadBalancerIngress(hostname="lb2.example.com"),
    )
    assert services["edge/lb-class"].load_balancer_class == "example.com/lb"
    assert not services["edge/lb-no-nodeports"].allocate_node_ports
    assert services["shop/near-close"].traffic_distribution == "PreferClose"
    assert services["shop/topology-auto"].topology_mode == "Auto"
    assert services["shop/other-proxy"].proxy_name == "mesh"
    assert services["shop/frontend"].proxy_name is None


def test_conditions_that_are_absent(slices) -> None:
    by_address = {
        str(endpoint.addresses[0]): (endpoint.ready, endpoint.serving, endpoint.terminating)
        for endpoint in slices["states-all"].endpoints
    }
    assert by_address["10.245.1.3"] == (False, False, True)
    assert by_address["10.245.1.7"] == (True, True, False)
    assert by_address["10.245.1.10"] == (False, True, False)
    assert by_address["10.245.1.11"] == (False, True, True)
    assert by_address["10.245.1.12"] == (True, True, True)


def test_slices(slices) -> None:
    hinted = slices["hinted-zones"]
    assert hinted.service_full_name == "shop/hinted"
    assert hinted.endpoints[1].hint_zones == ("zone-b", "zone-c")
    assert hinted.endpoints[2].hint_nodes == ("node-a2",)
    assert (hinted.endpoints[0].node_name, hinted.endpoints[0].zone) == ("node-a1", "zone-a")
    assert slices["odd-null-port"].ports == (EndpointPort("", Protocol.TCP, None),)
    assert slices["odd-no-ports"].ports == ()
    assert slices["no-selector-empty"].endpoints == ()
    assert slices["odd-v6"].family is Family.IPV6
    assert slices["odd-two-addresses"].endpoints[0].addresses == (
        ip_address("10.245.3.5"),
        ip_address("10.245.3.6"),
    )


def test_manifests_give_what_the_api_server_gives_where_it_adds_nothing(services, slices) -> None:
    text = (FIXTURES / "manifests/20-services.yaml").read_text()
    for service, _path in read_manifest(text, "x.yaml").converted.services:
        served = services[service.full_name]
        assert service.session_affinity == served.session_affinity
        assert [(p.name, p.protocol, p.port, p.target_port) for p in service.ports] == [
            (p.name, p.protocol, p.port, p.target_port) for p in served.ports
        ]
        if service.cluster_ips:
            assert service.cluster_ips == served.cluster_ips
    text = (FIXTURES / "manifests/40-endpointslices.yaml").read_text()
    by_hand = [item for item, _path in read_manifest(text, "x.yaml").converted.slices]
    assert len(by_hand) == 14
    assert all(slices[item.name] == item for item in by_hand)


def test_other_kinds_are_noted_with_their_line() -> None:
    text = (FIXTURES / "manifests/00-namespaces.yaml").read_text()
    manifest = read_manifest(text, "ns.yaml")
    assert manifest.converted.problems == []
    assert notes(manifest) == [
        "ns.yaml:1: Namespace shop: skipped: only Services, EndpointSlices, Nodes and ServiceCIDRs are read",
        "ns.yaml:5: Namespace edge: skipped: only Services, EndpointSlices, Nodes and ServiceCIDRs are read",
    ]


def test_another_groups_service_is_another_kind() -> None:
    manifest = read_manifest(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n", "k.yaml"
    )
    assert manifest.converted.services == []
    assert notes(manifest) == ["k.yaml:1: Service x: skipped: only Services, EndpointSlices, Nodes and ServiceCIDRs are read"]


SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports:
  - name: http
    port: 80
"""


def test_a_service_that_is_right() -> None:
    assert messages(SERVICE) == []


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("port: 80", "port: 70000", "8: Service shop/web: spec.ports[0].port: 70000 is not a port; a port is 1 to 65535"),
        ("port: 80", "port: 0", "8: Service shop/web: spec.ports[0].port: 0 is not a port; a port is 1 to 65535"),
        ("port: 80", "port: '80'", "8: Service shop/web: spec.ports[0].port: '80' is not a port; a port is 1 to 65535"),
        ("port: 80", "port: true", "8: Service shop/web: spec.ports[0].port: true is not a port; a port is 1 to 65535"),
        ("port: 80", "protocol: TCP", "7: Service shop/web: spec.ports[0].port: the port is missing; a port is 1 to 65535"),
        ("port: 80", "port: 80\n    protocol: tcp", "9: Service shop/web: spec.ports[0].protocol: 'tcp' is not known; it is one of TCP, UDP, SCTP"),
        ("10.96.0.1", "10.96.0", "5: Service shop/web: spec.clusterIP: '10.96.0' is not an IP address"),
        ("10.96.0.1", "12", "5: Service shop/web: spec.clusterIP: 12 is not a string; put it in quotes"),
        ("name: http", "name: yes\n    port: 79\n  - protocol: UDP", "9: Service shop/web: spec.ports[1].name: a port without a name; with several ports each one has a name"),
        ("name: web, ", "", "3: Service shop/?: metadata.name: the object has no name"),
        ("spec:", "spec:\n  type: Nodeport", "5: Service shop/web: spec.type: 'Nodeport' is not known; it is one of ClusterIP, NodePort, LoadBalancer, ExternalName"),
        ("spec:", "spec:\n  publishNotReadyAddresses: yes", "5: Service shop/web: spec.publishNotReadyAddresses: 'yes' is not a boolean; it is true or false"),
        ("spec:", "spec:\n  externalIPs: 1.2.3.4", "5: Service shop/web: spec.externalIPs: '1.2.3.4' is not a list"),
        ("spec:", "spec:\n  loadBalancerSourceRanges:\n  - 10.0.0.0/8\n  - 10.0.0.1/8", "7: Service shop/web: spec.loadBalancerSourceRanges[1]: '10.0.0.1/8' has bits set beyond its length; the prefix is 10.0.0.0/8"),
        ("spec:", "spec:\n  clusterIPs: [10.96.0.2]", "5: Service shop/web: spec.clusterIPs: begins with 10.96.0.2; the first one is clusterIP, 10.96.0.1"),
        ("spec:", "spec:\n  clusterIPs: [10.96.0.1, 10.96.0.2]", "5: Service shop/web: spec.clusterIPs: two addresses of one family; at most one IPv4 and one IPv6 address"),
        ("spec:", "spec:\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}", "5: Service shop/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not a timeout in seconds; a timeout in seconds is 1 to 86400"),
        ("kind: Service\n", "", "1: an object without kind; say kind: Service or EndpointSlice"),
        ("kind: Service", "kind: Service\nkind: Pod", "3: 'kind' is given twice; a key may stand once in an object"),
        ("clusterIP: ", "clusterIP: [", "6: not YAML: while parsing a flow sequence, did not find expected ',' or ']'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_service(wrong, right, message) -> None:
    assert messages(SERVICE.replace(wrong, right, 1)) == [f"svc.yaml:{message}"]


def test_all_problems_of_all_documents_at_once() -> None:
    bad_slice = """\
---
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 99999}]
endpoints:
- addresses: [10.0.0.1]
- addresses: ['2001::1']
- conditions: {ready: 1}
"""
    text = SERVICE.replace("port: 80", "port: 80000\n    nodePort: -1").replace("10.96.0.1", "x") + bad_slice
    assert messages(text) == [
        "svc.yaml:5: Service shop/web: spec.clusterIP: 'x' is not an IP address",
        "svc.yaml:8: Service shop/web: spec.ports[0].port: 80000 is not a port; a port is 1 to 65535",
        "svc.yaml:9: Service shop/web: spec.ports[0].nodePort: -1 is not a port; a port is 0 to 65535",
        "svc.yaml:14: EndpointSlice shop/web-1: ports[0].port: 99999 is not a port; a port is 1 to 65535",
        "svc.yaml:17: EndpointSlice shop/web-1: endpoints[1].addresses[0]: 2001::1 is IPv6; addressType is IPv4",
        "svc.yaml:18: EndpointSlice shop/web-1: endpoints[2].addresses: an endpoint without address",
        "svc.yaml:18: EndpointSlice shop/web-1: endpoints[2].conditions.ready: 1 is not a boolean; it is true or false",
    ]


def test_lists_and_json_have_paths_and_lines() -> None:
    wrong = {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"ports": [{"port": -1}]}}
    text = json.dumps({"kind": "ServiceList", "items": [json.loads(json.dumps(wrong)), wrong]}, indent=1)
    expected = [
        f"x.json:{number}: Service shop/web: spec.ports[0].port: -1 is not a port; a port is 1 to 65535"
        for number, line in enumerate(text.splitlines(), start=1)
        if '"port": -1' in line
    ]
    assert len(expected) == 2
    assert messages(text, "x.json") == expected
    assert (
        messages(
            text.replace("ServiceList", "List").replace('"metadata"', '"kind": "Service", "metadata"'),
            "x.json",
        )
        == expected
    )


@pytest.mark.parametrize(
    ("text", "file", "message"),
    [
        ("[1, 2]", "x.yaml", "x.yaml:1: this is not a Kubernetes object; an object has a kind"),
        ("kind: List\nitems: 3", "x.yaml", "x.yaml:2: List: items: this is not a list"),
        ("kind: List\nitems: &a [{kind: List, items: *a}]", "x.yaml", "x.yaml:2: List: items: lists in lists in lists"),
        ("{", "x.json", "x.json:1: not JSON: Expecting property name enclosed in double quotes"),
        ('{"kind": "Pod",\n "kind": "Pod"}', "x.json", "x.json:2: 'kind' is given twice; a key may stand once in an object"),
        ("a: !!python/object:os.system x", "x.yaml", "x.yaml:1: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("kind: EndpointSlice\nmetadata: {name: a}\naddressType: ipv4", "x.yaml", "x.yaml:3: EndpointSlice default/a: addressType: 'ipv4' is not known; it is one of IPv4, IPv6, FQDN"),
    ],
)  # fmt: skip
def test_what_is_no_manifest(text, file, message) -> None:
    assert messages(text, file) == [message]


def test_yaml_is_yaml_1_2() -> None:
    text = (
        SERVICE.replace("name: http", "name: on").replace("port: 80", "port: 080").replace("web", "12:30:45")
    )
    manifest = read_manifest(text + "# end\n---\n", "x.yaml")  # an empty last document is none
    assert manifest.place(manifest.converted.problems) == []
    [(service, _path)] = manifest.converted.services
    assert (service.name, service.ports[0].name, service.ports[0].port) == ("12:30:45", "on", 80)


def test_merge_keys_override_and_are_no_duplicates() -> None:
    text = """\
kind: List
common:
  deep: {c: &c {<<: &b {<<: &a {port: 80, protocol: UDP}, port: 81}, port: 82}}
items:
- kind: Service
  metadata: {name: web}
  spec: {clusterIP: 10.0.0.1, ports: [{<<: *b}]}
"""
    manifest = read_manifest(text, "x.yaml")
    [(service, _path)] = manifest.converted.services
    assert service.ports == (ServicePort("", Protocol.UDP, 81, 81),)


def test_a_service_port_repeated() -> None:
    text = SERVICE + "  - name: http\n    port: 80\n"
    assert messages(text) == [
        "svc.yaml:9: Service shop/web: spec.ports[1].name: 'http' is the name of another port too; names are unique",
        "svc.yaml:10: Service shop/web: spec.ports[1].port: TCP 80 is given twice",
    ]


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 70000), st.floats(), st.sampled_from(["", "None", "TCP", "10.0.0.1", "x"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["name", "ip", "0"]), inner)),
    max_leaves=6,
)  # fmt: skip
RIGHT = {
    "Service": json.loads((FIXTURES / "lists/services.json").read_text())["items"],
    "EndpointSlice": json.loads((FIXTURES / "lists/endpointslices.json").read_text())["items"],
}


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        path,
        *(
            deeper
            for key, inner in pairs
            if key != "managedFields"
            for deeper in paths_of(inner, (*path, key))
        ),
    ]


@given(st.data(), st.sampled_from(["Service", "EndpointSlice"]))
def test_an_object_with_junk_in_any_place_is_converted_or_refused(data, kind) -> None:
    document = {"kind": kind, **copy.deepcopy(data.draw(st.sampled_from(RIGHT[kind])))}
    path = data.draw(st.sampled_from(paths_of(document)[1:]))
    parent: Any = document
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = data.draw(JUNK)
    converted = convert_document(document)
    found = len(converted.services) + len(converted.slices) + len(converted.problems) + len(converted.notes)
    assert found
    for service, _path in converted.services:
        hash(service)  # no list, no dict has slipped in
    for finding in converted.problems:
        assert finding.message


@given(
    st.one_of(
        st.text(),
        st.binary().map(lambda data: data.decode(errors="replace")),
        st.text("{}[]:-,&*!|>'\"#%@` \nab", max_size=30),
    )
)
def test_any_text_is_a_manifest_or_a_problem(text) -> None:
    for file in ("x.yaml", "x.json"):
        assert all(line.startswith(file) for line in messages(text, file))


def test_a_plain_endpoint_and_the_same_read_field_by_field() -> None:
    """Endpoints of controllers are read by a short cut: it must not be another way of reading."""
    plain = {
        "addresses": ["10.0.0.1"],
        "conditions": {"ready": False, "serving": None, "terminating": True},
        "nodeName": "a",
        "zone": None,
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0"},
    }

    def read(*endpoints: object) -> EndpointSlice:
        document = {
            "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": list(endpoints),
        }
        converted = convert_document(document)
        assert not converted.problems
        return converted.slices[0][0]

    odd = {"addresses": ["10.0.0.2", "10.0.0.3"]}  # two addresses: the whole slice is read field by field
    for state in itertools.product([True, False, None], repeat=3):
        plain["conditions"] = dict(zip(("ready", "serving", "terminating"), state, strict=True))
        assert read(plain).endpoints[0] == read(plain, odd).endpoints[0]
    for missing in ("conditions", "nodeName", "zone", "targetRef"):
        shorter = {key: value for key, value in plain.items() if key != missing}
        assert read(shorter).endpoints[0] == read(shorter, odd).endpoints[0]


@given(st.text(alphabet="0123456789abf.:x \0é", max_size=20))
def test_addresses_are_what_ipaddress_says(text) -> None:
    try:
        expected = ip_address(text)
    except ValueError:
        with pytest.raises(ValueError, match="is not an IP address"):
            parse_address(text)
    else:
        assert parse_address(text) == expected
