"""The flow table itself: time, buckets, resizing. What it does for packets is compared in tests/differential."""

import numpy as np
import pytest

import packets
from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import Outcome, Protocol, Reason, VipCounter, VipType
from kuproxy.dataplane.flow_table import is_live
from kuproxy.dataplane.layout import ENTRY, FLOW, REVERSE, REVERSE_WAYS, W_FLOWS, WAYS
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix
from kuproxy.reference import RefPacket

VIP = VipKey(parse_prefix("90.0.0.1/32"), Protocol.UDP, 53)


def vip(*pods: str, new_len: int = 1024) -> Vip:
    return Vip(VIP, VipType.IP4_NAT44, new_len=new_len, pods=tuple(Pod(parse_address(pod)) for pod in pods))


def query(number: int) -> RefPacket:
    source = f"40.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return RefPacket(packets.frame(packets.udp(source, "90.0.0.1", 1000 + number % 60000, 53, b"q")))


def test_a_flow_costs_at_most_128_bytes_both_directions_together():
    bucket = WAYS * (ENTRY.itemsize + FLOW.itemsize) + REVERSE_WAYS * REVERSE.itemsize
    assert bucket / WAYS <= 128


@pytest.mark.parametrize("now", [0, 100, 2**31 - 1, 2**31, 2**32 - 1])
def test_time_wraps(now):
    assert not is_live(now, now)
    assert is_live((now + 1) % 2**32, now)
    assert is_live((now + 2**31 - 1) % 2**32, now)
    assert not is_live((now + 2**31) % 2**32, now)
    assert not is_live((now - 1) % 2**32, now)


@pytest.mark.parametrize("start", [1000, 2**32 - 200])
def test_expiry_at_the_timeout_to_the_second(start):
    """FEATURES row 4. 400 ticks of 0.1 s."""
    plane = CompiledPlane(Config(timeout_ticks=400))
    plane.set_vip(vip("10.0.0.1"))
    [first] = plane.receive([query(1)], start)
    assert first.outcome == Outcome.TRANSMIT
    plane.receive([query(1)], (start + 390) % 2**32)
    assert plane.vip_counters()[VIP][VipCounter.NEXT_PACKET] == 1, (
        "39 s later it is still known, and refreshed"
    )
    plane.receive([query(1)], (start + 390 + 410) % 2**32)
    assert plane.vip_counters()[VIP][VipCounter.FIRST_PACKET] == 2, "41 s after that it is not"


def test_the_fifth_flow_of_a_bucket_is_untracked_and_keeps_its_pod_until_pods_change():
    """FEATURES row 4."""
    plane = CompiledPlane(Config(buckets=1))
    plane.set_vip(vip("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    for number in range(4):
        plane.receive([query(number)], 100)
    chosen = {plane.receive([query(9)], 100 + i)[0].pod for i in range(10)}
    assert len(chosen) == 1
    counters = plane.vip_counters()[VIP]
    assert (counters[VipCounter.FIRST_PACKET], counters[VipCounter.UNTRACKED_PACKET]) == (4, 10)
    [gone] = chosen
    plane.set_vip(vip(*{"10.0.0.1", "10.0.0.2", "10.0.0.3"} - {str(gone)}))
    assert plane.receive([query(9)], 120)[0].pod != gone


@pytest.mark.parametrize("buckets", [128, 256, 1024, 4096])
def test_resize_keeps_every_live_flow(buckets):
    plane = CompiledPlane(Config(buckets=256))
    plane.set_vip(vip(*(f"10.0.0.{i}" for i in range(1, 9))))
    before = {number: plane.receive([query(number)], 100)[0].pod for number in range(100)}
    flows = plane.live_flows(101)
    plane.set_buckets(buckets, 101)
    assert sorted(plane.live_flows(101), key=str) == sorted(flows, key=str)
    assert int(plane.engine.state.header[W_FLOWS]) == 100
    plane.set_vip(vip("10.0.9.9"))  # nobody would get the same pod by the ring now
    assert {number: plane.receive([query(number)], 102)[0].pod for number in before} == before


def test_a_resize_that_would_lose_flows_is_refused_and_changes_nothing():
    plane = CompiledPlane(Config(buckets=256))
    plane.set_vip(vip("10.0.0.1"))
    for number in range(100):
        plane.receive([query(number)], 100)
    flows = plane.live_flows(101)
    with pytest.raises(ValueError, match="flows would find no place in 8 buckets"):
        plane.set_buckets(8, 101)
    assert plane.live_flows(101) == flows
    assert plane.receive([query(1)], 102)[0].reason == Reason.FORWARDED


def test_flush_forgets_everything():
    plane = CompiledPlane(Config(buckets=64))
    plane.set_vip(vip("10.0.0.1"))
    for number in range(50):
        plane.receive([query(number)], 100)
    assert plane.engine.flush() == 50
    assert plane.live_flows(101) == []
    assert not plane.engine.state.pod_refs.any()
    assert not plane.engine.state.reverse["slot"].any()


def test_stickiness_under_churn():
    """FEATURES row 5: 1000 live flows, pods added and removed 50 times: no flow of a remaining pod moves."""
    rng = np.random.default_rng(5)
    plane = CompiledPlane(Config(buckets=4096, timeout_ticks=100_000))
    stable = [f"10.0.0.{i}" for i in range(1, 11)]
    plane.set_vip(vip(*stable))
    owner = {number: plane.receive([query(number)], 100)[0].pod for number in range(1000)}
    assert plane.vip_counters()[VIP][VipCounter.UNTRACKED_PACKET] == 0
    for change in range(50):
        others = [f"10.0.1.{rng.integers(1, 200)}" for _ in range(int(rng.integers(0, 10)))]
        leaving = set(rng.choice(stable, 3, replace=False)) if change % 2 else set()
        plane.set_vip(vip(*({*stable} - leaving), *others))
        vector = [query(number) for number in range(1000)]
        for first in range(0, 1000, 100):
            results = plane.receive(vector[first : first + 100], 101 + change)
            assert [result.pod for result in results] == [
                owner[number] for number in range(first, first + 100)
            ]
