"""The same packets through tayga and through our graph: they agree field by field, but for a table of differences."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from differential.plane import CompiledPlane
from differential.strategies import Config
from kuproxy.codes import Family, Outcome
from kuproxy.reference import RefPacket
from netns.tayga import PROGRAM, Tayga, tayga
from netns.tayga_cases import CLIENT_PORT, MAPS, MTU, PREFIX, Case, cases, opening
from netns.tayga_compare import differences
from netns.tayga_differences import DIFFERENCES, expected
from packets import CLIENT_MAC, OUR_MAC
from reference.worlds import vip

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"netns: no program {PROGRAM}"),
]

INSIDE = 1
CASES = {case.name: case for case in cases()}
HOURS = 1_000_000  # ticks: no flow ends while we compare


class Ours:
    """The compiled graph with the services of `tayga_cases`, as a function from a packet to packets."""

    def __init__(self) -> None:
        own = {Family.IPV4: ip_address(Tayga.own4), Family.IPV6: ip_address(Tayga.own6)}
        config = Config(timeout_ticks=HOURS, reject_rate=10_000, own_addresses=own, translation_mtu=MTU)
        self._plane = CompiledPlane(config)
        self._plane.compiler.set_translation(
            IPv6Network(PREFIX), IPv4Network("192.0.0.1/32"), (CLIENT_PORT, CLIENT_PORT), MTU
        )
        self._plane.mark_interface(INSIDE, True, True)
        self._plane.set_vip(vip("90.0.0.1", ["2001::2"], kind="nat46"))
        self._plane.set_vip(vip("9000::1", ["10.0.0.1"], kind="nat64"))
        for path, packet in opening():
            assert len(self.translate(packet, path.inside)) == 1

    def translate(self, packet: bytes, inside: bool) -> list[bytes]:
        ethertype = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        frame = OUR_MAC + CLIENT_MAC + ethertype + packet
        results = self._plane.receive([RefPacket(frame, interface=INSIDE if inside else 0)], 0)
        return [result.data[14:] for result in results if result.outcome == Outcome.TRANSMIT]

    def close(self) -> None:
        self._plane.close()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Ours, Tayga]]:
    ours = Ours()
    try:
        with tayga(PREFIX, MAPS, MTU) as theirs:
            yield ours, theirs
    finally:
        ours.close()


def found(ours: Ours, theirs: Tayga, case: Case) -> dict[str, tuple[object, object]]:
    return differences(
        [out for packet in case.packets for out in ours.translate(packet, case.path.inside)],
        [out for packet in case.packets for out in theirs.translate(packet)],
    )


@pytest.mark.parametrize("name", CASES)
def test_they_agree_but_for_the_table(both: tuple[Ours, Tayga], name: str) -> None:
    ours, theirs = both
    if "error 3/4" not in name:
        assert found(ours, theirs, CASES[name]) == expected(name)
        return
    # From these tayga learns about the way to its sender, and clears DF from then on: not in the other cases, please.
    with tayga(PREFIX, MAPS, MTU) as another:
        assert found(ours, another, CASES[name]) == expected(name)


def test_every_row_of_the_table_is_needed() -> None:
    """A row that speaks of no case would be a difference that nobody has seen."""
    for row in DIFFERENCES:
        assert any(row.covers(name) for name in CASES), row
