"""The flow cache with real traffic: what the kernel carries arrives, is counted, is given back, and outlives us."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kuproxy.client import Client
from kuproxy.demo.topology import Host
from netns.many_connections import many_connections, vip_script
from netns.test_daemon import Daemon
from netns.test_hot_restart import during, kill, processes, replaced
from netns.test_run import MEGABYTE, _transfer
from netns.world import (
    BULK,
    BULK_PORT,
    NODE,
    POD1,
    WEB,
    connect,
    listener,
    read_exactly,
    web,
    world,
)

pytestmark = [pytest.mark.netns, pytest.mark.timeout(200)]

UDP_PORT = 7
WITHIN_S = 8.0


@contextmanager
def cached(
    entries: int = 65536, lease: int = 60, conf: str = "", shortcuts: str = "off"
) -> Iterator[Daemon]:
    """A daemon with a flow cache, and VIPs: web (TCP 80), echo (UDP 7), bulk, all of them with node ports."""
    with world() as made:
        daemon = Daemon(made)
        daemon.settings.write_text(
            f'state_directory = "{daemon.directory}/state"\n[api]\nsocket = "{daemon.socket}"\n'
            f'[cache]\nflow_cache = "on"\nflow_cache_entries = {entries}\nflow_cache_lease = {lease}\n'
            f'flow_cache_shortcuts = "{shortcuts}"\n'
        )
        try:
            daemon.start()
            lines = [f"conf buckets 16384 {conf}"]
            for family, (vip, bulk) in enumerate(zip(WEB, BULK, strict=True)):
                bits, pods = (32, 128)[family], [(each.ipv4, each.ipv6)[family] for each in made.endpoints]
                lines += [
                    f"vip {vip}/{bits} protocol tcp port 80 target_port 8080 node_port {30080 + family}",
                    f"vip {vip}/{bits} protocol udp port 7 target_port 7007 node_port {30007 + family}",
                    f"vip {bulk}/{bits} protocol tcp port 5001 target_port 5001 node_port {30501 + family}",
                    f"vip {bulk}/{bits} protocol tcp port 5002 target_port 5001 masquerade",
                    f"pod {vip}/{bits} protocol tcp port 80 {' '.join(pods)}",
                    f"pod {vip}/{bits} protocol udp port 7 {' '.join(pods)}",
                    f"pod {bulk}/{bits} protocol tcp port 5001 {pods[0]}",
                    f"pod {bulk}/{bits} protocol tcp port 5002 {pods[0]}",
                ]
            daemon.script("\n".join(lines))
            yield daemon
            daemon.stop()
            assert "flow cache is off" not in daemon.log
        finally:
            print(daemon.log)
            if daemon.process.poll() is None:
                daemon.process.kill()
            daemon.notified.close()


def cache_of(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.json("show ku")["cache"])


def flows_of(daemon: Daemon, **wanted: object) -> list[dict[str, Any]]:
    query = "&".join(f"{name}={value}" for name, value in wanted.items())
    return list(Client(str(daemon.socket)).request("GET", f"/v1/flows?{query}")["flows"])


def until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.05)


class Talk:
    """Datagrams from one port, each answered before the next one."""

    def __init__(self, host: Host, address: str, port: int = UDP_PORT) -> None:
        self.socket = connect(host, address, port, socket.SOCK_DGRAM)
        self.socket.settimeout(1.0)
        self.sent = 0
        self.pods: list[str] = []

    def say(self, number: int = 1, pause_s: float = 0.0) -> None:
        for _ in range(number):
            self.sent += 1
            data = b"%d" % self.sent
            self.socket.send(data)
            name, _, echoed = self.socket.recv(100).partition(b" ")
            assert echoed == data
            self.pods.append(name.decode())
            time.sleep(pause_s)

    def say_until(self, condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "too late"
            self.say(10, 0.01)

    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def tier(self, daemon: Daemon) -> str:
        flows = flows_of(daemon, client=self.socket.getsockname()[0])
        return next((each["tier"] for each in flows if each["client_port"] == self.port()), "")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with cached() as running:
        yield running


@pytest.mark.parametrize(
    ("address", "port"),
    [
        (BULK[0], 5001),
        (BULK[1], 5001),
        (BULK[0], 5002),
        (BULK[1], 5002),
        (NODE[0], BULK_PORT.node_port),
        (NODE[1], BULK_PORT.node_port + 1),
    ],
)
def test_bulk_arrives_unchanged_each_way(daemon: Daemon, address: str, port: int) -> None:
    """Plain, masqueraded and by node ports: digests of 50 MB each way, most of them by the kernel."""
    made, data = daemon.made, random.Random(0).randbytes(50 * MEGABYTE)
    before = cache_of(daemon)
    with listener(made.pods[0], 5001, _transfer), connect(made.client, address, port) as opened:
        opened.settimeout(30)
        opened.sendall(data[:MEGABYTE])
        client_port = opened.getsockname()[1]
        position, tiers = MEGABYTE, set[str]()
        deadline = time.monotonic() + WITHIN_S
        while "kernel" not in tiers and time.monotonic() < deadline:
            opened.sendall(data[position : position + 1000])
            position += 1000
            time.sleep(0.05)
            tiers |= {f["tier"] for f in flows_of(daemon) if f["client_port"] == client_port}
        assert "kernel" in tiers
        opened.sendall(data[position:])
        assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
        assert read_exactly(opened, 50 * MEGABYTE) == data[::-1]
    after = cache_of(daemon)
    assert after["hits"] - before["hits"] > 1000
    assert after["failed"] == 0
    until(lambda: cache_of(daemon)["given_back"].get("closed", 0) > before["given_back"].get("closed", 0))


def test_a_pod_asks_itself(daemon: Daemon) -> None:
    """Hairpin: masqueraded, because the pod would not answer itself."""
    pod = daemon.made.pods[0]
    data = random.Random(1).randbytes(50 * MEGABYTE)
    before = cache_of(daemon)["hits"]
    with listener(pod, 5001, _transfer), connect(pod, BULK[0], 5001) as opened:
        opened.settimeout(30)
        for position in range(0, 100_000, 1000):
            opened.sendall(data[position : position + 1000])
            time.sleep(0.03)
        opened.sendall(data[100_000:])
        assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
        assert read_exactly(opened, 50 * MEGABYTE) == data[::-1]
    assert cache_of(daemon)["hits"] - before > 1000


@pytest.mark.parametrize("family", [0, 1])
def test_counters_are_true_to_the_packet(daemon: Daemon, family: int) -> None:
    """Datagrams and their answers, counted by whoever carried them: not one more or less, and to the byte."""

    def counts() -> tuple[dict[str, int], int]:
        vips = daemon.json("show vips verbose")["vips"]
        [vip] = [each for each in vips if each["prefix"].startswith(WEB[family]) and each["protocol"] == "udp"]
        return vip["counters"], sum(pod["counters"]["to_pod_packets"] for pod in vip["pods"])

    before, pods_before = counts()
    talk = Talk(daemon.made.client, WEB[family])
    hits = cache_of(daemon)["hits"]
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    talk.say(500)
    after, pods_after = counts()
    assert cache_of(daemon)["hits"] - hits >= 1000
    to_pod = sum(after.get(each, 0) - before.get(each, 0) for each in ("first_packet", "next_packet"))
    assert to_pod == talk.sent == pods_after - pods_before
    assert after["from_pod_packets"] - before.get("from_pod_packets", 0) == talk.sent
    header = (28, 48)[family]
    sizes = sum(header + len(str(number)) for number in range(1, talk.sent + 1))
    assert after["to_pod_bytes"] - before.get("to_pod_bytes", 0) == sizes
    assert after["from_pod_bytes"] - before.get("from_pod_bytes", 0) == sizes + 5 * talk.sent  # "pod1 "
    assert len(set(talk.pods)) == 1
    talk.socket.close()


def test_a_connection_that_ends_ends_in_the_workers_table(daemon: Daemon) -> None:
    """FIN goes up, closes the cached flow, and the worker's state says so."""
    made = daemon.made
    received: list[bytes] = []

    def serve(opened: socket.socket, peer: str) -> None:
        while data := opened.recv(100):
            received.append(data)

    with listener(made.pods[0], 5001, serve):
        opened = connect(made.client, BULK[0], 5001)
        port = opened.getsockname()[1]

        def flow() -> dict[str, Any]:
            return next((f for f in flows_of(daemon) if f["client_port"] == port), {})

        def said() -> bool:
            opened.send(b"x")
            return flow().get("tier") == "kernel"

        until(said)
        closed = cache_of(daemon)["closed"]
        opened.close()
        until(lambda: flow().get("state") in ("tcp-closing", None))
        assert cache_of(daemon)["closed"] > closed
        assert flow().get("tier") != "kernel"
        assert received


def test_traced_packets_come_up(daemon: Daemon) -> None:
    talk = Talk(daemon.made.client, WEB[0])
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    daemon.ku("trace add 4")
    talk.say(20, 0.02)
    shown = daemon.ku("show trace")
    assert f":{talk.port()}" in shown or str(talk.port()) in shown
    assert cache_of(daemon)["lapsed"] > 0
    hits = cache_of(daemon)["hits"]
    talk.say_until(lambda: cache_of(daemon)["hits"] > hits)
    talk.socket.close()


def test_flushing_forgets_cached_flows(daemon: Daemon) -> None:
    talk = Talk(daemon.made.client, WEB[0])
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    came_up = cache_of(daemon)["came_up"]
    assert "flows forgotten" in daemon.ku("test kube-proxy flowtable flush")
    assert talk.tier(daemon) == ""
    talk.say(1)
    assert cache_of(daemon)["came_up"] >= came_up + 1
    assert talk.tier(daemon) == "worker"
    talk.socket.close()


def test_a_resized_table_takes_its_flows_back(daemon: Daemon) -> None:
    talk = Talk(daemon.made.client, WEB[1])
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    daemon.ku("conf buckets 32768")
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    daemon.ku("conf buckets 16384")
    talk.say(20)
    assert len(set(talk.pods)) == 1
    talk.socket.close()


def test_a_removed_pod_serves_its_cached_flows_until_it_is_flushed(daemon: Daemon) -> None:
    """Draining flows stay where they are, in the kernel; after a flush not a packet more reaches the pod."""
    made = daemon.made
    talks = [Talk(made.client, WEB[0]) for _ in range(12)]
    for talk in talks:
        talk.say(2)
    deadline = time.monotonic() + WITHIN_S
    while not all(talk.tier(daemon) == "kernel" for talk in talks):
        assert time.monotonic() < deadline
        for talk in talks:
            talk.say(2, 0.01)
    gone = talks[0].pods[0]
    address = next(each.ipv4 for each in made.endpoints if each.name == gone)
    vip = f"{WEB[0]}/32 protocol udp port 7"
    daemon.ku(f"pod {vip} {address} del")
    for talk in talks:
        talk.say(5)
    assert all(len(set(talk.pods)) == 1 for talk in talks)
    mine = [talk for talk in talks if talk.pods[0] == gone]
    assert all(talk.tier(daemon) == "kernel" for talk in mine)
    daemon.ku(f"pod {vip} {address}")
    daemon.ku(f"pod {vip} {address} del flush")
    for talk in talks:
        talk.say(5)
    assert all(talk.pods[-5:] != [gone] * 5 and gone not in talk.pods[-5:] for talk in mine)
    assert all(len(set(talk.pods)) == 1 for talk in talks if talk not in mine)
    daemon.ku(f"pod {vip} {address}")
    for talk in talks:
        talk.socket.close()


def test_a_removed_vip_ends_its_cached_flows(daemon: Daemon) -> None:
    made = daemon.made
    vip = "10.96.0.123/32 protocol udp port 7"
    daemon.ku(f"vip {vip} target_port 7007")
    daemon.ku(f"pod {vip} {POD1[0]}")
    talk = Talk(made.client, "10.96.0.123")
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    daemon.ku(f"vip {vip} del")
    with pytest.raises(OSError):
        talk.say(1)
    talk.socket.close()


def test_a_new_vip_takes_what_was_within_a_wider_one(daemon: Daemon) -> None:
    """Whoever is most specific counts, for running flows too: the worker would have said so, and now it does."""
    made = daemon.made
    names = {each.name: each.ipv4 for each in made.endpoints}
    daemon.ku("vip 10.97.0.0/16 protocol udp port 7 target_port 7007")
    daemon.ku(f"pod 10.97.0.0/16 protocol udp port 7 {names['pod1']}")
    talk = Talk(made.client, "10.97.1.1")
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    assert set(talk.pods) == {"pod1"}
    daemon.ku("vip 10.97.1.1/32 protocol udp port 7 target_port 7007")
    daemon.ku(f"pod 10.97.1.1/32 protocol udp port 7 {names['pod2']}")
    talk.say(3)
    assert set(talk.pods[-3:]) == {"pod2"}
    daemon.ku("vip 10.97.1.1/32 protocol udp port 7 del")
    daemon.ku("vip 10.97.0.0/16 protocol udp port 7 del")
    talk.socket.close()


def test_show_and_metrics_tell_of_it(daemon: Daemon) -> None:
    talk = Talk(daemon.made.client, WEB[0])
    talk.say_until(lambda: talk.tier(daemon) == "kernel")
    assert " flow cache: on, " in daemon.ku("show ku")
    assert any(line.endswith("kernel") for line in daemon.ku("show flows").splitlines())
    text = metrics(daemon)
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("kuproxy_cache_"))
    assert float(told["kuproxy_cache_on"]) == 1
    assert float(told["kuproxy_cache_hits_total"]) > 0
    assert float(told["kuproxy_cache_misses_total"]) > 0
    assert float(told["kuproxy_cache_inserts_total"]) >= float(told["kuproxy_cache_flows"]) >= 1
    assert float(told["kuproxy_cache_capacity"]) == 32768
    assert {'kuproxy_cache_removals_total{reason="evicted"}', "kuproxy_cache_turned_away_total"} <= told.keys()
    talk.socket.close()


def metrics(daemon: Daemon) -> str:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(daemon.socket))
        asking.sendall(b"GET /metrics HTTP/1.1\r\nHost: ku\r\nConnection: close\r\n\r\n")
        parts = []
        while part := asking.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.long
def test_many_connections_in_a_cache_of_sixteen_entries() -> None:
    """Eight flows have room; the others cost work above, and nothing goes wrong."""
    with cached(entries=16) as daemon:
        daemon.script("\n".join(vip_script(daemon.made)))
        with many_connections(daemon.made, 200) as load:
            report = during(load, lambda: time.sleep(3))
            assert not report.broken and report.connections == 200 and report.unanswered == 0
            told = cache_of(daemon)
            assert 0 < told["flows"] <= told["capacity"] == 8
            assert told["turned_away"] > 0 and told["hits"] > 0 and told["failed"] == 0
        for _ in range(50):
            assert web(daemon.made.client, WEB[0]).startswith("pod")


def test_cached_flows_outlive_control_and_are_taken_over() -> None:
    with cached() as daemon:
        talk = Talk(daemon.made.client, WEB[0])
        talk.say_until(lambda: talk.tier(daemon) == "kernel")
        before = cache_of(daemon)

        def die(process_id: int) -> None:
            kill(process_id)
            talk.say(200)

        replaced(daemon, "control", die)
        told = cache_of(daemon)
        assert told["flows"] >= 1
        assert told["hits"] >= before["hits"] + 400
        assert talk.tier(daemon) == "kernel"
        talk.say(10)
        vips = daemon.json("show vips verbose")["vips"]
        [vip] = [each for each in vips if each["prefix"].startswith(WEB[0]) and each["protocol"] == "udp"]
        counted = sum(vip["counters"].get(each, 0) for each in ("first_packet", "next_packet"))
        assert counted == talk.sent  # those between two controls, too
        replaced(daemon, "control", lambda _: daemon.ku("upgrade"))
        talk.say(10)
        assert talk.tier(daemon) == "kernel"
        replaced(daemon, "worker", kill)
        talk.say(10)
        assert len(set(talk.pods)) == 1
        talk.socket.close()


@pytest.mark.long
def test_without_control_the_kernel_stops_after_its_lease_and_the_workers_go_on() -> None:
    with cached(lease=2) as daemon:
        talk = Talk(daemon.made.client, WEB[0])
        talk.say_until(lambda: talk.tier(daemon) == "kernel")
        [control] = processes(daemon)["control"]
        os.kill(control, signal.SIGSTOP)
        try:
            talk.say(350, 0.01)
        finally:
            os.kill(control, signal.SIGCONT)
        told = cache_of(daemon)
        assert told["lapsed"] > 50
        assert len(set(talk.pods)) == 1
        talk.say_until(lambda: talk.tier(daemon) == "kernel")
        talk.socket.close()


@pytest.mark.long
def test_a_cached_flow_lives_as_long_as_it_is_used_and_no_longer() -> None:
    """Its worker sees no packet of it for several timeouts, and still ends it when it is idle."""
    with cached(lease=1) as daemon:
        daemon.ku("conf timeout udp 4")
        talk = Talk(daemon.made.client, WEB[1])
        talk.say_until(lambda: talk.tier(daemon) == "kernel")
        came_up = cache_of(daemon)["came_up"]
        for _ in range(24):
            talk.say(5, 0.1)
        [flow] = [f for f in flows_of(daemon) if f["client_port"] == talk.port()]
        assert flow["age_s"] > 12 and flow["tier"] == "kernel"
        assert cache_of(daemon)["came_up"] == came_up
        assert len(set(talk.pods)) == 1
        until(lambda: not talk.tier(daemon), within_s=10)
        talk.socket.close()


def test_short_timeouts_are_not_cached() -> None:
    """A worker must remember a flow for two leases, or the kernel does not carry it."""
    with cached(lease=60) as daemon:
        daemon.ku("conf timeout udp 100")
        talk = Talk(daemon.made.client, WEB[0])
        for _ in range(15):
            talk.say(20, 0.01)
        assert talk.tier(daemon) == "worker"
        talk.socket.close()
