"""Where replies of pods may come in: the programs beside plain Python, in a namespace with routes of every kind."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuproxy.steering.bpf import Verdict
from kuproxy.steering.keys import ConfigBit
from kuproxy.steering.multipath import Multipath, grouped
from kuproxy.steering.node import Interface
from kuproxy.steering.relations import relations
from kuproxy.steering.steering import _u32
from kuproxy.steering.targets import pod_keys
from steering import frames
from steering.frames import ICMP, ICMP6, TCP, UDP
from steering.model import decide
from steering.places import CLIENTS, INTERFACES, MAC, PODS, TARGETS, Rig, all_kinds, is_place_of

pytestmark = pytest.mark.netns  # loading a program needs the same privilege


@pytest.fixture(scope="module")
def rig(stack: ExitStack) -> Rig:
    return Rig(stack)


@pytest.fixture(scope="module")
def several(stack: ExitStack) -> Rig:
    return Rig(stack, workers=3)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("pod", PODS)
def test_replies_come_up_where_their_pod_is(rig: Rig, several: Rig, pod: str, workers: int) -> None:
    one = rig if workers == 1 else several
    seen = set()
    for client in CLIENTS[ip_address(pod).version]:
        for interface in INTERFACES:
            for data in all_kinds(pod, client):
                seen.add(one.check(data, interface))
    assert "refused" in seen


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("version", [4, 6])
def test_no_reply_comes_up_by_a_route_that_steering_has_refused(
    rig: Rig, several: Rig, version: int, workers: int
) -> None:
    """At ku0's egress, whither the node routes what goes to translated clients."""
    one = rig if workers == 1 else several

    def passes(data: bytes, came_from: int) -> bool:
        verdict = one.run(lambda: one.guard.test_run(data, one.index["ku"], came_from)).verdict
        assert verdict in (Verdict.NEXT, Verdict.DROP)
        return verdict == Verdict.NEXT

    first, _, translated = CLIENTS[version]
    for pod in [each for each in PODS if ip_address(each).version == version]:
        for data in all_kinds(pod, translated):
            for interface in INTERFACES:
                expected = decide(data, TARGETS, frozenset(), interface, is_place_of=is_place_of) == "return"
                assert passes(data, one.index[interface]) is expected, (pod, interface)
            assert passes(data, 0), "made here"
            assert not passes(data, one.index["ku"]), "in circles"
        for data in all_kinds(pod, first):
            assert all(passes(data, one.index[each]) for each in INTERFACES), "nothing of that is a reply here"
    pod = "10.2.0.2" if version == 4 else "fd02::2"
    data, *_ = all_kinds(pod, translated)
    one.maps.interfaces.update({_u32(one.index["uplink"]): _u32(version // 2 - 1)})
    try:
        for bits, expected in ((ConfigBit.MARKED, [True, False]), (0, [True, True])):
            one.maps.write_config(bits | ConfigBit.TRANSLATED)
            assert [passes(data, one.index[each]) for each in ("uplink", "pod")] == expected
    finally:
        one.maps.interfaces.delete([_u32(one.index["uplink"])])
        one.maps.write_config(one.writer._config)


def test_which_interfaces_those_are(rig: Rig) -> None:
    """The table at the top in one look, so that the model above is not believed blindly."""

    def places(pod: str, client: str) -> set[str]:
        (data, *_) = all_kinds(pod, client)
        return {each for each in INTERFACES if rig.outcome(data, each) == "return"}

    first, second, translated = CLIENTS[4]
    assert places("10.2.0.2", translated) == {"pod"}
    assert places("10.2.0.2", first) == {"pod"}
    assert places("10.2.0.2", second) == {"left", "right", "third"}
    assert places("10.2.0.7", first) == {"other"}
    assert places("10.3.0.2", first) == {"bridge", "port"}
    assert places("10.5.0.2", first) == places("203.0.113.5", first) == {"uplink"}
    assert places("10.6.0.2", first) == places("10.7.0.2", first) == places("10.8.0.1", first) == set()
    assert places("fd02::2", CLIENTS[6][0]) == places("fd02::2", CLIENTS[6][2]) == {"pod"}
    assert places("fd04::2", CLIENTS[6][0]) == {"left", "right", "third"}


def test_what_goes_to_a_vip_comes_up_from_anywhere(rig: Rig) -> None:
    for interface in INTERFACES:
        to_vip = frames.ipv4("10.2.0.2", "10.96.0.10", TCP, frames.l4(TCP, 8080, 80))
        assert rig.check(MAC + to_vip[6:], interface) == "forward"


def test_a_fragment_for_a_node_address_may_be_a_reply(rig: Rig) -> None:
    """To the source of what is masqueraded: then only its place tells a pod's from a forged one."""
    for field in (0x2000, 9):
        data = MAC + frames.ipv4("10.2.0.2", "10.96.0.10", UDP, frames.l4(UDP, 8080, 40000), fragment=field)[6:]
        assert [rig.check(data, each) for each in ("pod", "uplink", "port")] == ["forward", "refused", "foreign"]
    others = MAC + frames.ipv4("198.51.100.1", "10.96.0.10", UDP, bytes(16), fragment=9)[6:]
    assert rig.check(others, "pod") == "forward"


def test_what_the_node_says_to_itself_is_not_judged(rig: Rig) -> None:
    """A frame at `lo` was made here."""
    data = frames.ipv4("10.8.0.1", "10.8.0.1", TCP, frames.l4(TCP, 8080, 40000))
    assert rig.outcome(data, "lo") == "return"


def test_routes_count_at_once(rig: Rig) -> None:
    """Without anybody telling the program: the kernel's routes are asked, not a copy."""
    (data, *_) = all_kinds("10.2.0.2", CLIENTS[4][0])
    rig.ip("route add 10.2.0.2 dev other")
    try:
        assert (rig.outcome(data, "pod"), rig.outcome(data, "other")) == ("refused", "return")
    finally:
        rig.ip("route del 10.2.0.2 dev other")
    assert (rig.outcome(data, "pod"), rig.outcome(data, "other")) == ("return", "refused")


def test_groups_follow_events(rig: Rig) -> None:
    (data, *_) = all_kinds("10.2.0.7", CLIENTS[4][0])
    rig.ip("route replace 10.2.0.7 nexthop dev other nexthop dev pod")
    try:
        rig.sync()
        assert [rig.outcome(data, each) for each in ("pod", "other", "uplink")] == ["return", "return", "refused"]
    finally:
        rig.ip("route replace 10.2.0.7 dev other")
    rig.sync()
    assert [rig.outcome(data, each) for each in ("pod", "other")] == ["refused", "return"]


def test_the_groups_are_those_that_reading_anew_would_find(rig: Rig) -> None:
    """Whatever was followed by events: routes of several next hops that come, change and go, and nexthop objects."""

    def groups() -> dict[int, int]:
        rig.sync()
        fresh = rig.run(Multipath)
        fresh.close()
        assert rig.relations._multipath.groups() == fresh.groups()
        return fresh.groups()

    before, pod, other = groups(), rig.index["pod"], rig.index["other"]
    steps = [
        ("route add fd10::/64 nexthop via fd08:1::3 dev left nexthop via fd08::3 dev uplink", "uplink"),
        ("route append fd10::/64 via fd08:2::3 dev right", "uplink"),
        ("route del fd10::/64 via fd08::3 dev uplink", ""),
        ("route del fd10::/64", ""),
        ("route add 10.10.0.0/24 nexthop dev pod nexthop dev other", "pod"),
        ("route replace 10.10.0.0/24 dev pod", ""),
        ("route append 10.10.0.0/24 nexthop dev pod nexthop dev other", "pod"),
        ("route flush 10.10.0.0/24", ""),
        ("nexthop add id 10 dev pod", ""),
        ("nexthop add id 11 dev other", ""),
        ("nexthop add id 12 group 10/11", "pod"),
        ("nexthop replace id 11 dev uplink", "pod"),
        ("nexthop del id 12", ""),
        ("nexthop del id 10", ""),
        ("nexthop del id 11", ""),
    ]
    for line, member in steps:
        rig.ip(line)
        found = groups()
        assert (rig.index[member] in found) if member else found == before, line
    assert not {pod, other} & groups().keys()


def test_a_link_that_goes_leaves_its_group(rig: Rig) -> None:
    rig.ip(
        "link add gone type veth peer name gone-peer", "link set gone up", "link set gone-peer up",
        "route add 10.10.0.0/24 nexthop dev gone nexthop dev other",
    )  # fmt: skip
    rig.sync()
    with_it = rig.run(rig.relations._multipath.groups)
    rig.ip("link del gone")
    rig.sync()
    assert rig.index["other"] in with_it
    assert rig.index["other"] not in rig.run(rig.relations._multipath.groups)


def test_a_route_that_encapsulates_does_not_tell(rig: Rig) -> None:
    """The kernel says so, and the reply is taken; forging needs such a route, which is the node's owner's."""
    rig.ip("route add 10.11.0.0/24 encap ip id 7 dst 10.8.0.2 dev uplink")
    keys = list(pod_keys([(ip_address("10.11.0.2"), 0, 0)]))
    rig.writer.apply([], keys)
    try:
        data, *_ = all_kinds("10.11.0.2", CLIENTS[4][0])
        assert rig.outcome(data, "other") == "return"
    finally:
        rig.writer.apply(keys, [])
        rig.ip("route del 10.11.0.0/24")


@pytest.mark.parametrize("bits", [0, ConfigBit.MARKED, ConfigBit.MARKED | ConfigBit.STRICT])
def test_marks_decide_alone_and_any_means_anywhere(rig: Rig, bits: int) -> None:
    data, *_ = all_kinds("10.2.0.2", CLIENTS[4][0])
    rig.maps.write_config(bits)
    rig.maps.interfaces.update({_u32(rig.index["uplink"]): _u32(1)})
    try:
        expected = ("return", "foreign") if bits else ("return", "return")
        assert (rig.outcome(data, "uplink"), rig.outcome(data, "pod")) == expected
    finally:
        rig.maps.interfaces.delete([_u32(rig.index["uplink"])])
        rig.maps.write_config(rig.writer._config)


def test_without_forwarding_at_ku0_the_kernel_does_not_tell(rig: Rig) -> None:
    def forwarding(family: int, value: str) -> None:
        rig.run(lambda: Path(f"/proc/sys/net/ipv{family}/conf/ku/forwarding").write_text(value))

    for family, pod in ((4, "10.2.0.2"), (6, "fd02::2")):
        data, *_ = all_kinds(pod, CLIENTS[family][0])
        forwarding(family, "0")
        try:
            assert rig.outcome(data, "uplink") == "return"
        finally:
            forwarding(family, "1")
        assert rig.outcome(data, "uplink") == "refused"


@given(st.data())
@settings(max_examples=300)
def test_whatever_comes_in_anywhere(rig: Rig, data: st.DataObject) -> None:
    version = data.draw(st.sampled_from([4, 6]))
    pool = [each for each in PODS if ip_address(each).version == version] + list(CLIENTS[version])
    pool.append("10.96.0.10" if version == 4 else "fd96::10")
    source, destination = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
    protocol = data.draw(st.sampled_from([TCP, UDP, ICMP, ICMP6, 47, 255]))
    l4 = frames.l4(protocol, data.draw(st.sampled_from([80, 8080])), data.draw(st.sampled_from([80, 40000])))
    if version == 4:
        made = frames.ipv4(source, destination, protocol, l4, fragment=data.draw(st.sampled_from([0, 0, 0x2000, 1])))
    else:
        chain = data.draw(st.sampled_from([[], [(60, 0, 0)], [(44, 0, 1)], [(44, 0, 8)]]))
        made = frames.ipv6(source, destination, protocol, l4, chain)
    rig.check(MAC + made[6:], data.draw(st.sampled_from(INTERFACES)))


# --- plain Python -------------------------------------------------------------------------------------------


def test_sets_with_a_common_member_are_one_group() -> None:
    assert grouped([]) == {}
    groups = grouped(map(frozenset, [{5, 6}, {1, 2}, {6, 7}, {9, 3}, {2, 9}]))
    assert groups == {1: 1, 2: 1, 3: 1, 9: 1, 5: 2, 6: 2, 7: 2}


def test_members_stand_for_their_masters() -> None:
    interfaces = [
        Interface(2, "bridge", True, True, 1500),
        Interface(3, "port", True, True, 1500, 2, "bridge"),
        Interface(4, "inside", True, True, 1500, 9, "vrf"),
        Interface(5, "eth0", True, True, 1500),
    ]
    written = relations(interfaces, {4: 1, 5: 1})
    assert {struct.unpack("=I", key)[0]: struct.unpack("=4I", value) for key, value in written.items()} == {
        3: (2, 1, 0, 0),
        4: (9, 0, 1, 0),  # whose packets no program sees at the master
        5: (0, 0, 1, 0),
    }
