"""A `Vip` that exists is valid and in canonical form; one that is not says everything that is wrong."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from kuproxy.codes import Protocol, VipType
from kuproxy.errors import ConfigError
from kuproxy.model.config import Settings
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix, vip_type

V4 = ip_network("90.0.0.0/8")
V6 = ip_network("2002::/16")


def pod(text: str, port: int = 0) -> Pod:
    return Pod(ip_address(text), port)


def fields_of(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [problem.field for problem in error.value.problems]


def test_pods_are_ordered_by_their_16_bytes_then_by_port() -> None:
    # IPv4 as ::a.b.c.d: the IPv6 address ::a00:2 lies between 10.0.0.1 and 10.0.0.3
    pods = [
        pod("2001::2"),
        pod("10.0.0.3"),
        pod("::a00:2"),
        pod("10.0.0.1", 81),
        pod("10.0.0.1", 9),
        pod("::1"),
    ]
    assert list(map(str, sorted(pods))) == [
        "::1", "10.0.0.1:9", "10.0.0.1:81", "::a00:2", "10.0.0.3", "2001::2",
    ]  # fmt: skip


def test_an_ipv4_pod_is_not_the_ipv6_pod_with_the_same_bytes() -> None:
    assert pod("10.0.0.1") != pod("::a00:1")
    assert VipKey(ip_network("10.0.0.1/32")) != VipKey(ip_network("::a00:1/128"))


def test_pods_are_made_unique_and_sorted_whatever_their_order() -> None:
    vips = [
        Vip(VipKey(V4, port=80), VipType.IP4_NAT44, pods=pods)
        for pods in (
            (pod("10.0.0.2"), pod("10.0.0.1")),
            (pod("10.0.0.1"), pod("10.0.0.2"), pod("10.0.0.1")),
            (pod("10.0.0.1", 80), pod("10.0.0.2", 80)),  # the target port, spelled out
        )
    ]
    assert vips[0] == vips[1] == vips[2]
    assert vips[0].pods == (pod("10.0.0.1"), pod("10.0.0.2"))
    assert len({*vips}) == 1


def test_pods_with_ports_of_their_own_stay_apart() -> None:
    vip = Vip(
        VipKey(V4, port=80), VipType.IP4_NAT44, 8080, pods=(pod("10.0.0.1", 9090), pod("10.0.0.1", 8080))
    )
    assert [vip.pod_port(each) for each in vip.pods] == [8080, 9090]


def test_target_port_defaults_to_the_port() -> None:
    assert Vip(VipKey(V4, port=80), VipType.IP4_NAT44).target_port == 80
    assert Vip(VipKey(V4, port=80), VipType.IP4_NAT44) == Vip(VipKey(V4, port=80), VipType.IP4_NAT44, 80)
    assert Vip(VipKey(V4), VipType.IP4_NAT44).target_port == 0


@pytest.mark.parametrize(
    ("prefix", "word", "expected"),
    [
        (V4, None, VipType.IP4_NAT44),
        (V4, "nat4", VipType.IP4_NAT44),
        (V4, "nat6", VipType.IP4_NAT46),
        (V4, "nat44", VipType.IP4_NAT44),
        (V4, "nat46", VipType.IP4_NAT46),
        (V6, None, VipType.IP6_NAT66),
        (V6, "nat4", VipType.IP6_NAT64),
        (V6, "nat6", VipType.IP6_NAT66),
        (V6, "nat64", VipType.IP6_NAT64),
        (V6, "nat66", VipType.IP6_NAT66),
    ],
)
def test_type_words(prefix, word, expected) -> None:
    assert vip_type(prefix, word) is expected


@pytest.mark.parametrize(
    ("prefix", "word", "right"), [(V4, "nat64", "nat44"), (V4, "nat66", "nat46"), (V6, "nat44", "nat64")]
)
def test_a_type_word_of_the_other_family_names_the_right_one(prefix, word, right) -> None:
    with pytest.raises(ValueError, match=f"it is {right}$"):
        vip_type(prefix, word)


@pytest.mark.parametrize(
    ("key", "options", "fields"),
    [
        (VipKey(V6), {"type": VipType.IP4_NAT44}, ["type"]),
        (VipKey(V4, port=80), {"target_port": 65536}, ["target_port"]),
        (VipKey(V4, port=80), {"node_port": -1}, ["node_port"]),
        (VipKey(V4), {"target_port": 80}, ["target_port"]),
        (VipKey(V4), {"new_len": 1000}, ["new_len"]),
        (VipKey(V4), {"new_len": 0}, ["new_len"]),
        (VipKey(V4), {"new_len": 1 << 25}, ["new_len"]),
        (VipKey(V4, Protocol.ICMP), {"node_port": 30000}, ["node_port"]),
        (VipKey(V4), {"pods": (pod("::1"), pod("10.0.0.1"))}, ["pods"]),
        (VipKey(V4), {"pods": (pod("10.0.0.1", 80),)}, ["pods"]),
        (
            VipKey(V4),
            {"target_port": 99, "new_len": 3, "node_port": 70000},
            ["node_port", "target_port", "new_len"],
        ),
    ],
)
def test_what_is_wrong_is_named_all_of_it(key, options, fields) -> None:
    with pytest.raises(ConfigError) as error:
        Vip(key, **{"type": VipType.IP4_NAT44, **options})
    assert fields_of(error) == fields


def test_keys_and_pods_check_their_ports() -> None:
    for make in (lambda: VipKey(V4, port=65536), lambda: Pod(IPv4Address("10.0.0.1"), -1)):
        with pytest.raises(ConfigError, match="is not a port"):
            make()
    with pytest.raises(ConfigError, match="ICMP has no ports"):
        VipKey(V4, Protocol.ICMP, 80)


@pytest.mark.parametrize("new_len", [1, 2, 1024, 1 << 24])
def test_every_power_of_two_is_a_size(new_len) -> None:
    assert Vip(VipKey(V4), VipType.IP4_NAT44, new_len=new_len).new_len == new_len


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90.0.0.1/8", "the prefix is 90.0.0.0/8"),
        ("2002::1/16", "the prefix is 2002::/16"),
        ("90.0.0.0/33", "the length is 0 to 32"),
        ("::/129", "the length is 0 to 128"),
        ("90.0.0.0/255.0.0.0", "write ADDRESS/LENGTH"),
        ("90.0.0.0/", "write ADDRESS/LENGTH"),
        ("90.0.0/8", "'90.0.0' is not an IP address"),
        ("fe80::1%eth0/128", "has a zone"),
        ("", "'' is not an IP address"),
    ],
)
def test_a_wrong_prefix_says_what_is_right(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        parse_prefix(text)


def test_an_address_alone_is_a_host_prefix() -> None:
    assert parse_prefix("10.96.0.10") == ip_network("10.96.0.10/32")
    assert parse_prefix("fd00::1") == ip_network("fd00::1/128")
    assert parse_address("fd00::1") == IPv6Address("fd00::1")


def test_replace_keeps_the_canonical_form() -> None:
    vip = Vip(VipKey(V4, port=80), VipType.IP4_NAT44, pods=(pod("10.0.0.9"),))
    wider = replace(vip, pods=(*vip.pods, pod("10.0.0.1")))
    assert wider.pods == (pod("10.0.0.1"), pod("10.0.0.9"))
    assert wider.key == vip.key


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError) as error:
        Settings(buckets=1000, timeout_s=float("nan"))
    assert fields_of(error) == ["buckets", "timeout"]
    assert Settings(buckets=1, timeout_s=0.5) == Settings(1, 0.5)
