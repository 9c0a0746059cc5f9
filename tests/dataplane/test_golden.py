"""Hashes and rings, bit for bit: VPP's numbers, and the reference's on whatever else."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.control.compile import address_words, ring_owners
from kuproxy.dataplane import hash as kernels
from kuproxy.model.vip import Pod
from kuproxy.reference import flow_hash, maglev_ring
from kuproxy.reference.packet import Endpoints

addresses4 = st.integers(0, 2**32 - 1).map(IPv4Address)
addresses6 = st.integers(0, 2**128 - 1).map(IPv6Address)
ports = st.integers(0, 65535)


def pods(*texts: str) -> list[Pod]:
    return [Pod(ip_address(text)) for text in texts]


@pytest.mark.parametrize(
    ("addresses", "slots"),
    [
        (("10.0.0.1", "10.0.0.2", "10.0.0.3"), [1, 0, 0, 0, 0, 2, 0, 0, 2, 2, 1, 2, 2, 1, 1, 1]),
        (("2001::2", "2001::3", "2001::4"), [0, 0, 0, 0, 0, 1, 0, 1, 1, 2, 1, 1, 2, 2, 2, 2]),
    ],
)
def test_rings_of_vpp(addresses, slots):
    order = pods(*addresses)
    assert ring_owners(order, 16) == [order[slot] for slot in slots]


def test_flow_hash_of_vpp():
    packet = np.zeros(64, np.uint8)
    packet[12:16] = list(IPv4Address("40.0.0.1").packed)
    packet[16:20] = list(IPv4Address("90.0.0.1").packed)
    packet[20:24] = list((10001).to_bytes(2, "big") + (3306).to_bytes(2, "big"))
    assert int(kernels.hash_ipv4(packet, 0, kernels.ports_word_at(packet, 20))) == 932283424


@given(st.sets(st.one_of(addresses4), min_size=1, max_size=30), st.integers(0, 8))
def test_rings_equal_the_reference(addresses, log2):
    members = [Pod(address) for address in addresses]
    order = sorted(members)
    assert ring_owners(members, 1 << log2) == [order[position] for position in maglev_ring(order, 1 << log2)]


@given(
    st.data(), st.sampled_from([addresses4, addresses6]), ports, ports, st.sampled_from([6, 17, 132, 1, 50])
)
def test_flow_hashes_equal_the_reference(data, addresses, source_port, destination_port, protocol):
    source, destination = data.draw(addresses), data.draw(addresses)
    if protocol in (1, 50):
        source_port = destination_port = 0
    expected = flow_hash(source, destination, source_port, destination_port)
    word = kernels.ports_word(source_port, destination_port)
    words = (*address_words(source), *address_words(destination))
    assert int(kernels.hash_words(source.version, *words, word)) == expected
    assert Endpoints(source, source_port, destination, destination_port, protocol).hash() == expected


@pytest.mark.parametrize("count", [1, 3, 7, 64, 1000, 1024])
def test_shares_differ_by_one_at_most(count):
    """FEATURES row 1: with at least as many slots as pods."""
    members = [Pod(IPv4Address("10.0.0.0") + i) for i in range(count)]
    owners = ring_owners(members, 1024)
    shares = [owners.count(pod) for pod in members]
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == 1024


def test_more_pods_than_slots_serve_the_first_ones():
    members = [Pod(IPv4Address("10.0.0.0") + i) for i in range(20)]
    assert set(ring_owners(members, 16)) == set(members[:16])
