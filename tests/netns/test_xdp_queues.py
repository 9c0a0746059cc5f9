"""The XDP program that hands packets to sockets: its modes, and one queue for each worker."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import ip_address, ip_network

import pytest

from kuproxy.codes import Outcome
from kuproxy.dataplane._jit import COMPILED
from kuproxy.drivers.af_xdp import AfXdpDriver, XdpMode
from kuproxy.errors import SteeringError
from kuproxy.steering import Steering, Targets
from kuproxy.steering.links import KU1
from kuproxy.steering.program import worker_of
from kuproxy.steering.xdp import Where, XdpGate
from netns.lab import Host, network

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not COMPILED, reason="af_xdp needs the compiler"),
]

VIPS = {4: "10.96.0.10", 6: "fd96::10"}
CLIENTS = {4: "10.1.0.2", 6: "fd01::2"}
TARGETS = Targets(vips=frozenset((ip_network(each), 17, 53) for each in VIPS.values()))
WORKERS = 3


def test_auto_is_native_where_the_device_can() -> None:
    host = Host()
    try:
        host.sh("ip link add near0 type veth peer name far0")
        for interface, mode in (("near0", Where.NATIVE), ("lo", Where.GENERIC)):
            gate = host.run(XdpGate, interface, 1)
            assert gate.mode is mode
            assert bool(gate.why_not_native) == (mode is Where.GENERIC)
            gate.close()
            gate.close()
        with pytest.raises(SteeringError, match=r"interface lo: native mode: .*not supported"):
            host.run(XdpGate, "lo", 1, Where.NATIVE)
        assert "xdp" not in host.sh("ip link")
    finally:
        host.close()


def _ask_from(client: Host, family: int, ports: range) -> None:
    def ask() -> None:
        for port in ports:
            with socket.socket((socket.AF_INET, socket.AF_INET6)[family == 6], socket.SOCK_DGRAM) as asking:
                asking.bind(("", port))
                asking.sendto(b"?", (VIPS[family], 53))

    client.run(ask)


def _sources(driver: AfXdpDriver) -> list[tuple[int, int]]:
    """(family, source port) of every packet that waits there."""
    found = []
    while n := driver.receive(driver.frame):
        for record in driver.frame.packets[:n]:
            start = int(record["start"])
            frame = driver.frame.data[start : start + int(record["length"])].tobytes()
            family = 4 if frame[12:14] == b"\x08\x00" else 6
            found.append((family, struct.unpack_from(">H", frame, 34 if family == 4 else 54)[0]))
            record["outcome"] = Outcome.DROP
        driver.transmit(driver.frame)
    return found


@pytest.mark.parametrize("mode", list(XdpMode))
def test_each_flow_comes_to_its_workers_queue(mode: XdpMode) -> None:
    with network() as (client, node, _):
        steering = Steering(workers=WORKERS, xdp=Where(mode))
        node.run(steering.start)
        drivers: list[AfXdpDriver] = []
        try:
            gate = steering.gate
            assert gate is not None and gate.mode == mode
            for queue in range(WORKERS):

                def register(fd: int, queue: int = queue) -> None:
                    gate.register(queue, fd)

                def opened(queue: int = queue) -> AfXdpDriver:
                    return AfXdpDriver(KU1, queue=queue, mode=mode, register=register, whole=True)

                drivers.append(steering.namespace.run(opened))
            node.run(steering.set_targets, TARGETS)
            ports = range(40_000, 40_060)
            for family in (4, 6):
                _ask_from(client, family, ports)
            time.sleep(0.2)
            seen = [_sources(driver) for driver in drivers]
            for queue, flows in enumerate(seen):
                expected = [
                    (family, port)
                    for family in (4, 6)
                    for port in ports
                    if worker_of(ip_address(CLIENTS[family]), port, WORKERS) == queue
                ]
                assert expected and sorted(flows) == expected
        finally:
            for driver in drivers:
                driver.close()
            node.run(steering.close)
