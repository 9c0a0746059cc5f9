"""Where replies of pods may come in: the programs beside plain Python, in a namespace with routes of every kind."""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuproxy.steering import program
from kuproxy.steering.bpf import Verdict
from kuproxy.steering.cache_maps import ENDS, CacheMaps
from kuproxy.steering.cache_program import cache
from kuproxy.steering.keys import ConfigBit
from kuproxy.steering.maps import Stats, SteeringMaps
from kuproxy.steering.multipath import Multipath, grouped
from kuproxy.steering.namespace import PrivateNamespace
from kuproxy.steering.node import Interface
from kuproxy.steering.relations import Relations, relations
from kuproxy.steering.steering import _pod_keys, _translated_keys, _u32, _vip_keys
from kuproxy.steering.targets import MapWriter, Targets
from packets import ACK, FIN, RST, frame, tcp, udp
from steering import frames
from steering.frames import ICMP, ICMP6, TCP, UDP
from steering.model import Packet, decide

pytestmark = pytest.mark.netns  # loading a program needs the same privilege

Result = TypeVar("Result")
MAC = bytes.fromhex("020000000042")  # of all interfaces, so that every frame is for the host
# By which interfaces the pods of a network may answer, in a namespace with the routes of `SETUP`. `port` is a port of
# `bridge`; `left` and `right` share a route of several next hops, `third` does so by nexthop objects.
PLACES = {
    "10.2.0.0/24": {"pod"},  # on the link
    "10.2.0.7/32": {"other"},  # a host route within it
    "10.3.0.0/24": {"bridge", "port"},
    "10.4.0.0/24": {"left", "right"},
    "10.5.0.0/24": {"uplink"},  # pods of another node, behind a gateway
    "10.6.0.0/24": set(),  # unreachable
    "10.7.0.0/24": set(),  # blackhole
    "10.8.0.1/32": set(),  # the node's own
    "0.0.0.0/0": {"uplink"},
    "10.9.0.0/24": {"third", "right"},
    "fd02::/64": {"pod"},
    "fd03::/64": {"bridge", "port"},
    "fd04::/64": {"left", "right"},
    "fd05::/64": {"uplink"},
    "fd06::/64": set(),
    "::/0": {"uplink"},
}
INTERFACES = ("pod", "other", "bridge", "port", "left", "right", "third", "uplink")
SETUP = f"""
link set lo up
link add bridge address {MAC.hex(":")} type bridge
link set port master bridge
link set bridge up
addr add 10.8.0.1/24 dev uplink
addr add fd08::1/64 dev uplink nodad
addr add 10.8.1.1/24 dev left
addr add 10.8.2.1/24 dev right
addr add 10.8.3.1/24 dev third
addr add fd08:1::1/64 dev left nodad
addr add fd08:2::1/64 dev right nodad
route add 10.2.0.0/24 dev pod
route add 10.2.0.7 dev other
route add 10.3.0.0/24 dev bridge
route add 10.4.0.0/24 nexthop dev left nexthop via 10.8.2.2 dev right
route add 10.5.0.0/24 via 10.8.0.2
route add unreachable 10.6.0.0/24
route add blackhole 10.7.0.0/24
route add default via 10.8.0.2
nexthop add id 1 via 10.8.3.2 dev third
nexthop add id 2 via 10.8.2.2 dev right
nexthop add id 3 group 1/2
route add 10.9.0.0/24 nhid 3
route add fd02::/64 dev pod
route add fd03::/64 dev bridge
route add fd04::/64 nexthop via fd08:1::2 dev left nexthop via fd08:2::2 dev right
route add fd05::/64 via fd08::2
route add unreachable fd06::/64
route add default via fd08::2 dev uplink
rule add from 198.51.100.9 lookup 100
route add 10.2.0.0/24 dev left table 100
"""
PODS = [
    "10.2.0.2", "10.2.0.7", "10.3.0.2", "10.4.0.2", "10.4.0.3", "10.5.0.2", "10.6.0.2", "10.7.0.2", "10.8.0.1",
    "203.0.113.5", "10.9.0.2", "10.9.0.3", "fd02::2", "fd03::2", "fd04::2", "fd05::2", "fd06::2", "2001:db8::5",
]  # fmt: skip
# The last ones are what clients of the other family are called.
CLIENTS = {
    4: ("198.51.100.1", "198.51.100.9", "192.0.0.7"),
    6: ("2001:db8:1::1", "2001:db8:1::9", "64:ff9b:1::c633:6401"),
}
TARGETS = Targets(
    vips=frozenset({(ip_network("10.96.0.10"), TCP, 80), (ip_network("fd96::10"), TCP, 80)}),
    pods=frozenset((ip_address(each), 0, 0) for each in PODS),
    translated=frozenset({ip_network("64:ff9b:1::/96"), ip_network("192.0.0.0/29")}),
)


def is_place_of(packet: Packet, interface: str) -> bool:
    if str(packet.destination) == "198.51.100.9" and packet.source in ip_network("10.2.0.0/24"):
        return interface in ("left", "right", "third")  # policy routing; the three share routes
    fitting = [each for each in map(ip_network, PLACES) if packet.source in each]
    places = PLACES[str(max(fitting, key=lambda each: each.prefixlen))]
    # `left`, `right` and `third` are one group: each shares a route with the next.
    shared = {"left", "right", "third"}
    return interface in (places | shared if places & shared else places)


class Rig:
    """Programs and maps in the namespace."""

    def __init__(self, stack: ExitStack, workers: int = 1, targets: Targets = TARGETS) -> None:
        self.targets = targets
        self.namespace = PrivateNamespace.create()
        stack.callback(self.namespace.close)
        self.index: dict[str, int] = {}
        self.run(self._set_up)
        self.maps = SteeringMaps(workers)
        stack.callback(self.maps.close)
        self.writer = MapWriter(self.maps)
        keys = (_vip_keys(targets.vips), _pod_keys(targets.pods), _translated_keys(targets.translated))
        self.writer.apply([], itertools.chain(*keys))
        self.writer.set_config(ConfigBit.STRICT, targets.strict_replies)
        self.relations = self.run(lambda: Relations(self.maps.related))
        stack.callback(self.relations.close)
        self.sync()
        self.steer = program.steer(self.index["ku"], workers).load(self.maps.by_name())
        stack.callback(self.steer.close)
        self.guard = program.guard(self.index["ku"], workers).load(self.maps.by_name())
        stack.callback(self.guard.close)

    def run(self, function: Callable[[], Result]) -> Result:
        return self.namespace.run(function)

    def ip(self, *lines: str) -> None:
        for line in lines:
            family = ["-6"] if ":" in line and "nexthop add" not in line and not line.startswith("link") else []
            command = ["ip", *family, *line.split()]
            done = self.run(lambda: subprocess.run(command, capture_output=True, text=True, timeout=10, check=False))  # noqa: B023
            assert done.returncode == 0, (line, done.stderr)

    def _set_up(self) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)

        for name in ("ku", *(each for each in INTERFACES if each != "bridge")):
            ip("link", "add", name, "address", MAC.hex(":"), "type", "veth", "peer", "name", f"{name}-peer")
            ip("link", "set", f"{name}-peer", "up")
            ip("link", "set", name, "up")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        Path("/proc/sys/net/ipv4/conf/ku/forwarding").write_text("1")
        for line in SETUP.split("\n"):
            six = ["-6"] if ":" in line and line.startswith("route") else []
            if line:
                ip(*six, *line.split())
        for name in ("lo", "ku", *INTERFACES):
            self.index[name] = socket.if_nametoindex(name)

    def interfaces(self) -> list[Interface]:
        port = Interface(self.index["port"], "port", True, True, 1500, self.index["bridge"], "bridge")
        return [*(Interface(self.index[each], each, True, True, 1500) for each in INTERFACES if each != "port"), port]

    def sync(self) -> None:
        self.run(lambda: (self.relations.poll(), self.relations.sync(self.interfaces())))

    def outcome(self, data: bytes, interface: str) -> str:
        """By the counters; the verdict must say the same."""
        before = self.maps.read_stats()
        verdict = self.run(lambda: self.steer.test_run(data, self.index[interface])).verdict
        counted = Stats(*(after - old for after, old in zip(self.maps.read_stats(), before, strict=True)))
        ((outcome, number),) = [each for each in counted._asdict().items() if each[1]]
        assert number == 1
        assert verdict == (Verdict.NEXT if outcome in ("foreign", "refused") else Verdict.REDIRECT)
        return {"returned": "return"}.get(outcome, outcome)

    def check(self, data: bytes, interface: str) -> str:
        expected = decide(data, self.targets, frozenset(), interface, is_place_of=is_place_of)
        if expected == "refused" and interface == "port":
            expected = "foreign"  # the bridge will see it
        assert self.outcome(data, interface) == expected, (interface, data.hex())
        return expected


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def rig(stack: ExitStack) -> Rig:
    return Rig(stack)


@pytest.fixture(scope="module")
def several(stack: ExitStack) -> Rig:
    return Rig(stack, workers=3)


def all_kinds(pod: str, client: str) -> list[bytes]:
    """Packets in a pod's name: data, a reset, fragments, an echo's answer, an error about what went to it."""
    if ":" in pod:
        about = frames.ipv6(client, pod, TCP, frames.l4(TCP, 40000, 8080))
        bodies = [
            frames.ipv6(pod, client, TCP, frames.l4(TCP, 8080, 40000)),
            frames.ipv6(pod, client, UDP, frames.l4(UDP, 8080, 40000), [(60, 0, 0)]),
            frames.ipv6(pod, client, UDP, frames.l4(UDP, 8080, 40000), [(44, 0, 1)]),
            frames.ipv6(pod, client, UDP, bytes(16), [(44, 0, 8)]),
            frames.ipv6("2001:db8:ff::1", client, ICMP6, frames.error(about, 2)),
        ]
    else:
        about = frames.ipv4(client, pod, TCP, frames.l4(TCP, 40000, 8080))
        bodies = [
            frames.ipv4(pod, client, TCP, frames.l4(TCP, 8080, 40000)),
            frames.ipv4(pod, client, UDP, frames.l4(UDP, 8080, 40000), options=bytes(4)),
            frames.ipv4(pod, client, UDP, frames.l4(UDP, 8080, 40000), fragment=0x2000),
            frames.ipv4(pod, client, UDP, bytes(16), fragment=8),
            frames.ipv4("203.0.113.1", client, ICMP, frames.error(about, 3, 4)),
        ]
    return [MAC + each[6:] for each in bodies]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("pod", PODS)
def test_replies_come_up_where_their_pod_is(rig: Rig, several: Rig, pod: str, workers: int) -> None:
    one = rig if workers == 1 else several
    seen = set()
    for client in CLIENTS[ip_address(pod).version]:
        for interface in INTERFACES:
            for data in all_kinds(pod, client):
                seen.add(one.check(data, interface))
    assert "refused" in seen


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("version", [4, 6])
def test_no_reply_comes_up_by_a_route_that_steering_has_refused(
    rig: Rig, several: Rig, version: int, workers: int
) -> None:
    """At ku0's egress, whither the node routes what goes to translated clients."""
    one = rig if workers == 1 else several

    def passes(data: bytes, came_from: int) -> bool:
        verdict = one.run(lambda: one.guard.test_run(data, one.index["ku"], came_from)).verdict
        assert verdict in (Verdict.NEXT, Verdict.DROP)
        return verdict == Verdict.NEXT

    first, _, translated = CLIENTS[version]
    for pod in [each for each in PODS if ip_address(each).version == version]:
        for data in all_kinds(pod, translated):
            for interface in INTERFACES:
                expected = decide(data, TARGETS, frozenset(), interface, is_place_of=is_place_of) == "return"
                assert passes(data, one.index[interface]) is expected, (pod, interface)
            assert passes(data, 0), "made here"
            assert not passes(data, one.index["ku"]), "in circles"
        for data in all_kinds(pod, first):
            assert all(passes(data, one.index[each]) for each in INTERFACES), "nothing of that is a reply here"
    pod = "10.2.0.2" if version == 4 else "fd02::2"
    data, *_ = all_kinds(pod, translated)
    one.maps.interfaces.update({_u32(one.index["uplink"]): _u32(version // 2 - 1)})
    try:
        for bits, expected in ((ConfigBit.MARKED, [True, False]), (0, [True, True])):
            one.maps.write_config(bits | ConfigBit.TRANSLATED)
            assert [passes(data, one.index[each]) for each in ("uplink", "pod")] == expected
    finally:
        one.maps.interfaces.delete([_u32(one.index["uplink"])])
        one.maps.write_config(one.writer._config)


def test_which_interfaces_those_are(rig: Rig) -> None:
    """The table at the top in one look, so that the model above is not believed blindly."""

    def places(pod: str, client: str) -> set[str]:
        (data, *_) = all_kinds(pod, client)
        return {each for each in INTERFACES if rig.outcome(data, each) == "return"}

    first, second, translated = CLIENTS[4]
    assert places("10.2.0.2", translated) == {"pod"}
    assert places("10.2.0.2", first) == {"pod"}
    assert places("10.2.0.2", second) == {"left", "right", "third"}
    assert places("10.2.0.7", first) == {"other"}
    assert places("10.3.0.2", first) == {"bridge", "port"}
    assert places("10.5.0.2", first) == places("203.0.113.5", first) == {"uplink"}
    assert places("10.6.0.2", first) == places("10.7.0.2", first) == places("10.8.0.1", first) == set()
    assert places("fd02::2", CLIENTS[6][0]) == places("fd02::2", CLIENTS[6][2]) == {"pod"}
    assert places("fd04::2", CLIENTS[6][0]) == {"left", "right", "third"}


def test_what_goes_to_a_vip_comes_up_from_anywhere(rig: Rig) -> None:
    for interface in INTERFACES:
        to_vip = frames.ipv4("10.2.0.2", "10.96.0.10", TCP, frames.l4(TCP, 8080, 80))
        assert rig.check(MAC + to_vip[6:], interface) == "forward"


def test_a_fragment_for_a_node_address_may_be_a_reply(rig: Rig) -> None:
    """To the source of what is masqueraded: then only its place tells a pod's from a forged one."""
    for field in (0x2000, 9):
        data = MAC + frames.ipv4("10.2.0.2", "10.96.0.10", UDP, frames.l4(UDP, 8080, 40000), fragment=field)[6:]
        assert [rig.check(data, each) for each in ("pod", "uplink", "port")] == ["forward", "refused", "foreign"]
    others = MAC + frames.ipv4("198.51.100.1", "10.96.0.10", UDP, bytes(16), fragment=9)[6:]
    assert rig.check(others, "pod") == "forward"


def test_what_the_node_says_to_itself_is_not_judged(rig: Rig) -> None:
    """A frame at `lo` was made here."""
    data = frames.ipv4("10.8.0.1", "10.8.0.1", TCP, frames.l4(TCP, 8080, 40000))
    assert rig.outcome(data, "lo") == "return"


def test_routes_count_at_once(rig: Rig) -> None:
    """Without anybody telling the program: the kernel's routes are asked, not a copy."""
    (data, *_) = all_kinds("10.2.0.2", CLIENTS[4][0])
    rig.ip("route add 10.2.0.2 dev other")
    try:
        assert (rig.outcome(data, "pod"), rig.outcome(data, "other")) == ("refused", "return")
    finally:
        rig.ip("route del 10.2.0.2 dev other")
    assert (rig.outcome(data, "pod"), rig.outcome(data, "other")) == ("return", "refused")


def test_groups_follow_events(rig: Rig) -> None:
    (data, *_) = all_kinds("10.2.0.7", CLIENTS[4][0])
    rig.ip("route replace 10.2.0.7 nexthop dev other nexthop dev pod")
    try:
        rig.sync()
        assert [rig.outcome(data, each) for each in ("pod", "other", "uplink")] == ["return", "return", "refused"]
    finally:
        rig.ip("route replace 10.2.0.7 dev other")
    rig.sync()
    assert [rig.outcome(data, each) for each in ("pod", "other")] == ["refused", "return"]


def test_the_groups_are_those_that_reading_anew_would_find(rig: Rig) -> None:
    """Whatever was followed by events: routes of several next hops that come, change and go, and nexthop objects."""

    def groups() -> dict[int, int]:
        rig.sync()
        fresh = rig.run(Multipath)
        fresh.close()
        assert rig.relations._multipath.groups() == fresh.groups()
        return fresh.groups()

    before, pod, other = groups(), rig.index["pod"], rig.index["other"]
    steps = [
        ("route add fd10::/64 nexthop via fd08:1::3 dev left nexthop via fd08::3 dev uplink", "uplink"),
        ("route append fd10::/64 via fd08:2::3 dev right", "uplink"),
        ("route del fd10::/64 via fd08::3 dev uplink", ""),
        ("route del fd10::/64", ""),
        ("route add 10.10.0.0/24 nexthop dev pod nexthop dev other", "pod"),
        ("route replace 10.10.0.0/24 dev pod", ""),
        ("route append 10.10.0.0/24 nexthop dev pod nexthop dev other", "pod"),
        ("route flush 10.10.0.0/24", ""),
        ("nexthop add id 10 dev pod", ""),
        ("nexthop add id 11 dev other", ""),
        ("nexthop add id 12 group 10/11", "pod"),
        ("nexthop replace id 11 dev uplink", "pod"),
        ("nexthop del id 12", ""),
        ("nexthop del id 10", ""),
        ("nexthop del id 11", ""),
    ]
    for line, member in steps:
        rig.ip(line)
        found = groups()
        assert (rig.index[member] in found) if member else found == before, line
    assert not {pod, other} & groups().keys()


def test_a_link_that_goes_leaves_its_group(rig: Rig) -> None:
    rig.ip(
        "link add gone type veth peer name gone-peer", "link set gone up", "link set gone-peer up",
        "route add 10.10.0.0/24 nexthop dev gone nexthop dev other",
    )  # fmt: skip
    rig.sync()
    with_it = rig.run(rig.relations._multipath.groups)
    rig.ip("link del gone")
    rig.sync()
    assert rig.index["other"] in with_it
    assert rig.index["other"] not in rig.run(rig.relations._multipath.groups)


def test_a_route_that_encapsulates_does_not_tell(rig: Rig) -> None:
    """The kernel says so, and the reply is taken; forging needs such a route, which is the node's owner's."""
    rig.ip("route add 10.11.0.0/24 encap ip id 7 dst 10.8.0.2 dev uplink")
    keys = list(_pod_keys([(ip_address("10.11.0.2"), 0, 0)]))
    rig.writer.apply([], keys)
    try:
        data, *_ = all_kinds("10.11.0.2", CLIENTS[4][0])
        assert rig.outcome(data, "other") == "return"
    finally:
        rig.writer.apply(keys, [])
        rig.ip("route del 10.11.0.0/24")


@pytest.mark.parametrize("bits", [0, ConfigBit.MARKED, ConfigBit.MARKED | ConfigBit.STRICT])
def test_marks_decide_alone_and_any_means_anywhere(rig: Rig, bits: int) -> None:
    data, *_ = all_kinds("10.2.0.2", CLIENTS[4][0])
    rig.maps.write_config(bits)
    rig.maps.interfaces.update({_u32(rig.index["uplink"]): _u32(1)})
    try:
        expected = ("return", "foreign") if bits else ("return", "return")
        assert (rig.outcome(data, "uplink"), rig.outcome(data, "pod")) == expected
    finally:
        rig.maps.interfaces.delete([_u32(rig.index["uplink"])])
        rig.maps.write_config(rig.writer._config)


def test_without_forwarding_at_ku0_the_kernel_does_not_tell(rig: Rig) -> None:
    def forwarding(family: int, value: str) -> None:
        rig.run(lambda: Path(f"/proc/sys/net/ipv{family}/conf/ku/forwarding").write_text(value))

    for family, pod in ((4, "10.2.0.2"), (6, "fd02::2")):
        data, *_ = all_kinds(pod, CLIENTS[family][0])
        forwarding(family, "0")
        try:
            assert rig.outcome(data, "uplink") == "return"
        finally:
            forwarding(family, "1")
        assert rig.outcome(data, "uplink") == "refused"


@given(st.data())
@settings(max_examples=300)
def test_whatever_comes_in_anywhere(rig: Rig, data: st.DataObject) -> None:
    version = data.draw(st.sampled_from([4, 6]))
    pool = [each for each in PODS if ip_address(each).version == version] + list(CLIENTS[version])
    pool.append("10.96.0.10" if version == 4 else "fd96::10")
    source, destination = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
    protocol = data.draw(st.sampled_from([TCP, UDP, ICMP, ICMP6, 47, 255]))
    l4 = frames.l4(protocol, data.draw(st.sampled_from([80, 8080])), data.draw(st.sampled_from([80, 40000])))
    if version == 4:
        made = frames.ipv4(source, destination, protocol, l4, fragment=data.draw(st.sampled_from([0, 0, 0x2000, 1])))
    else:
        chain = data.draw(st.sampled_from([[], [(60, 0, 0)], [(44, 0, 1)], [(44, 0, 8)]]))
        made = frames.ipv6(source, destination, protocol, l4, chain)
    rig.check(MAC + made[6:], data.draw(st.sampled_from(INTERFACES)))


# --- the flow cache ----------------------------------------------------------------------------------------


class CacheRig:
    """The cache's program with two flows, at pods behind `pod`."""

    def __init__(self, stack: ExitStack, rig: Rig) -> None:
        self.rig = rig
        self.maps = CacheMaps(64)
        stack.callback(self.maps.close)
        self.program = cache(rig.index["ku"]).load({**rig.maps.by_name(), **self.maps.by_name()})
        stack.callback(self.program.close)
        self.ends = np.zeros(2, ENDS)
        for row, (client, vip, pod, version) in zip(
            self.ends,
            [("198.51.100.1", "10.96.0.10", "10.2.0.2", 4), ("2001:db8:1::1", "fd96::10", "fd02::2", 6)],
            strict=True,
        ):
            for name, text in (("client", client), ("vip", vip), ("pod", pod), ("seen", client)):
                row[name] = np.frombuffer(ip_address(text).packed.rjust(16, b"\0"), np.uint8)
            row["client_port"] = row["seen_port"] = 40000
            row["vip_port"], row["pod_port"], row["protocol"], row["family"] = 80, 8080, TCP, version
        self.generation = 0
        self.maps.lease((1 << 63) - 1)
        self.pairs = np.array([1, 2])
        self.renew()

    def renew(self) -> None:
        self.generation += 1
        self.maps.enter(self.pairs, np.full(2, self.generation, np.uint32), self.ends)
        self.maps.allow(self.pairs)

    def verdict(self, data: bytes, interface: str) -> int:
        index = self.rig.index[interface]
        return self.rig.run(lambda: self.program.test_run(MAC + data[6:], index)).verdict

    def came_by(self, pair: int = 1) -> int:
        """The interface that the row of replies has noted."""
        return int(self.maps.rows["came_by"][2 * pair + 1]) & 0xFFFFFFFF


@pytest.fixture(scope="module")
def cached(stack: ExitStack, rig: Rig) -> CacheRig:
    return CacheRig(stack, rig)


def reply(version: int = 4, flags: int = ACK) -> bytes:
    pod, client = ("10.2.0.2", "198.51.100.1") if version == 4 else ("fd02::2", "2001:db8:1::1")
    return frame(tcp(pod, client, 8080, 40000, b"x", flags=flags))


def request(version: int = 4, flags: int = ACK) -> bytes:
    client, vip = ("198.51.100.1", "10.96.0.10") if version == 4 else ("2001:db8:1::1", "fd96::10")
    return frame(tcp(client, vip, 40000, 80, b"x", flags=flags))


@pytest.mark.parametrize("version", [4, 6])
def test_the_cache_rewrites_replies_where_their_pod_is(cached: CacheRig, version: int) -> None:
    cached.renew()
    for _ in range(2):
        for interface in INTERFACES:
            expected = Verdict.REDIRECT if interface == "pod" else Verdict.NEXT
            assert cached.verdict(reply(version), interface) == expected, interface
            assert cached.verdict(request(version), interface) == Verdict.REDIRECT
        assert cached.came_by({4: 1, 6: 2}[version]) == cached.rig.index["pod"]


@pytest.mark.parametrize("flags", [RST, FIN | ACK, RST | ACK])
def test_a_forged_end_closes_nothing(cached: CacheRig, flags: int) -> None:
    cached.renew()
    before = cached.maps.stats().closed
    assert cached.verdict(reply(flags=flags), "uplink") == Verdict.NEXT
    assert cached.maps.stats().closed == before
    assert cached.verdict(reply(), "pod") == cached.verdict(request(), "uplink") == Verdict.REDIRECT
    assert cached.verdict(reply(flags=flags), "pod") == Verdict.NEXT
    assert cached.verdict(reply(), "pod") == cached.verdict(request(), "uplink") == Verdict.NEXT


def test_the_cache_follows_routes(cached: CacheRig) -> None:
    """At once where the pod is now; where it was, for as long as the kernel's word is believed."""
    cached.renew()
    assert cached.verdict(reply(), "pod") == Verdict.REDIRECT
    cached.rig.ip("route add 10.2.0.2 dev other")
    try:
        assert cached.verdict(reply(), "other") == Verdict.REDIRECT
        assert cached.came_by() == cached.rig.index["other"]
        assert cached.verdict(reply(), "pod") == Verdict.NEXT
    finally:
        cached.rig.ip("route del 10.2.0.2 dev other")
    # As if a moment had passed: the row's word is of another one, and the kernel is asked.
    rows = cached.maps.rows
    rows["came_by"][3] -= np.uint64(1 << 32)
    assert cached.verdict(reply(), "other") == Verdict.NEXT
    assert cached.verdict(reply(), "pod") == Verdict.REDIRECT


def test_a_row_that_is_used_again_knows_no_place(cached: CacheRig) -> None:
    cached.renew()
    assert cached.verdict(reply(), "pod") == Verdict.REDIRECT
    cached.renew()
    assert cached.came_by() == 0


def test_marks_decide_alone_in_the_cache_too(cached: CacheRig) -> None:
    cached.renew()
    rig = cached.rig
    rig.maps.interfaces.update({_u32(rig.index["uplink"]): _u32(1)})
    try:
        for bits, expected in ((ConfigBit.MARKED | ConfigBit.STRICT, (True, False)), (0, (True, True))):
            rig.maps.write_config(bits)
            got = tuple(cached.verdict(reply(), each) == Verdict.REDIRECT for each in ("uplink", "pod"))
            assert got == expected
    finally:
        rig.maps.interfaces.delete([_u32(rig.index["uplink"])])
        rig.maps.write_config(rig.writer._config)


# --- plain Python -------------------------------------------------------------------------------------------


def test_sets_with_a_common_member_are_one_group() -> None:
    assert grouped([]) == {}
    groups = grouped(map(frozenset, [{5, 6}, {1, 2}, {6, 7}, {9, 3}, {2, 9}]))
    assert groups == {1: 1, 2: 1, 3: 1, 9: 1, 5: 2, 6: 2, 7: 2}


def test_members_stand_for_their_masters() -> None:
    interfaces = [
        Interface(2, "bridge", True, True, 1500),
        Interface(3, "port", True, True, 1500, 2, "bridge"),
        Interface(4, "inside", True, True, 1500, 9, "vrf"),
        Interface(5, "eth0", True, True, 1500),
    ]
    written = relations(interfaces, {4: 1, 5: 1})
    assert {struct.unpack("=I", key)[0]: struct.unpack("=4I", value) for key, value in written.items()} == {
        3: (2, 1, 0, 0),
        4: (9, 0, 1, 0),  # whose packets no program sees at the master
        5: (0, 0, 1, 0),
    }


def test_udp_has_the_same_place(cached: CacheRig) -> None:
    """What is not in the cache goes up, wherever it comes in."""
    data = frame(udp("10.2.0.2", "198.51.100.1", 8080, 40000, b"x"))
    assert cached.verdict(data, "pod") == cached.verdict(data, "uplink") == Verdict.NEXT
