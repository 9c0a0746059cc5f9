"""A day with faults of every kind, down to the tables: no service lost, none stale, no pod that serves no more."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from daemon.rig import controller, make_log
from kube.simulation import NODE, Consumer, World
from kuproxy.codes import Protocol
from kuproxy.control.compile import address_words, key_word, prefix_length, ring_owners
from kuproxy.control.policy import ServiceVips, service_range_guards, settle, translate
from kuproxy.daemon.control import Controller
from kuproxy.daemon.kubernetes import SOURCE, KubernetesSource, NodeOptions
from kuproxy.daemon.thread import ControlThread
from kuproxy.dataplane.layout import KIND_VIP, RING_LOG2, RING_SPLIT, T_VIP_MATCH
from kuproxy.kube.cluster import Cluster
from kuproxy.kube.convert import convert_endpoint_slice, convert_service
from kuproxy.kube.objects import document
from kuproxy.model.vip import Pod, Vip

HOURS = 3600.0
MOST_PODS = 50_000  # more than a day has


class TablesConsumer(Consumer):
    """Feeds the tables, as the daemon does."""

    def __init__(self, cluster: Cluster, made: Controller, source: KubernetesSource) -> None:
        super().__init__(cluster)
        self.controller, self.source = made, source

    def _apply(self, batch) -> None:
        super()._apply(batch)
        # Every pod has a flow, so that none is free before its flows end.
        self.controller.plane.engine.states[0].pod_refs[1:MOST_PODS] = 1
        self.source.take_in(self.cluster, batch)
        self.controller.tend()

    def check(self, store) -> None:
        super().check(store)
        self._check_tables()

    def _expected(self) -> list[Vip]:
        """All at once, from what the server has (the cluster was compared with it before), by the careful reader."""
        decided: list[tuple[tuple[str, ...], ServiceVips]] = []
        for raw in self.cluster.services.values():
            service = convert_service(document(raw), [])
            slices = [
                convert_endpoint_slice(document(each), [], []) for each in self.cluster.slices_of(raw.key)
            ]
            assert service is not None
            rank = (raw.metadata.creation_timestamp or "", *raw.key)
            present = [each for each in slices if each is not None]
            decided.append((rank, translate(service, present, self.source.view)))
        vips = [vip for _, each in sorted(decided, key=lambda item: item[0]) for vip in each.vips]
        return settle([*vips, *service_range_guards(self.source.view.settings.service_cidrs)])[0]

    def _check_tables(self) -> None:
        plane = self.controller.plane
        expected = {vip.key: vip for vip in self._expected()}
        assert {vip.key: vip for vip in plane.store.source(SOURCE)} == expected
        compiler, tables = plane.compiler, plane.engine.tables
        serving = dict(vars(self.source)["_decider"].book.serving())
        assert {record.vip.key for record in compiler.records() if not record.removed} == expected.keys()
        for key, vip in expected.items():
            hi, lo = address_words(key.prefix.network_address)
            word = key_word(KIND_VIP, int(key.family), prefix_length(key), int(key.protocol), key.port)
            index = lookup(tables, hi, lo, word)
            record = compiler.record(key)
            assert record is not None and record.index == index
            served = [Pod(pod.address, vip.pod_port(pod), pod.weight) for pod in vip.pods]
            assert pods_in_ring(tables, index) == ring_owners(served, vip.new_len)
            if key.protocol is Protocol.UDP:
                assert not [pod for pod in record.draining if pod not in serving[key]]


def lookup(tables, hi: np.uint64, lo: np.uint64, word: np.uint64) -> int:
    """The VIP's index, as the match table has it."""
    location = int(tables.header[T_VIP_MATCH])
    table = tables.match[location >> 8 : (location >> 8) + (1 << (location & 0xFF))]
    (found,) = np.flatnonzero((table["key"] == word) & (table["hi"] == hi) & (table["lo"] == lo))
    return int(table[found]["value"])


def pods_in_ring(tables, index: int) -> list[Pod]:
    """Whose each slot of the VIP's new-flow table is."""
    place = int(tables.vips[index]["ring"])
    if not place:
        return []
    assert not place & RING_SPLIT  # no service of this world tells clients apart
    rows = tables.pods[tables.rings[place >> 8 : (place >> 8) + (1 << (place & RING_LOG2))]]
    assert (rows["vip"] == index).all() and (rows["flags"] == 1).all()
    raw = rows["lo"].byteswap().astype("<u8") & np.uint64(0xFFFFFFFF)
    return [
        Pod(ip_address(value), port) for value, port in zip(raw.tolist(), rows["port"].tolist(), strict=True)
    ]


def live_through(seed: int, hours: float) -> tuple[World, TablesConsumer]:
    world = World(seed)
    made = controller()
    source = KubernetesSource(made, ControlThread(), lambda: None, NodeOptions(NODE), make_log())
    world.consumer = consumer = TablesConsumer(world.cluster, made, source)
    try:
        world.run(hours * HOURS)
    except BaseException:
        print(f"seed {seed}, second {world.now:.3f} of the day; faults so far: {world.faults}")
        raise
    return world, consumer


def nothing_is_left(consumer: TablesConsumer) -> None:
    """Without any VIP the tables are as empty as at first."""
    made = consumer.controller
    assert made.plane.compiler.in_use()["pods"] < MOST_PODS
    made.plane.engine.states[0].pod_refs[:MOST_PODS] = 0
    made.update(SOURCE, remove=[vip.key for vip in made.plane.store.source(SOURCE)])
    for _ in range(3):
        made.tend()
    assert {name: count for name, count in made.plane.compiler.in_use().items() if count} == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_day_down_to_the_tables(seed: int) -> None:
    world, consumer = live_through(seed, 24)
    assert world.checkpoints == 12
    assert consumer.source.counts.syncs > 100
    assert len(world.faults) >= 15, world.faults
    nothing_is_left(consumer)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2000, 2040))
def test_many_days_down_to_the_tables(seed: int) -> None:
    _world, consumer = live_through(seed, 24)
    nothing_is_left(consumer)
