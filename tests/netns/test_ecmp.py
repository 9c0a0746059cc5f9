"""Three nodes behind a real BGP router with ECMP: nodes are lost, added and drained under live connections."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netns.processes import children_of
from netns.routed import PORT, VIPS, Between, Node, Routed, routed, until
from netns.test_hot_restart import kill, replaced
from netns.world import _warm, connect

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(280),
    pytest.mark.skipif(shutil.which("bird") is None, reason="no program `bird` (Debian package bird2)"),
    pytest.mark.skipif(importlib.util.find_spec("exabgp") is None, reason="no package exabgp (extra `bgp`)"),
]

CONNECTIONS = 60


class Connections:
    """Many, each of which remembers its pod."""

    def __init__(self, made: Routed, count: int = CONNECTIONS) -> None:
        self.sockets: list[tuple[socket.socket, str]] = []
        for number in range(count):
            opened = connect(made.client, VIPS[number % 2], PORT)
            opened.settimeout(20)  # a lost segment is sent again
            self.sockets.append((opened, ""))
        self.sockets = [(opened, self._ask(opened)) for opened, _ in self.sockets]

    @classmethod
    def _ask(cls, opened: socket.socket) -> str:
        opened.sendall(b"?")
        return cls._answer(opened)

    @staticmethod
    def _answer(opened: socket.socket) -> str:
        answer = b""
        while not answer.endswith(b" "):
            more = opened.recv(100)
            assert more, "the connection has ended"
            answer += more
        return answer.decode().strip()

    @property
    def pods(self) -> set[str]:
        return {pod for _, pod in self.sockets}

    def check(self) -> None:
        """Each is alive, and where it was."""
        random.shuffle(self.sockets)
        for opened, pod in self.sockets:
            assert self._ask(opened) == pod

    def lost(self) -> int:
        """How many have ended; the others are where they were. All are asked at once, as some must be asked twice."""
        for opened, _ in self.sockets:
            opened.sendall(b"?")
        ended = 0
        for opened, pod in self.sockets:
            try:
                assert self._answer(opened) == pod
            except ConnectionResetError:
                ended += 1
        return ended

    def close(self) -> None:
        for opened, _ in self.sockets:
            opened.close()


@contextmanager
def connections(made: Routed, count: int = CONNECTIONS) -> Iterator[Connections]:
    many = Connections(made, count)
    try:
        yield many
    finally:
        many.close()


def start(made: Routed, *nodes: Node) -> None:
    """With the same pods behind the VIPs on each; the pods come in another order everywhere."""
    _warm()
    for node in nodes:
        node.start()
        pods = list(made.pod_numbers)
        random.shuffle(pods)
        node.serve(pods)
        node.announce()


def test_nodes_come_and_go_under_live_connections() -> None:
    """No connection breaks, and none changes its pod, whichever node its packets come to."""
    with routed() as made:
        one, two, three = made.nodes
        start(made, one, two)
        made.wait_for_hops(one, two)
        assert made.router.birdc(f"show route all for {VIPS[0]}").count("(64512,1)") == 2
        with connections(made) as many:
            assert len(many.pods) == 5
            before = one.flows(), two.flows()
            assert min(before) > 5 and sum(before) == CONNECTIONS, before

            start(made, three)  # a node is added: a part of the packets moves to it
            assert one.slots(VIPS[0]) == two.slots(VIPS[0]) == three.slots(VIPS[0])
            assert one.slots(VIPS[1]) == two.slots(VIPS[1]) == three.slots(VIPS[1])
            made.wait_for_hops(one, two, three)
            many.check()
            assert three.flows() > 5

            two.kill()  # a node is lost
            made.wait_for_hops(one, three)
            many.check()
            total = one.flows() + three.flows()
            assert total >= CONNECTIONS, total


@pytest.mark.long
@pytest.mark.parametrize(
    ("seconds", "few", "most"), [(60, 0, 0), (0, 4, 60)], ids=["with", "without"]
)
def test_a_node_is_lost_while_pods_change(seconds: int, few: int, most: int) -> None:
    """One of three nodes dies, one of five pods drains. With second chances no connection ends; without, some do.

    A third of 240 connections moves, and of those whose pod has gone, a fifth, none would find its pod again.
    """
    with routed(kind=Between) as made:
        one, two, three = made.nodes
        _warm()
        for node in made.nodes:
            node.start()
            node.serve(made.pod_numbers, translated=True)
            if seconds:
                node.client.run(f"ku conf second-chance {seconds}")
            node.announce()
        made.wait_for_hops(*made.nodes)
        made.lead_back()
        with connections(made, 4 * CONNECTIONS) as many:
            assert len(many.pods) == 5 and min(node.flows() for node in made.nodes) > CONNECTIONS / 2

            two.kill()
            for node in (one, three):
                node.serve([*made.pod_numbers[:2], *made.pod_numbers[3:]], translated=True)
            made.wait_for_hops(one, three)
            made.lead_back()
            ended = many.lost()
            assert few <= ended <= most, ended
            for node in (one, three):
                counted = node.client.request("GET", "/v1/counters")["nodes"]
                assert ("SECOND_CHANCE" in {each["reason"] for each in counted if each["count"]}) == bool(seconds)


@pytest.mark.long
def test_a_drained_node_is_left_alone_before_it_stops() -> None:
    """`ku announce drain` takes the traffic away while forwarding goes on; a stop does it by itself."""
    with routed() as made:
        one, two, three = made.nodes
        start(made, one, two, three)
        made.wait_for_hops(one, two, three)
        with connections(made) as many:
            assert "0 announced" not in one.daemon.ku("announce show")
            assert "drained" in one.daemon.ku("announce drain")
            made.wait_for_hops(two, three)
            assert one.client.request("GET", "/v1/health")["ready"]
            many.check()

            one.daemon.stop()  # and stays drained
            one.daemon.start()
            until(lambda: len(one.client.request("GET", "/v1/announce")["speakers"]) == 1)
            one.serve(list(made.pod_numbers))
            many.check()
            made.wait_for_hops(two, three)
            one.daemon.ku("announce undrain")
            made.wait_for_hops(one, two, three)
            many.check()

            two.daemon.process.send_signal(signal.SIGTERM)
            made.wait_for_hops(one, three)
            assert two.daemon.process.poll() is None, "it ended before the router knew"
            many.check()
            assert two.daemon.process.wait(20) == 0
            assert "withdrawing" in two.daemon.log
            many.check()


@pytest.mark.long
def test_announcements_outlive_control_and_no_other_process() -> None:
    """Control is killed: nothing is withdrawn. ExaBGP, its process or the daemon end: the routes are gone."""
    with routed(nodes=2) as made:
        one, two = made.nodes
        start(made, one, two)
        made.wait_for_hops(one, two)
        assert one.client.request("GET", "/v1/announce")["speakers"][0]["problem"] == ""

        withdrawn = made.router.withdrawals(1)
        assert withdrawn >= 0
        replaced(one.daemon, "control", kill)
        one.daemon.ku("upgrade")
        until(lambda: one.client.request("GET", "/v1/announce")["speakers"] != [])
        until(lambda: one.client.request("GET", "/v1/announce")["speakers"][0]["settled"])
        assert made.router.withdrawals(1) == withdrawn
        made.wait_for_hops(one, two)

        # The pods go away: on this node alone.
        one.serve([], VIPS[:1])
        until(lambda: made.router.next_hops(VIPS[0]) == {"10.2.0.2"})
        assert made.router.next_hops(VIPS[1]) == {"fd09:1::2", "fd09:2::2"}
        one.serve(list(made.pod_numbers))
        made.wait_for_hops(one, two)

        assert two.speaker is not None
        (judging,) = processes_of(two)
        os.kill(judging, signal.SIGKILL)
        made.wait_for_hops(one)
        two.speaker.wait(10)
        two.announce()
        made.wait_for_hops(one, two)
        two.speaker.kill()  # ExaBGP itself
        made.wait_for_hops(one)

        one.daemon.stop()
        until(lambda: not made.router.next_hops(VIPS[0]))


def processes_of(node: Node) -> list[int]:
    """What ExaBGP has started."""
    assert node.speaker is not None
    return children_of(node.speaker.pid)
