"""The new-flow table of the reference."""

import random
import statistics
from collections import Counter
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.model.vip import Pod
from kuproxy.reference import maglev_ring
from kuproxy.reference.maglev import in_ring_order
from reference.worlds import pod


def pods(*texts):
    return [pod(text) for text in texts]


def owners(backends, new_len):
    ordered = in_ring_order(backends)
    return [ordered[position] for position in maglev_ring(backends, new_len)]


def test_golden_ipv4():
    assert maglev_ring(pods("10.0.0.1", "10.0.0.2", "10.0.0.3"), 16) == [
        1, 0, 0, 0, 0, 2, 0, 0, 2, 2, 1, 2, 2, 1, 1, 1,
    ]  # fmt: skip


def test_golden_ipv6():
    assert maglev_ring(pods("2001::2", "2001::3", "2001::4"), 16) == [
        0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 1, 1, 2, 2, 2, 2,
    ]  # fmt: skip


def test_without_pods():
    assert maglev_ring([], 1024) == []


@pytest.mark.parametrize("new_len", [1, 2, 1024])
def test_one_pod_has_every_slot(new_len):
    assert maglev_ring(pods("10.0.0.1"), new_len) == [0] * new_len


def test_more_pods_than_slots():
    many = pods(*(f"10.0.0.{last}" for last in range(1, 21)))
    assert sorted(maglev_ring(many, 8)) == list(range(8))


def test_same_address_with_two_ports():
    ring = owners(pods("10.0.0.1:81", "10.0.0.1:80"), 16)
    assert Counter(ring) == {pod("10.0.0.1:80"): 8, pod("10.0.0.1:81"): 8}
    assert in_ring_order(pods("10.0.0.1:81", "10.0.0.1:80")) == pods("10.0.0.1:80", "10.0.0.1:81")


backends = st.sets(st.integers(1, 2**32 - 1), min_size=1, max_size=40).map(
    lambda numbers: [Pod(ip_address(number)) for number in sorted(numbers)]
)


@given(backends, st.sampled_from([64, 128, 512]))
def test_shares_differ_by_at_most_one(chosen, new_len):
    shares = Counter(owners(chosen, new_len))
    counts = [shares[one] for one in chosen]
    assert sum(counts) == new_len
    assert max(counts) - min(counts) <= 1


@given(backends, st.randoms())
def test_order_of_insertion_does_not_matter(chosen, rng):
    shuffled = list(chosen)
    rng.shuffle(shuffled)
    assert owners(shuffled, 128) == owners(chosen, 128)


@pytest.mark.parametrize(("removed", "expected"), [(1, 0.0066), (10, 0.0335), (20, 0.0468)])
def test_disruption(removed, expected):
    """1000 pods, 65536 slots: removing some moves hardly more slots than were theirs."""
    rng = random.Random(7)
    figures = []
    for _ in range(5):
        every = [Pod(ip_address(rng.getrandbits(32))) for _ in range(1000)]
        before = owners(every, 65536)
        gone = set(rng.sample(every, removed))
        after = owners([one for one in every if one not in gone], 65536)
        figures.append(sum(a != b for a, b in zip(before, after, strict=True)) / 65536)
    assert statistics.mean(figures) == pytest.approx(expected, rel=0.25)
