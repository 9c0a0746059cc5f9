"""The rules of shortcuts, one by one: surroundings in which both are safe, and what each change leaves of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from kuproxy.steering.cache_layout import Way
from kuproxy.steering.fib import Hop, NoHop
from kuproxy.steering.links import KU0
from kuproxy.steering.surroundings import LinkView
from kuproxy.steering.ways import Ways, packed

VETH, NIC, MASTER = 3, 2, 9
POD = LinkView("veth1", "veth", True, True, True, 1500, 1500, 0, True, bytes.fromhex("0a0000000001"))
CARD = LinkView("eth0", "", True, True, True, 9000, 1400, 0, False, bytes.fromhex("0a0000000002"))
POD_MAC = bytes.fromhex("0a0000000003")
POD4, POD6, CLIENT, CLIENT6 = (
    ip_address(each).packed for each in ("10.1.0.2", "fd01::2", "203.0.113.7", "2001:db8::7")
)
GATEWAY, GATEWAY6 = ip_address("10.0.0.9").packed, ip_address("fe80::9").packed


class Around(SimpleNamespace):
    """A node with one pod behind a veth, and the world behind a gateway."""

    def __init__(self) -> None:
        super().__init__(
            links={VETH: POD, NIC: CARD},
            neighbours={(VETH, POD4): POD_MAC, (VETH, POD6): POD_MAC},
            queued=frozenset({NIC}),
            filters=(),
            at_egress={VETH: 1, NIC: 1},
            hops={
                POD4: Hop(VETH, b"", 0),
                POD6: Hop(VETH, b"", 0),
                CLIENT: Hop(NIC, GATEWAY, 0),
                CLIENT6: Hop(NIC, GATEWAY6, 0),
            },
        )

    @property
    def fibs(self) -> dict[int, Any]:
        """Both are one."""
        fib = SimpleNamespace(hop=self.hops.__getitem__)
        return {4: fib, 6: fib}

    def programs(self, ifindex: int) -> int:
        return int(self.at_egress[ifindex])

    def ways(self, **how: bool) -> Ways:
        return Ways(self, lambda _: 1, **how)  # type: ignore[arg-type]


def test_into_the_pod_and_out_of_the_card() -> None:
    ways = Around().ways()
    choices = [ways.to(each) for each in (POD4, POD6, CLIENT, CLIENT6)]
    assert [each.way for each in choices] == [Way.PEER, Way.PEER, Way.NEIGHBOUR, Way.NEIGHBOUR]
    rows = packed(choices)
    assert rows["way"].tolist() == [2, 2, 1, 1]
    assert rows["ifindex"].tolist() == [VETH, VETH, NIC, NIC]
    assert rows["mtu"].tolist() == [1500, 1500, 9000, 1400]
    assert rows["macs"][0].tobytes() == POD_MAC + POD.mac
    families = rows["next_hop"][2:, :4].copy().view("<u4").reshape(-1).tolist()
    assert families == [socket.AF_INET, socket.AF_INET6]
    assert rows["next_hop"][2, 4:8].tobytes() == GATEWAY and rows["next_hop"][3, 4:].tobytes() == GATEWAY6


def link(index: int, **how: object) -> Callable[[Around], None]:
    """The interface is otherwise."""

    def change(around: Around) -> None:
        around.links[index] = around.links[index]._replace(**how)

    return change


def enslaved(index: int, kind: str) -> Callable[[Around], None]:
    """It belongs to an interface of this kind."""

    def change(around: Around) -> None:
        link(index, master=MASTER)(around)
        around.links[MASTER] = CARD._replace(kind=kind)

    return change


def other(**how: object) -> Callable[[Around], None]:
    return lambda around: around.__dict__.update(how)


def routed(address: bytes, hop: Hop | NoHop) -> Callable[[Around], None]:
    return lambda around: around.hops.update({address: hop})


PEER, NEAR = Way.PEER, Way.NEIGHBOUR
RULES = "netfilter (nftables)"


@pytest.mark.parametrize(
    ("change", "pod", "client"),
    [
        pytest.param(other(filters=(RULES,)), RULES, RULES, id="netfilter"),
        pytest.param(routed(POD4, NoHop("policy routing")), "policy routing", NEAR, id="no simple route"),
        pytest.param(routed(POD4, Hop(VETH, GATEWAY, 0)), NEAR, NEAR, id="behind a gateway"),
        pytest.param(link(VETH, up=False), "the route's link is down", NEAR, id="down"),
        pytest.param(lambda around: around.links.pop(VETH), "the route's link is down", NEAR, id="gone"),
        pytest.param(link(NIC, ethernet=False), PEER, "a link without neighbours", id="no Ethernet"),
        pytest.param(link(NIC, arp=False), PEER, "a link without neighbours", id="no ARP"),
        pytest.param(link(NIC, name=KU0), PEER, "a link without neighbours", id="our own"),
        pytest.param(enslaved(NIC, "vrf"), PEER, "a VRF", id="in a VRF"),
        pytest.param(link(NIC, kind="vrf"), PEER, "a VRF", id="a VRF"),
        pytest.param(enslaved(NIC, "bond"), PEER, NEAR, id="in a bond"),
        pytest.param(enslaved(VETH, "bridge"), NEAR, NEAR, id="a bridge's port"),
        pytest.param(link(VETH, kind="bridge"), NEAR, NEAR, id="a bridge"),
        pytest.param(link(VETH, elsewhere=False), NEAR, NEAR, id="both ends here"),
        pytest.param(other(neighbours={}), NEAR, NEAR, id="no MAC address"),
        pytest.param(other(queued={VETH}), NEAR, NEAR, id="a queue"),
        pytest.param(other(at_egress={VETH: 2, NIC: 1}), NEAR, NEAR, id="somebody's program"),
    ],
)
def test_what_each_change_leaves(change: Callable[[Around], None], pod: object, client: object) -> None:
    around = Around()
    change(around)
    ways = around.ways()
    for address, expected in ((POD4, pod), (CLIENT, client)):
        choice = ways.to(address)
        assert (choice.why or choice.way) == expected
        assert (choice.way is Way.ROUTE) == bool(choice.why)


def test_whom_filters_are_no_concern() -> None:
    around = Around()
    around.filters = ("netfilter (iptables)", "IPsec")
    assert around.ways(past_filters=True).to(POD4).way is Way.PEER
    assert around.ways().to(POD4).why == "netfilter (iptables) and IPsec"


def test_namespaces_need_not_be_entered() -> None:
    ways = Around().ways(into_pods=False)
    assert {ways.to(each).way for each in (POD4, POD6, CLIENT)} == {Way.NEIGHBOUR}


def test_the_narrowest_mtu_counts() -> None:
    around = Around()
    around.hops[CLIENT] = Hop(NIC, GATEWAY, 1280)
    around.links[VETH] = POD._replace(mtu=70_000)
    assert packed([around.ways().to(each) for each in (CLIENT, POD4)])["mtu"].tolist() == [1280, 65535]


def test_a_choice_holds_until_it_is_forgotten() -> None:
    around = Around()
    ways = around.ways()
    assert ways.to(POD4).way is Way.PEER
    around.filters = ("IPVS",)
    assert ways.to(POD4).way is Way.PEER
    ways.forget()
    assert ways.to(POD4).why == "IPVS"
