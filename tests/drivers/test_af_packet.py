"""The AF_PACKET driver against the real kernel, over veth pairs in namespaces of our own."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from kuproxy.codes import Outcome
from kuproxy.dataplane._jit import COMPILED
from kuproxy.drivers.af_packet import RETRIES, AfPacketDriver, now_ns
from kuproxy.errors import DriverError
from tests.drivers import netns
from tests.drivers.rigs import assert_removal_is_told
from tests.drivers.test_contract import packet

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not COMPILED, reason="af_packet needs the compiler"),
]


@pytest.fixture
def pair() -> Iterator[tuple[str, netns.Peer]]:
    """A namespace with near0 (for the driver) and a plain socket at far0."""
    with netns.namespaces("a") as (namespace,), netns.veth(namespace, mtu=9000):
        peer = netns.Peer(namespace, "far0")
        yield namespace, peer
        peer.close()


def opened(namespace: str, **options: object) -> AfPacketDriver:
    with netns.inside(namespace):
        return AfPacketDriver("near0", **options)  # type: ignore[arg-type]


def forward(driver: AfPacketDriver, outcome: Outcome = Outcome.TRANSMIT, timeout_ms: int = 500) -> int:
    """Everything that has come, until nothing comes any more. Returns how many packets came."""
    total = 0
    while driver.wait(timeout_ms):
        while n := driver.receive(driver.frame):
            driver.frame.packets["outcome"][:n] = outcome
            driver.transmit(driver.frame)
            total += n
        timeout_ms = 50
    return total


def test_macs_are_set_on_all_that_is_sent(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace, destination_mac=b"\x02ABCDE", source_mac=b"\x02fghij", index=7) as driver:
        for outcome in (Outcome.TRANSMIT, Outcome.PASS):
            sent = packet(100, outcome)
            peer.send(sent)
            assert driver.wait(1000) and driver.receive(driver.frame) == 1
            assert driver.frame.packets["interface"][0] == 7
            driver.frame.packets["outcome"][0] = outcome
            assert driver.transmit(driver.frame) == (1, 0)
            assert peer.receive(2) == [b"\x02ABCDE\x02fghij" + sent[12:]]


def test_more_than_the_ring_holds(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace, frames=4) as driver:
        ring = len(driver.ring.offsets)
        assert 4 <= ring < 32
        packets = [packet(200, 1, i) for i in range(ring + 50)]
        for _ in range(3):  # full again and again: nothing may get stuck or out of step
            for p in packets:
                peer.send(p)
            assert forward(driver) == ring
            assert peer.receive(1000) == packets[:ring]
        assert driver.statistics()["kernel_drops"] == 3 * 50
        assert driver.statistics()["received"] == driver.statistics()["sent"] == 3 * ring
        assert driver.statistics()["kernel_drops"] == 3 * 50, "reading resets the kernel's count, not ours"


def test_cut_packets_are_never_forwarded(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace, frame_bytes=2048) as driver:
        packets = [packet(n, 1, n) for n in (60, 9000, 1514, 2100, 61)]
        for p in packets:
            peer.send(p)
        assert forward(driver) == 3
        assert peer.receive(10) == [packets[0], packets[2], packets[4]]
        assert driver.statistics()["cut"] == 2
        peer.send(packets[1])
        assert driver.wait(1000)
        assert driver.receive(driver.frame) == 0, "nothing but a cut packet"
        assert not driver.wait(0), "it was given back, so we may sleep"


def test_one_bad_packet_costs_only_itself(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace) as driver:
        packets = [packet(300, 1, i) for i in range(5)]
        for p in packets:
            peer.send(p)
        time.sleep(0.05)
        assert driver.wait(1000) and driver.receive(driver.frame) == 5
        records = driver.frame.packets
        records["outcome"][:5] = Outcome.TRANSMIT
        records["length"][1] = 20_000  # beyond the MTU: EMSGSIZE
        records["length"][2] = 13  # no Ethernet header
        records["start"][3] = len(driver.frame.data) - 10  # outside
        assert driver.transmit(driver.frame) == (2, 3)
        assert peer.receive(5) == [packets[0], packets[4]]
        assert driver.statistics()["failed"] == 3


def slow(namespace: str, limit: int) -> None:
    """Let near0 send 1 Mbit/s, with a queue of `limit` bytes; skips where the kernel has no such queue."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", "near0", "root",
         "tbf", "rate", "1mbit", "burst", "4000", "limit", str(limit)],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"no token bucket queue: {done.stderr}")


@pytest.mark.skipif(shutil.which("tc") is None, reason="no program `tc`")
@pytest.mark.parametrize(("queue", "buffer"), [(6000, 0), (6_000_000, 20_000)], ids=["ENOBUFS", "EAGAIN"])
def test_a_slow_interface_drops_and_does_not_stall(
    pair: tuple[str, netns.Peer], queue: int, buffer: int
) -> None:
    """A full queue of the interface, or a full send buffer: some go, the rest is counted, within milliseconds."""
    namespace, peer = pair
    with opened(namespace) as driver:
        slow(namespace, queue)
        if buffer:
            driver._sockets.tx.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        for i in range(100):
            peer.send(packet(1400, 1, i))
        time.sleep(0.05)
        n = driver.receive(driver.frame)
        driver.frame.packets["outcome"][:n] = Outcome.TRANSMIT
        begin = now_ns()
        sent, failed = driver.transmit(driver.frame)
        assert now_ns() - begin < 1_000_000_000  # 5 ms of waiting at most, and a busy machine
        assert sent > 0 and failed > 0 and sent + failed == n == 100
        assert 0 < driver.statistics()["retries"] <= RETRIES


def test_down_and_up_again(pair: tuple[str, netns.Peer]) -> None:
    namespace, peer = pair
    with opened(namespace) as driver:
        for i in range(100):
            peer.send(packet(100, 1, i))
        time.sleep(0.05)
        n = driver.receive(driver.frame)
        driver.frame.packets["outcome"][:n] = Outcome.TRANSMIT
        netns.ip("-n", namespace, "link", "set", "near0", "down")
        begin = now_ns()
        assert driver.transmit(driver.frame) == (0, n)
        assert now_ns() - begin < 2_000_000_000
        driver.wait(10)  # clears the error
        netns.ip("-n", namespace, "link", "set", "near0", "up")
        assert driver.receive(driver.frame) == 100 - n
        driver.transmit(driver.frame)
        peer.send(packet(100, 1, 1000))
        assert forward(driver) == 1
        assert driver.statistics()["received"] == 101


def test_interface_removed_while_polling(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair
    with opened(namespace) as driver:
        assert_removal_is_told(namespace, driver, 100)


def test_memory_outlives_the_driver(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair
    driver = opened(namespace)
    frame = driver.frame
    driver.close()
    assert frame.data[:4096].sum() == 0
    frame.data[:] = 1
    with pytest.raises(DriverError, match="closed"):
        driver.wait(10)
    assert driver.statistics()["kernel_drops"] == 0


def test_errors_name_the_interface(pair: tuple[str, netns.Peer]) -> None:
    namespace, _ = pair
    with netns.inside(namespace):
        with pytest.raises(DriverError, match="nosuch0"):
            AfPacketDriver("nosuch0")
        with pytest.raises(DriverError, match="frames"):
            AfPacketDriver("near0", frames=0)
        with pytest.raises(DriverError, match="6 bytes"):
            AfPacketDriver("near0", destination_mac=b"12345", source_mac=b"123456")


def test_fanout_shares_by_queue(pair: tuple[str, netns.Peer]) -> None:
    """Two drivers in one group: every packet comes to exactly one of them."""
    namespace, peer = pair
    with opened(namespace, fanout=77) as one, opened(namespace, fanout=77) as two:
        for i in range(20):
            peer.send(packet(100, 1, i))
        assert forward(one, Outcome.DROP, 200) + forward(two, Outcome.DROP, 200) == 20


# ------------------------------------------------------------------------------------- segments and checksums


@pytest.fixture
def routed() -> Iterator[tuple[str, str, str]]:
    """client -- node -- server; the node routes between them through ku0, whose peer is ku1."""
    with netns.namespaces("client", "node", "server") as (client, node, server):
        for host, name, net in ((client, "c", "10.1.0"), (server, "p", "10.2.0")):
            netns.ip("link", "add", f"{name}1", "netns", host, "type", "veth",
                     "peer", "name", f"{name}0", "netns", node)  # fmt: skip
            netns.ip("-n", host, "addr", "add", f"{net}.2/24", "dev", f"{name}1")
            netns.ip("-n", node, "addr", "add", f"{net}.1/24", "dev", f"{name}0")
            netns.ip("-n", host, "link", "set", f"{name}1", "up")
            netns.ip("-n", node, "link", "set", f"{name}0", "up")
            netns.ip("-n", host, "route", "add", "default", "via", f"{net}.1")
        netns.ip("-n", node, "link", "add", "ku0", "mtu", "65535", "type", "veth", "peer", "name", "ku1",
                 "mtu", "65535")  # fmt: skip
        for end in ("ku0", "ku1"):
            netns.ip("-n", node, "link", "set", end, "up")
        for key in ("all", "ku0", "c0", "p0"):
            netns.sysctl(node, f"net/ipv4/conf/{key}/rp_filter", 0)
        netns.sysctl(node, "net/ipv4/ip_forward", 1)
        netns.sysctl(node, "net/ipv4/conf/ku1/forwarding", 0)
        netns.ip("-n", node, "neigh", "add", "169.254.77.1", "lladdr", "02:00:00:00:00:77", "dev", "ku0")
        netns.ip("-n", node, "route", "add", "default", "via", "169.254.77.1", "dev", "ku0", "onlink",
                 "table", "100")  # fmt: skip
        for name in ("c0", "p0"):
            netns.ip("-n", node, "rule", "add", "iif", name, "to", "10.0.0.0/8", "lookup", "100")
        yield client, node, server


def exchange(client: str, server: str, size: int, port: int) -> None:
    """`size` bytes to the server and back over one TCP connection, compared by digest."""
    payload = random.Random(size).randbytes(size)
    results: dict[str, bytes | BaseException] = {}

    def serve(listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(20)
            with connection:
                digest = hashlib.sha256()
                got = 0
                while got < size:
                    data = connection.recv(1 << 20)
                    assert data, f"closed after {got} bytes"
                    digest.update(data)
                    got += len(data)
                results["server"] = digest.digest()
                connection.sendall(payload)
        except BaseException as error:
            results["server"] = error

    with netns.inside(server):
        listener = socket.create_server(("10.2.0.2", port))
    with netns.inside(client):
        connection = socket.socket()
    with listener, connection:
        listener.settimeout(20)
        connection.settimeout(20)
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        connection.connect(("10.2.0.2", port))
        connection.sendall(payload)
        back = bytearray()
        while len(back) < size and (data := connection.recv(1 << 20)):
            back += data
        thread.join(20)
    assert results["server"] == hashlib.sha256(payload).digest()
    assert bytes(back) == payload


def test_tcp_with_offloads_through_a_compiled_loop(routed: tuple[str, str, str]) -> None:
    """64 KiB segments and partial checksums pass, and what was sent arrives: an engine's loop in small."""
    from tests.drivers.forwarder import GSO, LARGEST, PARTIAL, SEEN, forward_until

    client, node, server = routed
    with netns.inside(node):
        driver = AfPacketDriver(
            "ku1", destination_mac=netns.mac(node, "ku0"), source_mac=netns.mac(node, "ku1")
        )
    stop = np.zeros(1, np.int64)
    seen = np.zeros(4, np.int64)
    loop = threading.Thread(target=forward_until, args=[driver.ring, driver.frame, stop, seen])
    loop.start()
    try:
        deadline = time.monotonic() + 120  # the loop may have to be compiled first
        while seen[SEEN] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        exchange(client, server, 16 << 20, 5001)
    finally:
        stop[0] = 1
        loop.join(30)
        statistics = driver.statistics()
        driver.close()
    assert not loop.is_alive()
    assert seen[LARGEST] > 30_000, "no large segments were seen: offloads do not reach us"
    assert seen[GSO] > 0 and seen[PARTIAL] > 0, statistics
    assert statistics["received"] == statistics["sent"] > 500
    assert statistics["failed"] == statistics["cut"] == statistics["nonsense"] == 0
    # 32 MiB in 1,460-byte segments would be 23,000 packets
    assert statistics["received"] < 15_000
