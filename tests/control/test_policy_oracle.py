"""The same objects, to us and to the real kube-proxy (1.36.3, nftables): the same addresses, the same endpoints.

kube-proxy ran as node-a1.  Where topology or a local traffic policy narrows its choice, ours is still wider; those
services are named here, and must then be a superset.  Addresses with externalTrafficPolicy: Local are compared with
the endpoints of the policy Cluster.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kuproxy.control.policy import vips_of
from kuproxy.kube.convert import convert_document
from kuproxy.model.vip import Vip

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"
NARROWED = {
    "shop/hinted", "shop/itp-local", "shop/itp-local-none-here", "shop/near-close", "shop/near-node", "shop/near-zone",
}  # fmt: skip


@pytest.fixture(scope="module")
def vips() -> list[Vip]:
    converted = None
    for name in ("services", "endpointslices"):
        converted = convert_document(json.loads((FIXTURES / f"lists/{name}.json").read_text()), converted)
    assert converted is not None
    return vips_of([s for s, _ in converted.services], [s for s, _ in converted.slices])


@pytest.fixture(scope="module")
def tables() -> list[str]:
    text = (FIXTURES / "kube-proxy/kube-proxy-nftables.txt").read_text()
    return re.split(r"^table ", text, flags=re.MULTILINE)[1:]


def elements(table: str, name: str, pattern: str) -> list[tuple[str, ...]]:
    body = re.search(rf"\tmap {name} \{{\n(.*?)\n\t\}}", table, re.DOTALL)
    return re.findall(pattern, body[1]) if body else []


def test_the_same_addresses(vips, tables) -> None:
    address = r"([0-9a-f.:]+) \. (tcp|udp|sctp) \. (\d+) "
    theirs = {
        element
        for table in tables
        for name in ("service-ips", "no-endpoint-services")
        for element in elements(table, name, address)
    }
    ours = {
        (str(vip.key.prefix.network_address), vip.key.protocol.name.lower(), str(vip.key.port))
        for vip in vips
    }
    assert len(theirs) == 75
    assert ours == theirs


def test_the_same_node_ports(vips, tables) -> None:
    for family, table in zip((4, 6), tables, strict=True):
        theirs = {
            element
            for name in ("service-nodeports", "no-endpoint-nodeports")
            for element in elements(table, name, r"(tcp|udp|sctp) \. (\d+) (?:comment|:)")
        }
        ours = {
            (vip.key.protocol.name.lower(), str(vip.node_port))
            for vip in vips
            if vip.node_port and vip.key.family == family
        }
        assert theirs
        assert ours == theirs


def test_the_same_endpoints(vips, tables) -> None:
    theirs: dict[tuple[int, str], set[tuple[str, str]]] = {}
    for family, table in zip((4, 6), tables, strict=True):
        for policy, owner, body in re.findall(
            r"\tchain (service|local)-\w{8}-(\S+) \{\n(.*?)\n\t\}", table, re.DOTALL
        ):
            # `10.244.1.10 . 8080` in a map, `__10.244.1.10/8080` in the name of an endpoint's chain
            pairs = re.findall(r"([0-9a-f.:]+) \. (\d+)|__([0-9a-f.:]+)/(\d+)", body)
            endpoints = {(a or c, b or d) for a, b, c, d in pairs}
            if policy == "service" or (family, owner) not in theirs:  # a service may have both
                theirs[family, owner] = endpoints
    compared = 0
    for vip in vips:
        service, _, port = vip.owner.partition(":")
        ours = {(str(pod.address), str(vip.pod_port(pod))) for pod in vip.pods}
        expected = theirs.get(
            (int(vip.key.family), f"{service}/{vip.key.protocol.name.lower()}/{port}"), set()
        )
        if service in NARROWED:
            assert ours > expected
        else:
            assert ours == expected, vip.owner
            compared += 1
    assert compared > 60
