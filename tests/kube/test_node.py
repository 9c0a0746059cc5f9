"""The Node object and ServiceCIDRs, as the API server sends them and with what may be wrong in them."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.kube.node import convert_node, convert_service_cidr
from kuproxy.kube.reader import Finding
from kuproxy.model.node import NodeInfo

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"


def listed(name: str) -> dict[str, dict[str, Any]]:
    items = json.loads((FIXTURES / f"lists/{name}.json").read_text())["items"]
    return {item["metadata"]["name"]: item for item in items}


def faults(document: dict[str, Any]) -> list[str]:
    found: list[Finding] = []
    convert = convert_service_cidr if document.get("kind") == "ServiceCIDR" else convert_node
    assert convert(document, found) is None
    return [f"{finding.field}: {finding.message}" for finding in found]


def test_nodes_of_the_fixtures() -> None:
    problems: list[Finding] = []
    nodes = {name: convert_node(item, problems) for name, item in listed("nodes").items()}
    assert not problems
    assert nodes["node-a1"] == NodeInfo(
        "node-a1",
        "zone-a",
        (ip_address("172.30.0.11"), ip_address("fd00:172:30::11"), ip_address("198.51.100.11")),
        (ip_network("10.244.1.0/24"), ip_network("fd00:244:0:1::/64")),
    )
    assert nodes["node-nozone"] is not None
    assert nodes["node-nozone"].zone == ""
    assert {name for name, node in nodes.items() if node is not None and node.being_deleted} == {
        "node-leaving"
    }


def test_a_node_that_is_being_deleted() -> None:
    assert convert_node(
        {"metadata": {"name": "a", "deletionTimestamp": "2026-11-22T04:55:34Z"}}, []
    ) == NodeInfo("a", being_deleted=True)


def test_a_single_pod_cidr() -> None:
    node = convert_node({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.1.0.0/24"}}, [])
    assert node == NodeInfo("a", pod_cidrs=(ip_network("10.1.0.0/24"),))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "Node ?: metadata.name: the object has no name"),
        (
            {"metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.1.0.7/24"]}},
            "Node a: spec.podCIDRs[0]: '10.1.0.7/24' has bits set beyond its length",
        ),
        (
            {"metadata": {"name": "a"}, "status": {"addresses": [{"type": "InternalIP", "address": "x"}]}},
            "Node a: status.addresses[0].address: 'x' is not an IP address",
        ),
        (
            {"kind": "ServiceCIDR", "metadata": {"name": "b"}, "spec": {"cidrs": ["10.96.0.0/33"]}},
            "ServiceCIDR b: spec.cidrs[0]: '10.96.0.0/33' is not a prefix",
        ),
    ],
)
def test_faults_name_their_place(document, expected) -> None:
    assert faults(document) == [expected]


def test_service_ranges_of_the_fixtures() -> None:
    problems: list[Finding] = []
    ranges = {name: convert_service_cidr(item, problems) for name, item in listed("servicecidrs").items()}
    assert not problems
    assert ranges["extra-dual"] == (ip_network("10.98.0.0/20"), ip_network("fd00:10:98::/112"))
    assert len(ranges) == 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "name", "spec", "podCIDRs", "podCIDR", "taints", "status", "addresses", "cidrs"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["metadata", "spec", "status"]), JSON))
def test_whatever_stands_there_nothing_raises(document) -> None:
    problems: list[Finding] = []
    assert (convert_node(document, problems) is None) == bool(problems)
    convert_service_cidr(document, problems)
