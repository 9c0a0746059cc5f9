from __future__ import annotations

from ipaddress import ip_address, ip_network

from kuproxy.codes import InterfaceFlag
from kuproxy.steering import keys


def test_a_key_is_address_port_protocol_and_bits() -> None:
    key = keys.steer_key(ip_address("10.96.0.10"), 443, 6)
    assert key == bytes(12) + bytes([10, 96, 0, 10]) + b"\x01\xbb" + b"\x06" + b"\x00"
    assert keys.steer_key(ip_address("fd00::1"), 443, 6, returning=True)[-1] == 3


def test_families_do_not_share_keys() -> None:
    assert keys.steer_key(ip_address("10.0.0.1"), 1, 6) != keys.steer_key(ip_address("::10.0.0.1"), 1, 6)
    assert keys.prefix_key(ip_network("0.0.0.0/0"))[4] != keys.prefix_key(ip_network("::/0"))[4]


def test_protocol_0_means_the_protocols_with_ports() -> None:
    protocols = {key[18] for key in keys.endpoint_keys(ip_address("10.0.0.1"), 0, 53)}
    assert protocols == {6, 17, 132, keys.FRAGMENT}


def test_port_0_means_the_whole_address_or_a_protocol_without_ports() -> None:
    address = ip_address("10.0.0.1")
    for protocol, written in ((0, 0), (6, 0), (17, 0), (1, 1), (47, 47)):
        assert {key[18] for key in keys.endpoint_keys(address, protocol, 0)} == {written, keys.FRAGMENT}


def test_single_addresses_and_prefixes_go_to_different_maps() -> None:
    assert {len(key) for key in keys.network_keys(ip_network("10.0.0.1/32"), 6, 80)} == {keys.STEER_KEY_SIZE}
    assert [len(key) for key in keys.network_keys(ip_network("10.0.0.0/31"), 6, 80)] == [keys.PREFIX_KEY_SIZE]


def test_marks_are_those_of_the_data_plane() -> None:
    assert (keys.MARK4, keys.MARK6) == (InterfaceFlag.NAT4_IN, InterfaceFlag.NAT6_IN)
