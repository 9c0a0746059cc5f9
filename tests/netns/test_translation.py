"""`ku run` between the families: the kernel's TCP, UDP and ping of one family reach a pod that has only the other."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns.lab import Host, Server, network, ping
from netns.world import cache_options

pytestmark = pytest.mark.netns

SCRIPT = """
ku vip 90.0.0.1/32 port 80 target_port 8080 nat6
ku pod 90.0.0.1/32 fd02::2
ku vip 90.0.0.2/32 nat6
ku pod 90.0.0.2/32 fd02::2
ku vip 2003::1/128 port 80 target_port 8080 nat4
ku pod 2003::1/128 10.2.0.2
ku vip 2003::2/128 nat4
ku pod 2003::2/128 10.2.0.2
"""
VIPS = ["90.0.0.1", "2003::1"]
BULK_PORT = 9000
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """Client and pod, with `ku run` on the node between them."""
    script = Path(tmp_path_factory.mktemp("translation")) / "services.ku"
    script.write_text(SCRIPT)
    with network() as (client, node, pod):
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            node.sysctl(family, "1")
        words = ("-m", "kuproxy.daemon.foreground", "--config", str(script), *cache_options())
        run = node.start(sys.executable, *words)
        server = Server(pod, "pod", 8080)
        try:
            assert run.stderr is not None
            for line in run.stderr:
                if "applied" in line:
                    break
            assert run.poll() is None
            yield client, pod
        finally:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=10)
            server.close()


def _open(host: Host, address: str, port: int, kind: int) -> socket.socket:
    def call() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        opened = socket.socket(family, kind)
        opened.settimeout(10)
        try:
            opened.connect((address, port))
        except OSError:
            opened.close()
            raise
        return opened

    return host.run(call)


@pytest.mark.parametrize("address", VIPS)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_the_pod_answers(hosts: tuple[Host, Host], address: str, kind: int) -> None:
    with _open(hosts[0], address, 80, kind) as opened:
        opened.send(b"hello")
        name, seen, _, data = opened.recv(2048).split(b" ", 3)
    assert (name, data) == (b"pod", b"hello")
    assert seen.startswith(b"192.0.0." if ":" in address else b"64:ff9b:1::")


@pytest.mark.parametrize("address", ["90.0.0.2", "2003::2", *VIPS])
def test_ping(hosts: tuple[Host, Host], address: str) -> None:
    """A pod of the other family; or the VIP itself, where it has a port."""
    hosts[0].run(ping, address)


@pytest.mark.parametrize("address", VIPS)
@pytest.mark.parametrize("length", [1200, 1240, 1400, 4000])
def test_datagrams_of_every_size(hosts: tuple[Host, Host], address: str, length: int) -> None:
    """Whole ones, and fragments both ways."""
    data = random.Random(length).randbytes(length)
    with _open(hosts[0], address, 80, socket.SOCK_DGRAM) as opened:
        opened.send(data)
        assert opened.recv(65536).split(b" ", 3)[3] == data


@pytest.mark.parametrize("address", ["90.0.0.2", "2003::2"])
def test_ten_megabytes_each_way(hosts: tuple[Host, Host], address: str) -> None:
    client, pod = hosts
    data = random.Random(1).randbytes(10 * MEGABYTE)
    family = socket.AF_INET if ":" in address else socket.AF_INET6

    def listen() -> socket.socket:
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("", BULK_PORT))
        opened.listen()
        opened.settimeout(10)
        return opened

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(20)
            got = _read(connection, len(data))
            connection.sendall(hashlib.sha256(got).digest() + got[::-1])

    with pod.run(listen) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        started = time.monotonic()
        with _open(client, address, BULK_PORT, socket.SOCK_STREAM) as opened:
            opened.settimeout(20)
            opened.sendall(data)
            assert _read(opened, 32) == hashlib.sha256(data).digest()
            assert _read(opened, len(data)) == data[::-1]
        thread.join()
        assert time.monotonic() - started < 30


def _read(opened: socket.socket, length: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < length:
        piece = opened.recv(length - len(pieces))
        assert piece, f"ended after {len(pieces)} of {length} bytes"
        pieces += piece
    return bytes(pieces)
