"""Two data planes see the same packets and changes, one of them behind a flow cache: nobody can tell which.

The cache is the real one: its program by BPF_PROG_TEST_RUN, its maps, and its owner.  Packets that go up may wait
before the worker takes them, as in its ring, while the owner goes on.  At the end both have counted the same.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

import packets
from differential.plane import BATCH, CompiledPlane
from differential.strategies import Config
from kuproxy.codes import FlowState, Outcome
from kuproxy.daemon import flow_cache
from kuproxy.daemon.cache_choice import CacheChoice
from kuproxy.daemon.flow_cache import FlowCache
from kuproxy.daemon.targets import TargetBook
from kuproxy.dataplane.layout import TICK_MASK, W_POLLS
from kuproxy.engine.touch import touch_all
from kuproxy.keeper.vault import Vault
from kuproxy.model.config import Settings
from kuproxy.model.vip import Vip
from kuproxy.reference import RefPacket
from kuproxy.steering.bpf import Verdict
from kuproxy.steering.cache_layout import LAYOUT
from kuproxy.steering.cache_program import cache
from kuproxy.steering.maps import Stats, SteeringMaps
from packets import ACK, FIN, PSH, RST, SYN, frame, tcp, udp
from reference.worlds import pod, vip

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

STEPS = int(os.environ.get("KU_TEST_CACHE_STEPS", "12000"))
NODE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
PODS = {4: [f"10.2.0.{n}:8080" for n in (2, 3, 4)], 6: [f"[fd02::{n}]:8080" for n in (2, 3, 4)]}
CLIENTS = {4: ["198.51.100.1", "198.51.100.2", "10.2.0.2"], 6: ["2001:db8:1::1", "2001:db8:1::2", "fd02::2"]}


def tick() -> int:
    return time.monotonic_ns() // 100_000_000 & TICK_MASK


def vips_of(version: int) -> list[Vip]:
    """Plain, masqueraded, with a node port, and a wide one."""
    prefix, bits, wide = ("10.96.0.", 32, "10.97.0.0/16") if version == 4 else ("fd96::", 128, "fd97::/32")
    pods = PODS[version]
    return [
        vip(f"{prefix}1/{bits}", pods, protocol="tcp", port=80, node_port=30080 + version),
        vip(f"{prefix}1/{bits}", pods, protocol="udp", port=53, node_port=30053 + version),
        vip(f"{prefix}2/{bits}", pods, protocol="tcp", port=443, masquerade=True),
        vip(f"{prefix}2/{bits}", pods, protocol="udp", port=443, masquerade=True),
        vip(wide, pods, protocol="udp", port=53),
    ]


class Twins:
    """`plain`, and `behind` a cache."""

    def __init__(self, stack: ExitStack, entries: int, rng: Random) -> None:
        config = Config(
            decrement_ttl=False, any_node_address=False, node_addresses=NODE, masquerade=NODE,
            all_node_addresses=NODE, timeout_ticks=100_000,
        )  # fmt: skip
        self.plain, self.behind = CompiledPlane(config), CompiledPlane(config)
        self.planes = (self.plain, self.behind)
        for plane in self.planes:
            stack.callback(plane.close)
            plane.mark_interface(0, True, True)
        engine = self.behind.engine
        workers = [SimpleNamespace(touch=lambda touches: touch_all(engine.states[0], touches))]
        shown = SimpleNamespace(tables=engine.tables, states=engine.states, workers=workers)
        node = frozenset(NODE)
        steering = SimpleNamespace(addresses=node, node_addresses=node, stats=lambda: Stats(0, 0, 0, 0))
        choice = CacheChoice(flow_cache="on", flow_cache_entries=entries)
        self.cache = FlowCache(choice, shown, Vault(), steering)  # type: ignore[arg-type]
        stack.callback(self.cache.maps.close)
        maps = SteeringMaps()
        stack.callback(maps.close)
        self.program = cache(1).load({**maps.by_name(), **self.cache.maps.by_name()})
        stack.callback(self.program.close)
        self.targets, self.rng = TargetBook(), rng
        self.waiting: list[bytes] = []
        self.stopped = False  # the worker takes nothing
        self.vips: dict[object, Vip] = {}
        self.seen: Counter[str] = Counter()
        self.follow()

    # --- changes

    def follow(self) -> None:
        """What control does behind every change."""
        before, now, _, done = self.targets.change(self.behind.compiler, Settings())
        self.cache.follow_tables(before, now)
        done()

    def set_vip(self, wanted: Vip) -> None:
        for plane in self.planes:
            plane.set_vip(wanted)
        self.vips[wanted.key] = wanted
        self.follow()

    def del_vip(self, wanted: Vip) -> None:
        for plane in self.planes:
            plane.del_vip(wanted.key)
        del self.vips[wanted.key]
        self.follow()

    def flush(self, wanted: Vip, text: str) -> None:
        """Remove a pod, and forget its flows."""
        gone = pod(text)
        self.set_vip(replace(wanted, pods=tuple(each for each in wanted.pods if each != gone)))
        for plane in self.planes:
            plane.flush(wanted.key, gone.address, gone.port)
        self.follow()

    # --- packets

    def send(self, data: bytes) -> bytes | None:
        """What is sent on, None: nothing, or it waits."""
        ran = self.program.test_run(bytes(6) + data[6:])
        if ran.verdict == Verdict.REDIRECT:
            self.seen["kernel"] += 1
            [result] = self.plain.receive([RefPacket(data)], tick())
            assert result.outcome is Outcome.TRANSMIT, (result.reason, data.hex())
            assert result.data == data[:6] + ran.frame[6:], (data.hex(), result.data.hex(), ran.frame.hex())
            return result.data
        assert (ran.verdict, ran.frame[6:]) == (Verdict.NEXT, data[6:])
        self.waiting.append(data)
        return None if self.stopped else self.deliver()

    def deliver(self) -> bytes | None:
        """The worker takes what waits, and finds nothing more; returns what it sends on last."""
        sent = None
        for data in self.waiting:
            now = tick()
            [plain], [behind] = (plane.receive([RefPacket(data)], now) for plane in self.planes)
            assert behind == plain, (behind.reason, plain.reason, data.hex())
            sent = plain.data if plain.outcome is Outcome.TRANSMIT else None
            self.seen["worker"] += 1
        self.waiting.clear()
        self.behind.engine.states[0].header[W_POLLS] += 2
        return sent


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """Nothing has to be old to be cached, and nothing has to wait but for the worker."""
    monkeypatch.setattr(flow_cache, "_SETTLE_NS", 0)
    monkeypatch.setattr(flow_cache, "_AGE_TICKS", 0)
    monkeypatch.setattr(flow_cache, "_GIVES_WAY_NS", 50_000_000)
    with ExitStack() as stack:
        yield Twins(stack, getattr(request, "param", 4096), Random(7))


class Talk:
    """A conversation of one client with one address; it learns from what is sent on how the pod answers."""

    def __init__(self, rng: Random) -> None:
        self.rng, version = rng, rng.choice((4, 6))
        self.protocol = rng.choice((packets.TCP, packets.UDP))
        self.client, self.port = rng.choice(CLIENTS[version]), rng.randrange(20000, 20040)
        prefix, node = ("10.96.0.", NODE[0]) if version == 4 else ("fd96::", NODE[1])
        wide = rng.choice(("10.97.0.1", "10.97.3.3") if version == 4 else ("fd97::1", "fd97:0:1::1"))
        where: list[tuple[object, int]] = (
            [(f"{prefix}1", 80), (f"{prefix}2", 443), (node, 30080 + version)]
            if self.protocol == packets.TCP
            else [(f"{prefix}1", 53), (f"{prefix}2", 443), (node, 30053 + version), (wide, 53)]
        )
        address, self.destination_port = rng.choice(where)
        self.address = str(address)
        self.seen_as: tuple[str, str, int, int] | None = None  # pod, client, ports, as the pod answers

    def _data(self, flags: int | None, *ends: object) -> bytes:
        rng = self.rng
        body = rng.randbytes(rng.choice((0, 1, 50, 1000)))
        if self.protocol == packets.UDP:
            return frame(udp(*ends, body, no_checksum=":" not in str(ends[0]) and rng.random() < 0.1))  # type: ignore[arg-type]
        if flags is None:
            kind = rng.random()
            flags = SYN if kind < 0.03 else FIN | ACK if kind < 0.06 else RST if kind < 0.08 else ACK | PSH
        return frame(tcp(*ends, body, flags=flags, sequence=rng.getrandbits(32)))  # type: ignore[arg-type]

    def ask(self, twins: Twins, flags: int | None = None) -> None:
        data = self._data(flags, self.client, self.address, self.port, self.destination_port)
        sent = twins.send(data)
        if sent is not None and sent[12:14] == data[12:14] and sent[23 if data[12] == 8 else 20] == self.protocol:
            _, l4, _, _ = packets.headers(sent)
            at, size = (26, 4) if data[12] == 8 else (22, 16)
            source, destination = sent[at : at + size], sent[at + size : at + 2 * size]
            ports = [int.from_bytes(sent[l4 + n : l4 + n + 2], "big") for n in (2, 0)]
            self.seen_as = (str(ip_address(destination)), str(ip_address(source)), *ports)  # type: ignore[assignment]

    def answer(self, twins: Twins, flags: int | None = None) -> None:
        if self.seen_as is not None:
            twins.send(self._data(flags, *self.seen_as))


def change(twins: Twins, rng: Random) -> str:
    """Some change of the VIPs; its name."""
    version = rng.choice((4, 6))
    pods = PODS[version]
    present = [each for each in twins.vips.values() if each.key.prefix.version == version]
    missing = [each for each in vips_of(version) if each.key not in twins.vips]
    chosen = rng.choice(present) if present else None
    kind = rng.choice(("remove", "return", "flush", "ranges", "delete", "narrow", "affinity"))
    if missing and (kind == "return" or chosen is None):
        twins.set_vip(rng.choice(missing))
        return "restore"
    if chosen is None:
        return "nothing"
    if kind == "remove" and len(chosen.pods) > 1:
        twins.set_vip(replace(chosen, pods=chosen.pods[1:]))
    elif kind == "return":
        twins.set_vip(replace(chosen, pods=tuple(pod(each) for each in pods)))
    elif kind == "flush" and len(chosen.pods) > 1:
        gone = chosen.pods[-1]
        bracket = f"[{gone.address}]" if version == 6 else str(gone.address)
        twins.flush(chosen, f"{bracket}:{gone.port}")
    elif kind == "ranges":
        one = (ip_network(CLIENTS[version][0]),)
        twins.set_vip(replace(chosen, source_ranges=() if chosen.source_ranges else one))
    elif kind == "affinity":
        twins.set_vip(replace(chosen, affinity_s=0 if chosen.affinity_s else 60))
    elif kind == "delete":
        twins.del_vip(chosen)
    elif kind == "narrow":
        name = "10.97.3.3/32" if version == 4 else "fd97:0:1::1/128"
        narrow = vip(name, pods[:1], protocol="udp", port=53)
        if narrow.key in twins.vips:
            twins.del_vip(narrow)
        else:
            twins.set_vip(narrow)
    else:
        return "nothing"
    return kind


@pytest.mark.parametrize("twins", [4096, 16], indirect=True)
def test_nobody_can_tell_which_plane_has_a_cache(twins: Twins) -> None:
    rng = twins.rng
    for version in (4, 6):
        for each in vips_of(version):
            twins.set_vip(each)
    talks: list[Talk] = []
    for _ in range(STEPS):
        kind = rng.random()
        if kind < 0.08 or not talks:
            talks.append(Talk(rng))
            talks = talks[-60:]
            for flags, way in ((SYN, talks[-1].ask), (SYN | ACK, talks[-1].answer), (ACK, talks[-1].ask)):
                way(twins, flags)
        elif kind < 0.14:
            assert twins.cache.turn() == []
        elif kind < 0.16:
            twins.seen[change(twins, rng)] += 1
        elif kind < 0.19:
            twins.stopped = not twins.stopped
            if not twins.stopped:
                twins.deliver()
        else:
            talk = rng.choice(talks)
            (talk.ask if rng.random() < 0.5 else talk.answer)(twins)
    twins.stopped = False
    twins.deliver()
    twins.cache.clear()
    twins.cache.turn()
    plain, behind = twins.plain.engine.states[0], twins.behind.engine.states[0]
    counts = twins.cache.counts
    assert (behind.vip_counters + counts.vip_counters == plain.vip_counters).all()
    assert (behind.pod_counters + counts.pod_counters == plain.pod_counters).all()
    assert (behind.pod_refs == plain.pod_refs).all()
    told = twins.cache.report()
    assert not told.why and told.failed == 0
    few = told.capacity < 100
    assert twins.seen["kernel"] > STEPS // (100 if few else 10) and twins.seen["worker"] > STEPS // 10, twins.seen
    kinds = ("remove", "return", "flush", "ranges", "affinity", "delete", "restore", "narrow")
    assert all(twins.seen[kind] for kind in kinds), twins.seen
    reasons = {"closed", "changed", "evicted" if few else "lost"}  # few are rarely kept for long enough to be lost
    assert reasons <= told.given_back.keys(), told
    assert bool(told.turned_away) is few


def one_flow(twins: Twins, protocol: int = packets.TCP) -> Talk:
    """Established, and armed."""
    twins.set_vip(vips_of(4)[0])
    twins.set_vip(vips_of(4)[1])
    talk = Talk(Random(1))
    talk.protocol, talk.client, talk.port, talk.address = protocol, CLIENTS[4][0], 20000, "10.96.0.1"
    talk.destination_port = 80 if protocol == packets.TCP else 53
    for flags, way in ((SYN, talk.ask), (SYN | ACK, talk.answer), (ACK, talk.ask)):
        way(twins, flags)
    twins.cache.turn()
    assert twins.cache.report().entered == 1
    return talk


def allow(twins: Twins) -> None:
    """What was armed is rewritten from here on."""
    twins.deliver()
    twins.cache.turn()


def is_cached(twins: Twins, talk: Talk) -> bool:
    before = twins.seen["kernel"]
    talk.ask(twins, ACK)
    return twins.seen["kernel"] > before


def test_a_flow_is_not_allowed_before_the_worker_has_taken_what_was_on_its_way(twins: Twins) -> None:
    """Another connection's SYN waits in the ring while the flow is armed: it would have another pod, and has it."""
    talk = one_flow(twins)
    old = talk.seen_as
    twins.stopped = True
    for _ in range(3):
        twins.cache.turn()
        assert not is_cached(twins, talk)
    twins.stopped = False
    twins.deliver()
    twins.cache.turn()
    assert is_cached(twins, talk)
    assert talk.seen_as == old


def test_a_syn_that_waits_closes_a_flow_that_is_armed(twins: Twins) -> None:
    talk = one_flow(twins)
    twins.stopped = True
    talk.ask(twins, SYN)
    twins.stopped = False
    twins.deliver()
    twins.cache.turn()
    assert twins.cache.report().given_back == {"closed": 1}
    assert not is_cached(twins, talk)


def test_a_worker_that_stands_still_gets_its_flows_back(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_cache, "_PATIENCE_TURNS", 3)
    talk = one_flow(twins)
    twins.stopped = True
    for _ in range(5):
        twins.cache.turn()
    assert twins.cache.report().given_back == {"lost": 1}
    assert not is_cached(twins, talk)


def test_a_busy_worker_is_believed_by_its_packets(twins: Twins) -> None:
    """One that never finds its ring empty, but has taken more than a ring holds."""
    talk = one_flow(twins)
    header = twins.behind.engine.states[0].header
    polls = int(header[W_POLLS])
    for _ in range(3):
        header[W_POLLS] = polls
        twins.cache.turn()
    assert not is_cached(twins, talk)
    for _ in range(5000):
        [_] = twins.behind.receive([RefPacket(bytes(60))], tick())
    header[W_POLLS] = polls
    twins.cache.turn()
    assert is_cached(twins, talk)


def test_a_successor_goes_on_with_what_there_is(twins: Twins) -> None:
    """Maps and book by descriptors, as a keeper hands them over; what was armed has to begin again."""
    talk = one_flow(twins)
    allow(twins)
    assert is_cached(twins, talk)
    former = twins.cache
    kept = {
        name: os.dup(fd)
        for name, fd in (
            (f"cache/{LAYOUT}/{former.maps.pairs}/flows", former.maps.flows.fd),
            (f"cache/{LAYOUT}/{former.maps.pairs}/rows", former.maps._rows.fd),
            (f"cache/{LAYOUT}/{former.maps.pairs}/cached", former.maps._counts.fd),
            (f"cache-book/1/{former.maps.pairs}", former._book.region.fd),
        )
    }
    vault = Vault()
    vault._kept.update(kept)
    choice = CacheChoice(flow_cache="on", flow_cache_entries=2 * former.maps.pairs)
    successor = FlowCache(choice, former._engine, vault, former._steering)
    assert successor.maps.adopted
    assert successor.report().flows == 1
    twins.cache = successor
    assert is_cached(twins, talk)
    for _ in range(3):
        successor.turn()
        assert is_cached(twins, talk)
    twins.flush(vips_of(4)[0], f"{talk.seen_as[0]}:8080")  # type: ignore[index]
    assert not is_cached(twins, talk)


def test_a_flow_that_its_worker_has_forgotten_is_given_back(twins: Twins) -> None:
    talk = one_flow(twins, packets.UDP)
    allow(twins)
    assert is_cached(twins, talk)
    for plane in twins.planes:
        plane.engine.flush()
    twins.cache.turn()
    assert twins.cache.report().given_back == {"lost": 1}
    assert not is_cached(twins, talk)


def test_a_workers_flow_is_prolonged_before_it_would_end(twins: Twins) -> None:
    """By as much as its last packet, and no flow but the one that was meant."""
    for plane in twins.planes:
        plane.set_timeout(1200, FlowState.UDP)  # two leases
    talk = one_flow(twins, packets.UDP)
    allow(twins)
    state = twins.behind.engine.states[0]
    [slot] = np.flatnonzero(state.entries["pod"]).tolist()
    state.entries["expires"][slot] = (tick() + 100) & TICK_MASK  # as if it had come up long ago
    assert is_cached(twins, talk)
    twins.cache._next_round = 0.0
    twins.cache.turn()
    assert 1195 <= (int(state.entries["expires"][slot]) - tick()) & TICK_MASK <= 1200
    carried = twins.cache.carried(0, slot)
    assert carried is not None and 119 <= carried.expires_in_s <= 120


FLOOD = int(os.environ.get("KU_TEST_SYN_FLOOD", "100000"))


@pytest.mark.timeout(1200)
def test_a_flood_of_syns_enters_nothing(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that nobody goes on with, some of them answered, and one that is real: it alone is carried."""
    monkeypatch.setattr(flow_cache, "_IDLE_NS", 1 << 60)  # however long the machine takes
    talk = one_flow(twins)
    allow(twins)
    plane, rng = twins.behind, Random(3)
    sent = 0
    while sent < FLOOD:
        client = f"203.0.{sent >> 16 & 0xFF}.9"
        [start] = plane.receive([RefPacket(frame(tcp(client, "10.96.0.1", 1, 80)))], tick())
        assert start.outcome is Outcome.TRANSMIT
        syn = bytearray(frame(tcp(client, "10.96.0.1", 1, 80)))
        batch = []
        for number in range(BATCH):
            syn[34:36] = (1024 + (sent + number & 0xFFFF) % 64000).to_bytes(2, "big")  # a worker trusts the sum
            batch.append(RefPacket(bytes(syn)))
        results = plane.receive(batch, tick())
        assert all(each.outcome is Outcome.TRANSMIT for each in results)
        if rng.random() < 0.05:
            plane.receive([RefPacket(packets.reply_to(each.data)) for each in results], tick())
        sent += len(batch)
        if sent % (BATCH * 400) == 0:
            plane.engine.states[0].header[W_POLLS] += 2
            assert not twins.cache.turn()
            assert is_cached(twins, talk), (sent, twins.cache.report())
    told = twins.cache.report()
    assert (told.entered, told.flows, told.turned_away) == (1, 1, 0)
    states = plane.engine.states[0].flows["state"]
    assert np.count_nonzero(states == int(FlowState.TCP_ESTABLISHED)) == 1 < np.count_nonzero(states) // 1000
    assert is_cached(twins, talk)
