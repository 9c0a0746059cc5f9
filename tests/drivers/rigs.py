"""One rig per driver: the same five methods, so that the contract test can run unchanged over all of them."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kuproxy.codes import Outcome
from kuproxy.drivers.contract import DRIVERS, driver_class
from kuproxy.errors import DriverError
from tests.drivers import netns


def assert_removal_is_told(namespace: str, driver: Any, start: int) -> None:
    """near0 goes while the driver waits at it: one clear error, and no stall, in receiving and in sending."""
    remover = threading.Timer(0.2, netns.ip, ["-n", namespace, "link", "del", "far0"])
    remover.start()
    begin = time.monotonic()
    with pytest.raises(DriverError, match=r"near0 was removed"):
        for _ in range(100):
            driver.wait(500)
    remover.join()
    assert time.monotonic() - begin < 5
    with pytest.raises(DriverError, match=r"near0 was removed"):
        driver.check()
    driver.frame.meta[0] = 1  # sending into nowhere: an error, no stall
    driver.frame.packets[0]["start"], driver.frame.packets[0]["length"] = start, 60
    driver.frame.packets[0]["outcome"] = Outcome.TRANSMIT
    assert driver.transmit(driver.frame) == (0, 1)


class Rig:
    """Puts packets in at one side of a driver, runs a graph over each vector, collects what comes out."""

    driver: Any
    may_batch = 1 << 30  # packets that may wait before the driver loses some

    def put(self, packets: list[bytes]) -> None:
        raise NotImplementedError

    def taken(self, expected: int) -> list[bytes]:
        """What came out in all."""
        raise NotImplementedError

    def run(self, graph: Any, expected: int) -> int:
        """Vectors through `graph(frame, n)` until `expected` packets came in. Returns how many were sent."""
        came = total = 0
        end = time.monotonic() + 10
        while came < expected and time.monotonic() < end:
            n = self.driver.receive(self.driver.frame)
            if n == 0 and not self.driver.finished:
                self.pause()
                continue
            came += n
            graph(self.driver.frame, n)
            sent, failed = self.driver.transmit(self.driver.frame)
            assert failed == 0
            total += sent
            if n == 0:
                break
        assert came == expected
        return total

    def pause(self) -> None:
        time.sleep(0.001)

    def close(self) -> None:
        self.driver.close()


class MemoryRig(Rig):
    def __init__(self, directory: Path):
        self.driver = driver_class("memory")(largest=70_000)

    def put(self, packets: list[bytes]) -> None:
        self.driver.inject(packets)

    def taken(self, expected: int) -> list[bytes]:
        # The contract has one order over both outcomes; the collector keeps two lists.
        return [seen.data for seen in self.driver.transmitted] + [seen.data for seen in self.driver.passed]


class CaptureRig(Rig):
    suffix = ".pcap"

    def __init__(self, directory: Path):
        self.directory = directory
        self.driver: Any = None

    def put(self, packets: list[bytes]) -> None:
        from kuproxy.drivers.capture import CaptureWriter

        source = self.directory / f"in{self.suffix}"
        with CaptureWriter(source, ["eth0"]) as writer:
            for i, packet in enumerate(packets):
                writer.write(packet, 1_700_000_000_000_000_000 + i * 1000)
        self.driver = driver_class("capture")(source, self.directory / f"out{self.suffix}")

    def taken(self, expected: int) -> list[bytes]:
        from kuproxy.drivers.capture import Capture

        self.driver.close()
        capture = Capture(self.directory / f"out{self.suffix}", strict=True)
        return [capture.packet(i) for i in range(len(capture))]

    def close(self) -> None:
        if self.driver is not None:
            self.driver.close()


class CaptureNgRig(CaptureRig):
    suffix = ".pcapng"


class LiveRig(Rig):
    """A driver at near0, a plain packet socket at far0."""

    def __init__(self, directory: Path):
        self.stack = contextlib.ExitStack()
        try:
            (self.namespace,) = self.stack.enter_context(netns.namespaces("a"))
            near, far = self.stack.enter_context(netns.veth(self.namespace))
            with netns.inside(self.namespace):
                self.driver = self.open(near)
            self.stack.callback(self.driver.close)
            self.peer = netns.Peer(self.namespace, far)
            self.stack.callback(self.peer.close)
        except BaseException:
            self.stack.close()
            raise

    def open(self, interface: str) -> Any:
        raise NotImplementedError

    def put(self, packets: list[bytes]) -> None:
        for packet in packets:
            self.peer.send(packet)

    def taken(self, expected: int) -> list[bytes]:
        return self.peer.receive(expected + 1, 2.0)

    def pause(self) -> None:
        self.driver.wait(100)

    def close(self) -> None:
        self.stack.close()


class AfPacketRig(LiveRig):
    may_batch = 400

    def open(self, interface: str) -> Any:
        return driver_class("af_packet")(interface)


class AfXdpNativeRig(LiveRig):
    may_batch = 250  # veth's own ring between its ends has 256 places
    mode = "native"

    def open(self, interface: str) -> Any:
        from kuproxy.drivers.af_xdp import XdpMode
        from kuproxy.steering.xdp import Where, XdpGate

        gate = XdpGate(interface, 1, Where(self.mode))
        self.stack.callback(gate.close)
        return driver_class("af_xdp")(
            interface, mode=XdpMode(self.mode), whole=True, register=lambda fd: gate.register(0, fd)
        )


class AfXdpGenericRig(AfXdpNativeRig):
    mode = "generic"


# A driver may have several; a driver without one fails the completeness test.
RIGS: dict[str, tuple[str, type[Rig]]] = {
    "memory": ("memory", MemoryRig),
    "pcap": ("capture", CaptureRig),
    "pcapng": ("capture", CaptureNgRig),
    "af_packet": ("af_packet", AfPacketRig),
    "af_xdp-native": ("af_xdp", AfXdpNativeRig),
    "af_xdp-generic": ("af_xdp", AfXdpGenericRig),
}
assert {driver for driver, _ in RIGS.values()} <= set(DRIVERS)
