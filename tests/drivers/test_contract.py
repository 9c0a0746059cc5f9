"""The drivers' contract, run unchanged over every driver: what it says in `kuproxy.drivers.contract`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kuproxy.codes import Outcome, PacketFlag
from kuproxy.dataplane._jit import COMPILED
from kuproxy.dataplane.layout import (
    BATCH,
    HEADROOM,
    HOLD_BYTES,
    HOLD_ROOM,
    META_COUNT,
    META_HOLD_BASE,
    PACKET,
    VNET_BYTES,
    Frame,
)
from kuproxy.drivers.contract import ANSWER_ROOM, DRIVERS, MIN_ROOM, Driver, driver_class
from kuproxy.errors import DriverError
from tests.drivers.rigs import RIGS, Rig

LIVE = [pytest.mark.netns, pytest.mark.skipif(not COMPILED, reason="live drivers need the compiler")]
SET_BY_DRIVER = {"start", "vnet", "length", "room", "interface", "flags"}
GRAPH_MAY_SET = [name for name in PACKET.names or () if name not in SET_BY_DRIVER | {"outcome"}]


def _parameters() -> list[Any]:
    return [
        pytest.param(name, marks=LIVE if DRIVERS[driver].live else []) for name, (driver, _) in RIGS.items()
    ]


@pytest.fixture(params=_parameters())
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rig = RIGS[request.param][1](tmp_path)
    yield rig
    rig.close()


def packet(length: int, mark: int, seed: int = 0) -> bytes:
    """Ethernet of a type that no kernel minds; byte 14 says what the graph of these tests shall do."""
    head = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5" + bytes([mark]) + seed.to_bytes(4, "big")
    return (head + random.Random(seed).randbytes(length))[:length]


def check_received(frame: Frame, n: int) -> None:
    """What holds for every vector of every driver."""
    assert 0 <= n <= BATCH and frame.meta[META_COUNT] == n
    hold_base = int(frame.meta[META_HOLD_BASE])
    assert hold_base == len(frame.data) - HOLD_ROOM
    taken = []
    for record in frame.packets[:n]:
        start, length, room = (int(record[name]) for name in ("start", "length", "room"))
        assert room >= max(MIN_ROOM, length) and start + room <= hold_base
        assert room >= length + ANSWER_ROOM
        if record["flags"] & PacketFlag.VNET:
            assert start - HEADROOM <= int(record["vnet"]) <= start - VNET_BYTES
        assert start >= HEADROOM
        taken.append((start - HEADROOM, start + room))
        for name in record.dtype.names:
            assert name in SET_BY_DRIVER or record[name] == 0, name
    taken.sort()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(taken))


def by_mark(frame: Frame, n: int) -> None:
    """The graph of these tests: byte 14 is the outcome. Its traces must be gone in the next vector."""
    check_received(frame, n)
    for record in frame.packets[:n]:
        record["outcome"] = frame.data[int(record["start"]) + 14]
        for name in GRAPH_MAY_SET:
            record[name] = 77


def sent(packets: list[bytes]) -> list[bytes]:
    return [p for p in packets if p[14] in (Outcome.TRANSMIT, Outcome.PASS)]


def test_every_driver_has_a_rig_and_the_protocol() -> None:
    assert {driver for driver, _ in RIGS.values()} == set(DRIVERS)
    for name, row in DRIVERS.items():
        made = driver_class(name)
        assert made.__name__ == row.name
        for method in ("receive", "transmit", "close", "finished"):
            assert hasattr(made, method)
    with pytest.raises(DriverError, match="memory"):
        driver_class("carrier-pigeon")


@pytest.mark.parametrize("outcome", [Outcome.TRANSMIT, Outcome.PASS])
def test_what_goes_in_comes_out_unchanged(rig: Rig, outcome: Outcome) -> None:
    packets = [packet(length, outcome, i) for i, length in enumerate([60, 1514, 9000, 65_549, 61, 1499])]
    rig.put(packets)
    assert isinstance(rig.driver, Driver)
    assert rig.run(by_mark, len(packets)) == len(packets)
    assert rig.taken(len(packets)) == packets


def test_drop_and_held_vanish(rig: Rig) -> None:
    packets = [
        packet(100, mark, i) for i, mark in enumerate([Outcome.DROP, Outcome.HELD, Outcome.TRANSMIT] * 5)
    ]
    rig.put(packets)
    assert rig.run(by_mark, len(packets)) == 5
    assert rig.taken(5) == sent(packets)


def test_order_over_many_vectors(rig: Rig) -> None:
    """More packets than a vector or a small ring holds; outcomes mixed, so that order shows."""
    choice = random.Random(5)
    for _ in range(2 if rig.may_batch < 1000 else 1):
        lengths = [choice.choice([60, 64, 300, 1514]) for _ in range(min(1000, rig.may_batch))]
        packets = [
            packet(n, choice.choice([Outcome.TRANSMIT, Outcome.DROP]), i) for i, n in enumerate(lengths)
        ]
        rig.put(packets)
        assert rig.run(by_mark, len(packets)) == len(sent(packets))
        if rig.may_batch < 1000:
            assert rig.taken(len(sent(packets))) == sent(packets)
    if rig.may_batch >= 1000:
        assert rig.taken(len(sent(packets))) == sent(packets)


def test_an_answer_may_be_longer_or_shorter(rig: Rig) -> None:
    packets = [packet(60, Outcome.TRANSMIT, 1), packet(1514, Outcome.TRANSMIT, 2)]
    rig.put(packets)

    def graph(frame: Frame, n: int) -> None:
        by_mark(frame, n)
        for record in frame.packets[:n]:
            start, length = int(record["start"]), int(record["length"])
            if record["flags"] & PacketFlag.VNET:
                frame.data[int(record["vnet"]) : int(record["vnet"]) + VNET_BYTES] = 0
            grown = 188 if length == 60 else 70
            frame.data[start + 15 : start + grown] = 0xEE
            record["length"] = grown

    rig.run(graph, 2)
    assert rig.taken(2) == [p[:15] + b"\xee" * (n - 15) for p, n in zip(packets, (188, 70), strict=True)]


def test_a_packet_may_grow_at_its_front(rig: Rig) -> None:
    """By everything but the place of the vnet header, which moves along."""
    packets = [packet(length, Outcome.TRANSMIT, length) for length in (60, 1514, 9000, 61)]
    rig.put(packets)
    grown = HEADROOM - VNET_BYTES

    def graph(frame: Frame, n: int) -> None:
        by_mark(frame, n)
        for record in frame.packets[:n]:
            start = int(record["start"]) - grown
            frame.data[start : start + grown] = frame.data[start + grown : start + 2 * grown].copy()
            if record["flags"] & PacketFlag.VNET:
                frame.data[start - VNET_BYTES : start] = 0
                record["vnet"] = start - VNET_BYTES
            record["start"], record["length"] = start, int(record["length"]) + grown

    rig.run(graph, len(packets))
    assert rig.taken(len(packets)) == [each[:grown] + each for each in packets]


def test_released_fragments_follow(rig: Rig) -> None:
    """The graph appends packets from the hold area, with and without a vnet header before them."""
    arrived = packet(400, Outcome.TRANSMIT, 1)
    released = [packet(length, Outcome.TRANSMIT, 10 + length) for length in (60, 1400, 9000)]
    rig.put([arrived])

    def graph(frame: Frame, n: int) -> None:
        by_mark(frame, n)
        if n == 0:
            return
        for i, held in enumerate(released):
            vnet = int(frame.meta[META_HOLD_BASE]) + i * HOLD_BYTES
            start = vnet + VNET_BYTES
            frame.data[vnet:start] = 0 if i != 1 else 0xAA  # without the flag it must not be sent
            frame.data[start : start + len(held)] = np.frombuffer(held, np.uint8)
            record = frame.packets[n + i]
            record["start"], record["length"], record["vnet"] = start, len(held), vnet
            record["flags"] = PacketFlag.VNET if i != 1 else 0
            record["interface"] = frame.packets[0]["interface"]
            record["outcome"] = Outcome.TRANSMIT
        frame.meta[META_COUNT] = n + len(released)

    assert rig.run(graph, 1) == 4
    assert rig.taken(4) == [arrived, *released]


def test_receive_twice_gives_back_unsent(rig: Rig) -> None:
    packets = [packet(80, Outcome.TRANSMIT, i) for i in range(BATCH + 3)]
    rig.put(packets)
    frame = rig.driver.frame
    while (n := rig.driver.receive(frame)) == 0:
        rig.pause()
    rig.run(by_mark, len(packets) - n)
    assert rig.taken(len(packets) - n) == packets[n:]


def test_nothing_there(rig: Rig) -> None:
    rig.put([])
    frame = rig.driver.frame
    assert rig.driver.receive(frame) == 0
    assert frame.meta[META_COUNT] == 0
    assert rig.driver.transmit(frame) == (0, 0)
    rig.driver.close()
    rig.driver.close()
    assert rig.driver.finished and rig.driver.receive(frame) == 0
