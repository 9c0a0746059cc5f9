"""The weighted ring of the kernels and of the reference are the same."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kuproxy.control.compile import ring_owners
from kuproxy.model.vip import Pod
from kuproxy.reference import maglev_ring
from kuproxy.reference.maglev import in_ring_order


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=12),
    st.sampled_from([1, 8, 64, 1024]),
)
def test_weighted_ring(weights, new_len):
    pods = in_ring_order(
        Pod(ip_address("10.0.0.0") + number, weight=weight) for number, weight in enumerate(weights)
    )
    expected = [pods[position] for position in maglev_ring(pods, new_len, [pod.weight for pod in pods])]
    assert ring_owners(pods, new_len) == expected


def test_pods_of_weight_0_have_no_slot():
    one, other = Pod(ip_address("10.0.0.1"), weight=0), Pod(ip_address("10.0.0.2"))
    assert set(ring_owners([one, other], 16)) == {other}
    assert ring_owners([one], 16) == []
