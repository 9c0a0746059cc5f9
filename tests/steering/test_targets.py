"""Differences, their order, and what happens when there is no room: with maps made of dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

import pytest

from kuproxy.errors import SteeringError
from kuproxy.steering.keys import ConfigBit, endpoint_keys, is_return, network_keys
from kuproxy.steering.targets import Entries, MapWriter, Targets, pod_keys, vip_keys


class FakeMap:
    """Does what a BPF map does, and writes down what was asked of it."""

    def __init__(self, name: str, log: list[tuple[str, bytes]], capacity: int = 1000) -> None:
        self.name, self.log, self.capacity = name, log, capacity
        self.content: dict[bytes, bytes] = {}

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        self.content.update(entries)
        self.log.extend(("new", key) for key in entries)

    def delete(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            del self.content[key]
            self.log.append(("gone", key))


class FakeMaps:
    def __init__(self, capacity: int = 1000) -> None:
        self.log: list[tuple[str, bytes]] = []
        self.steer = FakeMap("ku_steer", self.log, capacity)
        self.prefixes = FakeMap("ku_prefixes", self.log, capacity)
        self.config: list[int] = []

    def write_config(self, word: int) -> None:
        self.config.append(word)


def vips(*items: tuple[str, int, int]) -> frozenset:

    return frozenset((ip_network(network), protocol, port) for network, protocol, port in items)


VIP = list(vip_keys(vips(("10.96.0.10", 6, 80))))
POD = list(pod_keys([(ip_address("10.2.0.2"), 6, 8080)]))


def test_shared_keys_stay_until_the_last_target_goes() -> None:
    entries = Entries()
    first, second = (endpoint_keys(ip_address("10.0.0.1"), 6, port) for port in (80, 443))
    for keys, expected_new in ((first, 2), (second, 1)):  # the fragments' entry is shared
        change, balance = entries.difference([], keys)
        entries.commit(balance)
        assert (len(change.new), change.gone) == (expected_new, [])
    for keys, expected_gone in ((first, 1), (second, 2)):
        change, balance = entries.difference(keys, [])
        entries.commit(balance)
        assert (change.new, len(change.gone)) == ([], expected_gone)
    assert len(entries) == 0


def test_what_leaves_and_comes_back_in_one_change_is_not_touched() -> None:
    maps = FakeMaps()
    writer = MapWriter(maps)
    writer.apply([], VIP)
    del maps.log[:]
    writer.apply(VIP, VIP)
    assert maps.log == []


def test_replies_come_up_before_destinations_and_longer() -> None:
    maps = FakeMaps()
    writer = MapWriter(maps)
    writer.apply([], VIP + POD)
    directions = [is_return(key) for _, key in maps.log]
    assert directions == sorted(directions, reverse=True)
    del maps.log[:]
    writer.apply(VIP + POD, [])
    directions = [is_return(key) for _, key in maps.log]
    assert directions == sorted(directions)
    assert maps.steer.content == {}


def test_the_prefix_map_is_consulted_only_while_it_has_entries() -> None:
    maps = FakeMaps()
    writer = MapWriter(maps)
    prefix = list(vip_keys(vips(("90.0.0.0/8", 0, 0))))
    writer.apply([], prefix)
    writer.apply([], VIP)
    writer.apply(prefix, [])
    assert maps.config == [ConfigBit.PREFIXES, 0]
    assert maps.prefixes.content == {}


def test_a_full_map_is_refused_before_anything_changes() -> None:
    maps = FakeMaps(capacity=3)
    writer = MapWriter(maps)
    writer.apply([], VIP)
    with pytest.raises(SteeringError, match="4 entries for ku_steer, which holds 3"):
        writer.apply([], POD)
    assert sorted(maps.steer.content) == sorted(VIP)
    writer.apply(VIP, [])
    writer.apply([], POD)
    assert sorted(maps.steer.content) == sorted(POD)


def test_families_are_those_of_vips_and_node_ports() -> None:
    assert Targets(vips=vips(("fd00::1", 6, 80)), node_ports=frozenset({(4, 6, 30080)})).families == {4, 6}
    assert Targets().families == set()


@pytest.mark.parametrize("node_port", [(5, 6, 80), (4, 6, 0), (4, 6, 65536), (4, 256, 80)])
def test_node_ports_are_checked(node_port: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a node port"):
        Targets(node_ports=frozenset({node_port}))


def test_network_keys_of_prefixes_ignore_protocol_and_port() -> None:

    assert network_keys(ip_network("90.0.0.0/8"), 6, 80) == network_keys(ip_network("90.0.0.0/8"), 0, 0)
