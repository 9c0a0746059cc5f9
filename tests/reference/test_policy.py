"""Affinity, source ranges, weights, source hashing: docs/forwarding.md, "Which pod"."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_network

import pytest

from kuproxy.codes import HashMode, Node, Outcome, Reason
from kuproxy.errors import ConfigError
from kuproxy.model.vip import Pod
from kuproxy.reference import maglev_ring
from packets import frame, tcp, udp
from reference.worlds import pod, send, verdict, vip, world

PODS = [f"10.0.0.{last}" for last in range(1, 6)]


def pods_of(reference, ports, now=0, client="40.0.0.1"):
    return {str(send(reference, frame(udp(client, "90.0.0.1", port, 80)), now).pod) for port in ports}


class TestAffinity:
    one = vip("90.0.0.1", PODS, port=80, affinity_s=60.0)

    def test_one_client_one_pod(self):
        assert len(pods_of(world(self.one), range(100))) == 1
        assert len(pods_of(world(replace(self.one, affinity_s=0.0)), range(100))) > 1

    def test_by_the_clock(self):
        """Refreshed by every new flow; after the time the ring decides again."""
        reference = world(self.one)
        before = pods_of(reference, [1])
        for now in (599, 1198):
            assert pods_of(reference, [now], now) == before
        chosen = reference.counters[Node.BALANCE, Reason.AFFINITY]
        pods_of(reference, [2], 1198 + 600)
        assert (chosen, reference.counters[Node.BALANCE, Reason.AFFINITY]) == (2, 2)

    def test_never_to_a_removed_pod(self):
        reference = world(self.one)
        [first] = pods_of(reference, [1])
        reference.set_vip(replace(self.one, pods=tuple(p for p in self.one.pods if str(p) != first)))
        [second] = pods_of(reference, [2])
        assert second != first
        reference.set_vip(self.one)  # the first is back; the client stays with the second
        assert pods_of(reference, [3]) == {second}

    def test_never_to_a_pod_of_weight_0(self):
        reference = world(self.one)
        [first] = pods_of(reference, [1])
        weights = tuple(p.weighing(0) if str(p) == first else p for p in self.one.pods)
        reference.set_vip(replace(self.one, pods=weights))
        assert first not in pods_of(reference, range(2, 50))

    def test_a_clash_changes_the_port_not_the_pod(self):
        two = vip("90.0.0.2", PODS, port=80, affinity_s=60.0)
        reference = world(self.one, two)
        for port in range(1000, 1030):
            send(reference, frame(udp("40.0.0.1", "90.0.0.1", port, 80)))
            send(reference, frame(udp("40.0.0.1", "90.0.0.2", port, 80)))
        flows = reference.live_flows(0)
        assert len({flow.pod for flow in flows if str(flow.address) == "90.0.0.2"}) == 1


class TestSourceRanges:
    one = vip("90.0.0.1", PODS, port=80, node_port=30080, source_ranges=(ip_network("40.0.0.0/31"),))

    @pytest.mark.parametrize(("last", "let_in"), [(0, True), (1, True), (2, False), (255, False)])
    def test_outside_is_dropped(self, last, let_in):
        expected = (Outcome.TRANSMIT, Reason.FORWARDED) if let_in else (Outcome.DROP, Reason.SOURCE_RANGE)
        assert verdict(world(self.one), frame(tcp(f"40.0.0.{last}", "90.0.0.1", 7, 80))) == expected

    def test_node_port_is_exempt(self):
        data = frame(tcp("66.0.0.1", "40.0.0.254", 7, 30080))
        assert verdict(world(self.one), data) == (Outcome.TRANSMIT, Reason.FORWARDED)

    def test_they_hold_for_existing_flows(self):
        reference = world(replace(self.one, source_ranges=()))
        data = frame(tcp("66.0.0.1", "90.0.0.1", 7, 80))
        assert verdict(reference, data)[1] == Reason.FORWARDED
        reference.set_vip(self.one)
        assert verdict(reference, data)[1] == Reason.SOURCE_RANGE

    def test_families_agree(self):
        with pytest.raises(ConfigError, match="another family"):
            vip("90.0.0.1", source_ranges=(ip_network("4000::/16"),))


def test_hash_source():
    assert len(pods_of(world(vip("90.0.0.1", PODS, port=80, hash_mode=HashMode.SOURCE)), range(1000))) == 1


class TestWeights:
    def test_one_to_three(self):
        for new_len in (16, 1024, 65536):
            counts = Counter(maglev_ring([pod("10.0.0.1"), pod("10.0.0.2")], new_len, [1, 3]))
            assert abs(counts[0] - new_len / 4) <= 1
            assert abs(counts[1] - 3 * new_len / 4) <= 1

    @pytest.mark.parametrize("weight", [1, 7, 100])
    def test_equal_weights_are_the_unweighted_ring(self, weight):
        pods = [pod(text) for text in PODS]
        assert maglev_ring(pods, 256, [weight] * 5) == maglev_ring(pods, 256)

    def test_weight_0_keeps_flows_and_gets_none(self):
        one = vip("90.0.0.1", PODS[:2], port=80)
        reference = world(one)
        for port in range(50):
            send(reference, frame(udp("40.0.0.1", "90.0.0.1", port, 80)))
        before = {flow.client_port: flow.pod for flow in reference.live_flows(0)}
        first, second = one.pods
        reference.set_vip(replace(one, pods=(first.weighing(0), second)))
        pods_of(reference, range(100))
        after = {flow.client_port: flow.pod for flow in reference.live_flows(0)}
        assert all(after[port] == address for port, address in before.items())
        assert {after[port] for port in range(50, 100)} == {second.address}

    def test_bounds(self):
        with pytest.raises(ConfigError, match="not a weight"):
            Pod(pod("10.0.0.1").address, weight=101)
        with pytest.raises(ConfigError, match="has the weights 1 and 3"):
            replace(vip("90.0.0.1"), pods=(pod("10.0.0.1"), pod("10.0.0.1").weighing(3)))
