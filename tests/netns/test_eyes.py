"""Those who look at a real daemon: `ku top` on a terminal, the page's listener, `show flows`, the shell's memory.

And those who look too much: whatever clients do to the daemon, packets go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import resource
import select
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from kuproxy.client import Client
from netns.test_daemon import PODS, Daemon, serving_daemon
from netns.world import WEB, Kept, web

pytestmark = pytest.mark.netns


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with serving_daemon('[web]\naddress = "127.0.0.1"\n') as running:
        yield running


class Terminal:
    """A program on a pseudo-terminal of 120 by 40."""

    def __init__(self, *words: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        settings = os.environ | {"TERM": "xterm-256color"} | environment
        command = [sys.executable, "-m", *words]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=settings, start_new_session=True
        )
        os.close(theirs)
        self.seen = b""

    def type(self, keys: bytes) -> None:
        self.seen = b""
        os.write(self._ours, keys)

    def until(self, *wanted: bytes) -> None:
        """All of these have been written since the last keys."""
        self._read_until(lambda: all(each in self.seen for each in wanted))

    def until_prompt_after(self, wanted: bytes) -> None:
        """This, and behind it a prompt: keys that come before a program reads them raw may be lost."""
        self._read_until(lambda: b"ku#" in self.seen.partition(wanted)[2])

    def ended(self) -> int:
        """Its exit status.  It is read from until then: whoever restores a terminal waits for its output to go."""
        self._read_until(lambda: self.process.poll() is not None)
        return self.process.wait()

    def _read_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, self.seen[-3000:]
            if not select.select([self._ours], [], [], 0.1)[0]:
                continue
            try:
                more = os.read(self._ours, 65536)
            except OSError:  # EIO: nobody has the other end open any more
                time.sleep(0.05)
                continue
            if b"\x1b[6n" in more:  # where is the cursor?
                os.write(self._ours, b"\x1b[1;1R")
            self.seen += more

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextlib.contextmanager
def terminal(*words: str, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(*words, **environment)
    try:
        yield opened
    finally:
        opened.close()


def get(daemon: Daemon, target: str) -> tuple[int, bytes]:
    """From the page's listener, as a browser on the node would."""

    def ask() -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", 9154, timeout=20)
        connection.request("GET", target)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    return daemon.made.node.call(ask)


def test_top_on_a_terminal(daemon: Daemon) -> None:
    """Rates of real connections, the pods behind them, the worker's idle share, and a clean end."""
    made = daemon.made
    with terminal("kuproxy.top", "--socket", str(daemon.socket)) as top:
        top.until(b"Services", WEB[0].encode(), b"received")
        for _ in range(8):
            assert {web(made.client, WEB[0]) for _ in range(30)} <= PODS
        top.type(b"\r")
        top.until(b"Pods of", made.endpoints[0].ipv4.encode(), b":8080")
        top.type(b"\x1b")
        time.sleep(0.5)
        top.type(b"4")
        top.until(b"Packets/vector", b" %")
        top.type(b"q")
        assert top.ended() == 0


def test_the_page_and_its_numbers(daemon: Daemon) -> None:
    made = daemon.made
    assert get(daemon, "/")[0] == 200
    assert get(daemon, "/v1/overview")[0] == 200
    began = time.monotonic()
    asked = 0
    while time.monotonic() - began < 2.0:
        assert web(made.client, WEB[0]) in PODS
        asked += 1
    overview = json.loads(get(daemon, "/v1/overview")[1])
    assert 1.5 < overview["interval_s"] < 10
    assert overview["new_flows_per_s"] == pytest.approx(asked / overview["interval_s"], rel=0.2)
    for worker in overview["workers"]:
        assert 0 < worker["idle_share"] <= 1
        assert 1 <= worker["vector_size"] < 256
    page = json.loads(get(daemon, "/v1/rates?find=" + WEB[0])[1])
    rates = page["vips"][0]["rates"]
    assert rates["from_pod_packets"] > 0 and rates["to_pod_bits"] > 0
    edges = {
        (edge["source"], edge["target"]): edge for edge in json.loads(get(daemon, "/v1/graph")[1])["edges"]
    }
    assert edges["kp-balance", "kp4-nat4"]["packets"] >= 3 * asked
    assert edges["kp-lookup", "kp-nat4-in2out"]["packets"] >= 2 * asked
    metrics = get(daemon, "/metrics")[1].decode()
    idle = [line for line in metrics.splitlines() if line.startswith("kuproxy_worker_idle_seconds_total{")]
    assert len(idle) == len(overview["workers"])
    for line in idle:
        assert 0.5 < float(line.split()[1]) < time.monotonic()


def test_flows_are_shown_by_command(daemon: Daemon) -> None:
    kept = Kept(daemon.made.client, WEB[0], 80)
    name, _ = kept.get()
    client, port = kept.sock.getsockname()[:2]
    pod = next(each for each in daemon.made.endpoints if each.name == name)
    lines = daemon.ku(f"show flows client {client} state tcp-established").splitlines()
    assert lines[0].split()[:4] == ["Proto", "Client", "Destination", "Pod"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["tcp", f"{client}:{port}", f"{WEB[0]}:80", f"{pod.ipv4}:8080"]
    ]
    [flow] = daemon.json(f"sh ku flows vip {WEB[0]}/32 pod {pod.ipv4} limit 1")["flows"]
    assert flow["pod"] == pod.ipv4
    assert "'open' is not known here" in daemon.ku("show flows state open", status=2)
    kept.close()


def test_the_shell_remembers_and_completes(daemon: Daemon) -> None:
    words = ("kuproxy.shell", "--socket", str(daemon.socket))
    memory = {"XDG_STATE_HOME": str(daemon.directory)}
    with terminal(*words, **memory) as shell:
        shell.until(b"ku#")
        shell.type(b"show ku fl\t")
        shell.until(b"ows")
        shell.type(b" li\t")
        shell.until(b"mit")
        shell.type(b" x\r")
        shell.until_prompt_after(b"'x' is not a number")
        shell.type(b"help\r")
        shell.until_prompt_after(b"show kube-proxy flows [vip <prefix>]")
        shell.type(b"show ku vips\r")
        shell.until_prompt_after(b"target_port:8080")
        shell.type(b"\x04")
        assert shell.ended() == 0
    with terminal(*words, **memory) as shell:
        shell.until(b"ku#")
        shell.type(b"\x1b[A\r")  # what was typed last, in the other shell
        shell.until_prompt_after(b"target_port:8080")
        shell.type(b"quit\r")
        assert shell.ended() == 0


def _flood(daemon: Daemon, opened: list[socket.socket]) -> None:
    """1,000 clients that say nothing, at both listeners; 50 that ask and do not read; a body of a gigabyte."""
    for number in range(1000):
        made: Any = socket.socket(socket.AF_UNIX) if number % 2 else socket.socket(socket.AF_INET)
        made.connect(str(daemon.socket) if number % 2 else ("127.0.0.1", 9154))
        opened.append(made)
    for _ in range(50):
        made = socket.socket(socket.AF_INET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", 9154))
        made.setblocking(False)
        with contextlib.suppress(OSError):
            made.send(b"GET /v1/graph.svg HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        opened.append(made)
    with socket.socket(socket.AF_UNIX) as made, contextlib.suppress(OSError):
        made.settimeout(20)
        made.connect(str(daemon.socket))
        made.sendall(
            b"PUT /v1/state HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(1000):
            made.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")


def test_whatever_clients_do_packets_go_on(daemon: Daemon) -> None:
    """Connections through the VIP, during all of it; and the daemon still takes a change."""
    made = daemon.made
    kept = Kept(made.client, WEB[0], 80)
    name, _ = kept.get()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the system grants too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    opened: list[socket.socket] = []
    try:
        made.node.call(_flood, daemon, opened)
        began = time.monotonic()
        for _ in range(50):
            assert web(made.client, WEB[0]) in PODS
            assert kept.get()[0] == name
        took_s = time.monotonic() - began
        assert took_s < 20, "50 connections and 50 requests"
        daemon.ku("vip 99.0.0.1/32")
        overview = Client(str(daemon.socket)).request("GET", "/v1/overview")
        assert overview["workers"][0]["ring_drops"] == 0
    finally:
        for each in opened:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    kept.close()
