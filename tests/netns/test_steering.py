"""Steering in a real node: client, node and pod are namespaces, and the worker is a reflector in Python."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kuproxy.errors import SteeringError
from kuproxy.steering import Steering, Targets, program
from kuproxy.steering.bpf import _bpf
from kuproxy.steering.links import KU1
from netns.lab import Host, Server, ask, drain, network, ping, sniff
from netns.reflector import Reflector
from steering import frames
from steering.model import decide, parse

pytestmark = pytest.mark.netns

TCP, UDP = 6, 17
VIP4, VIP6 = "10.96.0.10", "fd96::10"
POD4, POD6 = "10.2.0.2", "fd02::2"
CLIENT4, CLIENT6 = "10.1.0.2", "fd01::2"
NODE4, NODE6 = "10.1.0.1", "fd01::1"
API_VIP = "10.96.0.1"  # of a pod that is a process on the node itself, as an API server is

VIPS = frozenset(
    {
        (ip_network(VIP4), TCP, 80),
        (ip_network(VIP4), UDP, 53),
        (ip_network(VIP6), 0, 80),
        (ip_network(API_VIP), TCP, 443),
        (ip_network("90.0.0.0/8"), 0, 0),
    }
)
TARGETS = Targets(
    vips=VIPS,
    node_ports=frozenset({(4, TCP, 30080), (4, UDP, 30080), (6, TCP, 30080)}),
    pods=frozenset((ip_address(each), 0, 8080) for each in (POD4, POD6))
    | {(ip_address(NODE4), TCP, 6443), (ip_address("10.2.0.1"), TCP, 6443)},
)
# The node does not forward IPv6 (but for what enters at ku0), so that its kernel does not tell ways.
UNTOLD = (
    "IPv6 forwarding is off at ku0: the kernel does not say where pods are, so that their replies are taken wherever "
    "they come in; mark interfaces, or let the node forward"
)
SERVICES = {
    (TCP, VIP4, 80): (POD4, 8080),
    (UDP, VIP4, 53): (POD4, 8080),
    (TCP, VIP6, 80): (POD6, 8080),
    (UDP, VIP6, 80): (POD6, 8080),
    (TCP, NODE4, 30080): (POD4, 8080),
    (UDP, NODE4, 30080): (POD4, 8080),
    (TCP, NODE6, 30080): (POD6, 8080),
    (TCP, API_VIP, 443): (NODE4, 6443),
    (TCP, "90.1.2.3", 1234): (POD4, 8080),
}


@dataclass
class Rig:
    """The network, with steering running on the node."""

    client: Host
    node: Host
    pod: Host
    steering: Steering

    def set_targets(self, targets: Targets) -> None:
        self.node.run(self.steering.set_targets, targets)

    def poll(self) -> list[str]:
        return self.node.run(self.steering.poll_events)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host, Host]]:
    with network() as hosts:
        # As strict as distributions set it, and no forwarding: what ku0 needs, it brings along.
        hosts[1].sysctl("ipv4/conf/all/rp_filter", "1")
        yield hosts


@pytest.fixture
def rig(hosts: tuple[Host, Host, Host], request: pytest.FixtureRequest) -> Iterator[Rig]:
    steering = Steering(**getattr(request, "param", {}))
    hosts[1].run(steering.start)
    try:
        yield Rig(*hosts, steering)
    finally:
        hosts[1].run(steering.close)


@pytest.fixture
def reflector(rig: Rig) -> Iterator[Reflector]:
    rig.set_targets(TARGETS)
    reflector = Reflector(rig.steering.namespace, SERVICES)
    try:
        yield reflector
    finally:
        reflector.close()


@pytest.fixture
def servers(hosts: tuple[Host, Host, Host]) -> Iterator[None]:
    started = [Server(hosts[2], "pod", 8080), Server(hosts[1], "node", 6443), Server(hosts[1], "ssh", 22)]
    try:
        yield
    finally:
        for each in started:
            each.close()


# --- end to end ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("servers")
def test_clients_reach_pods_and_keep_their_address(rig: Rig, reflector: Reflector) -> None:
    for kind, address, port, seen in (
        ("tcp", VIP4, 80, CLIENT4),
        ("udp", VIP4, 53, CLIENT4),
        ("tcp", VIP6, 80, CLIENT6),
        ("udp", VIP6, 80, CLIENT6),
        ("tcp", NODE4, 30080, CLIENT4),
        ("udp", NODE4, 30080, CLIENT4),
        ("tcp", NODE6, 30080, CLIENT6),
        ("tcp", "90.1.2.3", 1234, CLIENT4),
    ):
        assert rig.client.run(ask, kind, address, port) == ("pod", seen), (kind, address)
    stats = rig.node.run(rig.steering.stats)
    assert stats.forward >= 8
    assert stats.returned >= 8


@pytest.mark.usefixtures("servers")
def test_the_node_itself_reaches_pods(rig: Rig, reflector: Reflector) -> None:
    """By its routes to VIPs, and by the loopback interface to its own node ports."""
    for kind, address, port, seen in (
        ("tcp", VIP4, 80, NODE4),
        ("udp", VIP4, 53, NODE4),
        ("tcp", VIP6, 80, NODE6),
        ("tcp", "90.1.2.3", 1234, NODE4),
        ("tcp", NODE4, 30080, NODE4),
        ("udp", NODE4, 30080, NODE4),
        ("tcp", NODE6, 30080, NODE6),
    ):
        assert rig.node.run(ask, kind, address, port) == ("pod", seen), (kind, address)


@pytest.mark.usefixtures("servers")
def test_a_process_on_the_node_can_be_a_pod(rig: Rig, reflector: Reflector) -> None:
    """Its replies come in at no interface: they are caught where they leave, or on the loopback."""
    assert rig.client.run(ask, "tcp", API_VIP, 443) == ("node", CLIENT4)
    assert rig.pod.run(ask, "tcp", API_VIP, 443) == ("node", POD4)
    assert rig.node.run(ask, "tcp", API_VIP, 443) == ("node", NODE4)
    # And without a VIP, the replies that came up and were not ours arrive all the same.
    assert rig.client.run(ask, "tcp", NODE4, 6443) == ("node", CLIENT4)
    assert rig.node.run(ask, "tcp", NODE4, 6443) == ("node", NODE4)


@pytest.mark.usefixtures("servers")
def test_direct_traffic_to_pods_still_works(rig: Rig, reflector: Reflector) -> None:
    """The replies come up, because a pod's replies always do; the worker passes them on."""
    rig.node.sysctl("ipv4/conf/all/forwarding", "1")
    assert rig.client.run(ask, "tcp", POD4, 8080) == ("pod", CLIENT4)
    assert {packet.source for packet in reflector.packets} == {ip_address(POD4)}


@pytest.mark.usefixtures("servers")
def test_fragments_come_up_all_or_none(rig: Rig, reflector: Reflector) -> None:
    datagram = b"x" * 4000
    for address in (VIP4, VIP6):
        with pytest.raises(
            TimeoutError
        ):  # the reflector does not translate fragments, and does not lose them
            rig.client.run(ask, "udp", address, 53, datagram, 0, 0.3)
        came_up = [packet for packet in reflector.packets if packet.destination == ip_address(address)]
        assert [packet.fragment for packet in came_up] == [True] * 3
        reflector.seen.clear()
    # Replies of a pod, too: here to a question that was not fragmented. The way back is the client's matter.
    rig.node.sysctl("ipv4/conf/all/forwarding", "1")
    assert rig.client.run(ask, "udp", POD4, 8080, datagram) == ("pod", CLIENT4)
    assert [packet.fragment for packet in reflector.packets] == [True] * 3


# --- nothing else ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("servers")
def test_foreign_traffic_is_not_touched(rig: Rig, reflector: Reflector) -> None:
    rig.node.sysctl("ipv4/conf/all/forwarding", "1")
    rig.node.sysctl("ipv6/conf/all/forwarding", "1")
    other = Server(rig.pod, "other", 9999)
    try:
        for address in (NODE4, NODE6, POD4, POD6):
            rig.client.run(ping, address)
        assert rig.client.run(ask, "tcp", NODE4, 22) == ("ssh", CLIENT4)
        assert rig.client.run(ask, "udp", NODE6, 22) == ("ssh", CLIENT6)
        assert rig.node.run(ask, "tcp", NODE4, 22) == ("ssh", NODE4)
        for kind, address, seen in (("tcp", POD4, CLIENT4), ("udp", POD6, CLIENT6)):
            assert rig.client.run(ask, kind, address, 9999) == ("other", seen)
        assert rig.pod.run(ask, "tcp", NODE4, 22) == ("ssh", POD4)
    finally:
        other.close()
    time.sleep(0.2)
    assert reflector.seen == []
    stats = rig.node.run(rig.steering.stats)
    assert (stats.forward, stats.returned) == (0, 0)
    assert stats.foreign > 0


def test_an_idle_pair_is_silent(rig: Rig, reflector: Reflector) -> None:
    """No router solicitation, no multicast report: what comes up is traffic and nothing else."""
    time.sleep(2.5)
    assert reflector.seen == []


@pytest.mark.usefixtures("servers")
def test_nothing_untranslated_leaks(rig: Rig, reflector: Reflector) -> None:
    """With a worker that swallows everything, pods see no VIP and clients see no pod."""
    reflector.silent = True
    for family in ("ipv4", "ipv6"):
        rig.node.sysctl(f"{family}/conf/all/forwarding", "1")
    sniffers = [rig.client.run(sniff, "c1"), rig.pod.run(sniff, "p1")]
    drain(sniffers[0])
    for kind, address, port in (("udp", VIP4, 53), ("tcp", VIP4, 80), ("tcp", VIP6, 80), ("udp", VIP6, 80)):
        for host in (rig.client, rig.node):
            with pytest.raises(OSError, match="timed out"):
                host.run(ask, kind, address, port, b"?", 0, 0.2)
    at_pod = [packet for packet in map(parse, drain(sniffers[1])) if packet]
    assert not [packet for packet in at_pod if packet.protocol in (TCP, UDP)]
    with pytest.raises(OSError, match="timed out"):  # straight to the pod: only its reply comes up
        rig.client.run(ask, "udp", POD4, 8080, b"?", 0, 0.2)
    from_pod = [packet for packet in map(parse, drain(sniffers[0])) if packet]
    assert not [packet for packet in from_pod if str(packet.source) == POD4 and packet.protocol in (TCP, UDP)]
    for each in sniffers:
        each.close()


def test_what_is_passed_on_does_not_circle(rig: Rig, reflector: Reflector) -> None:
    """A VIP's port that nobody serves: up once, passed on, routed to the VIP again, and ended there."""
    with pytest.raises(OSError, match="timed out"):
        rig.node.run(ask, "udp", VIP4, 9, b"?", 0, 0.3)
    assert len(reflector.seen) == 1


def test_frames_of_every_length_and_tag(rig: Rig, reflector: Reflector) -> None:
    """Also those that test runs refuse: frames that end in the IP header, and VLAN tags (moved to the context)."""
    reflector.silent = True
    nodes = frozenset(map(ip_address, (NODE4, NODE6, "10.2.0.1", "fd02::1")))

    def outcome(frame: bytes) -> str:
        return decide(frame, TARGETS, nodes, "c0", is_place_of=lambda _packet, _interface: False)

    mac = bytes.fromhex(_mac(rig.node, "c0").replace(":", ""))
    whole = [
        frames.ipv4(CLIENT4, VIP4, TCP, frames.l4(TCP, 4, 80), options=b"\1" * 8, to=mac),
        frames.ipv6(CLIENT6, VIP6, TCP, frames.l4(TCP, 4, 80), [(0, 1, 0), (44, 0, 0)], to=mac),
        frames.ipv4(POD4, CLIENT4, UDP, frames.l4(UDP, 8080, 4), to=mac),
    ]
    sent = [frame[:length] for frame in whole for length in range(14, len(frame) + 1)]
    refused = [frame for frame in sent if outcome(frame) == "refused"]  # in a pod's name, by a client
    other_host = [frames.OTHER_HOST + frame[6:] for frame in whole]
    tagged = {
        vlan: whole[0][:12] + struct.pack(">HH", 0x8100, vlan) + whole[0][12:] for vlan in (0, 7, 0x6000)
    }
    expected = [frame for frame in sent if outcome(frame) == "forward"]
    assert 40 < len(expected) < len(sent) - 60 and len(refused) == 13
    expected += [whole[0], whole[0]]  # ids 0 and 0 with a priority are no VLANs
    rig.client.run(_send, "c1", [*sent, *other_host, *tagged.values()])
    _eventually(lambda: len(reflector.seen) >= len(expected))
    time.sleep(0.1)
    assert reflector.seen == expected
    assert rig.node.run(rig.steering.stats).refused == len(refused)


# --- life ----------------------------------------------------------------------------------------------------


OWNER = """
    import sys, time
    from ipaddress import ip_address, ip_network
    from kuproxy.steering import Steering, Targets
    steering = Steering(workers=2)
    steering.start()
    steering.set_targets(Targets(vips=frozenset({(ip_network("10.96.0.10"), 6, 80), (ip_network("fd96::10"), 6, 80)})))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_9_leaves_nothing(hosts: tuple[Host, Host, Host]) -> None:
    node = hosts[1]
    before, programs = _state(node), _programs()
    owner = node.start(sys.executable, "-c", textwrap.dedent(OWNER))
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert _state(node) != before
        assert {"ku_steer", "ku_reply", "ku_guard", "ku_drop"} <= {
            name for each, name in _programs().items() if each not in programs
        }
        mine = {each for each, name in _programs().items() if each not in programs and name[:3] == "ku_"}
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    _eventually(lambda: _state(node) == before)
    _eventually(lambda: not mine & _programs().keys())
    # And a successor that comes at once waits for the predecessor's interface to go.
    steering = Steering()
    node.run(steering.start)
    node.run(steering.close)
    assert _state(node) == before


def test_closing_leaves_nothing(hosts: tuple[Host, Host, Host]) -> None:
    node = hosts[1]
    before = _state(node)
    steering = Steering()
    node.run(steering.close)  # before the start: nothing to do
    for _ in range(2):
        node.run(steering.start)
        node.run(steering.set_targets, TARGETS)
        assert _state(node) != before
        assert f"{VIP4} via" in node.sh("ip route")
        assert node.run(lambda: len(steering._writer.entries)) > 0
        node.run(steering.close)
        node.run(steering.close)
        assert _state(node) == before


@pytest.mark.parametrize("stage", ["steer", "reply", "guard"])
def test_a_failed_start_leaves_nothing(
    hosts: tuple[Host, Host, Host], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_: Any) -> None:
        raise SteeringError("no")

    node = hosts[1]
    before = _state(node)
    monkeypatch.setattr(program, stage, fail)
    with pytest.raises(SteeringError, match="no"):
        node.run(Steering().start)
    assert _state(node) == before


def test_a_second_one_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kuproxy.steering.links._STALE_PATIENCE_S", 0.1)
    before = _state(rig.node)
    with pytest.raises(SteeringError, match="an interface ku0 already"):
        rig.node.run(Steering().start)
    assert _state(rig.node) == before


def test_without_privilege_one_clear_line(hosts: tuple[Host, Host, Host]) -> None:
    node = hosts[1]
    before = _state(node)
    script = """
        import os
        from kuproxy.errors import SteeringError
        from kuproxy.steering import Steering
        import kuproxy.steering.steering
        os.setuid(65534)
        try:
            Steering().start()
        except SteeringError as error:
            print(error)
    """
    process = node.start(sys.executable, "-c", textwrap.dedent(script))
    output, errors = process.communicate(timeout=30)
    assert output == (
        "BPF program 'ku_drop': Operation not permitted; CAP_BPF and CAP_NET_ADMIN (or root) are needed\n"
    ), errors
    assert _state(node) == before


# --- what changes ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("servers")
def test_an_interface_and_its_address_are_followed(rig: Rig, reflector: Reflector) -> None:
    assert rig.node.run(lambda: rig.steering.attached) == ["c0", "lo", "p0"]
    rig.client.connect_to(rig.node, "d1", "d0")
    rig.client.sh("ip addr add 10.3.0.2/24 dev d1")
    rig.node.sh("ip addr add 10.3.0.1/24 dev d0")
    assert select.select(rig.steering.filenos(), [], [], 1)[0]  # as an event loop would be told
    lines: list[str] = []
    _eventually(lambda: lines.extend(rig.poll()) or "node address 10.3.0.1 is new" in lines)
    assert "attached to d0" in lines
    reflector.services[TCP, "10.3.0.1", 30080] = (POD4, 8080)
    assert rig.client.run(ask, "tcp", "10.3.0.1", 30080) == ("pod", "10.3.0.2")
    rig.node.sh("ip link set d0 down")
    assert "detached from d0" in rig.poll()
    rig.node.sh("ip link set d0 up", "ip link set d0 name e0")
    rig.poll()
    assert rig.steering.attached == ["c0", "e0", "lo", "p0"]
    rig.node.sh("ip link del e0")
    _eventually(lambda: lines.extend(rig.poll()) or "node address 10.3.0.1 is gone" in lines)
    assert rig.steering.attached == ["c0", "lo", "p0"]


@pytest.mark.parametrize("rig", [{"interfaces": ["c0", "later0"]}], indirect=True)
def test_named_interfaces_only(rig: Rig) -> None:
    assert rig.steering.attached == ["c0", "lo"]
    assert rig.node.run(lambda: rig.steering.warnings) == ["interface later0 is not there (yet)"]
    rig.client.connect_to(rig.node, "l1", "later0")
    rig.client.connect_to(rig.node, "m1", "other0")
    rig.poll()
    assert rig.steering.attached == ["c0", "later0", "lo"]


@pytest.mark.usefixtures("servers")
def test_replies_come_up_only_where_marked(rig: Rig, reflector: Reflector) -> None:
    rig.set_targets(replace(TARGETS, marks={"p0": 1, "not-there": 3}))
    assert rig.client.run(ask, "tcp", VIP4, 80) == ("pod", CLIENT4)
    with pytest.raises(OSError, match=r"timed out|refused"):
        rig.client.run(ask, "udp", VIP6, 80, b"?", 0, 0.3)
    rig.set_targets(replace(TARGETS, marks={"p0": 3}))
    assert rig.client.run(ask, "udp", VIP6, 80) == ("pod", CLIENT6)
    rig.set_targets(replace(TARGETS, marks={}))
    with pytest.raises(OSError, match=r"timed out|refused"):
        rig.client.run(ask, "udp", VIP4, 53, b"?", 0, 0.3)
    rig.set_targets(TARGETS)
    assert rig.client.run(ask, "udp", VIP4, 53) == ("pod", CLIENT4)


def test_node_networks_narrow_node_ports(rig: Rig) -> None:
    def served() -> set[str]:
        return {str(each) for each in rig.steering._served}

    rig.set_targets(TARGETS)
    assert served() == {NODE4, NODE6, "10.2.0.1", "fd02::1"}
    rig.set_targets(replace(TARGETS, node_networks=frozenset({ip_network("10.1.0.0/16")})))
    assert served() == {NODE4}
    rig.set_targets(TARGETS)
    assert len(served()) == 4


def test_routes_follow_vips_and_addresses(rig: Rig) -> None:
    def routes() -> list[str]:
        text = rig.node.sh("ip -4 route show proto 107", "ip -6 route show proto 107")
        return sorted(line.split()[0] + " " + line.split("src ")[1].split()[0] for line in text.splitlines())

    rig.set_targets(TARGETS)
    expected = [f"{API_VIP} {NODE4}", f"{VIP4} {NODE4}", f"90.0.0.0/8 {NODE4}", f"{VIP6} {NODE6}"]
    assert routes() == expected
    rig.set_targets(Targets(vips=VIPS | {(ip_network(NODE4), TCP, 80), (ip_network("10.9.0.1"), TCP, 80)}))
    assert routes() == sorted([*expected, f"10.9.0.1 {NODE4}"])  # none to the node's own address
    rig.node.sh("ip addr add 10.9.0.1/32 dev c0")
    rig.poll()
    assert routes() == expected
    rig.node.sh("ip addr del 10.9.0.1/32 dev c0")
    rig.poll()
    rig.node.sh("ip addr add 10.1.0.9/24 dev c0")
    rig.poll()
    assert f"{VIP4} {NODE4}" in routes()
    rig.node.sh("ip route replace default via 10.1.0.2 src 10.1.0.9")  # and no link or address changes
    assert select.select(rig.steering.filenos(), [], [], 1)[0]
    rig.poll()
    assert routes() == sorted([each.replace(NODE4, "10.1.0.9") for each in [*expected, f"10.9.0.1 {NODE4}"]])
    rig.set_targets(Targets())
    assert routes() == []
    rig.node.sh(f"ip route add {VIP4} via 10.1.0.2")
    rig.set_targets(TARGETS)
    assert rig.node.run(lambda: rig.steering.warnings) == [
        UNTOLD, f"no route to {VIP4}/32 for processes on this node: a route of somebody else is there"
    ]  # fmt: skip


def test_warnings_about_the_node(rig: Rig) -> None:
    rig.set_targets(TARGETS)
    assert rig.node.run(lambda: rig.steering.warnings) == [UNTOLD]
    for targets in (replace(TARGETS, marks={"p0": 3}), replace(TARGETS, strict_replies=False)):
        rig.set_targets(targets)
        assert rig.node.run(lambda: rig.steering.warnings) == []
    rig.set_targets(TARGETS)
    rig.node.sysctl("ipv6/conf/all/forwarding", "1")
    assert rig.node.run(lambda: rig.steering.warnings) == []
    rig.node.sysctl("ipv4/conf/ku0/forwarding", "0")
    (line,) = rig.node.run(lambda: rig.steering.warnings)
    assert line.startswith("IPv4 forwarding is off")
    rig.set_targets(Targets())
    assert rig.node.run(lambda: rig.steering.warnings) == []


def test_the_cost_of_a_change_follows_the_change(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    base = int(ip_address("172.16.0.0"))
    many = frozenset((ip_address(base + number), TCP, 8080) for number in range(30_000))
    started = time.perf_counter()
    rig.set_targets(Targets(pods=many))
    whole_s = time.perf_counter() - started
    assert len(rig.steering._writer.entries) == 60_000
    touched: list[int] = []
    steer = rig.steering._maps.steer
    for name in ("update", "delete"):
        monkeypatch.setattr(steer, name, _noting_sizes(getattr(steer, name), touched))
    started = time.perf_counter()
    rig.set_targets(Targets(pods=many - {(ip_address(base), TCP, 8080)}))
    one_s = time.perf_counter() - started
    assert sum(touched) == 2
    assert len(rig.steering._writer.entries) == 59_998
    assert one_s < whole_s / 5
    rig.set_targets(Targets())
    assert len(rig.steering._writer.entries) == 0


@pytest.mark.parametrize("rig", [{"workers": 2}], indirect=True)
def test_both_directions_come_to_one_worker(rig: Rig) -> None:
    rig.set_targets(TARGETS)
    workers = [rig.steering.namespace.run(_fanout_member) for _ in range(2)]
    for address, pod, client in ((VIP4, POD4, CLIENT4), (VIP6, POD6, CLIENT6)):
        mac = bytes.fromhex(_mac(rig.node, "c0").replace(":", ""))
        pod_mac = bytes.fromhex(_mac(rig.node, "p0").replace(":", ""))
        make = frames.ipv4 if address == VIP4 else frames.ipv6
        port = 53 if address == VIP4 else 80
        there = [make(client, address, UDP, frames.l4(UDP, 20100 + i, port), to=mac) for i in range(40)]
        back = [make(pod, client, UDP, frames.l4(UDP, 8080, 20100 + i), to=pod_mac) for i in range(40)]
        rig.client.run(_send, "c1", there)
        rig.pod.run(_send, "p1", back)
        time.sleep(0.3)
        got = [drain(each) for each in workers]
        assert sum(map(len, got)) == 80
        for index, received in enumerate(got):
            assert len(received) > 20
            for packet in map(parse, received):
                at = packet.source_port if str(packet.source) == client else packet.destination_port
                assert program.worker_of(ip_address(client), at, 2) == index
    # The node's own packets: their queue is chosen at ku0.
    rig.node.run(_send_datagrams, VIP4, 53, [20100 + i for i in range(40)])
    time.sleep(0.2)
    for index, received in enumerate(map(drain, workers)):
        ports = [packet.source_port for packet in map(parse, received)]
        assert len(ports) > 10
        assert {program.worker_of(ip_address(NODE4), port, 2) for port in ports} == {index}
    for each in workers:
        each.close()


# --- helpers -------------------------------------------------------------------------------------------------


def _noting_sizes(call: Callable[[Any], None], sizes: list[int]) -> Callable[[Any], None]:
    def noting(items: Any) -> None:
        items = items if isinstance(items, dict) else list(items)
        sizes.append(len(items))
        call(items)

    return noting


def _fanout_member() -> socket.socket:
    opened = sniff(KU1)
    opened.setsockopt(263, 23, struct.pack("=I", 1))  # SOL_PACKET, PACKET_IGNORE_OUTGOING
    opened.setsockopt(263, 18, struct.pack("=I", 77 | 5 << 16))  # PACKET_FANOUT by queue mapping
    return opened


def _send(interface: str, batch: list[bytes]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as opened:
        opened.bind((interface, 0))
        for frame in batch:
            opened.send(frame)


def _send_datagrams(address: str, port: int, source_ports: list[int]) -> None:
    for source_port in source_ports:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.bind(("", source_port))
            opened.sendto(b"!", (address, port))


def _mac(host: Host, interface: str) -> str:
    return host.sh(f"ip -o link show {interface}").split("link/ether ")[1].split()[0]


def _state(host: Host) -> str:
    """What a node's owner would look at. Lines in order, since the kernel's order is its own."""
    text = host.sh(
        "ip -o link", "ip -o addr", "ip route show table all", "ip -6 route show table all", "ip rule"
    )
    lines = [line.split(" expires ")[0] for line in text.splitlines() if "qdisc" not in line]
    links = [line.split(":")[1] for line in text.splitlines() if "qdisc" in line]
    return "\n".join(sorted(lines + links))


def _programs() -> dict[int, str]:
    """Id → name of every BPF program in the kernel (`bpf_prog_get_info_by_fd()`)."""
    programs, last = {}, 0
    while True:
        try:
            _, attribute = _bpf(11, struct.pack("=4I", last, 0, 0, 0))  # BPF_PROG_GET_NEXT_ID
        except FileNotFoundError:
            return programs
        last = struct.unpack_from("=I", attribute, 4)[0]
        try:
            fd, _ = _bpf(13, struct.pack("=3I", last, 0, 0))  # BPF_PROG_GET_FD_BY_ID
        except FileNotFoundError:
            continue
        try:
            info = ctypes.create_string_buffer(256)
            _bpf(15, struct.pack("=2IQ", fd, 256, ctypes.addressof(info)))  # BPF_OBJ_GET_INFO_BY_FD
            programs[last] = info.raw[64:80].rstrip(b"\0").decode()
        finally:
            os.close(fd)


def _eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
