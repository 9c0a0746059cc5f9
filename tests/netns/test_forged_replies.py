"""A client forges pods' answers on a node without marked interfaces: they do not become a VIP's, and pods' own do.

Each forged packet fits a live flow exactly.  With `reply-path any` it reaches the client in the VIP's name, which shows
that it fits; with the default it is counted and left to the node's own stack, which forwards it as what it claims to
be.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import chain

import pytest

from netns.pods_everywhere import (
    ACROSS,
    CLIENT,
    PODS,
    TCP_PORT,
    UDP_PORT,
    Everywhere,
    address,
    everywhere,
    vip,
)
from netns.test_flow_cache import until
from netns.world import captured, connect
from packets import ACK, RST, fragments, frame, icmp_error, tcp, udp

pytestmark = [pytest.mark.netns, pytest.mark.timeout(200)]

OPEN = ExitStack()
MARK = b"forged, every byte of it"


@pytest.fixture(scope="module")
def made() -> Iterator[Everywhere]:
    with everywhere() as running:
        yield running


@pytest.fixture(autouse=True)
def end_of_talks() -> Iterator[None]:
    with OPEN:
        yield


class Talk:
    """A connection, or datagrams, of the client's to a pod by its VIP; open until the end of the test."""

    def __init__(self, made: Everywhere, pod: str, family: int, kind: int = socket.SOCK_STREAM) -> None:
        self.pod, self.family = pod, family
        self.socket = connect(made.client, vip(pod, family), 80 if kind == socket.SOCK_STREAM else 7, kind)
        OPEN.callback(self.socket.close)
        self.port = int(self.socket.getsockname()[1])
        self.say()

    def say(self, data: bytes = b"said and echoed") -> None:
        self.socket.send(data)
        assert self.socket.recv(100) == data


def carried(made: Everywhere, talks: Iterable[Talk]) -> bool:
    """Does the kernel have all of them? They have said something more by then."""
    for talk in talks:
        talk.say()
    flows = made.flows()
    return all(flows.get(talk.port, {}).get("tier") == "kernel" for talk in talks)


def both(made: Everywhere, pod: str, family: int) -> tuple[Talk, Talk]:
    """A connection, and datagrams."""
    return Talk(made, pod, family), Talk(made, pod, family, socket.SOCK_DGRAM)


def forged(stream: Talk, datagrams: Talk) -> dict[str, list[bytes]]:
    """Frames in the pod's name, as it would answer both."""
    pod, client = address(stream.pod, stream.family), CLIENT[stream.family]
    segment = (pod, client, TCP_PORT, stream.port)
    long = udp(pod, client, UDP_PORT, datagrams.port, MARK * 80)
    about = tcp(client, pod, stream.port, TCP_PORT, MARK, flags=ACK)
    return {
        "data": [frame(tcp(*segment, MARK, flags=ACK))],
        "datagram": [frame(udp(pod, client, UDP_PORT, datagrams.port, MARK))],
        "reset": [frame(tcp(*segment, flags=RST))],
        "fragments": fragments(long, 1200),
        "error": [frame(icmp_error("10.1.0.7" if stream.family == 4 else "fd01::7", client, about))],
    }


def send(made: Everywhere, frames: list[bytes]) -> None:
    """From the client's side, to the node's MAC address."""
    mac = made.node.netlink(lambda netlink: dict(netlink.link("get", ifname="client0")[0]["attrs"])["IFLA_ADDRESS"])
    opened = made.client.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with opened:
        for each in frames:
            opened.sendto(bytes.fromhex(mac.replace(":", "")) + each[6:], ("eth0", 0))


def from_vip(data: bytes, address_of_vip: str) -> bool:
    """Is it in the VIP's name: sent by it, or an error about what went to it?"""
    packed = ip_address(address_of_vip).packed
    outer = data[26:30] if data[12:14] == b"\x08\x00" else data[22:38]
    return outer == packed or packed in data[42:]


def refuse(made: Everywhere, stream: Talk, datagrams: Talk) -> None:
    """Forge the pod's answers: every packet is refused, the node's own stack forwards it, and both talks go on."""
    frames = list(chain(*forged(stream, datagrams).values()))
    before = made.refused()
    with captured(made.client) as (capture,):
        send(made, frames)
        until(lambda: made.refused() == before + len(frames))
        until(lambda: sum(MARK in each.frame for each in capture.frames) >= 3)
    assert not any(from_vip(each.frame, vip(stream.pod, stream.family)) for each in capture.frames)
    stream.say()
    datagrams.say()


def test_pods_everywhere_answer_and_nobody_else_does_in_their_name(made: Everywhere) -> None:
    """At a veth, behind a bridge, on another node by routes and through VXLAN; by a worker, then by the kernel.

    The other node sends by one of two next hops, whichever this node uses: eight flows use both.
    """
    ways = [(pod, family) for pod in PODS for family in (4, 6) for _ in range(4 if pod == "rpod" else 1)]
    before = made.refused()
    pairs = [both(made, *way) for way in ways]
    assert made.refused() == before
    for stream, datagrams in pairs[-2:]:
        refuse(made, stream, datagrams)
    pairs += [both(made, "pod", family) for family in (4, 6)]  # of whom no worker has ever heard a forged reset
    before = made.refused()
    talks = list(chain(*pairs))
    until(lambda: carried(made, talks))
    hits = made.shown()["cache"]["hits"]
    for talk in talks:
        talk.say()
    assert made.shown()["cache"]["hits"] >= hits + 2 * len(talks)
    assert made.refused() == before
    for stream, datagrams in (*pairs[:2], *pairs[-4:]):
        refuse(made, stream, datagrams)
        flows = made.flows()
        assert flows[stream.port]["state"] == "tcp-established"
        assert {flows[each.port]["tier"] for each in (stream, datagrams)} == {"kernel"}, "a reset has closed nothing"


@pytest.mark.parametrize("family", [4, 6])
def test_answers_across_the_families(made: Everywhere, family: int) -> None:
    """They go to what the client is called there, and each comes to its flow's worker; a client's forgery to none."""
    pod = address("pod", 10 - family)
    before = made.refused()
    ports = set()
    for _ in range(8):
        with connect(made.client, ACROSS[family], 80) as opened:
            opened.send(b"?")
            assert opened.recv(9) == b"?"
            port = opened.getsockname()[1]
            ports.add(port)
    assert made.refused() == before
    flows = made.flows()
    assert {flows[each]["worker"] for each in ports} == {0, 1}
    with connect(made.client, ACROSS[family], 80) as opened:
        flow = made.flows()[opened.getsockname()[1]]
        # One of the pool's addresses, or the client's in the prefix (RFC 6052).
        named = ["64:ff9b:1::a01:2"] if family == 4 else [f"192.0.0.{number}" for number in range(8)]
        answers = [frame(tcp(pod, each, TCP_PORT, flow["source_port"], MARK, flags=ACK)) for each in named]
        with captured(made.client) as (capture,):
            send(made, answers)
            until(lambda: made.refused() == before + len(answers))
            opened.send(b"?")
            assert opened.recv(9) == b"?"
        assert not any(from_vip(each.frame, ACROSS[family]) and MARK in each.frame for each in capture.frames)


@pytest.mark.parametrize("family", [4, pytest.param(6, marks=pytest.mark.long)])
def test_with_reply_path_any_they_are_the_vips(made: Everywhere, family: int) -> None:
    """So the packets of the test above fit; and the setting is live, both ways."""
    pairs = {kind: both(made, "pod", family) for kind in forged(*both(made, "pod", family))}
    made.run("ku conf reply-path any")
    try:
        before = made.refused()
        for kind, (stream, datagrams) in pairs.items():
            with captured(made.client) as (capture,):
                send(made, forged(stream, datagrams)[kind])
                until(lambda capture=capture: any(from_vip(each.frame, vip("pod", family)) for each in capture.frames))
        assert made.refused() == before
        assert made.shown()["replies"]["path"] == "any"
    finally:
        made.run("ku conf reply-path strict")


@pytest.mark.long
def test_a_pod_that_moves_is_followed(made: Everywhere) -> None:
    """The route to a pod leads over the other link: a flow goes on, and the former link is no place any more.

    Nothing is told to the daemon; the kernel's routes are asked.
    """
    talk = Talk(made, "vpod", 4, socket.SOCK_DGRAM)
    until(lambda: carried(made, [talk]))
    made.ip("other", "route replace 10.1.0.0/16 via 10.9.1.1 table 7")
    made.ip("node", "route replace 10.2.4.0/24 via 10.9.1.2 dev lan1")
    try:
        before = made.refused()
        talk.say()
        assert carried(made, [talk])
        assert made.refused() == before
        # The pod's own answers by the former way, as an asymmetric network has them.
        made.ip("other", "route replace 10.1.0.0/16 via 10.10.0.1 table 7")
        talk.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            talk.say()
        assert made.refused() > before
        made.run("ku conf reply-path any")
        talk.socket.settimeout(3)
        talk.say()
    finally:
        made.run("ku conf reply-path strict")
        made.ip("node", "route replace 10.2.4.0/24 via 10.10.0.2 dev vxlan0")
        made.ip("other", "route replace 10.1.0.0/16 via 10.10.0.1 table 7")


def test_it_is_told(made: Everywhere) -> None:
    """In `show ku`, in its JSON, and by `ku explain`, with the interface's name."""
    refused = made.refused()
    text = made.run("show ku")["output"]
    assert f" replies of pods: from where the pod is; {refused} packets in a pod's name refused\n" in text
    for pod, way in (("pod", "pod0"), ("bpod", "cni0"), ("rpod", "lan0 or lan1"), ("vpod", "vxlan0")):
        for family in (4, 6):
            source, client = address(pod, family), CLIENT[family]
            ends = (source, client) if family == 4 else (f"[{source}]", f"[{client}]")
            told = made.comes_up(f"{ends[0]}:{TCP_PORT}", f"{ends[1]}:40000")
            assert told == f"where this node sends to {source}: by {way}"
