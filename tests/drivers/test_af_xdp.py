"""The AF_XDP driver against the real kernel, over veth pairs in namespaces of our own, in native and generic mode."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

import packets
from kuproxy.codes import Outcome
from kuproxy.dataplane._jit import COMPILED
from kuproxy.drivers import _xdp_socket
from kuproxy.drivers.af_xdp import AfXdpDriver, XdpMode
from kuproxy.errors import DriverError, SteeringError
from kuproxy.steering.xdp import Where, XdpGate
from tests.drivers import netns
from tests.drivers.rigs import assert_removal_is_told
from tests.drivers.test_af_packet import forward
from tests.drivers.test_contract import packet

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not COMPILED, reason="af_xdp needs the compiler"),
]
MODES = pytest.mark.parametrize("mode", list(XdpMode))


@pytest.fixture
def pair() -> Iterator[tuple[str, netns.Peer]]:
    """A namespace with near0 (for the driver) and a plain socket at far0."""
    with netns.namespaces("a") as (namespace,), netns.veth(namespace, mtu=9000):
        peer = netns.Peer(namespace, "far0")
        yield namespace, peer
        peer.close()


@contextlib.contextmanager
def opened(namespace: str, mode: XdpMode = XdpMode.NATIVE, **options: Any) -> Iterator[AfXdpDriver]:
    """A driver at near0, with its program."""
    options.setdefault("whole", True)
    with contextlib.ExitStack() as stack:
        with netns.inside(namespace):
            gate = XdpGate("near0", 1, Where(mode))
            stack.callback(gate.close)
            register = lambda fd: gate.register(0, fd)  # noqa: E731
            driver = stack.enter_context(AfXdpDriver("near0", mode=mode, register=register, **options))
        yield driver


@MODES
def test_macs_are_set_on_all_that_is_sent(pair: tuple[str, netns.Peer], mode: XdpMode) -> None:
    namespace, peer = pair
    macs = {"destination_mac": b"\x02ABCDE", "source_mac": b"\x02fghij"}
    with opened(namespace, mode, index=7, **macs) as driver:
        assert not driver.zero_copy  # veth cannot
        for outcome in (Outcome.TRANSMIT, Outcome.PASS):
            sent = packet(100, outcome)
            peer.send(sent)
            assert driver.wait(1000) and driver.receive(driver.frame) == 1
            assert driver.frame.packets["interface"][0] == 7
            driver.frame.packets["outcome"][0] = outcome
            assert driver.transmit(driver.frame) == (1, 0)
            assert peer.receive(2) == [b"\x02ABCDE\x02fghij" + sent[12:]]


@MODES
def test_more_than_the_rings_hold(pair: tuple[str, netns.Peer], mode: XdpMode) -> None:
    """What is lost is counted, and nothing gets stuck or out of step."""
    namespace, peer = pair
    with opened(namespace, mode, chunks=512) as driver:
        got = 0
        for round_ in range(3):
            for i in range(600):
                peer.send(packet(200, 1, i))
                if i % 50 == 0:
                    time.sleep(0.005)  # veth's own ring is small
            time.sleep(0.05)
            received = forward(driver, timeout_ms=200)
            assert 250 <= received <= 512
            got += received
            counts = driver.statistics()
            assert got + counts["kernel_drops"] == 600 * (round_ + 1)
            came = peer.receive(1000)
            assert len(came) == received
            assert came == [packet(200, 1, i) for i in range(received)]
        assert counts["received"] == counts["sent"] == got


@MODES
def test_long_packets_are_copied_and_one_bad_packet_costs_only_itself(
    pair: tuple[str, netns.Peer], mode: XdpMode
) -> None:
    namespace, peer = pair
    with opened(namespace, mode) as driver:
        lengths = [3712, 3713, 3840, 3841, 9000, 60]
        sent = [packet(length, 1, length) for length in lengths]
        for each in sent:
            peer.send(each)
        time.sleep(0.05)
        assert driver.receive(driver.frame) == len(sent)
        assert driver.statistics()["copied"] == 4
        records = driver.frame.packets
        records["outcome"][: len(sent)] = Outcome.TRANSMIT
        records["length"][1] = 13  # no Ethernet header
        records["start"][2] = len(driver.frame.data) - 10  # outside
        records["start"][3] = records["start"][0]  # another packet's
        assert driver.transmit(driver.frame) == (3, 3)
        assert peer.receive(4) == [sent[0], sent[4], sent[5]]


def test_down_and_up_again(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace) as driver:
        for i in range(100):
            peer.send(packet(100, 1, i))
        time.sleep(0.05)
        n = driver.receive(driver.frame)
        driver.frame.packets["outcome"][:n] = Outcome.TRANSMIT
        netns.ip("-n", namespace, "link", "set", "near0", "down")
        assert driver.transmit(driver.frame) == (0, n)
        assert not driver.wait(10)  # no error: it may come back
        netns.ip("-n", namespace, "link", "set", "near0", "up")
        peer.send(packet(100, 1, 1000))
        assert forward(driver, timeout_ms=5000) == 101 - n
        assert driver.statistics()["received"] == 101


@MODES
def test_interface_removed_while_polling(pair: tuple[str, netns.Peer], mode: XdpMode) -> None:
    namespace, _ = pair
    with opened(namespace, mode) as driver:
        assert_removal_is_told(namespace, driver, 300)


def test_memory_outlives_the_driver_and_the_queue_is_free(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace) as driver:
        frame, ring = driver.frame, driver.ring
    frame.data[:] = 1
    assert ring.shared.fill.sum() == 0
    assert driver.finished and driver.statistics()["kernel_drops"] == 0
    with pytest.raises(DriverError, match="closed"):
        driver.wait(10)
    with opened(namespace) as again:
        peer.send(packet(100, 1, 5))
        assert forward(again) == 1


def test_sockets_may_be_opened_by_somebody_else(pair: tuple[str, netns.Peer]) -> None:
    """In the interface's namespace, where the driver's process need not be."""
    namespace, peer = pair
    with netns.inside(namespace):
        gate = XdpGate("near0", 1)
        sockets = _xdp_socket.open_sockets("near0")
    register = lambda fd: gate.register(0, fd)  # noqa: E731
    with AfXdpDriver("near0", sockets=sockets, register=register, whole=True) as driver:
        peer.send(packet(100, 1, 5))
        assert forward(driver) == 1
        assert peer.receive(2) == [packet(100, 1, 5)]
    gate.close()
    assert all(each.fileno() == -1 for each in sockets)


# ------------------------------------------------------------------------------------------- what cannot be


def test_a_queue_has_one_owner(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair
    with opened(namespace), netns.inside(namespace):
        with pytest.raises(DriverError, match="near0, queue 0: another AF_XDP socket has it already"):
            AfXdpDriver("near0", register=lambda fd: None, whole=True)
        with pytest.raises(DriverError, match="near0, queue 9: the interface has no such queue"):
            AfXdpDriver("near0", register=lambda fd: None, whole=True, queue=9)
        with pytest.raises(SteeringError, match=r"near0: native mode: .*busy"):
            XdpGate("near0", 1, Where.NATIVE)


def test_errors_name_the_interface(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair

    def ignore(fd: int) -> None: ...

    with netns.inside(namespace):
        with pytest.raises(DriverError, match="nosuch0: No such device"):
            AfXdpDriver("nosuch0", register=ignore)
        with pytest.raises(SteeringError, match="nosuch0"):
            XdpGate("nosuch0", 1)
        with pytest.raises(DriverError, match="a power of two"):
            AfXdpDriver("near0", register=ignore, chunks=1000)
        with pytest.raises(DriverError, match="6 bytes"):
            AfXdpDriver("near0", register=ignore, destination_mac=b"12345", source_mac=b"123456")
        with pytest.raises(
            DriverError, match=r"near0: in generic mode .* use native mode, or the driver af_packet"
        ):
            AfXdpDriver("near0", register=ignore, mode=XdpMode.GENERIC)


def test_a_kernel_without_af_xdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_xdp_socket, "AF_XDP", 255)
    with pytest.raises(DriverError, match=r"interface lo: this kernel has no AF_XDP \(CONFIG_XDP_SOCKETS\)"):
        AfXdpDriver("lo", register=lambda fd: None)


def test_a_failed_registration_leaves_nothing(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair

    def refuse(fd: int) -> None:
        raise SteeringError("no room")

    before = os.listdir("/proc/self/fd")
    with netns.inside(namespace), pytest.raises(SteeringError, match="no room"):
        AfXdpDriver("near0", register=refuse, whole=True)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def _without_privilege(namespace: str, before: str) -> str:
    """What opening a driver says in a process that has first done `before`."""
    program = f"""
        import ctypes, os, resource, socket
        from kuproxy.drivers.af_xdp import AfXdpDriver
        from kuproxy.errors import KuError
        libc = ctypes.CDLL(None)
        {before}
        try:
            AfXdpDriver("near0", register=lambda fd: None, whole=True)
        except KuError as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def _drop_capability(number: int) -> str:
    """Statements that take a capability out of the effective set (capset(2), version 3; words of low sets first)."""
    return (
        "head = (ctypes.c_uint32 * 2)(0x20080522, 0); sets = (ctypes.c_uint32 * 6)(); "
        "assert libc.capget(head, sets) == 0; "
        f"sets[0] &= ~{1 << number} & 0xFFFFFFFF; "
        "assert libc.capset(head, sets) == 0"
    )


def test_without_the_privilege(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair
    said = _without_privilege(namespace, _drop_capability(13))
    assert said == "PrivilegeError interface near0: AF_XDP sockets need CAP_NET_RAW"


def test_too_little_memory_may_be_locked(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair
    limit = "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); "
    said = _without_privilege(namespace, limit + _drop_capability(14))
    assert said.startswith("DriverError interface near0: 10 MiB of packet memory cannot be locked")
    assert "RLIMIT_MEMLOCK" in said and "CAP_IPC_LOCK" in said


# ------------------------------------------------------------------------------------------------- checksums


def test_unfinished_checksums_are_completed(pair: tuple[str, netns.Peer]) -> None:
    """A UDP socket at far0 leaves its checksums to a card that is not there; the driver completes them."""
    namespace, _ = pair
    netns.ip("-n", namespace, "addr", "add", "10.9.0.1/24", "dev", "far0")
    near = ":".join(f"{byte:02x}" for byte in netns.mac(namespace, "near0"))
    netns.ip("-n", namespace, "neigh", "add", "10.9.0.2", "lladdr", near, "dev", "far0")
    with netns.inside(namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind(("10.9.0.1", 4000))
    for whole, bad in ((True, 20), (False, 0)):
        with opened(namespace, whole=whole) as driver, sender if not whole else contextlib.nullcontext():
            for i in range(20):
                sender.sendto(b"x" * (i * 50), ("10.9.0.2", 53))
            time.sleep(0.05)
            n = driver.receive(driver.frame)
            frames = []
            for record in driver.frame.packets[:n]:
                start = int(record["start"])
                frames.append(driver.frame.data[start : start + int(record["length"])].tobytes())
            udp = [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == 17]
            assert len(udp) == 20
            wrong = [frame for frame in udp if packets.verify_checksums(frame)]
            assert len(wrong) == bad, "with whole=True nobody looks: the test's packets are indeed unfinished"
            assert driver.statistics()["checksums_completed"] == 20 - bad


def test_native_mode_has_segments_split(pair: tuple[str, netns.Peer]) -> None:
    """The kernel takes segmentation from the peer while a program is attached in native mode; that we rely on."""
    namespace, _ = pair

    def segmentation() -> str:
        command = ["ip", "netns", "exec", namespace, "ethtool", "-k", "far0"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return next(line for line in text.splitlines() if line.startswith("tcp-segmentation-offload"))

    if subprocess.run(["which", "ethtool"], capture_output=True, check=False).returncode:
        pytest.skip("no program `ethtool`")
    assert segmentation().split()[1] == "on"
    with opened(namespace):
        assert segmentation().split()[1] == "off"
    assert segmentation().split()[1] == "on"
