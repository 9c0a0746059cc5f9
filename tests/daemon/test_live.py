"""Rates, rings and the graph over the API: what they say is what the packets and the changes were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import packets
from daemon.rig import controller, served
from daemon.test_api import raw, refused, send
from kuproxy.client import Client
from kuproxy.daemon import sampler
from kuproxy.daemon.control import Controller

WEB, DNS = "90.0.0.1/32 protocol tcp port 80", "91.0.0.1/32 protocol udp port 53"
SCRIPT = f"""\
ku vip {WEB} new_len 64
ku pod 90.0.0.1/32 10.0.0.1 10.0.0.2
ku vip {DNS}
ku pod 91.0.0.1/32 10.0.0.3 weight 7
ku vip 92.0.0.1/32
"""
WEB_QUERY = "prefix=90.0.0.1/32&protocol=tcp&port=80"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Controller:
    made = controller()
    made.run(SCRIPT)
    clock = Clock()
    made.sampler = sampler.Sampler(made.plane, clock)
    made.clock = clock  # type: ignore[attr-defined]
    return made


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client(made: Controller) -> Iterator[Client]:
    with served(made) as client:
        yield client


def traffic(made: Controller, web: int, dns: int, lost: int = 0) -> None:
    frames = [packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1000 + number, 80)) for number in range(web)]
    frames += [packets.frame(packets.udp("40.0.0.2", "91.0.0.1", 1000 + number, 53)) for number in range(dns)]
    frames += [packets.frame(packets.udp("40.0.0.2", "92.0.0.1", 7, 7))] * lost
    send(made, *frames)


def second(made: Controller, client: Client, web: int, dns: int, lost: int = 0) -> None:
    """Two seconds of traffic between two samples."""
    client.request("GET", "/v1/overview")
    traffic(made, web, dns, lost)
    made.clock.now += 2.0  # type: ignore[attr-defined]


def names(page: dict[str, Any]) -> list[str]:
    return [row["vip"] for row in page["vips"]]


def test_rates_are_those_of_the_packets(client: Client, made: Controller) -> None:
    second(made, client, web=40, dns=10, lost=6)
    page = client.request("GET", "/v1/rates")
    assert page["interval_s"] == 2.0
    assert names(page)[:2] == [WEB, DNS]
    web, dns = (row["rates"] for row in page["vips"][:2])
    assert web["to_pod_packets"] == 20 and web["new_flows"] == 20
    assert web["to_pod_bits"] == 20 * 8 * 40, "IP and TCP headers"
    assert dns["to_pod_packets"] == 5
    assert [row["flows"] for row in page["vips"]] == [40, 10, 0]
    pods = client.request("GET", f"/v1/rates/pods?{WEB_QUERY}")["pods"]
    assert sum(pod["rates"]["new_flows"] for pod in pods) == 20
    assert [(pod["address"], pod["port"], pod["slots"]) for pod in pods] == [
        ("10.0.0.1", 80, 32),
        ("10.0.0.2", 80, 32),
    ]
    overview = client.request("GET", "/v1/overview")
    assert overview["received_per_s"] == 28
    assert overview["outcomes_per_s"] == {"transmit": 25, "pass": 0, "drop": 3, "held": 0}
    [drop] = overview["drops"]
    assert (drop["node"], drop["reason"], drop["count"], drop["per_s"]) == ("kp-balance", "NO_POD", 6, 3)
    [worker] = overview["workers"]
    assert (worker["flows"], worker["received_per_s"], worker["vector_size"]) == (50, 28, 56)
    assert worker["idle_share"] is None, "this engine has no loop that could be idle"


def test_services_are_sorted_found_and_paged(client: Client, made: Controller) -> None:
    second(made, client, web=1, dns=30)
    assert names(client.request("GET", "/v1/rates"))[0] == DNS
    assert names(client.request("GET", "/v1/rates?by=pods"))[0] == WEB
    assert names(client.request("GET", "/v1/rates?by=flows"))[0] == DNS
    assert names(client.request("GET", "/v1/rates?by=name")) == [WEB, DNS, "92.0.0.1/32"]
    assert names(client.request("GET", "/v1/rates?find=UDP")) == [DNS]
    seen, skip = [], 0
    while skip is not None:
        page = client.request("GET", f"/v1/rates?limit=1&skip={skip}")
        assert page["total"] == 3
        seen += names(page)
        skip = page["next"]
    assert sorted(seen) == sorted(names(client.request("GET", "/v1/rates")))
    assert "by" in refused(client, "GET", "/v1/rates?by=colour")


def test_without_a_former_sample_there_are_no_rates(client: Client, made: Controller) -> None:
    traffic(made, 3, 3)
    page = client.request("GET", "/v1/rates")
    assert page["interval_s"] is None
    assert {row["rates"] for row in page["vips"]} == {None}
    assert client.request("GET", "/v1/graph")["edges"][0]["per_s"] is None


def test_the_ring_tells_what_the_last_change_moved(client: Client, made: Controller) -> None:
    ring = client.request("GET", f"/v1/ring?{WEB_QUERY}")
    assert (ring["slots"], ring["moved"], ring["before"]) == (64, None, None)
    former = ring["owners"]
    made.run("ku pod 90.0.0.1/32 10.0.0.3")
    ring = client.request("GET", f"/v1/ring?{WEB_QUERY}")
    addresses = [share["address"] for share in ring["shares"]]
    assert addresses == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert ring["before"] == former, "the first two pods have the same positions"
    moved = [slot for slot in range(64) if ring["owners"][slot] != former[slot]]
    assert ring["moved"] == len(moved) > 0
    new = ring["shares"][2]
    assert (new["slots"], new["slots_before"], new["lost"]) == (ring["owners"].count(2), 0, 0)
    assert sum(share["gained"] for share in ring["shares"]) == len(moved)
    part = client.request("GET", f"/v1/ring?{WEB_QUERY}&first=10&limit=5")
    assert part["owners"] == ring["owners"][10:15]
    assert part["shares"] == ring["shares"]
    made.run("ku pod 91.0.0.1/32 10.0.0.9")
    assert client.request("GET", f"/v1/ring?{WEB_QUERY}") == ring, "another VIP's change"
    assert "prefix: no VIP 99.0.0.1/32" in refused(client, "GET", "/v1/ring?prefix=99.0.0.1/32")


def test_a_ring_of_the_largest_size_is_answered_and_drawn_in_part(client: Client, made: Controller) -> None:
    made.run("ku vip 95.0.0.1/32 new_len 262144\nku pod 95.0.0.1/32 10.0.0.1 10.0.0.2")
    made.run("ku pod 95.0.0.1/32 10.0.0.3")
    ring = client.request("GET", "/v1/ring?prefix=95.0.0.1/32")
    assert (len(ring["owners"]), ring["slots"]) == (65536, 262144)
    svg = picture(client, "/v1/ring.svg?prefix=95.0.0.1/32")
    assert f"262144 slots, {ring['moved']} moved" in svg and "one in 16 is drawn" in svg
    assert len(svg) < 1_000_000


def picture(client: Client, target: str) -> str:
    head, _, body = raw(
        client, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    ).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), body
    assert "content-type: image/svg+xml" in head
    assert "content-security-policy: default-src 'none'" in head
    return body


def test_the_graph_tells_the_way_of_the_packets(client: Client, made: Controller) -> None:
    second(made, client, web=40, dns=10, lost=6)
    graph = client.request("GET", "/v1/graph")
    nodes = {node["node"]: node for node in graph["nodes"]}
    assert (nodes["kp-input"]["packets"], nodes["kp-balance"]["per_s"]) == (56, 28)
    drops = [each for each in nodes["kp-balance"]["counters"] if each["outcome"] == "drop"]
    assert [(each["reason"], each["count"], each["per_s"]) for each in drops] == [("NO_POD", 6, 3)]
    edges = {(edge["source"], edge["target"]): edge for edge in graph["edges"]}
    assert edges["kp-balance", "kp4-nat4"]["packets"] == 50
    assert edges["kp-balance", "kp4-nat4"]["per_s"] == 25
    assert edges["kp-input", "kp-fragment"]["packets"] == 0
    svg = picture(client, "/v1/graph.svg")
    assert "kp-balance to kp4-nat4: 50 packets" in svg and "✕ 3/s" in svg


def test_ten_thousand_services_are_answered_a_page_at_a_time(client: Client, made: Controller) -> None:
    lines = [f"ku vip 10.{n // 250}.{n % 250}.1/32 protocol tcp port 80 new_len 16" for n in range(10_000)]
    made.run("\n".join(lines))
    send(made, packets.frame(packets.tcp("40.0.0.1", "10.7.7.1", 1, 80)))
    second(made, client, 3, 1)
    page = client.request("GET", "/v1/rates?limit=20")
    assert (page["total"], len(page["vips"]), page["next"]) == (10_003, 20, 20)
    assert names(page)[:2] == [WEB, DNS]
    found = client.request("GET", "/v1/rates?find=10.7.7.")
    assert names(found) == ["10.7.7.1/32 protocol tcp port 80"]


def test_show_flows_says_what_the_api_says(client: Client, made: Controller) -> None:
    traffic(made, 30, 4)
    answer = client.run("show ku flows")
    assert len(answer["shows"][0]["flows"]) == 34
    lines = answer["output"].splitlines()
    assert lines[0].split() == ["Proto", "Client", "Destination", "Pod", "State", "Age", "Expires", "Tier"]
    assert len(lines) == 35
    answer = client.run("ku show flows client 40.0.0.2 vip 91.0.0.1/32 state udp limit 3")
    assert answer["output"].splitlines()[-1].startswith("more: after 0:")
    [shown] = answer["shows"]
    assert len(shown["flows"]) == 3
    rest = client.run(f"sh fl cl 40.0.0.2 after {shown['next']}")["shows"][0]
    assert len(rest["flows"]) == 1 and rest["next"] is None
    ports = {flow["client_port"] for flow in shown["flows"] + rest["flows"]}
    assert ports == {1000, 1001, 1002, 1003}
    [flow] = client.request("GET", "/v1/flows?client=40.0.0.2&limit=1")["flows"]
    assert shown["flows"][0] == flow | {"protocol": "udp"}
    assert client.run("show flows pod 10.0.0.77")["output"] == ""
    for line, said in (
        ("show flows state open", "'open' is not known here; possible: icmp, other"),
        ("show flows limit 0", "limit: 0 is no length of a page"),
        ("show flows after 7", "after: '7' is no place in the flow tables"),
        ("show flows vip nonsense", "vip: 'nonsense' is not an IP address"),
    ):
        assert said in refused(client, "POST", "/v1/ku", {"lines": line})
