"""Where kuproxy and kube-proxy's nftables rules part, one test for each row of the table in docs/nftables.md."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from oracle.cases import SENTINEL, Probe, endpoint, sentinel, service, slice_of
from oracle.fates import Fate, ask
from oracle.planes import Ours, Theirs
from oracle.wires import NODE, POD, POD_SIDE, PODS
from packets import ACK, FIN, RST, SYN, TCP, UDP, echo, frame

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft"),
]
PAGE = Path(__file__).parents[2] / "docs/nftables.md"
CLIENT = "40.0.0.1"
WEB, NOBODY, RANGED, STICKY = "10.96.0.80", "10.96.0.81", "10.96.0.82", "10.96.0.83"
EXTERNAL, BALANCER, STICKY_EXTERNAL = "203.0.113.5", "198.18.0.1", "203.0.113.6"
THREE = [endpoint(POD[4][name]) for name in PODS[:3]]


def objects() -> list:
    def made(name: str, address: str, node_port: int, endpoints: list, **spec: object) -> list:
        ports = [{"name": "a", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": node_port}]
        whole = service(name, address, ports, type="LoadBalancer", **spec)
        return [whole, slice_of(name, 4, ports, endpoints)]

    affinity = {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}, "externalIPs": [STICKY_EXTERNAL]}
    return [
        *made("web", WEB, 30080, THREE, externalIPs=[EXTERNAL]),
        *made("nobody", NOBODY, 30081, []),
        *made(
            "ranged", RANGED, 30082, THREE[:1], loadBalancerSourceRanges=["198.51.100.0/24"], balancer=BALANCER
        ),
        *made("sticky", STICKY, 30083, THREE, sessionAffinity="ClientIP", **affinity),
        *sentinel(4),
    ]


class Asking:
    """Both, and probes with numbers of their own."""

    def __init__(self, ours: Ours, theirs: Theirs) -> None:
        self.ours, self.theirs = ours, theirs
        self._number = 0

    def probe(self, target: str, port: int = 80, **how: object) -> Probe:
        self._number += 1
        said = {"where": "out", "source": CLIENT, "protocol": TCP} | how
        return Probe(number=self._number, source_port=2000 + self._number, target=target, port=port, **said)

    def both(self, *probes: Probe) -> list[tuple[Fate, Fate]]:
        """(ours, theirs), for each."""
        marker = self.probe(SENTINEL[4], 9, protocol=UDP)
        ours, theirs = (ask(plane, probes, marker) for plane in (self.ours, self.theirs))
        return [(ours[probe], theirs[probe]) for probe in probes]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    with ExitStack() as stack:
        theirs = Theirs()
        stack.callback(theirs.close)
        ours = Ours(tmp_path_factory.mktemp("differences"))
        stack.callback(ours.close)
        for plane in (theirs, ours):
            plane.serve(objects())
        yield Asking(ours, theirs)


def test_refusals(asking: Asking) -> None:
    [(ours, theirs)] = asking.both(asking.probe(NOBODY))
    assert (ours.what, ours.by, ours.seen[0].source) == ("refused", "reset", NOBODY)
    assert (theirs.what, theirs.by, theirs.seen[0].source) == ("refused", "icmp", NODE[4])


def test_segments_that_begin_nothing(asking: Asking) -> None:
    flags = (SYN | ACK, FIN, FIN | ACK, RST, 0)
    for ours, theirs in asking.both(*(asking.probe(WEB, flags=each) for each in flags)):
        assert (ours.what, theirs.what) == ("translated", "passed")
    [(ours, theirs)] = asking.both(asking.probe(WEB, flags=ACK))
    assert ours.what == theirs.what == "translated"


def test_other_ports_of_external_addresses(asking: Asking) -> None:
    probes = [asking.probe(EXTERNAL, 81), asking.probe(BALANCER, 81, where="node", source=NODE[4])]
    for ours, theirs in asking.both(*probes):
        assert (ours.what, theirs.what) == ("dropped", "passed")


def test_hops_of_the_nodes_own_packets(asking: Asking) -> None:
    [(ours, theirs)] = asking.both(asking.probe(WEB, where="node", source=NODE[4]))
    assert (ours.ttl, theirs.ttl) == (63, 64)


def test_the_masquerade_address(asking: Asking) -> None:
    probe = asking.probe(WEB)
    [(ours, theirs)] = asking.both(probe)
    assert (ours.seen[0].source, theirs.seen[0].source) == (NODE[4], POD_SIDE[4])
    assert ours.seen[0].source_port == probe.source_port


def test_expired_before_the_source_ranges(asking: Asking) -> None:
    inside, outside = asking.both(asking.probe(WEB, ttl=1), asking.probe(BALANCER, ttl=1))
    assert [each.what for each in inside] == ["expired", "expired"]
    assert [each.what for each in outside] == ["expired", "dropped"]


def test_affinity_of_several_addresses(asking: Asking) -> None:
    """Of eight clients some have another pod at another address; with nftables none."""
    clients = [f"40.0.1.{number}" for number in range(8)]
    first = asking.both(*(asking.probe(STICKY, source=each) for each in clients))
    then = asking.both(*(asking.probe(STICKY_EXTERNAL, source=each) for each in clients))
    ours, theirs = (
        [one[plane].endpoint != two[plane].endpoint for one, two in zip(first, then, strict=True)] for plane in (0, 1)
    )
    assert any(ours) and not any(theirs)


def test_impossible_sources(asking: Asking) -> None:
    for source in ("127.0.0.1", NODE[4]):
        [(ours, theirs)] = asking.both(asking.probe(WEB, source=source))
        assert (ours.what, theirs.what) == ("translated", "dropped")


def test_echoes(asking: Asking) -> None:
    """To a cluster IP, and to an external address."""
    got = []
    for plane in (asking.ours, asking.theirs):
        for target in (WEB, EXTERNAL):
            plane.wires.send("out", frame(echo(CLIENT, target, 7, 7)))
        got.append({(each.source, each.destination, each.source_port) for each in plane.wires.collect()})
    assert got[0] == {(WEB, CLIENT, 3), (EXTERNAL, CLIENT, 0)}
    assert got[1] == {(NODE[4], CLIENT, 3), (CLIENT, EXTERNAL, 8)}


FIREWALL = """
table inet firewall {
    chain forward {
        type filter hook forward priority filter - 5; policy accept;
        ct state invalid drop
    }
}
"""


def test_firewalls_that_ask_conntrack(asking: Asking) -> None:
    """A rule that drops what conntrack calls invalid; and the page's remedy."""
    remedy = re.search(r"```nft\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert remedy is not None
    planes = (asking.ours, asking.theirs)
    for plane in planes:
        plane.wires.nft(FIREWALL)
    try:
        [(ours, theirs)] = asking.both(asking.probe(WEB))
        assert (ours.reply, theirs.reply) == ("0 packets", "restored")
        asking.ours.wires.nft(remedy[1])
        [(ours, _)] = asking.both(asking.probe(WEB))
        assert ours.reply == "restored"
        asking.ours.wires.nft("delete table inet kuproxy")
    finally:
        for plane in planes:
            plane.wires.nft("delete table inet firewall")


def test_the_page_names_a_test_for_each_row() -> None:
    rows = re.findall(r"^\|.*`(test_\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    tests = {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_a_test_for_each_row"}
    assert sorted(rows) == sorted(tests)
