"""The compiler: what it publishes, that everything comes back, and that cost follows the change."""

import os
from ipaddress import IPv4Address, ip_address

import numpy as np
import pytest

import packets
from differential.plane import CompiledPlane
from differential.strategies import Config as PlaneConfig
from kuproxy.codes import Outcome, Protocol, Reason, VipType
from kuproxy.control.compile import Compiler, ring_owners
from kuproxy.control.store import Store
from kuproxy.dataplane.layout import T_GENERATION, T_POD_RANGES4, W_ACK
from kuproxy.engine.local import LocalEngine
from kuproxy.errors import TableFullError
from kuproxy.model.config import Config
from kuproxy.model.vip import Pod, Vip, VipKey, parse_prefix
from kuproxy.plane import Plane
from kuproxy.reference import RefPacket


def vip(address: str = "90.0.0.1/32", *pods: str, port: int = 80, protocol=Protocol.TCP, **more) -> Vip:
    return Vip(
        VipKey(parse_prefix(address), protocol, port),
        VipType.IP4_NAT44,
        pods=tuple(Pod(ip_address(pod)) for pod in pods),
        **more,
    )


class World:
    """Store, compiler and engine, without packets."""

    def __init__(self) -> None:
        self.engine = LocalEngine(4)
        self.compiler = Compiler(self.engine.tables, decrement_ttl=True, any_node_address=True)
        self.store = Store()
        self.store_apply([])
        self.clean = self.in_use()

    def store_apply(self, vips) -> None:
        self.compiler.apply(self.store.replace("test", vips))
        self.collect()

    def collect(self) -> None:
        self.compiler.collect(
            self.engine.acknowledged(), lambda index: int(self.engine.state.pod_refs[index])
        )
        self.compiler.collect(
            self.engine.acknowledged(), lambda index: int(self.engine.state.pod_refs[index])
        )

    def in_use(self) -> dict[str, int]:
        return self.compiler.in_use()


def resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.parametrize("rounds", [200, pytest.param(10_000, marks=pytest.mark.long)])
def test_add_and_delete_leaves_nothing_behind(rounds):
    """FEATURES row 6: the same VIP and node port, 10,000 times; memory flat."""
    world = World()
    wanted = vip("90.0.0.1/32", "10.0.0.1", "10.0.0.2", node_port=30080)

    def cycle(count: int) -> None:
        for _ in range(count):
            world.store_apply([wanted])
            world.store_apply([])

    cycle(rounds // 4)
    before, memory = world.in_use(), resident_kib()
    cycle(rounds)
    assert world.in_use() == before == world.clean
    assert world.compiler.generation > 2 * rounds
    assert not any(world.engine.tables.header[i] for i in (5, 8, 9, 10, 11, 12, 13)), (
        "node ports, prefix lengths"
    )
    if rounds >= 10_000:
        assert resident_kib() - memory < 1024


def test_nothing_is_reused_before_every_worker_has_seen_the_change():
    world = World()
    acknowledged = world.compiler.generation
    world.compiler.apply(world.store.replace("test", [vip("90.0.0.1/32", "10.0.0.1")]))
    [first] = world.compiler.records()
    world.compiler.apply(world.store.replace("test", [vip("90.0.0.1/32", "10.0.0.2")]))
    world.compiler.collect(acknowledged, lambda index: 0)
    assert first.draining, "a worker may still look at the old ring and choose the removed pod"
    world.compiler.apply(world.store.replace("test", [vip("90.0.0.1/32", "10.0.0.2", new_len=2048)]))
    world.compiler.apply(world.store.replace("test", [vip("90.0.0.1/32", "10.0.0.2")]))
    assert world.in_use()["ring_slots"] == 3 * 1024 + 2048, "all rings that a worker may still read"
    world.compiler.collect(world.compiler.generation, lambda index: 0)
    assert not first.draining
    assert world.in_use()["ring_slots"] == 1024


def test_the_engine_acknowledges_between_vectors():
    world = World()
    world.compiler.apply(world.store.replace("test", [vip()]))
    published = int(world.engine.tables.header[T_GENERATION])
    assert int(world.engine.state.header[W_ACK]) < published
    assert world.engine.acknowledged() == published


def test_one_changed_pod_writes_one_ring_and_no_match_entry():
    world = World()
    many = [vip(f"90.0.{i // 250}.{i % 250}/32", "10.0.0.1", "10.0.0.2", new_len=16) for i in range(1000)]
    world.store_apply(many)
    tables = world.engine.tables
    before = {name: getattr(tables, name)[: 1 << 15].copy() for name in ("match", "vips")}
    changed = vip("90.0.2.7/32", "10.0.0.1", "10.0.0.3", new_len=16)
    world.compiler.apply(world.store.update("test", add=[changed]))
    assert np.count_nonzero(tables.vips[: 1 << 15] != before["vips"]) == 1
    new_keys = tables.match["key"][: 1 << 15] != before["match"]["key"]
    assert np.count_nonzero(new_keys) <= 3, "the new pod's own two entries"


def test_a_special_vip_goes_before_a_general_one_and_comes_off_again():
    plane = CompiledPlane(PlaneConfig())
    general = vip("90.0.0.1/32", "10.0.0.1", protocol=Protocol.ANY)
    special = vip("90.0.0.1/32", "10.0.0.2", protocol=Protocol.TCP)
    packet = RefPacket(packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", 1000, 80)))

    def pod() -> str:
        [result] = plane.receive([packet], 100)
        return str(result.pod)

    for order in ((general, special), (special, general)):
        for each in order:
            plane.set_vip(each)
        assert pod() == "10.0.0.2"
        plane.del_vip(special.key)
        assert pod() == "10.0.0.1"
        plane.set_vip(special)
        plane.del_vip(general.key)
        assert pod() == "10.0.0.2"
        plane.del_vip(special.key)
        assert plane.receive([packet], 100)[0].reason == Reason.NO_VIP


def test_two_vips_swap_their_node_ports():
    plane = CompiledPlane(PlaneConfig())
    one = vip("90.0.0.1/32", "10.0.0.1", node_port=30001)
    two = vip("90.0.0.2/32", "10.0.0.2", node_port=30002)
    plane._apply(plane.store.replace("test", [one, two]))
    swapped = [
        vip("90.0.0.1/32", "10.0.0.1", node_port=30002),
        vip("90.0.0.2/32", "10.0.0.2", node_port=30001),
    ]
    plane._apply(plane.store.replace("test", swapped))
    results = plane.receive(
        [
            RefPacket(packets.frame(packets.tcp("40.0.0.1", "192.0.2.1", 1000, port)))
            for port in (30001, 30002)
        ],
        100,
    )
    assert [str(result.pod) for result in results] == ["10.0.0.2", "10.0.0.1"]


def test_a_vip_of_node_ports_alone_has_no_address():
    plane = CompiledPlane(PlaneConfig())
    before = plane.compiler.in_use()
    alone = vip("0.0.0.0/32", "10.0.0.1", port=30001, target_port=8080, node_port=30001)
    guard = vip("90.0.0.0/24", port=0, protocol=Protocol.ANY)
    plane._apply(plane.store.replace("test", [alone, guard]))

    def sent(address: str, port: int) -> tuple[Outcome, str]:
        [result] = plane.receive(
            [RefPacket(packets.frame(packets.tcp("40.0.0.1", address, 1000, port)))], 100
        )
        return result.outcome, str(result.pod)

    assert sent("192.0.2.1", 30001) == (Outcome.TRANSMIT, "10.0.0.1")
    assert sent("0.0.0.0", 30001)[0] == Outcome.TRANSMIT, "as any address of the node in a capture"
    assert sent("192.0.2.1", 30002)[0] == Outcome.PASS
    assert sent("90.0.0.7", 30001)[0] == Outcome.DROP, "an address of the service range is no node's"
    plane._apply(plane.store.replace("test", [vip("0.0.0.0/32", "10.0.0.2", port=30001, node_port=30001)]))
    assert sent("192.0.2.2", 30001) == (Outcome.TRANSMIT, "10.0.0.2")
    plane._apply(plane.store.replace("test", []))
    assert sent("192.0.2.3", 30001)[0] == Outcome.PASS
    for _ in range(3):
        plane.collect(1 << 20)
    assert plane.compiler.in_use() == before


def test_clients_from_outside_get_their_pods_and_all_come_off_again():
    world = World()

    def shares() -> dict[str, tuple[int, int | None]]:
        """By pod: its share of the slots inside and outside, in eighths."""
        [record] = world.compiler.records()
        inside, outside = world.compiler.slots_of(record), world.compiler.outside_slots_of(record)
        return {
            str(pod.address): (
                round(inside.get(index, 0) / 128),
                None if outside is None else round(outside.get(index, 0) / 128),
            )
            for pod, index in sorted(record.pods.items())
        }

    def pods(*addresses: str) -> tuple[Pod, ...]:
        return tuple(Pod(ip_address(address)) for address in addresses)

    world.store_apply([vip("90.0.0.1/32", "10.0.0.1", "10.0.0.2", outside_pods=pods("10.0.0.2", "10.0.0.3"))])
    assert shares() == {"10.0.0.1": (4, 0), "10.0.0.2": (4, 4), "10.0.0.3": (0, 4)}
    assert world.in_use()["ring_slots"] == 2 * 1024
    world.store_apply([vip("90.0.0.1/32", "10.0.0.1", outside_pods=())])
    assert shares() == {"10.0.0.1": (8, 0)}
    assert world.in_use()["ring_slots"] == 1024, "nobody needs an empty ring"
    world.store_apply([vip("90.0.0.1/32", outside_pods=pods("10.0.0.1", "10.0.0.3"))])
    assert shares() == {"10.0.0.1": (0, 4), "10.0.0.3": (0, 4)}
    world.store_apply([vip("90.0.0.1/32", "10.0.0.1")])
    assert shares() == {"10.0.0.1": (8, None)}
    world.store_apply([])
    assert world.in_use() == world.clean


def test_who_is_a_pod_is_published_in_blocks_that_come_back():
    world = World()
    wide, narrow = parse_prefix("10.0.0.0/8"), parse_prefix("10.1.0.0/16")
    for prefixes in ((wide, narrow, parse_prefix("fd00::/8")), (wide,), (), (narrow,), ()):
        world.compiler.set_pod_ranges(prefixes)
        world.compiler.set_node_ranges({prefix.network_address for prefix in prefixes})
        world.collect()
        assert bool(world.engine.tables.header[T_POD_RANGES4]) == bool(prefixes)
        blocks = world.in_use()["source_ranges"]
        world.compiler.set_pod_ranges(reversed(prefixes))
        assert world.in_use()["source_ranges"] == blocks, "nothing new, nothing written"
    assert world.in_use() == world.clean


def test_pods_of_one_address_with_different_ports_in_one_service():
    """FEATURES row 7."""
    plane = CompiledPlane(PlaneConfig())
    key = VipKey(parse_prefix("90.0.0.1/32"), Protocol.TCP, 80)
    members = (
        Pod(ip_address("10.0.0.1"), 8080),
        Pod(ip_address("10.0.0.1"), 9090),
        Pod(ip_address("10.0.0.2")),
    )
    plane.set_vip(Vip(key, VipType.IP4_NAT44, target_port=81, pods=members))
    seen = set()
    for port in range(1000, 1100):
        [result] = plane.receive(
            [RefPacket(packets.frame(packets.tcp("40.0.0.1", "90.0.0.1", port, 80)))], 100
        )
        assert result.outcome == Outcome.TRANSMIT
        seen.add((str(result.pod), int.from_bytes(result.data[36:38], "big")))
    assert seen == {("10.0.0.1", 8080), ("10.0.0.1", 9090), ("10.0.0.2", 81)}


@pytest.mark.parametrize(("removed", "percent"), [(1, 0.66), (10, 3.35), (20, 4.68)])
def test_little_disruption(removed, percent):
    """FEATURES row 2: 1000 pods, 65,536 slots."""
    rng = np.random.default_rng(removed)
    members = [Pod(IPv4Address("10.1.0.0") + i) for i in range(1000)]
    before = ring_owners(members, 65536)
    changed = []
    for _ in range(5):
        gone = {members[i] for i in rng.choice(1000, removed, replace=False)}
        after = ring_owners([pod for pod in members if pod not in gone], 65536)
        assert not gone & set(after)
        changed.append(100 * sum(a != b for a, b in zip(before, after, strict=True)) / 65536)
    assert np.mean(changed) == pytest.approx(percent, rel=0.2)


def test_rings_do_not_depend_on_the_order_of_insertion():
    """FEATURES row 3."""
    members = [f"10.0.0.{i}" for i in range(1, 60)]
    rings = []
    for seed in range(3):
        world = World()
        rng = np.random.default_rng(seed)
        growing: list[str] = []
        for member in rng.permutation(members):
            growing.append(str(member))
            world.store_apply([vip("90.0.0.1/32", *growing)])
        [record] = world.compiler.records()
        names = {index: pod for pod, index in record.pods.items()}
        slots = world.engine.tables.rings[record.ring.offset : record.ring.offset + 1024]
        rings.append([names[int(index)] for index in slots])
    assert rings[0] == rings[1] == rings[2] == ring_owners([Pod(ip_address(m), 80) for m in members], 1024)


def test_what_does_not_fit_is_refused_whole():
    plane = Plane(LocalEngine(4), decrement_ttl=True, any_node_address=True)
    plane.apply(Config(vips=(vip("90.0.0.1/32", "10.0.0.1"),)))
    before = plane.compiler.in_use()
    huge = tuple(vip(f"90.1.0.{i}/32", "10.0.0.1", new_len=1 << 24) for i in range(100))
    with pytest.raises(TableFullError, match="ring slots are asked for"):
        plane.apply(Config(vips=huge))
    assert plane.compiler.in_use() == before
    assert [str(each.key) for each in plane.store] == ["90.0.0.1/32 protocol tcp port 80"]
