"""Pods known by their interfaces: what the kernel's routes say, and a kube-proxy that is told to go by them."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kuproxy.demo.topology import Host, remove_stale
from kuproxy.steering.pod_routes import PodRoutes, without
from netns.cluster import Cluster, Node, cluster, ip
from netns.world import connect, family_of, listener

pytestmark = pytest.mark.netns

PREFIX = "kuroutes"
_numbers = itertools.count()


@pytest.fixture
def node() -> Iterator[Host]:
    remove_stale(PREFIX)
    host = Host(f"{PREFIX}{next(_numbers)}-{os.getpid()}")
    try:
        yield host
    finally:
        host.close()


def veth(host: Host, name: str, *routes: str) -> None:
    ip(host, f"link add {name} type veth peer name {name}p")
    ip(host, f"link set {name}p up")
    ip(host, f"link set {name} up")
    for each in routes:
        ip(host, f"{'-6 ' if ':' in each else ''}route add {each} dev {name}")


def texts(routes: PodRoutes, *own: str) -> list[str]:
    return [str(each) for each in routes.networks(map(ip_address, own))]


def test_behind_a_bridge_is_its_prefix_without_the_nodes_own_addresses(node: Host) -> None:
    ip(node, "link add cni0 type bridge")
    ip(node, "addr add 10.244.1.1/30 dev cni0")
    ip(node, "addr add fd00:10:244:1::1/64 dev cni0 nodad")
    routes = node.call(PodRoutes, "cni0".__eq__)
    assert texts(routes) == [], "it is down"
    veth(node, "port")
    ip(node, "link set port master cni0")
    ip(node, "link set cni0 up")
    assert node.call(routes.poll) and texts(routes) == ["10.244.1.0/30", "fd00:10:244:1::/64"]
    assert texts(routes, "10.244.1.1", "192.0.2.1") == ["10.244.1.0/32", "10.244.1.2/31", "fd00:10:244:1::/64"]
    ip(node, "route add default via 10.244.1.2")
    assert "0.0.0.0/0" not in texts(routes), "the default route says nothing"
    ip(node, "link set cni0 down")
    assert node.call(routes.poll)
    assert "10.244.1.0/30" not in texts(routes), "the kernel drops such routes without a word"
    routes.close()


def test_interfaces_come_and_go_with_their_pods(node: Host) -> None:
    routes = node.call(PodRoutes, lambda name: name.startswith("cali"))
    assert texts(routes) == [] and not node.call(routes.poll)
    veth(node, "cali1", "10.1.2.4/32", "fd01::4/128")
    veth(node, "other", "10.1.2.6/32")
    assert node.call(routes.poll) and texts(routes) == ["10.1.2.4/32", "fd01::4/128"]
    veth(node, "cali2", "10.1.2.5/32")
    assert node.call(routes.poll) and texts(routes) == ["10.1.2.4/31", "fd01::4/128"], "as few prefixes as can say it"
    assert not node.call(routes.poll)
    ip(node, "route del 10.1.2.5/32 dev cali2")
    assert node.call(routes.poll) and texts(routes) == ["10.1.2.4/32", "fd01::4/128"]
    ip(node, "link set other down")
    ip(node, "link set other name cali3")
    ip(node, "link set cali3 up")
    ip(node, "route add 10.1.2.6/32 dev cali3")
    assert node.call(routes.poll) and "10.1.2.6/32" in texts(routes), "it is called otherwise now"
    ip(node, "link del cali1")
    assert node.call(routes.poll) and texts(routes) == ["10.1.2.6/32"]
    routes.close()


def test_two_routes_may_say_the_same(node: Host) -> None:
    veth(node, "cali1", "10.1.2.4/32")
    ip(node, "route add 10.1.2.4/32 dev cali1 metric 50")
    routes = node.call(PodRoutes, "cali1".__eq__)
    ip(node, "route del 10.1.2.4/32 dev cali1 metric 50")
    assert not node.call(routes.poll) and texts(routes) == ["10.1.2.4/32"]
    routes.close()


def test_events_that_the_kernel_threw_away_are_read_from_the_routes(node: Host) -> None:
    veth(node, "cali1")
    routes = node.call(PodRoutes, "cali1".__eq__)
    # Far more than the buffer holds, nearly all of them somebody else's.
    ip(node, "link set lo up")
    lines = "".join(f"route add 10.{n >> 8 & 255}.{n & 255}.0/24 dev lo\n" for n in range(20_000))
    batch = f"/tmp/{PREFIX}-{os.getpid()}"
    with open(batch, "w") as file:
        file.write(lines + "route add 172.16.0.9/32 dev cali1\n")
    try:
        ip(node, f"-batch {batch}")
    finally:
        os.unlink(batch)
    assert node.call(routes.poll) and texts(routes) == ["172.16.0.9/32"]
    routes.close()


def test_without_takes_single_addresses_out_of_prefixes() -> None:
    def left(networks: list[str], *own: str) -> list[str]:
        return [str(each) for each in without(map(ip_network, networks), map(ip_address, own))]

    assert left(["10.0.0.0/31", "10.0.0.0/32"], "10.0.0.1") == ["10.0.0.0/32"]
    assert left(["10.0.0.1/32"], "10.0.0.1", "10.0.0.2") == []
    whole = ip_network("10.0.0.0/24")
    rest = without([whole], [ip_address("10.0.0.7"), ip_address("10.0.0.200")])
    assert sum(each.num_addresses for each in rest) == 254


# --- a kube-proxy by it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    with cluster(1, 1) as two:
        two.start("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: pod}\n")
        yield two


def seen_by(server: Host, host: Host, address: str, source: str = "") -> str:
    """The client's address as the pod behind this cluster IP sees it."""
    seen: list[str] = []
    with listener(server, 9090, lambda _opened, peer: seen.append(peer)):
        if source:
            opened = host.call(socket.socket, family_of(address))
            with opened:
                opened.settimeout(3)
                opened.bind((source, 0))
                opened.connect((address, 80))
        else:
            connect(host, address, 80).close()
        deadline = time.monotonic() + 3
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
    return seen[0]


def test_pods_behind_the_interfaces_keep_their_address_and_others_do_not(made: Cluster) -> None:
    node, server = made.nodes[0], made.nodes[0].pods[0]
    made.service("by-interface", ["10.96.1.1", "fd00:10:96:1::1"], [server], target=9090)
    made.wait_for(node, lambda: served(node) == 4)
    for where, outside in (("10.96.1.1", node.ipv4), ("fd00:10:96:1::1", node.ipv6)):
        own = made.visitor.ipv6 if ":" in where else made.visitor.ipv4
        assert seen_by(server.host, made.visitor.host, where) == own
        ip(made.client, f"{'-6 ' if ':' in where else ''}route add {where} via {outside}")
        assert seen_by(server.host, made.client, where) == outside, "a client that is no pod is masqueraded"
    assert seen_by(server.host, node.host, "10.96.1.1") == node.ipv4

    # An address that the pod gets later.
    late = "10.99.0.7"
    ip(made.visitor.host, f"addr add {late}/32 dev eth0")
    ip(node.host, f"route add {late}/32 dev pod100")
    made.wait_for(node, lambda: f"{late}/32" in ranges(node.client.request("GET", "/v1/settings")))
    assert seen_by(server.host, made.visitor.host, "10.96.1.1", late) == late
    ip(node.host, f"route del {late}/32 dev pod100")
    made.wait_for(node, lambda: f"{late}/32" not in ranges(node.client.request("GET", "/v1/settings")))


def served(node: Node) -> int:
    """VIPs of the service that have a pod: two ports in two families."""
    vips = node.client.request("GET", "/v1/vips?limit=1000")["vips"]
    return sum(each["owner"].startswith("shop/by-interface:") and len(each["pods"]) == 1 for each in vips)


def ranges(settings: dict[str, Any]) -> str:
    return json.dumps(settings["effective"]["pod_ranges"])


def test_what_people_look_at(made: Cluster) -> None:
    node = made.nodes[0]
    status, _, body = node.curl("127.0.0.1:10249/statusz")
    assert status == 200 and "kube-proxy statusz" in body and "Paths: /configz" in body
    assert "\npod-interface-name-prefix=\n" in node.curl("127.0.0.1:10249/flagz")[2], "that is what was on the line"
    config = json.loads(node.curl("127.0.0.1:10249/configz")[2])["kubeproxy.config.k8s.io"]
    assert config["detectLocal"]["interfaceNamePrefix"] == "pod"
