"""The programs over packets of every kind (BPF_PROG_TEST_RUN), against the model in plain Python."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.errors import SteeringError
from kuproxy.steering import bpf, program
from kuproxy.steering.bpf import LoadedProgram, Verdict, has_tcx
from kuproxy.steering.emit import Program, i32
from kuproxy.steering.flow import MAX_EXTENSIONS
from kuproxy.steering.keys import ConfigBit
from kuproxy.steering.maps import Stats, SteeringMaps
from kuproxy.steering.steering import _u32
from kuproxy.steering.targets import MapWriter, Targets, node_port_keys, pod_keys, translated_keys, vip_keys
from steering import frames
from steering.frames import ICMP, ICMP6, SCTP, TCP, UDP
from steering.model import decide

NODE = frozenset({ip_address("192.0.2.1"), ip_address("2001:db8::1")})
VIPS = [
    ("10.96.0.10", TCP, 80),
    ("10.96.0.10", UDP, 53),
    ("10.96.0.11", 0, 53),
    ("10.96.0.12", 0, 0),
    ("10.96.0.13", ICMP, 0),
    ("90.0.0.0/8", 0, 0),
    ("90.1.0.0/16", TCP, 80),
    ("fd96::10", TCP, 80),
    ("fd96::11", SCTP, 0),
    ("2003::/16", 0, 0),
]
TARGETS = Targets(
    vips=frozenset((ip_network(network), protocol, port) for network, protocol, port in VIPS),
    node_ports=frozenset({(4, TCP, 30080), (6, UDP, 30053)}),
    pods=frozenset(
        {
            (ip_address("10.2.0.2"), TCP, 8080),
            (ip_address("10.2.0.2"), UDP, 5353),
            (ip_address("10.2.0.3"), 0, 0),
            (ip_address("10.2.0.4"), ICMP, 0),
            (ip_address("fd02::2"), TCP, 8080),
        }
    ),
    translated=frozenset({ip_network("64:ff9b:1::/96"), ip_network("192.0.0.0/29")}),
)
MARKED = replace(TARGETS, marks={"lo": 2})

ADDRESSES = {
    4: [
        "10.96.0.10",
        "10.96.0.11",
        "10.96.0.12",
        "10.96.0.13",
        "90.9.9.9",
        "90.1.2.3",
        "192.0.2.1",
        "10.2.0.2",
        "10.2.0.3",
        "10.2.0.4",
        "198.51.100.1",
        "0.0.0.0",
        "192.0.0.7",
        "192.0.0.8",
    ],
    6: [
        "fd96::10", "fd96::11", "2003::1", "2001:db8::1", "fd02::2",
        "2001:db8:1::1", "::10.96.0.10", "::1", "64:ff9b:1::1",
    ],
}
PORTS = [80, 53, 8080, 5353, 30080, 30053, 0, 20480]  # 20480 is 80 with its bytes swapped
PROTOCOLS = [TCP, UDP, SCTP, ICMP, ICMP6, 47, 0, 255, 59]


class Rig:
    """The program `steer` with its maps filled for some targets; the interface is `lo`."""

    def __init__(self, stack: ExitStack, targets: Targets, workers: int = 1) -> None:
        self.targets = targets
        self.maps = SteeringMaps(workers)
        stack.callback(self.maps.close)
        self.writer = MapWriter(self.maps)
        self.writer.apply(
            [],
            [
                *vip_keys(targets.vips),
                *pod_keys(targets.pods),
                *node_port_keys(targets.node_ports, NODE),
                *translated_keys(targets.translated),
            ],
        )
        if targets.marks is not None:
            self.maps.interfaces.update({_u32(1): _u32(targets.marks["lo"])})
            self.writer.set_config(ConfigBit.MARKED, True)
        self.writer.set_config(ConfigBit.LOCAL_PODS, True)
        self.steer = program.steer(1, workers).load(self.maps.by_name())
        stack.callback(self.steer.close)
        self.reply = program.reply(1, workers).load(self.maps.by_name())
        stack.callback(self.reply.close)

    def outcome(self, frame: bytes) -> str:
        """By the counters; the verdict must say the same."""
        before = self.maps.read_stats()
        verdict = self.steer.test_run(frame).verdict
        counted = Stats(*(after - old for after, old in zip(self.maps.read_stats(), before, strict=True)))
        assert sum(counted) == 1
        assert verdict == (Verdict.NEXT if counted.foreign or counted.refused else Verdict.REDIRECT)
        (outcome,) = [name for name, number in counted._asdict().items() if number]
        return {"returned": "return"}.get(outcome, outcome)

    def check(self, frame: bytes) -> str:
        expected = decide(frame, self.targets, NODE, "lo", to_host=frame[:6] == frames.HOST)
        assert self.outcome(frame) == expected, frame.hex()
        return expected


pytestmark = pytest.mark.netns  # loading a program needs the same privilege


@pytest.fixture(scope="module")
def rig(stack: ExitStack) -> Rig:
    return Rig(stack, TARGETS)


@pytest.fixture(scope="module")
def marked(stack: ExitStack) -> Rig:
    return Rig(stack, MARKED, workers=3)


def test_what_a_user_expects(rig: Rig) -> None:
    client, pod = "198.51.100.1", "10.2.0.2"
    to_vip = frames.ipv4(client, "10.96.0.10", TCP, frames.l4(TCP, 40000, 80))
    assert rig.check(to_vip) == "forward"
    assert rig.check(frames.ipv4(client, "10.96.0.10", TCP, frames.l4(TCP, 40000, 81))) == "foreign"
    assert rig.check(frames.ipv4(pod, client, TCP, frames.l4(TCP, 8080, 40000))) == "return"
    assert rig.check(frames.ipv4(pod, client, TCP, frames.l4(TCP, 22, 40000))) == "foreign"
    assert rig.check(frames.ipv4(client, "192.0.2.1", TCP, frames.l4(TCP, 40000, 30080))) == "forward"
    assert rig.check(frames.ipv4(client, "192.0.2.1", TCP, frames.l4(TCP, 40000, 22))) == "foreign"
    assert rig.check(frames.ipv4(client, "90.9.9.9", 47, b"\0" * 8)) == "forward"
    assert rig.check(frames.ipv4(client, "10.96.0.12", ICMP, frames.l4(ICMP, 0, 0))) == "forward"
    assert rig.check(frames.ipv4(client, "10.96.0.10", ICMP, frames.l4(ICMP, 0, 0))) == "foreign"
    ipv6 = frames.ipv6("2001:db8:1::1", "fd96::10", TCP, frames.l4(TCP, 40000, 80))
    assert rig.check(ipv6) == "forward"
    assert rig.check(frames.OTHER_HOST + to_vip[6:]) == "foreign"
    assert rig.check(b"\xff" * 6 + to_vip[6:]) == "foreign"  # broadcast


def test_what_goes_to_translated_clients_is_a_reply(rig: Rig, marked: Rig) -> None:
    """Of whatever protocol and port, and of whomever; so it needs a mark, and has its worker by its destination."""
    to = {each: frames.ipv6("fd02::9", each, UDP, frames.l4(UDP, 9, 9)) for each in ("64:ff9b:1::1", "64:ff9b:2::1")}
    four = {each: frames.ipv4("10.2.0.9", each, 47, bytes(8)) for each in ("192.0.0.7", "192.0.0.8")}
    assert [rig.check(each) for each in (*to.values(), *four.values())] == ["return", "foreign"] * 2
    assert [marked.check(each) for each in (*to.values(), *four.values())] == ["return", *["foreign"] * 3]


def test_every_fragment_goes_by_address(rig: Rig) -> None:
    for field in (0x2000, 0x2001, 0x0001, 0x1FFF):
        data = frames.l4(UDP, 1, 2)
        assert rig.check(frames.ipv4("198.51.100.1", "10.96.0.10", UDP, data, fragment=field)) == "forward"
        assert rig.check(frames.ipv4("10.2.0.2", "198.51.100.1", UDP, data, fragment=field)) == "return"
        assert rig.check(frames.ipv4("198.51.100.1", "10.2.0.2", UDP, data, fragment=field)) == "foreign"
    for field in (0x4000, 0x8000):  # "don't fragment" and the reserved bit make no fragment
        assert (
            rig.check(frames.ipv4("198.51.100.1", "10.96.0.10", UDP, b"\0" * 8, fragment=field)) == "foreign"
        )
    for field, expected in ((1, "forward"), (8, "forward"), (0, "foreign"), (6, "foreign")):
        frame = frames.ipv6("2001:db8:1::1", "fd96::10", TCP, frames.l4(TCP, 1, 2), [(44, 0, field)])
        assert rig.check(frame) == expected


@pytest.mark.parametrize("count", range(7))
@pytest.mark.parametrize("kind", [0, 43, 44, 60])
def test_extension_headers_are_skipped_up_to_four(rig: Rig, kind: int, count: int) -> None:
    chain = [(kind, 0 if kind == 44 else index % 3, 0) for index in range(count)]
    frame = frames.ipv6("2001:db8:1::1", "fd96::10", TCP, frames.l4(TCP, 40000, 80), chain)
    assert rig.check(frame) == ("forward" if count <= MAX_EXTENSIONS else "foreign")


@pytest.mark.parametrize("words", range(11))
def test_options_are_skipped(rig: Rig, words: int) -> None:
    frame = frames.ipv4("1.1.1.1", "10.96.0.10", TCP, frames.l4(TCP, 1, 80), options=b"\1\1\1\1" * words)
    assert rig.check(frame) == "forward"


def test_truncated_at_every_length(rig: Rig, marked: Rig) -> None:
    whole = [
        frames.ipv4("198.51.100.1", "10.96.0.10", TCP, frames.l4(TCP, 4, 80), options=b"\1" * 8),
        frames.ipv4("10.2.0.2", "198.51.100.1", UDP, frames.l4(UDP, 5353, 4)),
        frames.ipv6("2001:db8:1::1", "fd96::10", TCP, frames.l4(TCP, 4, 80), [(0, 1, 0), (44, 0, 0)]),
        frames.ipv6("fd02::2", "2001:db8:1::1", TCP, frames.l4(TCP, 8080, 4), [(60, 0, 0), (44, 0, 1)]),
    ]
    seen = set()
    for frame in whole:
        # The kernel refuses test runs of frames that end inside the IP header; netns/test_steering sends those.
        least = 14 + (20 if frame[12] == 8 else 40)
        for length in range(least, len(frame)):
            for each in (rig, marked):
                seen.add(each.check(frame[:length]))
            with_junk = bytearray(frame[:length])
            with_junk[14] ^= 0x30  # another version
            rig.check(bytes(with_junk))
    assert seen == {"forward", "return", "foreign"}


CLIENT, ROUTER, POD = "198.51.100.1", "203.0.113.1", "10.2.0.2"
CLIENT6, ROUTER6, POD6 = "2001:db8:1::1", "2001:db8:2::1", "fd02::2"
TO_POD = frames.ipv4(CLIENT, POD, TCP, frames.l4(TCP, 40000, 8080))
TO_POD6 = frames.ipv6(CLIENT6, POD6, TCP, frames.l4(TCP, 40000, 8080))
FROM_VIP = frames.ipv4("10.96.0.10", CLIENT, TCP, frames.l4(TCP, 80, 40000))
FROM_VIP6 = frames.ipv6("fd96::10", CLIENT6, TCP, frames.l4(TCP, 80, 40000))


def error4(about: bytes, kind: int = 3, to: str = CLIENT, **quoted: int) -> bytes:
    return frames.ipv4(ROUTER, to, ICMP, frames.error(about, kind, **quoted))


def error6(about: bytes, kind: int = 2, to: str = CLIENT6, **quoted: int) -> bytes:
    return frames.ipv6(ROUTER6, to, ICMP6, frames.error(about, kind, **quoted))


def test_errors_go_by_the_packet_that_they_embed(rig: Rig) -> None:
    """From a router behind the pod, about what went to it; from one before the client, about what we sent to it."""
    assert rig.check(error4(TO_POD)) == "return"
    assert rig.check(error6(TO_POD6)) == "return"
    assert rig.check(error4(FROM_VIP, to="10.96.0.10")) == "forward"
    assert rig.check(error6(FROM_VIP6, to="fd96::10")) == "forward"
    node_port = frames.ipv4("192.0.2.1", CLIENT, TCP, frames.l4(TCP, 30080, 40000))
    assert rig.check(error4(node_port, to="192.0.2.1")) == "forward"
    to_other_port = frames.ipv4(CLIENT, POD, TCP, frames.l4(TCP, 40000, 22))
    assert rig.check(error4(to_other_port)) == "foreign"
    to_others = frames.ipv4(CLIENT, ROUTER, TCP, frames.l4(TCP, 40000, 8080))
    assert rig.check(error4(to_others)) == "foreign"
    # By a pod, but about a packet that has nothing to do with it; to a VIP, but not about its packet.
    assert rig.check(frames.ipv4("10.2.0.3", CLIENT, ICMP, frames.error(to_others, 3))) == "foreign"
    assert rig.check(error4(to_others, to="10.96.0.12")) == "foreign"
    assert rig.check(error4(TO_POD, to=ROUTER)) == "foreign"  # not to whom it concerns


@pytest.mark.parametrize("kind", [*range(20), 127, 128, 129, 130, 135, 137, 138, 255])
def test_only_errors_embed_something(rig: Rig, kind: int) -> None:
    assert rig.check(error4(TO_POD, kind)) == ("return" if kind in (3, 4, 5, 11, 12) else "foreign")
    assert rig.check(error6(TO_POD6, kind)) == ("return" if kind < 128 else "foreign")


def test_the_embedded_packet_with_options_and_extensions(rig: Rig) -> None:
    for words in range(11):
        about = frames.ipv4(CLIENT, POD, TCP, frames.l4(TCP, 40000, 8080), options=b"\1" * 4 * words)
        assert rig.check(error4(about)) == "return"
        outer = frames.ipv4(ROUTER, CLIENT, ICMP, frames.error(about, 3), options=b"\1" * 4 * words)
        assert rig.check(outer) == "return"
    for count in range(6):
        chain = [(kind, 0 if kind == 44 else 1, 0) for kind in (0, 60, 43, 44, 60, 0)[:count]]
        about = frames.ipv6(CLIENT6, POD6, TCP, frames.l4(TCP, 40000, 8080), chain)
        expected = "return" if count <= MAX_EXTENSIONS else "foreign"
        assert rig.check(error6(about)) == expected
        outer = frames.ipv6(ROUTER6, CLIENT6, ICMP6, frames.error(TO_POD6, 2), chain)
        assert rig.check(outer) == expected


def test_embedded_fragments(rig: Rig) -> None:
    """A first one says which flow it is of, a later one does not."""
    data = frames.l4(UDP, 40000, 5353)
    for field, expected in ((0x2000, "return"), (0x2001, "foreign"), (0x0001, "foreign"), (0x4000, "return")):
        assert rig.check(error4(frames.ipv4(CLIENT, POD, UDP, data, fragment=field))) == expected
    data = frames.l4(TCP, 40000, 8080)
    for field, expected in ((1, "return"), (9, "foreign"), (8, "foreign"), (0, "return")):
        assert rig.check(error6(frames.ipv6(CLIENT6, POD6, TCP, data, [(44, 0, field)]))) == expected


def test_errors_cut_at_every_length(rig: Rig, marked: Rig) -> None:
    options = frames.ipv4(CLIENT, POD, TCP, frames.l4(TCP, 40000, 8080), options=b"\1" * 8)
    extensions = frames.ipv6(CLIENT6, POD6, TCP, frames.l4(TCP, 40000, 8080), [(60, 1, 0), (44, 0, 1)])
    for about, build, least in ((options, error4, 28 + 8), (extensions, error6, 40 + 16 + 8 + 8)):
        for length in range(len(about) - 14):
            frame = build(about, length=length)
            assert rig.check(frame) == ("return" if length >= least else "foreign")
            marked.check(frame)
        for length in range(34 if build is error4 else 54, 14 + 48):  # within the outer headers
            assert rig.check(build(about)[:length]) == "foreign"


def test_echo_of_pods(rig: Rig) -> None:
    """Replies come up only of pods that echo requests are handed to; what a pod itself asks never does."""
    reply = bytes(16)
    request = bytes([8]) + bytes(15)
    for pod, expected in ((POD, "foreign"), ("10.2.0.3", "return"), ("10.2.0.4", "return")):
        assert rig.check(frames.ipv4(pod, CLIENT, ICMP, reply)) == expected
        assert rig.check(frames.ipv4(pod, CLIENT, ICMP, request)) == "foreign"
        assert rig.check(frames.ipv4(CLIENT, pod, ICMP, request)) == "foreign"
        about = frames.ipv4(CLIENT, pod, ICMP, request)
        assert rig.check(error4(about)) == expected
        assert rig.check(frames.ipv4(pod, "10.96.0.13", ICMP, request)) == "forward"


@pytest.mark.parametrize("kind", [0x0806, 0x8100, 0x88CC, 0x0800 ^ 1])
def test_not_ip_is_foreign(rig: Rig, kind: int) -> None:
    inner = frames.ipv4("198.51.100.1", "10.96.0.10", TCP, frames.l4(TCP, 4, 80))[14:]
    assert rig.check(frames.ethernet(inner, kind)) == "foreign"


@st.composite
def embedded(draw: st.DrawFn, family: int, sender: str) -> bytes:
    """What an error to `sender` embeds; now and then a packet that somebody else sent."""
    source = sender if draw(st.integers(0, 4)) else draw(st.sampled_from(ADDRESSES[family]))
    destination = draw(st.sampled_from(ADDRESSES[family]))
    protocol = draw(st.sampled_from(PROTOCOLS))
    payload = frames.l4(protocol, draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS)))
    if family == 4:
        field = draw(st.sampled_from([0, 0, 0x4000, 0x2000, 0x0010]))
        return frames.ipv4(source, destination, protocol, payload, b"\1" * 4 * draw(st.integers(0, 2)), field)
    extension = st.tuples(st.sampled_from([0, 43, 44, 60]), st.integers(0, 1), st.sampled_from([0, 1, 8]))
    return frames.ipv6(source, destination, protocol, payload, draw(st.lists(extension, max_size=5)))


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Anything, but mostly near the targets; now and then with a byte changed, or cut short."""
    family = draw(st.sampled_from([4, 6]))
    source, destination = (draw(st.sampled_from(ADDRESSES[family])) for _ in range(2))
    protocol = draw(st.sampled_from(PROTOCOLS))
    payload = frames.l4(protocol, draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS)))
    if protocol in (ICMP, ICMP6) and draw(st.booleans()):
        about = draw(embedded(family, destination))
        payload = frames.error(about, draw(st.sampled_from([3, 4, 11, 1, 2, 0, 129])))
    to = draw(st.sampled_from([frames.HOST] * 7 + [frames.OTHER_HOST]))
    if family == 4:
        field = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 0x0010, 0x3FFF]))
        options = b"\1" * 4 * draw(st.integers(0, 10))
        frame = frames.ipv4(source, destination, protocol, payload, options, field, to)
        least = 34
    else:
        extension = st.tuples(
            st.sampled_from([0, 43, 44, 60]), st.integers(0, 3), st.sampled_from([0, 1, 6, 8])
        )
        frame = frames.ipv6(source, destination, protocol, payload, draw(st.lists(extension, max_size=6)), to)
        least = 54
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(14, len(frame) - 1))
        frame = frame[:place] + bytes([draw(st.integers(0, 255))]) + frame[place + 1 :]
    if draw(st.integers(0, 4)) == 0:
        frame = frame[: draw(st.integers(least, len(frame)))]
    return frame


@given(packets())
def test_agrees_with_the_model(rig: Rig, marked: Rig, frame: bytes) -> None:
    rig.check(frame)
    marked.check(frame)


def test_replies_of_the_node_itself(rig: Rig) -> None:
    """The program at the egress sees only returns, and only what was made here."""
    frame = frames.ipv4("10.2.0.2", "198.51.100.1", TCP, frames.l4(TCP, 8080, 40000))
    assert rig.reply.test_run(frame).verdict == Verdict.REDIRECT
    assert rig.reply.test_run(frame, ingress_ifindex=1).verdict == Verdict.NEXT
    to_vip = frames.ipv4("198.51.100.1", "10.96.0.10", TCP, frames.l4(TCP, 40000, 80))
    assert rig.reply.test_run(to_vip).verdict == Verdict.NEXT


def test_errors_of_the_node_itself(stack: ExitStack) -> None:
    """They come up although no pod has an address of the node, and although its interface is not marked."""
    rig = Rig(stack, Targets(TARGETS.vips, TARGETS.node_ports, TARGETS.pods, marks={"lo": 0}))
    rig.writer.set_config(ConfigBit.LOCAL_PODS, False)
    for error in (error4(TO_POD), error6(TO_POD6)):
        assert rig.reply.test_run(error).verdict == Verdict.REDIRECT
        assert rig.reply.test_run(error, ingress_ifindex=1).verdict == Verdict.NEXT
    to_others = frames.ipv4(CLIENT, ROUTER, TCP, frames.l4(TCP, 40000, 8080))
    assert rig.reply.test_run(error4(to_others)).verdict == Verdict.NEXT
    reply = frames.ipv4(POD, CLIENT, TCP, frames.l4(TCP, 8080, 40000))
    assert rig.reply.test_run(reply).verdict == Verdict.NEXT


def test_the_guard_stops_circles(stack: ExitStack) -> None:
    maps = SteeringMaps(workers=2)
    stack.callback(maps.close)
    for workers in (1, 2):
        guard: LoadedProgram = program.guard(1, workers).load(maps.by_name())
        stack.callback(guard.close)
        frame = frames.ipv4("198.51.100.1", "10.96.0.10", TCP, frames.l4(TCP, 40000, 80))
        assert guard.test_run(frame).verdict == Verdict.NEXT
        assert guard.test_run(frame, ingress_ifindex=1).verdict == Verdict.DROP


def test_frames_are_not_changed(rig: Rig) -> None:
    frame = frames.ipv4("198.51.100.1", "10.96.0.10", TCP, frames.l4(TCP, 40000, 80))
    assert rig.steer.test_run(frame).frame == frame


def test_the_verifiers_words_are_in_the_error() -> None:
    bad = Program("bad")
    place = bad.look_up("counts", bad.buffer(4))
    bad.leave(bad.value(place, i32))  # without asking whether it is null
    maps = SteeringMaps()
    try:
        with pytest.raises(SteeringError, match="map_value_or_null"):
            bad.load(maps.by_name())
    finally:
        maps.close()


def test_this_kernel_has_tcx() -> None:
    drop = program.drop().load()
    try:
        assert has_tcx(drop)
    finally:
        drop.close()


@pytest.mark.parametrize(("code", "expected"), [(errno.ENODEV, True), (errno.EINVAL, False)])
def test_kernels_without_tcx_are_recognized(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    drop = program.drop().load()
    monkeypatch.setattr(bpf, "_bpf", refuse)
    assert has_tcx(drop) is expected
    drop.close()


def test_helpers_are_older_than_tcx() -> None:
    """Linux 6.6 is needed for TCX; nothing that the programs call may need more."""
    for build in (program.steer, program.reply, program.guard):
        for version in build(1, 2).needs.values():
            assert tuple(map(int, version.split("."))) <= (6, 6)


def test_workers_share_clients_evenly() -> None:
    """Addresses and ports that follow each other, as clients' do."""
    for client in ("10.0.0.1", "2001:db8::1"):
        for workers in (2, 3, 4):
            shares = [0] * workers
            for port in range(1000):
                shares[program.worker_of(ip_address(client), 32768 + port, workers)] += 1
            for offset in range(1000):
                shares[program.worker_of(ip_address(client) + offset, 40000, workers)] += 1
            assert min(shares) > 2000 / workers * 0.8
