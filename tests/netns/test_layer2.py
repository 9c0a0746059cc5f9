"""Two `ku announce layer2` on one link with a client: its kernel's neighbour tables tell who has the address."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kuproxy.confine.privilege import held
from kuproxy.demo.topology import Host, remove_stale, stop
from netns.routed import until

pytestmark = pytest.mark.netns

PREFIX = "kulink"
VIPS = ("192.168.77.100", "fd00:77::100")
_numbers = itertools.count(1)


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Answers `/v1/announce` alone, as `ku daemon` does."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.prefixes: list[str] = []
        self.heard: dict[str, Any] = {}
        self.speaks = threading.Event()
        self.speaks.set()
        super().__init__(str(path), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Daemon

    def do_POST(self) -> None:
        self.server.heard = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.server.speaks.is_set():
            self.server.speaks.wait(60)
            return  # whoever asked has gone
        tag = "+".join(self.server.prefixes)[:16]
        same = self.server.heard["tag"] == tag
        answer = {"complete": True, "tag": tag, "prefixes": None if same else self.server.prefixes}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        return


class Node:
    def __init__(self, host: Host, directory: Path) -> None:
        directory.mkdir()
        self.host, self.directory = host, directory
        self.daemon = Daemon(directory / "ku.sock")
        self.daemon.prefixes = ["192.168.77.100/32", "fd00:77::100/128"]
        self.settings = directory / "kuproxy.toml"
        self.settings.write_text(
            f'[api]\nsocket = "{directory}/ku.sock"\n'
            '[announce]\nranges = ["192.168.77.0/24", "fd00:77::/64"]\ninterval_s = 0.1\npatience_s = 2\n'
            '[announce.layer2]\ninterface = "lan"\n'
        )
        (self.mac,) = host.netlink(lambda netlink: [netlink.get_links(ifname="lan")[0].get_attr("IFLA_ADDRESS")])

    def start(self) -> subprocess.Popen[Any]:
        words = (sys.executable, "-m", "kuproxy", "announce", "layer2", "--settings", str(self.settings))
        with (self.directory / "log").open("ab") as log:
            return self.host.start(*words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


class Lan:
    def __init__(self, directory: Path) -> None:
        self.hosts: list[Host] = []
        self._prefix = f"{PREFIX}{next(_numbers)}-{os.getpid()}"
        self.bridge = self._add("bridge")
        self.bridge.netlink(lambda netlink: netlink.link("add", ifname="br0", kind="bridge"))
        self._ip(self.bridge, "link set br0 up")
        self.client = self._attach("client", 9)
        self.nodes = [Node(self._attach(f"node{number}", number), directory / f"node{number}") for number in (1, 2)]

    def _add(self, name: str) -> Host:
        host = Host(f"{self._prefix}-{name}")
        self.hosts.append(host)
        return host

    @staticmethod
    def _ip(host: Host, words: str) -> str:
        command = ["ip", "-n", host.name, *words.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    def _attach(self, name: str, number: int) -> Host:
        host = self._add(name)
        peer = {"ifname": "lan", "net_ns_fd": host.fd}
        self.bridge.netlink(lambda netlink: netlink.link("add", ifname=f"p{number}", kind="veth", peer=peer))
        for words in (
            f"link set lan address 02:00:00:00:00:0{number}",
            f"addr add 192.168.77.{number}/24 dev lan",
            f"addr add fd00:77::{number}/64 dev lan nodad",
            "link set lan up",
        ):
            self._ip(host, words)
        self._ip(self.bridge, f"link set p{number} master br0 up")
        return host

    def neighbour(self, vip: str) -> str:
        """The MAC that the client's kernel would send to, once it has one; it asks by sending a datagram."""
        family = socket.AF_INET6 if ":" in vip else socket.AF_INET
        with self.client.call(socket.socket, family, socket.SOCK_DGRAM) as asking:
            asking.sendto(b"?", (vip, 9))
        rows = json.loads(self._ip(self.client, f"-j neigh show to {vip} dev lan") or "[]")
        return rows[0].get("lladdr", "") if rows else ""

    def forget(self) -> None:
        self._ip(self.client, "neigh flush dev lan")
        self._ip(self.client, "-6 neigh flush dev lan")

    def close(self) -> None:
        stop([process for host in self.hosts for process in host.processes])
        for node in getattr(self, "nodes", ()):
            node.daemon.close()
        for host in self.hosts:
            host.close()


@contextmanager
def lan() -> Iterator[Lan]:
    remove_stale(PREFIX)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-") as directory:
        made = Lan(Path(directory))
        try:
            yield made
        finally:
            made.close()


def test_an_address_is_at_one_node_and_moves() -> None:
    with lan() as made:
        one, two = made.nodes
        first = one.start()
        for vip in VIPS:
            until(lambda vip=vip: made.neighbour(vip) == one.mac, lambda: one.log)
        assert held(first.pid).permitted == frozenset()
        two.start()
        until(lambda: two.daemon.heard.get("tag", "") != "")
        made.forget()
        for vip in VIPS:
            until(lambda vip=vip: made.neighbour(vip) == one.mac)
        assert (one.daemon.heard["announced"], two.daemon.heard["announced"]) == (2, 0)

        # The owner dies. The client's kernel learns of its successor by the announcement: it asks nobody anew.
        first.send_signal(signal.SIGKILL)
        for vip in VIPS:
            until(lambda vip=vip: made.neighbour(vip) == two.mac, lambda: two.log)

        # It comes back, and does not take away what another has.
        again = one.start()
        until(lambda: one.daemon.heard["tag"] != "")
        made.forget()
        for vip in VIPS:
            until(lambda vip=vip: made.neighbour(vip) == two.mac)

        # The other can serve one of them no longer: that one moves, without anybody's death.
        two.daemon.prefixes = two.daemon.prefixes[1:]
        until(lambda: made.neighbour(VIPS[0]) == one.mac, lambda: one.log)
        assert made.neighbour(VIPS[1]) == two.mac
        again.terminate()
        assert again.wait(5) == 0


def test_a_daemon_that_is_silent_for_too_long_or_gone_is_not_spoken_for() -> None:
    with lan() as made:
        one, two = made.nodes
        one.start()
        until(lambda: made.neighbour(VIPS[0]) == one.mac, lambda: one.log)
        two.start()
        until(lambda: two.daemon.heard.get("tag", "") != "")
        one.daemon.speaks.clear()
        until(lambda: made.neighbour(VIPS[0]) == two.mac, lambda: two.log)
        assert "has said nothing for 2 s" in one.log
        one.daemon.speaks.set()
        until(lambda: one.log.endswith("in order\n"))
        two.daemon.close()  # the socket's file is still there, and nobody listens
        until(lambda: made.neighbour(VIPS[0]) == one.mac, lambda: two.log)
        assert "no daemon runs" in two.log
