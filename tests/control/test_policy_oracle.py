"""The same objects, to us and to the real kube-proxy (1.36.3, nftables, node-a1): the same fate of every packet.

Each address, port and node port that either side knows, and some that none does, is asked about from a pod, from the
node, from outside, and from within the source ranges that a service has.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from control.decide import Decisions
from control.nft import Ruleset, Verdict
from kuproxy.codes import Family, Protocol
from kuproxy.control.policy import (
    health_answer,
    local_ready,
    node_port_addresses,
    origin_of,
    pod_traffic,
    vips_of,
)
from kuproxy.kube.convert import Converted, convert_document
from kuproxy.kube.node import convert_node, convert_service_cidr
from kuproxy.model.node import NodeView, ProxySettings
from kuproxy.model.vip import Address, Vip

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"
PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP}
SOURCES = {
    Family.IPV4: ["10.244.5.99", "10.244.1.80", "172.30.0.11", "40.0.0.1", "198.51.100.7", "172.30.0.12"],
    Family.IPV6: ["fd00:244:0:5::99", "fd00:172:30::11", "4000::1", "2001:db8:1::7"],
}
NODE_ADDRESSES = {ip_address("172.30.0.11"), ip_address("fd00:172:30::11"), ip_address("172.31.0.1")}


def listed(name: str) -> list[dict]:
    return json.loads((FIXTURES / f"lists/{name}.json").read_text())["items"]


@pytest.fixture(scope="module")
def view() -> NodeView:
    problems: list = []
    [node] = [
        each for item in listed("nodes") if (each := convert_node(item, problems)) and each.name == "node-a1"
    ]
    ranges = [convert_service_cidr(item, problems) or () for item in listed("servicecidrs")]
    assert not problems
    return NodeView(
        node,
        ProxySettings(
            cluster_cidrs=(ip_network("10.244.0.0/16"), ip_network("fd00:244::/48")),
            service_cidrs=tuple(prefix for each in ranges for prefix in each),
        ),
    )


@pytest.fixture(scope="module")
def objects() -> Converted:
    converted = Converted()
    for name in ("services", "endpointslices"):
        convert_document(json.loads((FIXTURES / f"lists/{name}.json").read_text()), converted)
    assert not converted.problems
    return converted


@pytest.fixture(scope="module")
def vips(objects, view) -> list[Vip]:
    return vips_of([s for s, _ in objects.services], [s for s, _ in objects.slices], view)


@pytest.fixture(scope="module")
def rulesets() -> dict[Family, Ruleset]:
    text = (FIXTURES / "kube-proxy/kube-proxy-nftables.txt").read_text()
    tables = re.split(r"^table ", text, flags=re.MULTILINE)[1:]
    return dict(zip((Family.IPV4, Family.IPV6), map(Ruleset, tables), strict=True))


def probes(ruleset: Ruleset, vips: list[Vip], family: Family) -> set[tuple[Address, str, int]]:
    found = set()
    for name in ("service-ips", "no-endpoint-services"):
        for key in ruleset.maps[name]:
            address, protocol, port = key.split(" . ")
            found.add((ip_address(address), protocol, int(port)))
    found |= {
        (vip.key.prefix.network_address, vip.key.protocol.name.lower(), vip.key.port)
        for vip in vips
        if vip.key.family == family and vip.key.port and not vip.on_node_only
    }
    other = {(address, "udp" if protocol == "tcp" else "tcp", port) for address, protocol, port in found}
    other |= {(address, protocol, port + 1) for address, protocol, port in found}
    nowhere = ["10.96.77.77", "10.99.0.9", "10.99.0.16"] if family == 4 else ["fd00:10:97::77"]
    found |= other | {(ip_address(address), "tcp", 80) for address in nowhere}
    ports = {key for name in ("service-nodeports", "no-endpoint-nodeports") for key in ruleset.maps[name]}
    ports |= {f"{vip.key.protocol.name.lower()} . {vip.node_port}" for vip in vips if vip.node_port}
    for key in ports:
        protocol, number = key.split(" . ")
        for address in NODE_ADDRESSES:
            if address.version == family:
                found |= {(address, protocol, int(number)), (address, protocol, 31999)}
    return found


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
def test_the_same_fate(family, vips, rulesets, view) -> None:
    decisions = Decisions(vips, node_port_addresses(view, NODE_ADDRESSES))
    pods = pod_traffic(view, family)
    seen: dict[str, int] = {}
    for target, protocol, port in sorted(probes(rulesets[family], vips, family), key=str):
        for text in SOURCES[family]:
            source = ip_address(text)
            theirs = rulesets[family].ask(source, source in NODE_ADDRESSES, target, protocol, port)
            origin = origin_of(source, pods, frozenset(NODE_ADDRESSES))
            ours = decisions.ask(source, origin, target, PROTOCOLS[protocol], port)
            assert ours == theirs, (text, str(target), protocol, port)
            seen[theirs.what] = seen.get(theirs.what, 0) + 1
            seen["masquerade"] = seen.get("masquerade", 0) + theirs.masquerade
    assert min(seen[what] for what in ("pods", "pass", "drop", "reject", "masquerade")) >= 5


def test_the_oracle_tells_origins_apart(rulesets) -> None:
    """That the comparison is one at all: externalTrafficPolicy Local, to three clients."""
    asked = [
        rulesets[Family.IPV4].ask(ip_address(source), local, ip_address("203.0.113.14"), "tcp", 80)
        for source, local in (("10.244.5.99", False), ("172.30.0.11", True), ("40.0.0.1", False))
    ]
    everybody = frozenset({("10.244.1.80", 8080), ("10.244.3.80", 8080), ("10.244.5.80", 8080)})
    assert asked == [
        Verdict("pods", everybody),
        Verdict("pods", everybody, masquerade=True),
        Verdict("pods", frozenset({("10.244.1.80", 8080)})),
    ]


def test_the_affinity_of_every_set(vips) -> None:
    text = (FIXTURES / "kube-proxy/kube-proxy-nftables.txt").read_text()
    unit = {"h": 3600, "m": 60, "s": 1}
    theirs = {
        owner: int(number) * unit[letter]
        for owner, number, letter in re.findall(
            r"set affinity-\w{8}-(\S+?)__\S+ \{.*?timeout (\d+)([hms])\n", text, re.DOTALL
        )
    }
    ours = {}
    for vip in vips:
        if vip.affinity_s:
            service, _, port = vip.owner.partition(":")
            ours[f"{service}/{vip.key.protocol.name.lower()}/{port}"] = vip.affinity_s
    assert ours == theirs != {}


@pytest.mark.parametrize(("name", "file"), [("edge/lb-local", "with"), ("edge/lb-local-none-here", "no")])
def test_the_same_health_answer(name, file, objects, view) -> None:
    text = (FIXTURES / f"kube-proxy/healthcheck-node-port.{file}-local-endpoints.http").read_text()
    head, _, body = text.partition("\n\n")
    status, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    [service] = [s for s, _ in objects.services if s.full_name == name]
    count = local_ready(service, [s for s, _ in objects.slices], view)
    assert count is not None
    answer = health_answer(service, count, proxy_healthy=True)
    assert status.split()[1] == str(answer.status)
    assert answer.body == body
    assert answer.headers.items() <= headers.items()
