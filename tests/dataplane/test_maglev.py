"""Filling large new-flow tables, where the kernel takes quicker ways than the paper's, against the reference."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest

from kuproxy.control.compile import address_words
from kuproxy.dataplane.maglev import fill_ring, fill_rings, scratch
from kuproxy.model.vip import Pod
from kuproxy.reference import maglev_ring
from kuproxy.reference.maglev import in_ring_order

KINDS = {4: lambda n: IPv4Address("10.1.0.1") + n, 6: lambda n: IPv6Address("2001:db8:7::1") + (n << 40)}


def columns(pods: list[Pod]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    words = [address_words(pod.address) for pod in pods]
    hi, lo = (np.array([each[side] for each in words], np.uint64) for side in (0, 1))
    return hi, lo, np.arange(1, len(pods) + 1, dtype=np.uint32)


# Below and at the first size that is filled ahead, in the middle, above the last one; few pods, many, more than slots.
@pytest.mark.parametrize(
    ("number", "slots", "family"),
    [
        (1, 1, 4), (5, 4, 4), (3, 2048, 6), (40, 4096, 4), (1, 8192, 4), (3, 8192, 6), (700, 8192, 4), (9000, 8192, 4),
        (257, 16384, 6), (100, 65536, 4), (7, 131072, 6), (50, 262144, 4),
    ],
)  # fmt: skip
def test_the_table_is_the_references(number: int, slots: int, family: int) -> None:
    pods = in_ring_order(Pod(KINDS[family](n)) for n in range(number))
    ring = np.zeros(slots, np.uint32)
    fill_ring(*columns(pods), scratch(number, slots), ring)
    assert (ring - 1).tolist() == maglev_ring(pods, slots)


def test_scratch_of_the_largest_serves_all_whatever_it_held() -> None:
    sizes = [(3, 8192), (5, 64), (90, 16384), (90, 8192)]
    pods = [in_ring_order(Pod(KINDS[4](n + number)) for n in range(number)) for number, _ in sizes]
    work = scratch(90, 16384)
    for each in work:
        each[...] = 0x5A
    offsets = np.cumsum([0, *(slots for _, slots in sizes[:-1])], dtype=np.int64)
    rings = np.full(sum(slots for _, slots in sizes), 77, np.uint32)
    hi, lo, owners = (np.concatenate(each) for each in zip(*map(columns, pods), strict=True))
    ends = np.cumsum([len(each) for each in pods], dtype=np.int64)
    fill_rings(hi, lo, owners, ends, work, rings, offsets, np.array([slots for _, slots in sizes], np.int64))
    for each, offset, (_, slots) in zip(pods, offsets, sizes, strict=True):
        assert (rings[offset : offset + slots] - 1).tolist() == maglev_ring(each, slots)
