"""Clients that are slow, idle, many or greedy: nobody else notices, and nothing of theirs piles up."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.rig import controller, listening, served
from kuproxy.client import Client
from kuproxy.daemon.api import app, server
from kuproxy.daemon.api.auth import Access
from kuproxy.daemon.api.server import bind_tcp
from kuproxy.daemon.control import Controller

ANSWER_WITHIN_S = 1.0


@pytest.fixture
def made() -> Controller:
    return controller()


def connected(client: Client) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    opened.settimeout(20)
    opened.connect(client.path)
    return opened


def status_of(opened: socket.socket) -> int:
    """Of the answer on a connection; 0 if it was closed without one."""
    with contextlib.suppress(ConnectionError):
        line = opened.recv(65536).split(b"\r\n")[0].split()
        return int(line[1]) if line else 0
    return 0


def quick(client: Client) -> None:
    began = time.monotonic()
    client.run("show ku vips")
    assert time.monotonic() - began < ANSWER_WITHIN_S


def test_a_thousand_idle_clients(made: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_WITHIN_S", 3.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the system grants too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    idle = []
    try:
        with served(made) as client:
            for _ in range(1000):
                idle.append(connected(client))
            for _ in range(5):
                quick(client)
            for opened in idle:
                assert opened.recv(1) == b"", "closed by the server"
            quick(client)
    finally:
        for opened in idle:
            opened.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_headers_that_drip_in_are_not_waited_for(made: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_WITHIN_S", 0.5)
    with served(made) as client, connected(client) as opened:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"GET /v1/vips HTTP/1.1\r\nHost: a-long-name-that-takes-its-time\r\n":
                opened.send(bytes([byte]))
                time.sleep(0.02)
        assert 0.4 < time.monotonic() - began < 1.2
        quick(client)


def test_a_body_that_drips_in_is_not_waited_for(made: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_TIMEOUT_S", 0.5)
    head = (
        b"POST /v1/ku HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with served(made) as client, connected(client) as opened:
        opened.sendall(head)
        quick(client)
        assert status_of(opened) == 408


def test_a_gigabyte_is_refused_before_it_is_read(made: Controller) -> None:
    """Announced, or in chunks of unknown number."""
    head = b"PUT /v1/state HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with served(made) as client:
        with connected(client) as opened:
            opened.sendall(head + b"Content-Length: 1000000000\r\n\r\n")
            assert status_of(opened) == 413
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with connected(client) as opened:
            opened.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            sent = 0
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    opened.sendall(chunk)
                    sent += 1
            assert sent < 200, "cut off long before the gigabyte"
        quick(client)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_endless_headers_are_refused(made: Controller) -> None:
    with served(made) as client, connected(client) as opened:
        with contextlib.suppress(OSError):
            opened.sendall(b"GET /v1/vips HTTP/1.1\r\nHost: x\r\n" + b"X-Y: z\r\n" * 20000)
        assert status_of(opened) in (0, 400, 431)
        quick(client)


def test_a_slow_reader_of_a_long_answer(made: Controller) -> None:
    made.run("\n".join(f"ku vip 10.{number // 256}.{number % 256}.0/24" for number in range(2000)))
    with served(made) as client, connected(client) as opened:
        opened.sendall(b"GET /v1/vips?limit=10000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert opened.recv(100)
        for _ in range(3):
            quick(client)


@pytest.fixture
def tcp(made: Controller) -> Iterator[int]:
    opened = bind_tcp("127.0.0.1", 0, "tcp")
    access = Access(tokens=frozenset({b"0123456789abcdef"}))
    with listening(made, opened, access):
        yield opened.getsockname()[1]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 401),
        ("Authorization: Bearer 0123456789abcdeX\r\n", 401),
        ("Authorization: Basic 0123456789abcdef\r\n", 401),
        ("Authorization: Bearer 0123456789abcdef\r\n", 200),
    ],
)
def test_over_tcp_a_token_is_needed_to_read_and_to_write(tcp: int, header: str, status: int) -> None:
    for request, body in (("GET /v1/vips", b""), ("POST /v1/ku", b'{"lines":"ku vip 90.0.0.0/8"}')):
        with socket.create_connection(("127.0.0.1", tcp), timeout=10) as opened:
            head = f"{request} HTTP/1.1\r\nHost: x\r\n{header}Content-Type: application/json\r\n"
            opened.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert status_of(opened) == status


def test_the_listener_for_metrics_has_nothing_else(made: Controller) -> None:
    opened = bind_tcp("127.0.0.1", 0, "metrics")
    with listening(made, opened, metrics_alone=True):
        for request, status in (
            ("GET /metrics", 200),
            ("GET /healthz", 200),
            ("GET /readyz", 200),
            ("POST /metrics", 405),
            ("GET /v1/vips", 404),
            ("POST /v1/flows/flush", 404),
        ):
            with socket.create_connection(opened.getsockname(), timeout=10) as asking:
                asking.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert status_of(asking) == status, request


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(made: Controller, tmp_path: Path) -> None:
    path = tmp_path / "ku.sock"
    server.bind_unix(path, 0o660, None).close()
    opened = server.bind_unix(path, 0o640, None)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(Exception, match="already listens"):
        server.bind_unix(path, 0o660, None)
    opened.close()


def test_requests_at_once_are_carried_out_one_after_the_other(made: Controller) -> None:
    with served(made) as client:
        threads = [
            threading.Thread(target=client.run, args=(f"ku vip 10.{number}.0.0/16",))
            for number in range(40)
        ]  # fmt: skip
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(client.request("GET", "/v1/vips")["vips"]) == 40
