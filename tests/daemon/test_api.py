"""The API over a real Unix socket, a real controller and a real engine: what a request means, and what it refuses."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import packets
from daemon.rig import as_user, controller, served
from kuproxy.announce.settings import Announce, Layer2
from kuproxy.client import Client, Refusal
from kuproxy.daemon.announcing import Announcing
from kuproxy.daemon.control import Controller
from kuproxy.daemon.metrics import exposition
from kuproxy.daemon.targets import strict_replies
from kuproxy.dataplane.layout import FLOW_HASH_RANDOM
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.flow_key import VPP, FlowKey
from kuproxy.engine.local import LocalEngine
from kuproxy.errors import SteeringError
from kuproxy.model.config import ReplyPath

VIP = {"prefix": "90.0.0.0/8", "port": 3306, "target_port": 3307, "pods": [{"address": "10.0.0.1"}]}


@pytest.fixture
def made() -> Controller:
    return controller()


@pytest.fixture
def client(made: Controller) -> Iterator[Client]:
    with served(made) as client:
        yield client


def refused(client: Client, *words: object) -> str:
    with pytest.raises(Refusal) as caught:
        client.request(*words)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_vip_is_put_read_and_deleted_and_each_is_idempotent(client: Client) -> None:
    assert client.request("PUT", "/v1/vips", VIP)["added"] == 1
    again = client.request("PUT", "/v1/vips", VIP)
    assert (again["added"], again["changed"], again["removed"]) == (0, 0, 0)
    [view] = client.request("GET", "/v1/vips")["vips"]
    assert view["vip"]["target_port"] == 3307
    assert view["pods"][0]["slots"] == 1024
    assert view["sources"] == ["cli"]
    changed = client.request("PUT", "/v1/vips", VIP | {"pods": [{"address": "10.0.0.2"}]})
    assert changed["changed"] == 1
    target = "/v1/vips?prefix=90.0.0.0/8&port=3306"
    assert client.request("DELETE", target)["removed"] == 1
    assert client.request("DELETE", target)["removed"] == 0
    assert client.request("GET", "/v1/vips")["vips"] == []


def test_a_line_means_what_it_means_in_a_script(client: Client) -> None:
    answer = client.run("ku vip 90.0.0.0/8 port 3306 target_port 3307\nku pod 90.0.0.0/8 10.0.0.1\nsh ku v v")
    assert answer["changed"]["added"] == 1
    assert "10.0.0.1 1024 buckets" in answer["output"]
    assert answer["shows"][0]["vips"][0]["target_port"] == 3307
    [view] = client.request("GET", "/v1/vips")["vips"]
    client.request("PUT", "/v1/vips", VIP)
    assert client.request("GET", "/v1/vips")["vips"] == [view], "the same VIP in other words"


def test_lines_are_all_carried_out_or_none(client: Client, made: Controller) -> None:
    with pytest.raises(Refusal, match="no VIP 91"):
        client.run("ku vip 90.0.0.0/8\nku conf timeout 9\nku pod 91.0.0.0/8 10.0.0.1")
    assert len(made.plane.store) == 0
    assert made.settings.timeout_s is None


def test_the_flow_hashs_key_is_taken_and_not_told(client: Client, made: Controller) -> None:
    """Who may read the settings is told that a key was given; `ku conf` again changes nothing, VPP's hash returns."""
    key, states = "00112233445566778899aabbccddeeff", made.plane.engine.states
    client.run("ku conf flow-hash keyed")
    drawn = FlowKey.read(states[0])
    assert drawn.mode == FLOW_HASH_RANDOM
    client.run("ku conf flow-hash keyed timeout 9")
    assert FlowKey.read(states[0]) == drawn
    assert client.request("GET", "/v1/settings")["effective"]["flow_hash"] == "keyed"
    assert "flow hash: keyed\n" in client.run("show ku")["output"]
    client.request("PUT", "/v1/settings", {"flow_hash": key})
    assert FlowKey.read(states[0]) == VPP.meeting(bytes.fromhex(key))
    for target in ("/v1/settings", "/v1/state"):
        answer = json.dumps(client.request("GET", target))
        assert key not in answer and '"given"' in answer, target
    shown = client.run("show ku")
    assert "flow hash: keyed, with a given key\n" in shown["output"] and key not in json.dumps(shown)
    assert "not a flow hash" in refused(client, "PUT", "/v1/settings", {"flow_hash": "given"})
    client.run("ku conf flow-hash vpp")
    assert FlowKey.read(states[0]) == VPP


def test_where_replies_may_come_in_is_a_setting(client: Client, made: Controller) -> None:
    assert client.request("GET", "/v1/settings")["effective"]["reply_path"] == "strict"
    client.run("ku conf reply-path any")
    assert client.request("GET", "/v1/settings")["conf"] == {"reply_path": "any"}
    assert made.settings.reply_path is ReplyPath.ANY
    assert not strict_replies(made.plane.settings)
    client.request("PUT", "/v1/settings", {"reply_path": "strict"})
    assert strict_replies(made.plane.settings)
    assert "reply_path" in refused(client, "PUT", "/v1/settings", {"reply_path": "loose"})


def test_settings_are_laid_over_each_other(client: Client, made: Controller) -> None:
    client.run("ku conf timeout 40 buckets 4096 masquerade 192.0.2.1")
    client.run("ku conf timeout udp 7")
    view = client.request("GET", "/v1/settings")
    assert view["conf"] == {
        "buckets": 4096, "timeout": 40.0, "timeouts": {"udp": 7.0}, "masquerade": ["192.0.2.1"]
    }  # fmt: skip
    assert view["effective"]["timeouts"]["udp"] == 7
    assert view["effective"]["timeouts"]["icmp"] == 40
    assert made.plane.totals().capacity == (4 * 4096,)
    client.request("PUT", "/v1/settings", {})
    assert made.plane.totals().capacity == (4 * 1024,)


def test_interfaces_are_marked_by_every_way(client: Client, made: Controller) -> None:
    client.run("ku set interface nat4 in pods0")
    client.request("PUT", "/v1/interfaces", {"interfaces": [{"name": "pods1", "nat6_in": True}]})
    assert [mark.name for mark in made.forwarder.marks] == ["pods1"]
    assert client.request("GET", "/v1/interfaces")["own"] == [
        {"name": "pods1", "nat4_in": False, "nat6_in": True}
    ]


def test_state_is_dumped_and_loaded(client: Client) -> None:
    client.run("ku vip 2003::/16 protocol tcp port 80 node_port 30080\nku pod 2003::/16 2001::2 weight 7")
    client.run("ku conf timeout 9\nku set interface nat6 in eth0")
    state = client.request("GET", "/v1/state")
    client.request("PUT", "/v1/state", {})
    assert client.request("GET", "/v1/vips")["vips"] == []
    client.request("PUT", "/v1/state", state)
    assert client.request("GET", "/v1/state") == state


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prefix": "90.0.0.0/8", "port": 70000}, "port: Expected `int` <= 65535"),
        ({"prefix": "nowhere"}, "prefix: 'nowhere' is not an IP address"),
        ({"prefix": "90.0.0.0/8", "colour": 1}, "unknown field `colour`"),
        ({}, "missing required field `prefix`"),
        ({"prefix": "90.0.0.0/8", "new_len": 1000}, "new_len: 1000 is not a size"),
        ({"prefix": "90.0.0.0/8", "pods": [{"address": "2001::1"}]}, "pod 2001::1 is IPv6"),
    ],
)
def test_bad_values_are_refused_by_one_line_that_names_the_field(
    client: Client, body: object, said: str
) -> None:
    assert said in refused(client, "PUT", "/v1/vips", body)
    assert client.request("GET", "/v1/vips")["vips"] == []


def test_what_files_hold_is_not_contradicted(tmp_path: Path) -> None:
    script = tmp_path / "a.ku"
    script.write_text("ku vip 90.0.0.0/8 port 80 protocol tcp node_port 30080\n")
    made = controller(tmp_path / "state", (script,))
    with served(made) as client:
        text = refused(client, "PUT", "/v1/vips", {"prefix": "90.0.0.0/8", "port": 80, "protocol": "tcp"})
        assert "it belongs to the source files" in text
        text = refused(client, "PUT", "/v1/vips", {"prefix": "91.0.0.0/8", "port": 80, "node_port": 30080})
        assert "node port 30080 belongs to VIP 90.0.0.0/8" in text
        client.run("ku vip 92.0.0.0/8")
        script.write_text("ku vip 93.0.0.0/8\n")
        changed = client.request("POST", "/v1/reload")
        assert (changed["added"], changed["removed"]) == (1, 1)
        kept = {str(vip.key.prefix) for vip in made.plane.store}
        assert kept == {"92.0.0.0/8", "93.0.0.0/8"}
        script.write_text("ku vip nonsense\n")
        assert "'nonsense' is not an IP address" in refused(client, "POST", "/v1/reload")
        assert {str(vip.key.prefix) for vip in made.plane.store} == kept


def test_everybody_may_read_and_only_some_may_write(made: Controller) -> None:
    with served(made, mode=0o666) as client:
        client.run("ku vip 90.0.0.0/8")

        def ask() -> str:
            shown = client.run("show ku vips")["output"]
            said = []
            for call in (
                lambda: client.run("ku vip 91.0.0.0/8"),
                lambda: client.request("POST", "/v1/flows/flush"),
                lambda: client.request("PUT", "/v1/state", {}),
            ):
                try:
                    call()
                except Refusal as refusal:
                    said.append(str(refusal))
            return json.dumps([shown, said])

        if os.geteuid() != 0:
            pytest.skip("netns: not root, so no other user can be played")
        shown, said = json.loads(as_user(12345, ask))
        assert "90.0.0.0/8" in shown
        assert len(said) == 3
        assert all("user 12345 may read but not change anything: that needs root" in line for line in said)
        assert len(made.plane.store) == 1


def test_a_socket_that_one_may_not_open_says_what_is_missing(made: Controller) -> None:
    if os.geteuid() != 0:
        pytest.skip("netns: not root, so no other user can be played")
    with served(made) as client:
        text = as_user(12345, lambda: refused(client, "GET", "/v1/vips"))
    assert "that needs root, or membership of the socket's group" in text


def test_health_metrics_and_description(client: Client) -> None:
    client.run("ku vip 90.0.0.0/8 port 80\nku pod 90.0.0.0/8 10.0.0.1:8080")
    assert client.request("GET", "/v1/health")["ready"] is True
    described = client.request("GET", "/openapi.json")
    assert "/v1/vips" in described["paths"]
    text = raw(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    families = {each.name: each for each in text_string_to_metric_families(text.partition("\r\n\r\n")[2])}
    [slots] = families["kuproxy_pod_slots"].samples
    assert slots.labels == {"vip": "90.0.0.0/8 port 80", "pod": "10.0.0.1:8080"}
    assert slots.value == 1024
    assert families["kuproxy_worker_idle_seconds"].samples[0].value == 0, "this engine never waits"
    assert families["kuproxy_config_generation"].samples[0].value > 0
    assert raw(client, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").endswith("ready\n")


def test_a_worker_without_a_process_is_told(
    client: Client, made: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made.forwarder, "missing", lambda: [1])
    assert client.request("GET", "/v1/health")["ready"] is False
    answer = raw(client, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith("HTTP/1.1 503") and answer.endswith("\r\n\r\nno process works as worker 1\n")
    assert "kuproxy_ready 0.0" in raw(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def raw(client: Client, data: bytes) -> str:
    """Everything that a connection answers."""
    with socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(10)
        opened.connect(client.path)
        opened.sendall(data)
        answer = b""
        while more := opened.recv(65536):
            answer += more
    return answer.decode()


def send(made: Controller, *frames: bytes) -> None:
    """Through the compiled graph."""
    driver = MemoryDriver()
    driver.inject(frames)
    driver.receive(driver.frame)
    engine = made.forwarder.engine
    assert isinstance(engine, LocalEngine)
    engine.process(driver.frame, 1000)
    driver.transmit(driver.frame)


def test_flows_are_paged_and_filtered(client: Client, made: Controller) -> None:
    client.run("ku vip 90.0.0.0/8 port 80\nku pod 90.0.0.0/8 10.0.0.1 10.0.0.2\nku conf buckets 4096")
    client.run("ku vip 91.0.0.0/8 port 53\nku pod 91.0.0.0/8 10.0.0.3")
    web = [packets.tcp("40.0.0.1", "90.0.0.1", 10000 + number, 80) for number in range(50)]
    dns = [packets.udp(f"40.0.0.{2 + number}", "91.0.0.1", 999, 53) for number in range(30)]
    send(made, *map(packets.frame, web + dns))

    def ask(query: str) -> list[dict[str, Any]]:
        flows, after = [], ""
        while True:
            page = client.request("GET", f"/v1/flows?limit=7&{query}{after}")
            assert len(page["flows"]) <= 7
            flows += page["flows"]
            if page["next"] is None:
                return flows
            after = f"&after={page['next']}"

    everything = ask("")
    assert len(everything) == 80
    assert len({(flow["client"], flow["client_port"]) for flow in everything}) == 80
    assert {flow["state"] for flow in everything} == {"tcp-half-open", "udp"}
    assert len(ask("vip=90.0.0.0/8")) == 50
    assert len(ask("client=40.0.0.1")) == 50
    assert len(ask("client=::40.0.0.1")) == 0
    assert len(ask("state=udp")) == 30
    assert len(ask("state=udp&vip=90.0.0.0/8")) == 0
    by_pod = [len(ask(f"pod=10.0.0.{number}")) for number in (1, 2, 3)]
    assert sum(by_pod) == 80 and by_pod[2] == 30 and min(by_pod) > 0
    [one] = ask("client=40.0.0.7")
    assert (one["destination"], one["destination_port"], one["pod"], one["pod_port"]) == (
        "91.0.0.1", 53, "10.0.0.3", 53
    )  # fmt: skip
    assert one["vip"] == "91.0.0.0/8 port 53"
    assert one["expires_in_s"] == 300
    assert client.request("POST", "/v1/flows/flush")["flows"] == 80
    assert ask("") == []
    assert "state" in refused(client, "GET", "/v1/flows?state=open")
    assert "colour" in refused(client, "GET", "/v1/flows?colour=red")


def test_counters_and_services_add_up(client: Client, made: Controller) -> None:
    client.run("ku vip 90.0.0.0/8 port 80\nku pod 90.0.0.0/8 10.0.0.1\nku trace add 1")
    send(made, *[packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 10000 + n, 80)) for n in range(9)])
    counters = client.request("GET", "/v1/counters")
    assert counters["received"] == sum(counters["outcomes"].values()) == 9
    [first] = [each["count"] for each in counters["nodes"] if each["reason"] == "FIRST_PACKET"]
    assert first == 9
    text = raw(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").partition("\r\n\r\n")[2]
    families = {each.name: each for each in text_string_to_metric_families(text)}
    events = {(each.labels["node"], each.labels["reason"]): each for each in families["kuproxy_node_events"].samples}
    assert events["kp4-nat4", "FORWARDED"].labels["outcome"] == "transmit"
    assert events["kp-balance", "FIRST_PACKET"].labels["outcome"] == "none"
    assert sum(each.value for each in events.values() if each.labels["outcome"] != "none") == 9
    [service] = client.request("GET", "/v1/services")["services"]
    assert (service["name"], service["flows"], service["counters"]["first_packet"]) == ("ku", 9, 9)
    [pod] = client.request("GET", "/v1/pods")["pods"]
    assert pod["pod"]["counters"]["flows"] == 9
    assert len(client.request("GET", "/v1/trace")["packets"]) == 1


def test_what_is_no_http_is_refused_in_the_same_shape(client: Client) -> None:
    answer = raw(client, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith("HTTP/1.1 400")
    assert json.loads(answer.partition("\r\n\r\n")[2]) == {
        "error": "invalid http request received", "problems": []
    }  # fmt: skip


def test_a_failure_of_steering_leaves_everything_as_it_was(
    made: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run("ku vip 90.0.0.0/8")

    def fail(*_: object) -> None:
        raise SteeringError("no room in the map")

    monkeypatch.setattr(made.forwarder, "steer", fail)
    with pytest.raises(SteeringError):
        made.run("ku vip 91.0.0.0/8\nku conf timeout 3 buckets 4096")
    assert [str(vip.key) for vip in made.plane.store] == ["90.0.0.0/8"]
    assert made.plane.settings.timeout_s is None
    assert made.plane.totals().capacity == (4096,)


def test_announcing_by_way_of_the_api(client: Client, made: Controller) -> None:
    beat = {"speaker": "bgp"}
    assert "[announce]" in refused(client, "POST", "/v1/announce", beat)
    assert "[announce]" in refused(client, "PUT", "/v1/announce/drain", {"on": True})
    assert client.request("GET", "/v1/announce")["configured"] is False
    made.announcing = Announcing(Announce(ranges=["90.0.0.0/8"], layer2=Layer2(interface="eth0")))
    client.request("PUT", "/v1/vips", VIP)
    order = client.request("POST", "/v1/announce", beat)
    assert (order["complete"], order["prefixes"]) == (True, ["90.0.0.0/8"])
    again = beat | {"tag": order["tag"], "settled": True, "announced": 1, "problem": "no session with 192.0.2.1"}
    assert client.request("POST", "/v1/announce", again)["prefixes"] is None
    view = client.request("PUT", "/v1/announce/drain", {"on": True})
    assert view["drained"] and view["prefixes"] == ["90.0.0.0/8"]
    [speaker] = view["speakers"]
    assert (speaker["announced"], speaker["settled"]) == (1, True)
    assert client.request("POST", "/v1/announce", again)["prefixes"] == []
    text = exposition(made)[0].decode()
    values = {
        sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert values["kuproxy_announce_servable_prefixes"] == 1
    assert values["kuproxy_announce_drained"] == 1
    assert values["kuproxy_announce_prefixes"] == 1
    assert values["kuproxy_announce_problem"] == 1
    made.ready = False  # until every source has spoken nothing counts
    assert client.request("POST", "/v1/announce", beat)["complete"] is False
