"""A client forges pods' answers on a node without marked interfaces: they do not become a VIP's, and pods' own do.

Each forged packet fits a live flow exactly.  With `reply-path any` it reaches the client in the VIP's name, which shows
that it fits; with the default it is counted and left to the node's own stack, which forwards it as what it claims to
be.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from netns.pods_everywhere import (
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

MARK = b"forged, every byte of it"


@pytest.fixture(scope="module")
def made() -> Iterator[Everywhere]:
    with everywhere() as running:
        yield running


class Talk:
    """A connection, or datagrams, of the client's to a pod by its VIP."""

    def __init__(self, made: Everywhere, pod: str, family: int, kind: int = socket.SOCK_STREAM) -> None:
        self.made, self.pod, self.family = made, pod, family
        port = 80 if kind == socket.SOCK_STREAM else 7
        self.socket = connect(made.client, vip(pod, family), port, kind)
        self.port = int(self.socket.getsockname()[1])
        self.say()

    def say(self, data: bytes = b"said and echoed") -> None:
        self.socket.send(data)
        assert self.socket.recv(100) == data

    def in_the_kernel(self) -> bool:
        self.say()
        return self.made.flow(self.port).get("tier") == "kernel"


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


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("pod", ["pod", "vpod"])
def test_forged_answers_are_not_the_vips(made: Everywhere, pod: str, family: int) -> None:
    """Of flows that the kernel carries (the datagrams' and the connection's), and of such that a worker has."""
    stream, datagrams = (Talk(made, pod, family, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
    until(stream.in_the_kernel)
    until(datagrams.in_the_kernel)
    for carried in (True, False):
        if not carried:
            stream, datagrams = (Talk(made, pod, family, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
        frames = forged(stream, datagrams)
        count = sum(map(len, frames.values()))
        before = made.refused()
        with captured(made.client) as (capture,):
            send(made, [each for kind in frames.values() for each in kind])
            until(lambda before=before, count=count: made.refused() == before + count)
            time.sleep(0.05)
            seen = [each.frame for each in capture.close()]
        assert not any(from_vip(each, vip(pod, family)) for each in seen)
        assert sum(MARK in each for each in seen) >= 2, "the node's own stack forwards them"
        for talk in (stream, datagrams):
            talk.say()
            if carried:
                assert made.flow(talk.port)["tier"] == "kernel", "a forged reset has closed nothing"
    assert made.flow(stream.port)["state"] == "tcp-established"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["data", "datagram", "reset", "fragments", "error"])
def test_with_reply_path_any_they_are(made: Everywhere, kind: str, family: int) -> None:
    """So the packets of the test above fit; and the setting is live, both ways."""
    stream, datagrams = (Talk(made, "pod", family, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
    frames = forged(stream, datagrams)[kind]
    made.run("ku conf reply-path any")
    try:
        before = made.refused()
        with captured(made.client) as (capture,):
            send(made, frames)
            until(lambda: any(from_vip(each.frame, vip("pod", family)) for each in capture.frames))
        assert made.refused() == before
        assert made.shown()["replies"]["path"] == "any"
    finally:
        made.run("ku conf reply-path strict")


def test_pods_everywhere_answer(made: Everywhere) -> None:
    """At a veth, behind a bridge, on another node by routes and through VXLAN; by a worker, then by the kernel.

    The other node sends by one of two next hops, whichever this node uses: eight flows use both.
    """
    before = made.refused()
    talks = [
        Talk(made, pod, family, kind)
        for pod in PODS
        for family in (4, 6)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        for _ in range(4 if pod == "rpod" else 1)
    ]
    until(lambda: all([talk.in_the_kernel() for talk in talks]))
    hits = made.shown()["cache"]["hits"]
    for talk in talks:
        talk.say()
    assert made.shown()["cache"]["hits"] >= hits + len(talks)
    assert made.refused() == before
    for talk in talks:
        talk.socket.close()


def test_a_pod_that_moves_is_followed(made: Everywhere) -> None:
    """The route to a pod leads over the other link: a flow goes on, and the former link is no place any more.

    Nothing is told to the daemon; the kernel's routes are asked.
    """
    talk = Talk(made, "vpod", 4)
    until(talk.in_the_kernel)
    made.ip("other", "route replace 10.1.0.0/16 via 10.9.1.1 table 7")
    made.ip("node", "route replace 10.2.4.0/24 via 10.9.1.2 dev lan1")
    try:
        before = made.refused()
        talk.say()
        assert made.flow(talk.port)["tier"] == "kernel"
        assert made.refused() == before
        # The pod's own answers by the wrong way, as an asymmetric network has them.
        made.ip("other", "route replace 10.1.0.0/16 via 10.10.0.1 table 7")
        talk.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(8):  # what the kernel has said is believed for a second
                talk.say()
                time.sleep(0.2)
        assert made.refused() > before
        made.run("ku conf reply-path any")
        talk.socket.settimeout(3)
        assert talk.socket.recv(100)
    finally:
        made.run("ku conf reply-path strict")
        made.ip("node", "route replace 10.2.4.0/24 via 10.10.0.2 dev vxlan0")
        made.ip("other", "route replace 10.1.0.0/16 via 10.10.0.1 table 7")
        talk.socket.close()


def test_it_is_told(made: Everywhere) -> None:
    """In `show ku`, in the metrics, and by `ku explain`, with the interface's name."""
    refused = made.refused()
    text = made.run("show ku")["output"]
    assert f" replies of pods: from where the pod is; {refused} packets in a pod's name refused\n" in text
    for pod, way in (("pod", "pod0"), ("bpod", "cni0"), ("rpod", "lan0 or lan1"), ("vpod", "vxlan0")):
        told = made.daemon.ku(f"explain tcp {address(pod, 4)}:{TCP_PORT} {CLIENT[4]}:40000")
        assert f"as a pod's reply it comes up where this node sends to {address(pod, 4)}: by {way}\n" in told
