"""Second chances as a user asks for them: the setting, its time on the packets' clock, and what is told about them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

import kuproxy
from daemon.rig import controller, served
from kuproxy.client import Refusal
from kuproxy.codes import Reason
from kuproxy.dataplane.layout import W_NOW
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.memory import last_tick
from kuproxy.errors import TableFullError
from kuproxy.explain.text import render
from kuproxy.load import load_config
from kuproxy.model.config import Config, Settings
from kuproxy.model.report import FlowList
from kuproxy.model.vip import Pod
from kuproxy.plane import Plane
from kuproxy.vppcli.flows import flows_json, show_flows
from packets import ACK, RST, frame, tcp
from reference.worlds import vip

VIP = vip("90.0.0.1", ["10.0.0.1"], protocol="tcp", port=80, target_port=8080, new_len=64)
AFTER = replace(VIP, pods=(Pod(ip_address("10.0.0.2")),))
SEGMENT = frame(tcp("40.0.0.1", "90.0.0.1", 1024, 80, flags=ACK, acknowledgement=7))


def plane_with(seconds: float) -> Plane:
    made = Plane(LocalEngine(4), decrement_ttl=True, any_node_address=False)
    made.apply(Config(vips=(VIP,), settings=Settings(buckets=16, second_chance_s=seconds)))
    return made


def is_published(plane: Plane) -> bool:
    [record] = plane.compiler.records()
    return record.ring is not None and record.ring.former


def test_the_former_ring_goes_with_its_time() -> None:
    """By the workers' clock, whatever it is: that of a capture wraps, and lies anywhere."""
    plane = plane_with(30)
    engine = plane.engine
    assert isinstance(engine, LocalEngine)
    began = 2**32 - 50
    engine.maintain(began)
    plane.update("files", add=[AFTER])
    plane.collect()
    for ticks, published in ((0, True), (299, True), (300, False), (301, False)):
        engine.maintain((began + ticks) % 2**32)
        plane.collect()
        assert is_published(plane) == published, ticks
    assert plane.compiler.in_use()["ring_slots"] in (64, 128)
    plane.collect()
    assert plane.compiler.in_use()["ring_slots"] == 64


def test_turned_off_it_goes_at_once() -> None:
    plane = plane_with(30)
    plane.update("files", add=[AFTER])
    plane.apply(Config(vips=(AFTER,), settings=Settings(buckets=16)))
    assert not is_published(plane)
    plane.update("files", add=[VIP])
    assert not is_published(plane)


def test_nothing_is_published_unless_it_is_asked_for() -> None:
    plane = plane_with(0)
    plane.update("files", add=[AFTER])
    assert not is_published(plane)


def test_room_for_two_rings_is_asked_for() -> None:
    """A change that would not fit is refused before anything is changed."""
    plane = plane_with(30)
    rings = plane.compiler._rings
    rings._capacity = rings._top + 96
    with pytest.raises(TableFullError, match="128 more ring slots"):
        plane.update("files", add=[AFTER])
    plane.compiler.set_second_chance(0)
    plane.update("files", add=[AFTER])


def test_the_latest_of_the_workers_clocks_counts() -> None:
    engine = LocalEngine(0, workers=3)
    for state, now in zip(engine.states, (2**32 - 3, 5, 1), strict=True):
        state.header[W_NOW] = now
    assert last_tick(engine.states) == 5


@pytest.mark.parametrize("seconds", [-1.0, 3601.0, float("nan"), float("inf")])
def test_times_that_make_no_sense_are_refused(seconds: float) -> None:
    with pytest.raises(Exception, match="not a time for second chances"):
        Settings(second_chance_s=seconds)


def test_flows_and_explanations_tell_of_it() -> None:
    """Who would get the flow: before it is there, while it is on trial, and once it has moved."""
    one, other = (
        kuproxy.service("90.0.0.1", port=80, protocol="tcp", target_port=8080, pods=[pod], new_len=64)
        for pod in ("10.0.0.1", "10.0.0.2")
    )
    balancer = kuproxy.Balancer([one], second_chance_s=60)
    assert second_chance(balancer) == (None, None)
    balancer.set(other)
    assert second_chance(balancer) == ("10.0.0.1:8080", None)
    what_if = balancer.explain(SEGMENT, with_pods=["10.0.0.3"], without_pods=["10.0.0.2"]).what_if
    assert what_if is not None and what_if.ring is not None
    assert (what_if.pod, what_if.ring.second_chance) == ("10.0.0.3:8080", "10.0.0.2:8080")
    [sent] = balancer.process([SEGMENT])
    assert str(sent.pod) == "10.0.0.2:8080"
    assert second_chance(balancer) == ("10.0.0.1:8080", "10.0.0.1:8080")
    [flow] = balancer.flows()
    assert str(flow.otherwise) == "10.0.0.1:8080"
    page = FlowList((flow,))
    assert "10.0.0.2:8080  tentative; 10.0.0.1:8080 if refused  " in show_flows(page)
    assert flows_json(page)["flows"][0]["otherwise"] == "10.0.0.1:8080"
    told = render(balancer.explain(SEGMENT))
    assert "at 10.0.0.2:8080 (tentative; 10.0.0.1:8080 if refused)" in told
    assert "a TCP connection that began elsewhere, and that it refuses, goes to: 10.0.0.1:8080" in told

    refused = frame(tcp("10.0.0.2", "40.0.0.1", 8080, 1024, flags=RST))
    asked = balancer.explain(refused, interface="pods")
    assert (asked.outcome, asked.reason) == ("drop", "SECOND_CHANCE")
    [flow] = balancer.flows()
    assert flow.otherwise is not None, "nothing changes by asking"
    [result] = balancer.process([refused], interface="pods")
    assert result.reason is Reason.SECOND_CHANCE
    [flow] = balancer.flows()
    assert (str(flow.pod), flow.otherwise) == ("10.0.0.1", None)
    assert balancer.counters()["SECOND_CHANCE"] == balancer.counters()["TENTATIVE"] == 1
    balancer.advance(59.9)
    assert second_chance(balancer)[0] == "10.0.0.1:8080"
    balancer.advance(0.2)
    assert second_chance(balancer) == (None, None)


def second_chance(balancer: kuproxy.Balancer) -> tuple[str | None, str | None]:
    """By the ring, and by the flow."""
    told = balancer.explain(SEGMENT)
    assert told.ring is not None and told.flow is not None
    return told.ring.second_chance, told.flow.otherwise


def test_it_is_set_shown_and_kept(tmp_path: Path) -> None:
    """By a command, over the API, in a script; after a restart it is as it was."""
    made = controller(tmp_path)
    with served(made) as client:
        client.run("ku conf second-chance 30")
        assert client.request("GET", "/v1/settings")["effective"]["second_chance"] == 30
        assert client.request("GET", "/v1/settings")["conf"]["second_chance"] == 30
        assert " second chance: 30 s\n" in client.run("show ku")["output"]
        assert made.plane.compiler._second_chance == 300
        client.request("PUT", "/v1/settings", {"second_chance": 7.5})
        with pytest.raises(Refusal):
            client.request("PUT", "/v1/settings", {"second_chance": 4000})
    made._state_file.close()
    again = controller(tmp_path)
    assert again.settings.second_chance_s == 7.5 and again.plane.compiler._second_chance == 75
    script = tmp_path / "services.ku"
    script.write_text("ku conf second-chance 12\n")
    assert load_config([script]).settings.second_chance_s == 12


def test_a_successor_goes_on_with_it() -> None:
    """A control process that takes over finds the former ring published: it stands, for the time from then on."""
    plane = plane_with(30)
    engine = plane.engine
    assert isinstance(engine, LocalEngine)
    engine.maintain(1000)
    plane.update("files", add=[AFTER])
    [record] = plane.compiler.records()
    index = next(iter(record.draining.values()))
    successor = Plane(engine, decrement_ttl=True, any_node_address=False)
    assert is_published(successor)
    [record] = successor.compiler.records()
    assert list(record.draining.values()) == [index] and record.former_pods == {index}
    successor.collect()  # before anybody has said anything
    assert is_published(successor)
    successor.apply(Config(vips=(AFTER,), settings=Settings(buckets=16, second_chance_s=30)))
    successor.finish_adoption()
    assert is_published(successor)
    engine.maintain(1299)
    successor.collect()
    assert is_published(successor)
    engine.maintain(1300)
    for _ in range(3):
        successor.collect()
    assert not is_published(successor) and not record.draining
    assert successor.compiler.in_use()["ring_slots"] == 64
