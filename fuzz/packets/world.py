"""A data plane with services of every kind, and its slow twin; both follow from a seed.

What control does while packets pass (pods come and go, VIPs, timeouts, marks, the table's size) follows from seeds
too, so that a case is no more than numbers and packets.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from ipaddress import IPv4Network, ip_address
from random import Random

import numpy as np

from differential import strategies
from differential.plane import STRIDE, CompiledPlane
from differential.strategies import INSIDE, Config, one_in
from fuzz.packets import vector
from fuzz.packets.vector import FAULTS, GUARD, GUARD_BYTE, Pool, Words, room_of
from kuproxy.codes import Encap, Family, FlowState
from kuproxy.dataplane.layout import HEADROOM, META_COUNT
from kuproxy.model.config import NAT64_POOL
from kuproxy.model.vip import Vip, VipKey
from kuproxy.reference import RefPacket, Result, Workers
from packets import SAMPLES

VIPS = 28
POOL = 300  # draws; some are several fragments


def make_config(rng: Random) -> Config:
    """As the differential tests draw theirs, with tables that are not always tiny."""
    both = dict(zip((Family.IPV4, Family.IPV6), strategies.NODE_ADDRESSES, strict=True))
    pod_ranges, node_addresses = rng.choice(strategies.ORIGINS)
    return Config(
        buckets=rng.choice([1, 4, 64, 1024, 1024]),
        timeout_ticks=rng.choice([5, 60, 400]),
        decrement_ttl=one_in(rng, 2),
        any_node_address=one_in(rng, 2),
        node_addresses=strategies.NODE_ADDRESSES,
        reject_rate=rng.choice([1000, 1000, 3, 0]),
        ip4_src_address=None if one_in(rng, 4) else strategies.TUNNEL_SOURCES[0],
        ip6_src_address=None if one_in(rng, 4) else strategies.TUNNEL_SOURCES[1],
        masquerade=rng.choice(strategies.MASQUERADES),
        nat64_pool=rng.choice([NAT64_POOL, NAT64_POOL, IPv4Network("192.0.0.0/31"), None]),
        nat64_ports=rng.choice([(1024, 65535), (1024, 65535), (7, 8)]),
        translation_mtu=rng.choice([0, 1280, 1500]),
        pod_ranges=pod_ranges,
        all_node_addresses=node_addresses,
        own_addresses=both if one_in(rng, 2) else {},
        second_chance=True,
    )


def make_pool(rng: Random) -> Pool:
    """Real packets, whole datagrams and their fragments one after the other."""
    frames = [packet.data for _ in range(POOL) for packet in strategies.make_packets(rng)[:12]]
    frames += rng.sample(list(SAMPLES.values()), 40)
    lengths = np.array([len(each) for each in frames], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return Pool(np.frombuffer(b"".join(frames), np.uint8).copy(), offsets, lengths)


def words() -> Words:
    """Addresses and ports that mean something in every world."""
    known = strategies
    addresses = {
        version: [
            ip_address(each).packed
            for table in (known.CLIENTS, known.ADDRESSED, known.SELDOM_ADDRESSED, known.PODS)
            for each in table[version]
        ]
        + [ip_address(known.NODE[version]).packed]
        for version in (4, 6)
    }
    ports = [*known.CLIENT_PORTS, *known.NODE_PORTS, 80, 80, 81, 8080, 9090, 53, 0, 65535]
    return Words(
        np.array([list(each) for each in addresses[4]], np.uint8),
        np.array([list(each) for each in addresses[6]], np.uint8),
        np.array(ports, np.int64),
    )


class JudgedPlane(CompiledPlane):
    """Looks, after each vector, at what must be true of every packet."""

    def _receive_one(self, packets: list[RefPacket], now: int, worker: int) -> list[Result]:
        frame, state = self.frames[worker], self.engine.states[worker]
        edges = [slot * STRIDE + HEADROOM + packet.room for slot, packet in enumerate(packets)]
        for edge in edges:
            frame.data[edge : edge + GUARD] = GUARD_BYTE
        sums = np.zeros(8, np.int64)
        vector.before(state, sums)
        results = super()._receive_one(packets, now, worker)
        judge(vector.judge(frame, state, sums, len(packets), STRIDE))
        for slot, edge in enumerate(edges):
            assert (frame.data[edge : edge + GUARD] == GUARD_BYTE).all(), f"packet {slot}: {FAULTS[4]}"
        assert len(results) == int(frame.meta[META_COUNT])
        return results


def judge(code: int) -> None:
    """Raise what the compiled look has found, if anything."""
    assert code == 0, f"packet {code >> 8}: {FAULTS[code & 0xFF]}"


class World:
    """Both planes and the time. The reference always has the services, and with `twin` also sees the packets."""

    def __init__(self, seed: int, *, twin: bool) -> None:
        rng = Random(seed)
        config = make_config(rng)
        self.twin = twin
        self.plane = JudgedPlane(config)
        self.reference = Workers(**asdict(config))
        self.now = rng.choice([100, 2**31 - 60, 2**32 - 60, 2**32 - 1])
        self.known: dict[VipKey, Vip] = {}
        for each in (self.reference, self.plane):
            each.mark_interface(INSIDE, True, True)
        for _ in range(VIPS):
            self._set_vip(strategies.make_vip(rng))
        self.rng = rng

    def close(self) -> None:
        """Give the memory back."""
        self.plane.close()

    def _set_vip(self, vip: Vip) -> None:
        try:
            self.reference.set_vip(vip)
        except ValueError:  # its node port is another's
            return
        self.plane.set_vip(vip)
        self.known[vip.key] = vip

    def receive(self, packets: list[RefPacket]) -> None:
        """One vector."""
        results = self.plane.receive(packets, self.now)
        if self.twin:
            wanted = self.reference.receive(packets, self.now)
            assert len(results) == len(wanted), f"{len(results)} packets instead of {len(wanted)}"
            for place, (result, right) in enumerate(zip(results, wanted, strict=True)):
                assert result == right, f"packet {place}: {result} instead of {right}"

    def pass_time(self, ticks: int) -> None:
        """Let so many ticks go by."""
        self.now = (self.now + ticks) % 2**32

    def compare(self) -> None:
        """What can be counted and seen from outside is the same in both."""
        if self.twin:
            ours = {each: count for each, count in self.reference.counters.items() if count}
            theirs = dict(self.plane.counters())
            assert theirs == ours, f"counters differ: {set(theirs.items()) ^ set(ours.items())}"
            flows = set(self.plane.live_flows(self.now)) ^ set(self.reference.live_flows(self.now))
            assert not flows, f"only one has {flows}"

    def change(self, seed: int) -> None:
        """Something that control does."""
        rng = Random(seed)
        both = (self.reference, self.plane)
        kind = rng.randrange(13)
        if kind <= 2 or not self.known:
            self._set_vip(strategies.make_vip(rng))
            return
        vip = rng.choice(list(self.known.values()))
        if kind <= 5:
            self._change_pods(rng, vip)
        elif kind == 6:
            del self.known[vip.key]
            for each in both:
                each.del_vip(vip.key)
            if one_in(rng, 2):
                self._set_vip(vip)
        elif kind == 7:
            state, ticks = rng.choice([None, *FlowState]), rng.choice([2, 60, 400])
            for each in both:
                each.set_timeout(ticks, state)
        elif kind == 8:
            addresses = rng.choice(strategies.MASQUERADES)
            for each in both:
                each.set_masquerade(addresses)
        elif kind == 9:
            marks = rng.choice([(True, True), (True, True), (False, True), (True, False)])
            for each in both:
                each.mark_interface(INSIDE, *marks)
        elif kind == 10:
            self._resize(rng.choice([1, 4, 64, 1024]))
        elif kind == 11:
            self.plane.engine.trace(rng.choice([1, 200, 1000]))  # it reads headers of its own
        else:
            for each in both:
                each.sweep(self.now)
                each.collect(self.now)

    def _resize(self, buckets: int) -> None:
        refused = 0
        for each in (self.reference, self.plane):
            try:
                each.set_buckets(buckets, self.now)
            except ValueError:
                refused += 1
        assert refused != 1 or not self.twin, f"only one of the two refuses {buckets} buckets"

    def _change_pods(self, rng: Random, vip: Vip) -> None:
        version = 4 if vip.type.pod_family == Family.IPV4 else 6
        pods = strategies.make_pods(rng, version, bool(vip.key.port) and vip.encap is Encap.NAT)
        self._set_vip(replace(vip, pods=pods))
        if vip.all_pods and one_in(rng, 2):
            gone = rng.choice(vip.all_pods)
            for each in (self.reference, self.plane):
                each.flush(vip.key, gone.address)


def as_received(data: bytes, interface: int, flags: int) -> RefPacket:
    """A record of the log."""
    return RefPacket(
        data,
        interface,
        bool(flags & vector.PARTIAL),
        room=int(room_of(len(data))),
        gso=bool(flags & vector.GSO),
    )
