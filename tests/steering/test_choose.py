"""Which worker gets a packet: BPF over frames of every kind, Python, kernels and the reference say the same."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import packets
from kuproxy.dataplane import worker_choice
from kuproxy.dataplane._jit import kernel
from kuproxy.reference import ports as reference_ports
from kuproxy.steering.bpf import LoadedProgram
from kuproxy.steering.choose import FRAGMENT_NS, choose_worker, worker_of
from kuproxy.steering.emit import Program
from kuproxy.steering.flow import MAX_EXTENSIONS, read_flow
from kuproxy.steering.maps import SteeringMaps
from steering import frames
from steering.frames import ICMP, ICMP6, SCTP, TCP, UDP
from steering.model import parse
from steering.spread import Spread, piece_of
from steering.test_program import error4, error6
from steering.test_program import packets as any_frame

CLIENT, VIP, POD = "198.51.100.1", "10.96.0.10", "10.2.0.2"
CLIENT6, VIP6 = "2001:db8:1::1", "fd96::10"

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
protocols = st.sampled_from([TCP, UDP, SCTP, ICMP, ICMP6, 47, 50])


@kernel
def _in_kernel(lo, port, protocol, workers):
    return worker_choice.worker_of(lo, port, protocol, workers)


def in_kernel(client: IPv4Address | IPv6Address, port: int, protocol: int, workers: int) -> int:
    lo = np.uint64(int.from_bytes(client.packed.rjust(16, b"\0")[8:], "little"))
    counted = port if protocol in (TCP, UDP, SCTP) else 0
    return int(_in_kernel(lo, counted, protocol, workers))


@given(addresses, st.integers(0, 65535), protocols, st.integers(1, 64))
def test_all_say_the_same(client, port: int, protocol: int, workers: int) -> None:
    expected = reference_ports.worker_of(client, port, protocol, workers)
    assert 0 <= expected < workers
    assert worker_of(client, port, workers, protocol) == expected
    assert in_kernel(client, port, protocol, workers) == expected


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.integers(2, 64))
def test_the_nat46_form_of_a_client_has_its_worker(client: IPv4Address, port: int, workers: int) -> None:
    mapped = IPv6Address(int(IPv6Address("64:ff9b:1::")) + int(client))
    assert worker_of(mapped, port, workers) == worker_of(client, port, workers)


class Probe:
    """A program that does nothing but choose, and says whom: -1 for what cannot be read."""

    def __init__(self, stack: ExitStack, workers: int) -> None:
        self.workers = workers
        self.maps = SteeringMaps(workers)
        stack.callback(self.maps.close)
        self.forward, self.back = (self._load(stack, forward) for forward in (True, False))

    def _load(self, stack: ExitStack, forward: bool) -> LoadedProgram:
        program = Program("ku_probe")
        foreign = program.label("foreign")
        flow = read_flow(program, foreign, fragments=True)
        if forward:
            choose_worker(program, flow, flow.SOURCE, flow.SOURCE_PORT, self.workers)
        else:
            choose_worker(program, flow, flow.DESTINATION, flow.DESTINATION_PORT, self.workers)
        program.leave(program.context("queue_mapping"))
        program.at(foreign)
        program.leave(0)
        loaded = program.load(self.maps.by_name())
        stack.callback(loaded.close)
        return loaded

    def worker_of(self, frame: bytes, forward: bool) -> int:
        program = self.forward if forward else self.back
        return program.test_run(frame).verdict - 1


@pytest.fixture(scope="module")
def probe() -> Iterator[Callable[[int], Probe]]:
    with ExitStack() as stack:
        made: dict[int, Probe] = {}

        def get(workers: int) -> Probe:
            if workers not in made:
                made[workers] = Probe(stack, workers)
            return made[workers]

        yield get


netns = pytest.mark.netns  # loading a program needs the same privilege


def pieces_of(datagram: packets.Datagram, identification: int, size: int = 64) -> list[bytes]:
    return packets.fragments(datagram, size, identification=identification)


def datagram(version: int, port: int, forward: bool = True) -> packets.Datagram:
    client, vip = (CLIENT, VIP) if version == 4 else (CLIENT6, VIP6)
    if forward:
        return packets.udp(client, vip, port, 53, bytes(200))
    return packets.udp(vip, client, 53, port, bytes(200))


def ports_by_worker(version: int, workers: int) -> dict[int, int]:
    """A port of the client for each worker, none of them the one that port 0 leads to."""
    client = ip_address(CLIENT if version == 4 else CLIENT6)
    return {worker_of(client, port, workers): port for port in range(20000, 20100)}


@netns
@pytest.mark.parametrize("workers", [2, 3, 7])
def test_whole_packets(probe, workers: int) -> None:
    one = probe(workers)
    for number in range(300):
        for client, vip in ((CLIENT, VIP), (CLIENT6, VIP6)):
            address = ip_address(client) + number
            protocol = (TCP, UDP, SCTP)[number % 3]
            build = frames.ipv4 if address.version == 4 else frames.ipv6
            there = build(str(address), vip, protocol, frames.l4(protocol, 30000 + number, 80))
            back = build(vip, str(address), protocol, frames.l4(protocol, 80, 30000 + number))
            expected = worker_of(address, 30000 + number, workers)
            assert one.worker_of(there, True) == one.worker_of(back, False) == expected


@netns
def test_errors_go_where_their_flow_goes(probe) -> None:
    one = probe(3)
    spread = set()
    for port in range(40000, 40020):
        to_pod = frames.ipv4(CLIENT, POD, TCP, frames.l4(TCP, port, 8080))
        to_client = frames.ipv4(VIP, CLIENT, TCP, frames.l4(TCP, 80, port))
        expected = worker_of(ip_address(CLIENT), port, 3)
        assert one.worker_of(error4(to_pod), False) == expected
        assert one.worker_of(error4(to_client, to=VIP), True) == expected
        spread.add(expected)
    assert spread == {0, 1, 2}
    echo = frames.ipv4(CLIENT, POD, ICMP, frames.l4(ICMP, 0, 0))
    assert one.worker_of(error4(echo), False) == 0


@netns
def test_icmp_is_worker_0s(probe) -> None:
    one = probe(7)
    for number in range(20):
        address = str(ip_address(CLIENT) + number)
        request = packets.frame(packets.echo(address, VIP, number))
        assert one.worker_of(request, True) == one.worker_of(packets.reply_to(request), False) == 0
        for piece in reversed(pieces_of(packets.echo(address, VIP, number, data=bytes(300)), number)):
            assert one.worker_of(piece, True) == 0
    for number in range(20):
        address = str(ip_address(CLIENT6) + number)
        for piece in reversed(pieces_of(packets.echo(address, VIP6, number, data=bytes(300)), number)):
            assert one.worker_of(piece, True) == 0


@netns
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("forward", [True, False])
def test_fragments_in_order_follow_their_flow(probe, version: int, forward: bool) -> None:
    one = probe(3)
    for identification, (worker, port) in enumerate(ports_by_worker(version, 3).items(), start=1000):
        pieces = pieces_of(datagram(version, port, forward), identification)
        assert len(pieces) == 4
        assert [one.worker_of(piece, forward) for piece in pieces] == [worker] * 4
        assert [one.worker_of(piece, forward) for piece in pieces] == [worker] * 4  # the same, repeated


@netns
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("forward", [True, False])
def test_fragments_reversed_stay_together(probe, version: int, forward: bool) -> None:
    one = probe(3)
    client = ip_address(CLIENT if version == 4 else CLIENT6)
    expected = worker_of(client, 0, 3)
    for identification, port in enumerate(ports_by_worker(version, 3).values(), start=2000):
        pieces = pieces_of(datagram(version, port, forward), identification)[::-1]
        assert [one.worker_of(piece, forward) for piece in pieces] == [expected] * 4


@netns
@pytest.mark.parametrize("version", [4, 6])
def test_fragments_of_many_datagrams_interleaved(probe, version: int) -> None:
    one = probe(3)
    ports = ports_by_worker(version, 3)
    columns = [
        pieces_of(datagram(version, port), identification)
        for identification, port in enumerate(ports.values(), start=3000)
    ]
    for row in zip(*columns, strict=True):
        assert [one.worker_of(piece, True) for piece in row] == list(ports)


@netns
@pytest.mark.parametrize("version", [4, 6])
def test_an_identification_used_again_is_another_datagram(probe, version: int) -> None:
    """Its first fragment says so at once; a later one that comes first, after the time of kp-fragment."""
    one = probe(3)
    client = ip_address(CLIENT if version == 4 else CLIENT6)
    for worker, port in ports_by_worker(version, 3).items():
        pieces = pieces_of(datagram(version, port), 4000)
        assert {one.worker_of(piece, True) for piece in pieces} == {worker}
    away = next(
        port for worker, port in ports_by_worker(version, 3).items() if worker != worker_of(client, 0, 3)
    )
    first, later, *_ = pieces_of(datagram(version, away), 4001)
    assert one.worker_of(first, True) == one.worker_of(later, True) == worker_of(client, away, 3)
    fragments = one.maps.by_name()["fragments"]
    piece = piece_of(later)
    assert piece is not None
    source, destination, identification, protocol, family = piece.datagram
    key = struct.pack(
        "16s16s4sBBxx",
        source.rjust(16, b"\0"),
        destination.rjust(16, b"\0"),
        identification.ljust(4, b"\0"),
        protocol,
        2 if family == 6 else 0,
    )
    (value,) = struct.unpack("=Q", fragments.lookup(key) or b"")
    assert value & 0x1FF == 0x100 | worker_of(client, away, 3)
    assert 0 <= time.monotonic_ns() - value < FRAGMENT_NS
    fragments.update({key: struct.pack("=Q", value - FRAGMENT_NS)})
    assert one.worker_of(later, True) == worker_of(client, 0, 3)


@netns
def test_families_protocols_and_ends_are_told_apart(probe) -> None:
    """Of datagrams with one identification, each has its own worker."""
    one = probe(7)
    away = next(port for port in range(20000, 20100) if worker_of(ip_address(CLIENT), port, 7) == 5)
    mine, *_ = pieces_of(packets.udp(CLIENT, VIP, away, 53, bytes(200)), 5000)
    assert one.worker_of(mine, True) == 5
    at_port_0 = worker_of(ip_address(CLIENT), 0, 7)
    assert at_port_0 != 5
    for other in (
        packets.udp(CLIENT, "10.96.0.11", away, 53, bytes(200)),
        packets.tcp(CLIENT, VIP, away, 53, bytes(200)),
    ):
        assert one.worker_of(pieces_of(other, 5000)[1], True) == at_port_0
    elsewhere = packets.udp(f"::{CLIENT}", f"::{VIP}", away, 53, bytes(200))
    assert one.worker_of(pieces_of(elsewhere, 5000)[1], True) == at_port_0


@netns
def test_first_fragments_behind_extensions(probe) -> None:
    one = probe(7)
    port = next(port for port in range(20000, 20100) if worker_of(ip_address(CLIENT6), port, 7) == 3)
    data = frames.l4(UDP, port, 53)
    for before in range(MAX_EXTENSIONS):
        for behind in range(MAX_EXTENSIONS + 1):
            chain = [(60, 1, 0)] * before + [(44, 0, 1)] + [(60, 1, 0)] * behind
            frame = frames.ipv6(CLIENT6, VIP6, UDP, data, chain)
            assert one.worker_of(frame, True) == 3
    too_many = [(44, 0, 1)] + [(60, 0, 0)] * (MAX_EXTENSIONS + 1)
    frame = frames.ipv6(CLIENT6, VIP6, UDP, data, too_many)
    assert one.worker_of(frame, True) == worker_of(ip_address(CLIENT6), 0, 7)
    assert parse(frame) is not None  # it is still steered


@netns
@given(st.integers(0, 2**32))
def test_agrees_with_the_model(probe, seed: int) -> None:
    """Fragments of several datagrams in any order, some twice, some never; in both directions."""
    rng = Random(seed)
    one, spread = probe(3), Spread(3)
    sent: list[tuple[bytes, bool]] = []
    for _ in range(rng.randrange(1, 5)):
        forward = rng.random() < 0.5
        client = rng.choice([CLIENT, CLIENT6, "203.0.113.9", "2001:db8:2::9"])
        server = VIP if "." in client else VIP6
        ports = rng.randrange(1024, 65536), 53
        ends = (client, server, *ports) if forward else (server, client, *ports[::-1])
        size = rng.choice([40, 64, 128])
        kind = rng.choice(["udp", "tcp", "sctp", "gre"])
        if kind == "gre":
            whole = packets.other(ends[0], ends[1], data=bytes(200))
        else:
            whole = getattr(packets, kind)(*ends, bytes(200))
        identification = rng.randrange(1 << 16) if "." in client else rng.randrange(1 << 32)
        pieces = pieces_of(whole, identification, size)
        sent += [(piece, forward) for piece in rng.choices(pieces, k=len(pieces) + 2)]
    rng.shuffle(sent)
    for frame, forward in sent:
        now_s = time.monotonic()
        assert one.worker_of(frame, forward) == spread.worker_of(frame, forward, now_s), frame.hex()


@netns
@given(any_frame(), st.booleans())
def test_agrees_with_the_model_about_anything(probe, frame: bytes, forward: bool) -> None:
    """Identifications repeat, so the model does not know what came before: only whole packets are compared."""
    one = probe(7)
    got = one.worker_of(frame, forward)
    expected = Spread(7).worker_of(frame, forward, 0.0)
    packet = parse(frame)
    assert (got < 0) == (expected is None), frame.hex()
    if packet is not None and not packet.fragment:
        assert got == expected, frame.hex()


def test_one_worker_costs_nothing() -> None:
    maps = SteeringMaps()
    try:
        assert "fragments" not in maps.by_name()
    finally:
        maps.close()


@netns
def test_errors_in_ipv6(probe) -> None:
    one = probe(3)
    to_pod = frames.ipv6(CLIENT6, "fd02::2", TCP, frames.l4(TCP, 40001, 8080))
    assert one.worker_of(error6(to_pod), False) == worker_of(ip_address(CLIENT6), 40001, 3)
