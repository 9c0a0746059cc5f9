"""A world for end-to-end tests: client, node and three pods as in the demo, and `ku run` on the node.

The Services:

    web    10.96.0.80, fd00:10:96::80    TCP 80 → 8080 (HTTP), UDP 7 → 7007 (echo); node ports 30080, 30007
    bulk   10.96.0.90, fd00:10:96::90    TCP 5001 → 5001, node port 30501: only pod1
    none   10.96.0.99, fd00:10:96::99    TCP 80, UDP 7, without any endpoint
"""

from __future__ import annotations

import functools
import http.client
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

from kuproxy.demo.manifest import CLUSTER4, CLUSTER6, ECHO, HTTP, Port, service
from kuproxy.demo.plane import DataPlane
from kuproxy.demo.story import start_pods
from kuproxy.demo.topology import Host, Network, addresses, remove_stale
from kuproxy.steering.bpf import _bpf

PREFIX = "kutest"
WEB = (CLUSTER4, CLUSTER6)
BULK = ("10.96.0.90", "fd00:10:96::90")
NONE = ("10.96.0.99", "fd00:10:96::99")
BULK_PORT = Port("bulk", "TCP", 5001, 5001, 30501)
TIMEOUT_S = 3.0
_numbers = itertools.count(1)


def plain(network: int, host: int) -> tuple[str, str]:
    """IPv4 and IPv6 address of a host of the topology, without prefix length."""
    ipv4, ipv6 = (str(ip_interface(each).ip) for each in addresses(network, host))
    return ipv4, ipv6


CLIENT = plain(0, 2)
NODE = plain(0, 1)  # as the client sees it
POD1 = plain(1, 2)


class World:
    """The network with servers in its pods; `start` and `stop` are `ku run`'s."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network, self.directory = network, directory
        self.client, self.node, self.pods = network.client, network.node, network.pods
        self.endpoints = start_pods(network)
        self.plane: DataPlane
        self.leaves_partial = True  # whether the driver may hand on packets with partial checksums

    def documents(self, names: Sequence[str] = ("pod1", "pod2", "pod3")) -> list[dict[str, Any]]:
        """The Services, with these pods behind `web`."""
        pods = [pod for pod in self.endpoints if pod.name in names]
        return [
            *service("web", WEB, (HTTP, ECHO), pods),
            *service("bulk", BULK, (BULK_PORT,), self.endpoints[:1]),
            *service("none", NONE, (HTTP._replace(node_port=0), ECHO._replace(node_port=0)), ()),
        ]

    def start(self, *options: str) -> None:
        """`ku run` with these options; returns when it forwards."""
        _warm()
        self.plane = DataPlane(self.node, self.directory, self.documents(), (*options, *cache_options()))
        self.plane.wait_for("forwarding")

    def serve(self, names: Sequence[str]) -> None:
        """Put these pods behind `web`."""
        self.plane.change(self.documents(names))


def cache_entries() -> int:
    """KU_TEST_FLOW_CACHE: how many entries the flow cache has in tests that do not say; 0, it is off."""
    return int(os.environ.get("KU_TEST_FLOW_CACHE", "0"))


def cache_shortcuts() -> str:
    """KU_TEST_FLOW_CACHE_SHORTCUTS: whether it has shortcuts then."""
    return os.environ.get("KU_TEST_FLOW_CACHE_SHORTCUTS", "off")


def cache_options() -> tuple[str, ...]:
    """The same for `ku run`."""
    entries = cache_entries()
    if not entries:
        return ()
    return ("--flow-cache=on", f"--flow-cache-entries={entries}", f"--flow-cache-shortcuts={cache_shortcuts()}")


@functools.cache
def _warm() -> None:
    """So that no test waits for the compiler."""
    subprocess.run([sys.executable, "-m", "kuproxy.warm"], check=True, timeout=280)


@contextmanager
def world(pods: int = 3) -> Iterator[World]:
    """Without `ku run`, so far."""
    remove_stale(PREFIX)
    files = tempfile.TemporaryDirectory(prefix=f"{PREFIX}-")
    with files as directory, Network(f"{PREFIX}{next(_numbers)}", pods) as network:
        yield World(network, Path(directory))


# --- asking --------------------------------------------------------------------------------------------------


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET


def connect(
    host: Host, address: str, port: int, kind: int = socket.SOCK_STREAM, source_port: int = 0
) -> socket.socket:
    """A connected socket of a host's. Raises OSError."""
    opened = host.call(socket.socket, family_of(address), kind)
    opened.settimeout(TIMEOUT_S)
    try:
        if source_port:
            opened.bind(("", source_port))
        opened.connect((address, port))
    except BaseException:
        opened.close()
        raise
    return opened


class Kept(http.client.HTTPConnection):
    """An HTTP connection from a host, which `get` uses again and again."""

    def __init__(self, host: Host, address: str, port: int, source_port: int = 0) -> None:
        super().__init__(address, port, timeout=TIMEOUT_S)
        self.auto_open = 0  # a connection that broke is not made anew behind our back
        self.sock = connect(host, address, port, source_port=source_port)

    def get(self, path: str = "/") -> tuple[str, bytes]:
        """The pod's name and the body. Raises OSError or HTTPException."""
        self.request("GET", path)
        response = self.getresponse()
        body = response.read()
        assert response.status == 200
        return response.headers["X-Pod"], body


def web(host: Host, address: str, port: int = HTTP.port, source_port: int = 0) -> str:
    """The pod that answers an HTTP request over a new connection."""
    connection = Kept(host, address, port, source_port)
    try:
        return connection.get()[0]
    finally:
        connection.close()


def echo(host: Host, address: str, port: int = ECHO.port, data: bytes = b"?", source_port: int = 0) -> str:
    """The pod that answers a datagram, from the address that was asked, with the same data."""
    opened = host.call(socket.socket, family_of(address), socket.SOCK_DGRAM)
    with opened:
        opened.settimeout(TIMEOUT_S)
        opened.bind(("", source_port))
        opened.connect((address, port))
        opened.send(data)
        name, _, echoed = opened.recv(65536).partition(b" ")
    assert echoed == data
    return name.decode()


def ping(host: Host, address: str) -> None:
    """One echo request and its reply; TimeoutError without one."""
    options = ["-6"] if ":" in address else []
    words = ["ip", "netns", "exec", host.name, "ping", *options, "-n", "-c", "1", "-W", "3", address]
    if shutil.which("ping") is None:
        _ping_raw(host, address)
    elif subprocess.run(words, capture_output=True, timeout=10, check=False).returncode:
        raise TimeoutError


def _ping_raw(host: Host, address: str) -> None:
    from netns import lab

    host.call(lab.ping, address)


# --- serving -------------------------------------------------------------------------------------------------


@contextmanager
def listener(host: Host, port: int, serve: Callable[[socket.socket, str], None]) -> Iterator[None]:
    """Accept TCP in a host, both families; each connection is served, with its peer's address, in its own thread."""
    opened = host.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("::", port))
    opened.listen(64)
    threads = []

    def one(connection: socket.socket, peer: str) -> None:
        with connection:
            connection.settimeout(30)
            serve(connection, peer)

    def accept() -> None:
        while True:
            try:
                connection, peer = opened.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=one, args=(connection, peer[0].removeprefix("::ffff:")), daemon=True
            )
            thread.start()
            threads.append(thread)

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        opened.shutdown(socket.SHUT_RDWR)  # wakes accept()
        opened.close()
        accepting.join()
        for thread in threads:
            thread.join()


def listens(host: Host, port: int) -> bool:
    """Whether something listens at a TCP port in a host, without connecting to it (proc(5))."""

    def read() -> str:
        return "".join(Path("/proc/thread-self/net", name).read_text() for name in ("tcp", "tcp6"))

    rows = [line.split() for line in host.call(read).splitlines() if ":" in line]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def read_exactly(opened: socket.socket, number: int) -> bytearray:
    """Raises EOFError when the other end closes before."""
    data = bytearray(number)
    view, got = memoryview(data), 0
    while got < number:
        more = opened.recv_into(view[got:])
        if not more:
            raise EOFError(f"the connection ended after {got} of {number} bytes")
        got += more
    return data


# --- looking -------------------------------------------------------------------------------------------------

_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_SO_RCVBUFFORCE = 33
_OUTGOING = 4
_TP_STATUS_CSUMNOTREADY = 1 << 3  # include/uapi/linux/if_packet.h
_TP_STATUS_VLAN_VALID = 1 << 4


class Captured:
    """A frame that came in; `partial`: its checksum is only begun, the rest is left to a network card."""

    def __init__(self, frame: bytes, partial: bool) -> None:
        self.frame, self.partial = frame, partial


class Capture:
    """Frames that a host receives at its eth0 (not those that it sends), from now until `close`."""

    def __init__(self, host: Host, interface: str = "eth0") -> None:
        self.frames: list[Captured] = []
        self._socket = host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.bind((interface, 0x0003))
        self._socket.settimeout(0.1)
        self._ending = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                frame, ancillary, _, address = self._socket.recvmsg(70000, 256)
            except TimeoutError:
                if self._ending:
                    return
                continue
            except OSError:  # the interface is gone, or `close` was never called
                return
            if address[2] == _OUTGOING:
                continue
            ((_, _, auxdata),) = [each for each in ancillary if each[:2] == (_SOL_PACKET, _PACKET_AUXDATA)]
            (status,) = struct.unpack_from("=I", auxdata)
            self.frames.append(Captured(frame, bool(status & _TP_STATUS_CSUMNOTREADY)))

    def close(self) -> list[Captured]:
        """All frames; the kernel has dropped none. Idempotent."""
        if self._ending:
            return self.frames
        self._ending = True
        self._thread.join()
        _, dropped = struct.unpack("=2I", self._socket.getsockopt(_SOL_PACKET, 6, 8))  # PACKET_STATISTICS
        self._socket.close()
        assert dropped == 0
        return self.frames


@contextmanager
def captured(*hosts: Host) -> Iterator[list[Capture]]:
    """A capture at each host, which ends at the latest with the block."""
    captures = [Capture(host) for host in hosts]
    try:
        yield captures
    finally:
        for each in captures:
            each.close()


def state(host: Host) -> list[str]:
    """What a node's owner would look at: links, addresses, routes, rules."""
    lines = []
    for words in (
        "-o link",
        "-o addr",
        "route show table all",
        "-6 route show table all",
        "rule",
        "-6 rule",
    ):
        command = ["ip", "-n", host.name, *words.split()]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        for line in text.splitlines():
            lines.append(line.split(":")[1] if "qdisc" in line else line.split(" expires ")[0])
    return sorted(lines)


def programs_of(process_id: int) -> set[int]:
    """Ids of the BPF programs that a process holds, itself or by links."""
    found = set()
    for file in Path(f"/proc/{process_id}/fdinfo").iterdir():
        for line in file.read_text().splitlines():
            if line.startswith("prog_id:"):
                found.add(int(line.split()[1]))
    return found


def program_exists(number: int) -> bool:
    """Whether the kernel still has a BPF program."""
    try:
        fd, _ = _bpf(13, struct.pack("=3I", number, 0, 0))  # BPF_PROG_GET_FD_BY_ID
    except FileNotFoundError:
        return False
    os.close(fd)
    return True
