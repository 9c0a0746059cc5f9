"""What the memory driver does beyond the contract: interfaces, vnet headers, reasons, running again."""

from __future__ import annotations

import pytest

from kuproxy.codes import Outcome, PacketFlag, Reason
from kuproxy.dataplane.layout import BATCH
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.errors import DriverError


def test_interfaces_headers_and_reasons() -> None:
    driver = MemoryDriver([b"a" * 60, (b"b" * 61, 4)])
    vnet = bytes([1, 4, 0, 0, 0, 0, 34, 0, 16, 0])
    driver.inject([(b"c" * 1514, 2)], vnet=vnet)
    frame = driver.frame
    assert not driver.finished
    assert driver.receive(frame) == 3
    assert driver.finished
    assert frame.packets["interface"][:3].tolist() == [0, 4, 2]
    assert frame.packets["flags"][:3].tolist() == [
        0, 0, PacketFlag.VNET | PacketFlag.PARTIAL_CHECKSUM | PacketFlag.GSO,
    ]  # fmt: skip
    frame.packets["outcome"][:3] = [Outcome.DROP, Outcome.PASS, Outcome.TRANSMIT]
    frame.packets["reason"][:3] = [Reason.TTL_EXPIRED, Reason.NO_VIP, Reason.FORWARDED]
    assert driver.transmit(frame) == (2, 0)
    assert driver.dropped == [(b"a" * 60, 0, Outcome.DROP, Reason.TTL_EXPIRED, None)]
    assert driver.passed == [(b"b" * 61, 4, Outcome.PASS, Reason.NO_VIP, None)]
    assert driver.transmitted == [(b"c" * 1514, 2, Outcome.TRANSMIT, Reason.FORWARDED, vnet)]
    assert driver.counts.tolist() == [0, 1, 1, 1, 0]
    assert driver.receive(frame) == 0


def test_rewind_and_counting_only() -> None:
    driver = MemoryDriver([b"x" * 64] * 300, collect=False)
    for round_ in range(1, 4):
        driver.inject([b"y" * 65])
        while n := driver.receive(driver.frame):
            driver.frame.packets["outcome"][:n] = Outcome.PASS
            driver.transmit(driver.frame)
        assert driver.counts[Outcome.PASS] == 300 + round_
        driver.rewind()
        driver.clear()
    assert driver.passed == []


def test_vectors_are_full() -> None:
    driver = MemoryDriver([b"x" * 64] * (BATCH + 1))
    assert [driver.receive(driver.frame) for _ in range(3)] == [BATCH, 1, 0]


def test_refusals() -> None:
    driver = MemoryDriver()
    with pytest.raises(DriverError, match="largest"):
        driver.inject([b"x" * 5000])
    with pytest.raises(DriverError, match="10 bytes"):
        driver.inject([b"x"], vnet=b"short")
    with pytest.raises(DriverError, match="interface"):
        driver.inject([(b"x", 1 << 16)])
    assert driver.finished
