"""Shortcuts of the flow cache with real traffic: what takes them arrives as it would have, wherever that is safe."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kuproxy.demo.topology import Host
from netns.test_daemon import Daemon
from netns.test_flow_cache import Talk, cache_of, cached, flows_of, metrics, until
from netns.test_hot_restart import kill, processes, replaced
from netns.test_run import MEGABYTE, _transfer
from netns.world import BULK, BULK_PORT, CLIENT, NODE, WEB, captured, connect, listener, read_exactly

pytestmark = [pytest.mark.netns, pytest.mark.timeout(200)]

PEERS = ["peer", "peer"]  # the client, too, is behind a veth


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with cached(shortcuts="on") as running:
        yield running


def run(host: Host, *words: str) -> str:
    """A command in a host, which must succeed."""
    done = subprocess.run(
        ["ip", "netns", "exec", host.name, *words], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ways(daemon: Daemon, port: int) -> list[str]:
    """Of the flow from this port: to the pod, to the client; nothing while it is a worker's."""
    found = [each for each in flows_of(daemon) if each["client_port"] == port and each["tier"] == "kernel"]
    return list(found[0]["ways"]) if found else []


def talk_on(daemon: Daemon, family: int = 0, wanted: list[str] = PEERS) -> Talk:
    talk = Talk(daemon.made.client, WEB[family])
    talk.say_until(lambda: ways(daemon, talk.port()) == wanted)
    return talk


def short(daemon: Daemon) -> int:
    return int(cache_of(daemon)["short"])


def veth_of(daemon: Daemon, talk: Talk) -> str:
    """The node's interface of the pod that answers."""
    return talk.pods[0]


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
    """Into namespaces: plain, masqueraded and by node ports, digests of 50 MB each way. What is masqueraded has its
    shortcuts, too."""
    made, data = daemon.made, random.Random(0).randbytes(50 * MEGABYTE)
    before = cache_of(daemon)
    with listener(made.pods[0], 5001, _transfer), connect(made.client, address, port) as opened:
        opened.settimeout(30)
        client_port, position = opened.getsockname()[1], 0

        def said() -> bool:
            nonlocal position
            opened.sendall(data[position : position + 1000])
            position += 1000
            return ways(daemon, client_port) == PEERS

        until(said)
        opened.sendall(data[position:])
        assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
        assert read_exactly(opened, 50 * MEGABYTE) == data[::-1]
    after = cache_of(daemon)
    assert after["short"] - before["short"] > 1000
    assert after["failed"] == 0


def test_a_pod_asks_itself(daemon: Daemon) -> None:
    """Hairpin: in at a veth, and into the same one's other end."""
    pod = daemon.made.pods[0]
    before = short(daemon)
    with listener(pod, 5001, _transfer), connect(pod, BULK[0], 5001) as opened:
        opened.settimeout(30)
        data, position = random.Random(1).randbytes(50 * MEGABYTE), 0
        port = opened.getsockname()[1]

        def said() -> bool:
            nonlocal position
            opened.sendall(data[position : position + 1000])
            position += 1000
            return ways(daemon, port) == PEERS

        until(said)
        opened.sendall(data[position:])
        assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
        assert read_exactly(opened, 50 * MEGABYTE) == data[::-1]
    assert short(daemon) - before > 500


@pytest.mark.parametrize("family", [0, 1])
@pytest.mark.parametrize("queue", [False, True])
def test_what_arrives_looks_as_if_it_had_been_routed(daemon: Daemon, family: int, queue: bool) -> None:
    """The same frames, byte for byte, for all that the pod and the client see; TTLs one less, MAC addresses included.

    Where a queue stands at the veths' egress the packets go through it.
    """
    made = daemon.made
    veths = ["pod1", "pod2", "pod3", "client0"] if queue else []
    for name in veths:
        run(made.node, "tc", "qdisc", "add", "dev", name, "root", "pfifo")
    wanted = ["neighbour", "neighbour"] if queue else PEERS
    try:
        talk = talk_on(daemon, family, wanted)
        talk.sent = 20_000  # numbers with as many digits
        [pod] = [each for each in made.pods if each.name.endswith(talk.pods[0])]
        frames: dict[str, list[tuple[bytes, ...]]] = {}
        for name in ("short", "routed"):
            if name == "routed":  # policy that says what would be done anyhow
                run(made.node, "ip", "rule", "add", "pref", "100", "lookup", "main")
                run(made.node, "ip", "-6", "rule", "add", "pref", "100", "lookup", "main")
                talk.say_until(lambda: ways(daemon, talk.port()) == ["route", "route"])
            before = cache_of(daemon)
            with captured(pod, made.client) as captures:
                talk.say(30)
            after = cache_of(daemon)
            assert after["hits"] - before["hits"] >= 60
            assert (after["short"] - before["short"] >= 60) == (name == "short")
            frames[name] = [
                tuple(each.frame for each in capture.close() if each.frame.endswith(b"%d" % talk.sent))
                for capture in captures
            ]
            talk.sent = 10_000
        for taken, routed in zip(frames["short"], frames["routed"], strict=True):
            assert len(taken) == len(routed) == 1
            assert _ttl(taken[0]) == 63
            assert _comparable(taken[0]) == _comparable(routed[0])
        talk.socket.close()
    finally:
        for words in (["ip"], ["ip", "-6"]):
            subprocess.run(["ip", "netns", "exec", made.node.name, *words, "rule", "del", "pref", "100"], check=False)
        for name in veths:
            run(made.node, "tc", "qdisc", "del", "dev", name, "root")


def _comparable(frame: bytes) -> bytes:
    """Less what differs between two datagrams anyhow: IPv4's identification, checksums, and the number."""
    four = frame[12] == 8
    at = 14 + (20 if four else 40)
    header = frame[14:18] + frame[20:24] + frame[26:at] if four else frame[14:at]
    return frame[:14] + header + frame[at : at + 6] + frame[at + 8 :][:-5]


def _ttl(frame: bytes) -> int:
    return frame[14 + (8 if frame[12] == 8 else 7)]


def test_show_says_who_takes_which_way(daemon: Daemon) -> None:
    talk = talk_on(daemon)
    assert any(line.endswith("kernel peer/peer") for line in daemon.ku("show flows").splitlines())
    general = daemon.ku("show ku")
    assert "\n  ways: route " in general and "packets by shortcuts" in general
    told = cache_of(daemon)
    assert told["ways"]["peer"] >= 2 and sum(told["ways"].values()) == 2 * told["flows"]
    text = metrics(daemon)
    assert 'kuproxy_cache_directions{way="peer"}' in text and "kuproxy_cache_shortcuts_total" in text
    talk.socket.close()


NFT = """table inet theirs {
    chain forward { type filter hook forward priority filter; policy accept; udp sport 1 drop; }
}
"""


def test_netfilters_rules_are_not_passed_by(daemon: Daemon) -> None:
    """A rule that comes holds for flows that take shortcuts, at once; when it goes they take them again."""
    talk = talk_on(daemon)
    made = daemon.made
    file = made.directory / "rules.nft"
    drops = f"udp dport {talk.port()} drop;"
    file.write_text(NFT.replace("udp sport 1 drop;", drops))
    run(made.node, "nft", "-f", str(file))
    try:
        time.sleep(0.3)  # the event, not a turn, tells of it
        with pytest.raises(TimeoutError):
            talk.say(1)
        until(lambda: ways(daemon, talk.port()) in (["route", "route"], []))
        assert "route because of netfilter (nftables): " in daemon.ku("show ku")
    finally:
        run(made.node, "nft", "delete", "table", "inet", "theirs")
    talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)
    talk.socket.close()


def test_filters_of_what_is_not_forwarded_do_not_matter(daemon: Daemon) -> None:
    made = daemon.made
    file = made.directory / "input.nft"
    file.write_text(NFT.replace("hook forward", "hook input"))
    run(made.node, "nft", "-f", str(file))
    try:
        talk = talk_on(daemon)
        before = short(daemon)
        talk.say(20)
        time.sleep(1.2)
        talk.say(20)
        assert short(daemon) - before == 80
        talk.socket.close()
    finally:
        run(made.node, "nft", "delete", "table", "inet", "theirs")


@pytest.mark.parametrize("family", [0, 1])
def test_a_route_that_changes_is_followed(daemon: Daemon, family: int) -> None:
    made = daemon.made
    talk = talk_on(daemon, family)
    words = ["ip", *(["-6"] if family else []), "route"]
    where = f"{CLIENT[family]}/{(32, 128)[family]}"
    run(made.node, *words, "add", "blackhole", where)
    try:
        time.sleep(0.3)
        with pytest.raises(TimeoutError):
            talk.say(1)
        until(lambda: ways(daemon, talk.port()) in (["peer", "route"], []))
        assert "route because of not forwarded: " in daemon.ku("show ku")
    finally:
        run(made.node, *words, "del", "blackhole", where)
    talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)
    talk.socket.close()


def test_a_neighbour_that_changes_is_followed(daemon: Daemon) -> None:
    """The pod has another MAC address now: it gets frames with that one."""
    made = daemon.made
    talk = talk_on(daemon)
    veth, mac = veth_of(daemon, talk), "02:00:00:00:00:77"
    [pod] = [each for each in made.pods if each.name.endswith(talk.pods[0])]
    run(pod, "ip", "link", "set", "eth0", "address", mac)
    address = next(each.ipv4 for each in made.endpoints if each.name == talk.pods[0])
    run(made.node, "ip", "neigh", "replace", address, "dev", veth, "lladdr", mac, "nud", "reachable")
    talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)
    with captured(pod) as [capture]:
        before = short(daemon)
        talk.say(20)
    assert short(daemon) - before == 40
    frames = [each.frame for each in capture.frames if each.frame[12:14] == b"\x08\x00"]
    assert len(frames) >= 20 and {each[:6].hex(":") for each in frames} == {mac}
    run(made.node, "ip", "neigh", "del", address, "dev", veth)
    talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)  # found out again, by a packet that went another way
    talk.socket.close()


def test_what_does_not_fit_is_told_as_by_the_kernel(daemon: Daemon) -> None:
    """A datagram that the pod's link is too narrow for: the client hears of it, and sends smaller ones."""
    made = daemon.made
    talk = talk_on(daemon)
    veth = veth_of(daemon, talk)
    run(made.node, "ip", "link", "set", veth, "mtu", "1300")
    try:
        talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)
        talk.socket.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        talk.socket.send(b"x" * 1400)
        with pytest.raises(OSError) as refused:
            for _ in range(20):
                time.sleep(0.02)
                talk.socket.send(b"x" * 1400)
        assert refused.value.errno == errno.EMSGSIZE
    finally:
        run(made.node, "ip", "link", "set", veth, "mtu", "1500")
        run(made.client, "ip", "route", "flush", "cache")
    talk.socket.close()


def test_without_control_shortcuts_end_soon_and_the_cache_goes_on(daemon: Daemon) -> None:
    talk = talk_on(daemon)
    [control] = processes(daemon)["control"]
    before = cache_of(daemon)
    os.kill(control, signal.SIGSTOP)
    try:
        talk.say(100)
        time.sleep(2.2)
        talk.say(100)
    finally:
        os.kill(control, signal.SIGCONT)
    after = cache_of(daemon)
    assert 200 <= after["short"] - before["short"] < 230
    assert after["hits"] - before["hits"] >= 400
    talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)
    talk.socket.close()


def test_a_successor_chooses_anew(daemon: Daemon) -> None:
    talk = talk_on(daemon)
    replaced(daemon, "control", kill)
    talk.say_until(lambda: ways(daemon, talk.port()) == PEERS)
    before = short(daemon)
    talk.say(20)
    assert short(daemon) - before == 40
    talk.socket.close()


@pytest.mark.long
def test_an_interface_that_goes_takes_its_shortcuts_along() -> None:
    """Last, and in a world of its own: the pod's veth is gone, and nothing but its own flows suffers."""
    with cached(shortcuts="on") as daemon:
        made = daemon.made
        talks = [talk_on(daemon) for _ in range(6)]
        gone = talks[0].pods[0]
        run(made.node, "ip", "link", "del", gone)
        mine = [each for each in talks if each.pods[0] == gone]
        others = [each for each in talks if each not in mine]
        for each in others:
            each.say(10)
        for each in mine:
            with pytest.raises(OSError):
                each.say(1)
        until(lambda: all(ways(daemon, each.port()) in (["route", "peer"], []) for each in mine))
        told: dict[str, Any] = cache_of(daemon)
        assert told["failed"] == 0 and told["on"]
        for each in talks:
            each.socket.close()


def test_past_filters_passes_rules_by_because_somebody_said_so() -> None:
    with cached(shortcuts="past-filters") as daemon:
        made = daemon.made
        file = made.directory / "rules.nft"
        file.write_text(NFT)
        run(made.node, "nft", "-f", str(file))
        talk = talk_on(daemon)
        before = short(daemon)
        talk.say(20)
        assert short(daemon) - before == 40
        talk.socket.close()


def test_off_is_the_default() -> None:
    with cached() as daemon:
        talk = Talk(daemon.made.client, WEB[0])
        talk.say_until(lambda: talk.tier(daemon) == "kernel")
        talk.say(50)
        told = cache_of(daemon)
        assert told["hits"] > 50 and told["short"] == 0 and told["ways"] == {}
        assert "ways:" not in daemon.ku("show ku")
        assert ways(daemon, talk.port()) == ["route", "route"]
        talk.socket.close()
