"""`ku run` with masquerade, hairpin, source ranges and affinity, and real sockets."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kuproxy.codes import REASON_TEXT, Reason
from netns.lab import Host, network, ping
from netns.world import cache_options

pytestmark = pytest.mark.netns

PODS = ["10.2.0.2", "10.2.0.3", "10.2.0.4"]  # one host, three addresses
CLIENTS = ["10.1.0.2", "10.1.0.77", "10.1.0.78"]
NODE = "10.1.0.1"
SHORT_S = 0.5
AFFINITY_S = 2.0
SCRIPT = f"""
ku conf masquerade 10.2.0.1
ku vip 90.0.0.1/32 protocol udp port 80 target_port 8080 masquerade
ku pod 90.0.0.1/32 10.2.0.2
ku vip 90.0.0.2/32 masquerade
ku pod 90.0.0.2/32 10.2.0.2
ku vip 90.0.0.3/32 protocol tcp port 80 target_port 8080
ku pod 90.0.0.3/32 10.2.0.2
ku vip 90.0.0.4/32 protocol tcp port 80 target_port 8080 node_port 30080 source_ranges 10.1.0.0/28,10.9.0.0/16
ku pod 90.0.0.4/32 10.2.0.2
ku vip 90.0.0.5/32 protocol tcp port 80 target_port 8080 affinity {AFFINITY_S:.0f}
ku pod 90.0.0.5/32 {" ".join(PODS)}
show node counters
"""


class Answering:
    """Answers TCP connections and UDP datagrams at port 8080 with `POD CLIENT PORT` and what was sent."""

    def __init__(self, host: Host) -> None:
        self._sockets = [host.run(self._open, address, kind) for address in PODS for kind in (1, 2)]
        self._ending = False
        self._threads = [
            threading.Thread(target=self._serve, args=(each,), daemon=True) for each in self._sockets
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _open(address: str, kind: int) -> socket.socket:
        opened = socket.socket(socket.AF_INET, kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, 8080))
        if kind == socket.SOCK_STREAM:
            opened.listen(64)
        opened.settimeout(0.1)
        return opened

    def _serve(self, opened: socket.socket) -> None:
        name = opened.getsockname()[0]
        while not self._ending:
            try:
                if opened.type == socket.SOCK_STREAM:
                    connection, peer = opened.accept()
                    with connection:
                        connection.settimeout(3)
                        connection.sendall(self._answer(name, peer, connection.recv(2048)))
                else:
                    data, peer = opened.recvfrom(2048)
                    opened.sendto(self._answer(name, peer, data), peer)
            except OSError:
                continue

    @staticmethod
    def _answer(name: str, peer: tuple[str, int], data: bytes) -> bytes:
        return f"{name} {peer[0]} {peer[1]} ".encode() + data

    def close(self) -> None:
        self._ending = True
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


class Network:
    """Client and pods, with `ku run` on the node between them; `report` ends `ku run` and returns what it printed."""

    def __init__(self, client: Host, pod: Host, run: subprocess.Popen[str]) -> None:
        self.client, self.pod, self._run = client, pod, run

    def report(self) -> str:
        self._run.send_signal(signal.SIGINT)
        return self._run.communicate(timeout=20)[0]


@contextmanager
def running(directory: Path) -> Iterator[Network]:
    script = directory / "services.ku"
    script.write_text(SCRIPT)
    with network() as (client, node, pod), ExitStack() as ending:
        client.sh(*(f"ip addr add {address}/24 dev c1" for address in CLIENTS[1:]))
        pod.sh(*(f"ip addr add {address}/24 dev p1" for address in PODS[1:]))
        node.sysctl("ipv4/ip_forward", "1")
        pods = Answering(pod)
        ending.callback(pods.close)
        words = ("-m", "kuproxy.daemon.foreground", "--config", str(script), *cache_options())
        run = node.start(sys.executable, *words)

        def end() -> None:
            if run.poll() is None:
                run.send_signal(signal.SIGINT)
                run.communicate(timeout=20)

        ending.callback(end)
        assert run.stderr is not None
        for line in run.stderr:
            if "applied" in line:
                break
        assert run.poll() is None
        yield Network(client, pod, run)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with running(tmp_path_factory.mktemp("policy")) as made:
        yield made


def from_address(
    address: str, source: str, port: int, kind: int = socket.SOCK_STREAM, source_port: int = 0
) -> str:
    """Ask from one of the host's addresses: who answers, and what it took us for. Raises OSError."""
    with socket.socket(socket.AF_INET, kind) as opened:
        opened.settimeout(SHORT_S)
        opened.bind((source, source_port))
        opened.connect((address, port))
        opened.send(b"?")
        return opened.recv(2048).decode()


def test_masqueraded_flows_have_unique_sources(shared: Network) -> None:
    """Row 16: three clients with the same 200 ports, at one pod: 600 tuples, and each gets its own answer."""

    def flows() -> list[str]:
        found = []
        with ExitStack() as ending:
            for number in range(600):
                opened = ending.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                opened.settimeout(3)
                opened.bind((CLIENTS[number % 3], 20_000 + number // 3))
                opened.connect(("90.0.0.1", 80))
                opened.send(b"%d" % number)
                _, address, port, data = opened.recv(2048).decode().split(" ")
                assert int(data) == number
                found.append(f"{address} {port}")
        return found

    seen = shared.client.run(flows)
    assert len(set(seen)) == 600
    assert {each.split()[0] for each in seen} == {"10.2.0.1"}


def test_a_pod_reaches_itself_through_its_service(shared: Network) -> None:
    """Row 17: the pod sees the node, not itself; others keep their address."""
    answer = shared.pod.run(from_address, "90.0.0.3", PODS[0], 80)
    assert answer.split(" ")[:2] == [PODS[0], "10.2.0.1"]
    answer = shared.client.run(from_address, "90.0.0.3", CLIENTS[0], 80)
    assert answer.split(" ")[:2] == [PODS[0], CLIENTS[0]]


def test_source_ranges(shared: Network) -> None:
    """Row 30: outside them no answer of any kind; the node port is exempt."""
    assert shared.client.run(from_address, "90.0.0.4", CLIENTS[0], 80).startswith(PODS[0])
    with pytest.raises(TimeoutError):
        shared.client.run(from_address, "90.0.0.4", CLIENTS[1], 80)
    assert shared.client.run(from_address, NODE, CLIENTS[1], 30080).startswith(PODS[0])


def test_affinity_by_the_clock(shared: Network) -> None:
    """Row 31: one pod while the client keeps coming, the ring's again when it has been away for long enough."""

    def pod() -> str:
        return shared.client.run(from_address, "90.0.0.5", CLIENTS[0], 80).split(" ")[0]

    chosen = set()
    for _ in range(12):
        began = time.monotonic()
        together = {pod() for _ in range(8)}
        assert time.monotonic() - began < AFFINITY_S
        assert len(together) == 1
        chosen |= together
        if len(chosen) > 1:
            return
        time.sleep(AFFINITY_S + 0.3)
    raise AssertionError(f"always {chosen}: the affinity never ended")


def test_exhaustion_is_counted_and_refused(tmp_path: Path) -> None:
    """Row 16: echoes have no ports, so that one client has the pod to itself; the next is refused, not confused."""
    with running(tmp_path) as made:
        made.client.run(ping, "90.0.0.2")
        made.client.sh(f"ip route add 90.0.0.2/32 via {NODE} src {CLIENTS[1]}")
        with pytest.raises(TimeoutError):
            made.client.run(ping, "90.0.0.2")
        with pytest.raises(TimeoutError):
            made.client.run(from_address, "90.0.0.4", CLIENTS[1], 80)
        counters = made.report()
    for reason in (Reason.MASQUERADE_EXHAUSTED, Reason.SOURCE_RANGE):
        [line] = [line for line in counters.splitlines() if REASON_TEXT[reason] in line]
        assert int(line.split()[0]) >= 1
