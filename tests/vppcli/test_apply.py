"""Scripts become state, as a whole or not at all."""

from __future__ import annotations

import pytest

from kuproxy.errors import ConfigError
from kuproxy.model.config import InterfaceMark, Settings, Show, ShowKind
from kuproxy.vppcli.apply import Desired
from kuproxy.vppcli.grammar import parse_line


def state(script: str) -> list[str]:
    """The VIPs and pods after a script, one line each."""
    desired = Desired()
    desired.run(script)
    return told(desired)


def told(desired: Desired) -> list[str]:
    return [f"{vip.describe()}: {' '.join(map(str, vip.pods))}".strip() for vip in desired.vips]


def problems(script: str, before: str = "") -> list[str]:
    desired = Desired()
    desired.run(before)
    untouched = told(desired)
    with pytest.raises(ConfigError) as error:
        desired.run(script, "s.ku")
    assert told(desired) == untouched, "a refused script must leave nothing behind"
    return str(error.value).splitlines()


def test_vips_and_pods() -> None:
    assert state(
        """
        ku vip 90.0.0.0/8 port 80 target_port 8080 new_len 64
        ku pod 90.0.0.0/8 10.0.0.2 10.0.0.1
        ku pod 90.0.0.0/8 10.0.0.3:9090 10.0.0.1:8080
        """
    ) == ["90.0.0.0/8 port 80 nat44 target_port 8080 new_len 64: 10.0.0.1 10.0.0.2 10.0.0.3:9090"]


def test_one_prefix_may_have_several_vips() -> None:
    # VPP keys a VIP by its prefix and fails for the second node port 0
    assert state(
        """
        ku vip 90.0.0.0/8 port 80
        ku vip 90.0.0.0/8 port 53 protocol udp
        ku pod 90.0.0.0/8 10.0.0.1
        ku vip 90.0.0.0/8
        ku pod 90.0.0.0/8 10.0.0.2 port 53
        ku pod 90.0.0.0/8 10.0.0.3 port 0 protocol any
        """
    ) == [
        "90.0.0.0/8 port 80 nat44 new_len 1024: 10.0.0.1",
        "90.0.0.0/8 protocol udp port 53 nat44 new_len 1024: 10.0.0.1 10.0.0.2",
        "90.0.0.0/8 nat44 new_len 1024: 10.0.0.3",
    ]


def test_the_same_vip_again_changes_nothing() -> None:
    line = "ku vip 90.0.0.0/8 port 80 node_port 30000\n"
    pod = "ku pod 90.0.0.0/8 10.0.0.1\n"
    assert state(line + pod + line + pod) == state(line + pod)
    assert state(line + "ku vip 90.0.0.0/8 target_port 80 node_port 30000 nat4 port 80") == state(line)


def test_the_same_vip_with_other_contents_is_refused() -> None:
    assert problems("\nku vip 90.0.0.0/8 port 80 new_len 64", "ku vip 90.0.0.0/8 port 80") == [
        "s.ku:2: prefix: VIP 90.0.0.0/8 port 80 exists already, as 90.0.0.0/8 port 80 nat44 new_len 1024; "
        "delete it first, or repeat it as it is"
    ]


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("", "", True),
        ("protocol tcp", "", True),
        ("", "protocol udp", True),
        ("protocol tcp", "protocol tcp", True),
        ("protocol tcp", "protocol udp", False),
    ],
)
def test_a_node_port_belongs_to_one_vip(first, second, clash) -> None:
    script = (
        f"ku vip 90.0.0.1 port 80 node_port 30000 {first}\nku vip 90.0.0.2 port 80 node_port 30000 {second}\n"
    )
    if clash:
        assert len(problems(script)) == 1
        assert "s.ku:2: node_port: 30000 is the node port of VIP 90.0.0.1/32" in problems(script)[0]
    else:
        assert len(state(script)) == 2


def test_node_ports_of_the_two_ip_versions_are_apart_and_free_after_deletion() -> None:
    assert len(state("ku vip 90.0.0.1 port 80 node_port 30000\nku vip 2003::1 port 80 node_port 30000")) == 2
    assert state(
        "ku vip 90.0.0.1 port 80 node_port 30000\nku vip 90.0.0.1 del\nku vip 90.0.0.2 port 80 node_port 30000"
    ) == ["90.0.0.2/32 port 80 nat44 node_port 30000 new_len 1024:"]


TWO = "ku vip 90.0.0.0/8 port 80\nku vip 90.0.0.0/8 port 80 protocol udp\nku pod 90.0.0.0/8 10.0.0.1\n"


def test_deleting_needs_exactly_one_vip() -> None:
    assert problems("ku vip 90.0.0.0/8 del", TWO) == [
        "s.ku:1: prefix: 90.0.0.0/8 is the prefix of 2 VIPs; say port and protocol: "
        "90.0.0.0/8 port 80, 90.0.0.0/8 protocol udp port 80"
    ]
    left = ["90.0.0.0/8 port 80 nat44 new_len 1024: 10.0.0.1"]
    assert state(TWO + "ku vip 90.0.0.0/8 protocol udp del") == left
    assert state(TWO + "ku vip 90.0.0.0/8 port 80 protocol udp nat4 new_len 77 del") == left
    assert state(TWO + "ku vip 90.0.0.0/8 pr udp del\nku vip 90.0.0.0/8 del\n") == []
    assert problems("ku vip 91.0.0.0/8 del", TWO) == ["s.ku:1: prefix: no VIP 91.0.0.0/8"]
    assert problems("ku vip 90.0.0.0/8 port 81 del", TWO) == [
        "s.ku:1: prefix: no VIP 90.0.0.0/8 port 81; with this prefix there is "
        "90.0.0.0/8 port 80, 90.0.0.0/8 protocol udp port 80"
    ]


def test_a_vip_that_comes_back_has_no_pods() -> None:
    vip = "ku vip 90.0.0.0/8\n"
    assert state(vip + "ku pod 90.0.0.0/8 10.0.0.1\nku vip 90.0.0.0/8 del\n" + vip) == [
        "90.0.0.0/8 nat44 new_len 1024:"
    ]


def test_deleting_and_adding_again_and_again_leaves_nothing_behind() -> None:
    desired, fresh = Desired(), Desired()
    for _ in range(3):
        desired.run(
            "ku vip 90.0.0.0/8 port 80 node_port 30000\nku pod 90.0.0.0/8 10.0.0.1\nku vip 90.0.0.0/8 del\n"
        )
    assert vars(desired) == vars(fresh)
    with pytest.raises(ConfigError, match=r"no VIP 90\.0\.0\.0/8$"):
        desired.run("ku pod 90.0.0.0/8 10.0.0.1")


def test_removing_pods() -> None:
    vip = "ku vip 90.0.0.0/8 port 80\nku pod 90.0.0.0/8 10.0.0.1 10.0.0.1:81 10.0.0.1:82 10.0.0.2\n"
    name = "90.0.0.0/8 port 80 nat44 new_len 1024:"
    assert state(vip + "ku pod 90.0.0.0/8 10.0.0.1 del") == [f"{name} 10.0.0.2"]
    assert state(vip + "ku pod 90.0.0.0/8 10.0.0.1:82 del") == [f"{name} 10.0.0.1 10.0.0.1:81 10.0.0.2"]
    assert state(vip + "ku pod 90.0.0.0/8 10.0.0.1:80 del") == [f"{name} 10.0.0.1:81 10.0.0.1:82 10.0.0.2"]
    assert problems("ku pod 90.0.0.0/8 10.0.0.2 10.0.0.3 del", vip) == [
        "s.ku:1: address: VIP 90.0.0.0/8 has no pod 10.0.0.3"
    ]
    # one of several VIPs is enough
    more = TWO + "ku pod 90.0.0.0/8 protocol udp 10.0.0.2\n"
    assert state(more + "ku pod 90.0.0.0/8 10.0.0.2 del") == state(TWO)


@pytest.mark.parametrize(
    ("vip", "pod", "message"),
    [
        ("90.0.0.0/8 nat4", "2001::1", "pod 2001::1 is IPv6, but VIP 90.0.0.0/8 is ip4-nat44: its pods are IPv4"),
        ("90.0.0.0/8 nat6", "10.0.0.1", "pod 10.0.0.1 is IPv4, but VIP 90.0.0.0/8 is ip4-nat46: its pods are IPv6"),
        ("2002::/16 nat64", "2001::1", "pod 2001::1 is IPv6, but VIP 2002::/16 is ip6-nat64: its pods are IPv4"),
        ("90.0.0.0/8", "10.0.0.1:80", "pod 10.0.0.1:80 has a port, but VIP 90.0.0.0/8 stands for every port"),
    ],
)  # fmt: skip
def test_pods_must_fit_their_vip(vip, pod, message) -> None:
    prefix = vip.split()[0]
    assert problems(f"ku pod {prefix} {pod}", f"ku vip {vip}") == [f"s.ku:1: address: {message}"]


def test_all_problems_of_a_script_at_once_in_order() -> None:
    script = """\
ku vip 90.0.0.1/8 port 80
ku pod 90.0.0.0/8 10.0.0.1
ku frob
ku vip 2003::/16 new_len 1000
ku pod 2003::/16 2001::1
ku vip 2004::/16
ku pod 2004::/16 10.0.0.1
ku pod 2005::/16 2001::1
"""
    assert problems(script) == [
        "s.ku:1: prefix: '90.0.0.1/8' has bits set beyond its length; the prefix is 90.0.0.0/8",
        "s.ku:2: prefix: no VIP 90.0.0.0/8",
        "s.ku:3: 'frob' is not known here; possible: conf, pod, set, show, test, trace or vip",
        "s.ku:4: new_len: 1000 is not a size for the new-flow table; it is a power of two, 1 to 16777216",
        # not line 5: that its VIP is missing is line 4's fault
        "s.ku:7: address: pod 10.0.0.1 is IPv4, but VIP 2004::/16 is ip6-nat66: its pods are IPv6",
        "s.ku:8: prefix: no VIP 2005::/16",
    ]


def test_a_script_continues_where_the_last_one_ended() -> None:
    desired = Desired()
    desired.run("ku vip 90.0.0.0/8", "a.ku")
    desired.run("ku pod 90.0.0.0/8 10.0.0.1", "b.ku")
    action = parse_line("ku pod 90.0.0.0/8 10.0.0.2")
    assert action is not None
    desired.apply(action)
    assert told(desired) == ["90.0.0.0/8 nat44 new_len 1024: 10.0.0.1 10.0.0.2"]


def test_settings_interfaces_shows() -> None:
    desired = Desired()
    desired.run(
        """
        ku conf timeout 60
        ku conf buckets-log2 4
        ku set int nat4 in eth0
        ku set int nat6 in eth0
        ku set int nat6 in eth1
        ku set int nat6 in eth1 del
        ku set int nat4 in eth0 del
        show ku v v
        test ku fl fl
        """
    )
    config = desired.config(("x.ku",))
    assert config.settings == Settings(16, 60.0)
    assert config.interfaces == (InterfaceMark("eth0", nat4_in=False, nat6_in=True),)
    assert config.shows == (Show(ShowKind.VIPS, True),)
    assert config.flush_flows
    assert config.sources == ("x.ku",)


def test_a_tunnel_needs_a_source_address_first() -> None:
    """As VPP refuses `lb vip ... encap gre4` before `lb conf ip4-src-address`."""
    desired = Desired()
    with pytest.raises(ConfigError, match="say `ku conf ip6-src-address ADDRESS` first"):
        desired.run("ku conf ip4-src-address 192.0.2.1\nku vip 90.0.0.0/8 encap gre6")
    desired.run("ku conf ip6-src-address 2001:db8::1\nku vip 90.0.0.0/8 encap gre6\nku pod 90.0.0.0/8 2001::2")
    assert [vip.label for vip in desired.vips] == ["ip4-gre6"]
    with pytest.raises(ConfigError, match="is not an IPv4 address"):
        desired.run("ku conf ip4-src-address 2001:db8::1")
    with pytest.raises(ConfigError, match="leaves the port alone"):
        desired.run("ku conf ip4-src-address 192.0.2.1\nku vip 91.0.0.1 encap gre4\nku pod 91.0.0.1 10.0.0.1:80")
