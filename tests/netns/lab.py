"""A network of namespaces without names, client – node – pod, which ends with the process that made it.

    client 10.1.0.2, fd01::2 ── c0 node p0 ── 10.2.0.2, fd02::2 pod
                       10.1.0.1, fd01::1   10.2.0.1, fd02::1

Each host is one thread that lives in the host's namespace and does there what it is told.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute

from kuproxy.steering.namespace import PrivateNamespace

Result = TypeVar("Result")
TIMEOUT_S = 3.0


class Host:
    """One namespace, and a thread in it."""

    def __init__(self) -> None:
        self.namespace = PrivateNamespace.create()
        self._thread = ThreadPoolExecutor(1, initializer=self.namespace.enter)
        self.sh("ip link set lo up")

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return self._thread.submit(function, *arguments).result()

    def sh(self, *commands: str) -> str:
        """Run command lines (split at blanks); returns what they printed."""

        def call() -> str:
            return "".join(
                subprocess.run(each.split(), check=True, capture_output=True, text=True).stdout
                for each in commands
            )

        return self.run(call)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A process in this host; whoever starts it ends it."""
        return self.run(
            lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )

    def sysctl(self, path: str, value: str) -> None:
        self.run(lambda: Path("/proc/sys/net", path).write_text(value, encoding="ascii"))

    def connect_to(self, other: Host, name: str, other_name: str) -> None:
        """A veth pair with one end here and one there, both up."""

        def create() -> None:
            with IPRoute() as netlink:
                netlink.link(
                    "add",
                    ifname=name,
                    kind="veth",
                    peer={"ifname": other_name, "net_ns_fd": other.namespace.fd},
                )

        self.run(create)
        self.sh(f"ip link set {name} up")
        other.sh(f"ip link set {other_name} up")

    def close(self) -> None:
        self._thread.shutdown()
        self.namespace.close()


@contextmanager
def network() -> Iterator[tuple[Host, Host, Host]]:
    """Client, node and pod, with addresses and routes; IPv6 without waiting for duplicates."""
    client, node, pod = hosts = Host(), Host(), Host()
    try:
        for each in hosts:
            each.sysctl("ipv6/conf/all/accept_dad", "0")
            each.sysctl("ipv6/conf/default/accept_dad", "0")
        client.connect_to(node, "c1", "c0")
        pod.connect_to(node, "p1", "p0")
        client.sh("ip addr add 10.1.0.2/24 dev c1", "ip -6 addr add fd01::2/64 dev c1 nodad")
        pod.sh("ip addr add 10.2.0.2/24 dev p1", "ip -6 addr add fd02::2/64 dev p1 nodad")
        node.sh(
            "ip addr add 10.1.0.1/24 dev c0",
            "ip -6 addr add fd01::1/64 dev c0 nodad",
            "ip addr add 10.2.0.1/24 dev p0",
            "ip -6 addr add fd02::1/64 dev p0 nodad",
            "ip route add default via 10.1.0.2",
            "ip -6 route add default via fd01::2",
        )
        client.sh("ip route add default via 10.1.0.1", "ip -6 route add default via fd01::1")
        pod.sh("ip route add default via 10.2.0.1", "ip -6 route add default via fd02::1")
        yield client, node, pod
    finally:
        for each in hosts:
            each.close()


class Server:
    """Answers every TCP connection and every UDP datagram with `NAME CLIENT PORT` and what was sent."""

    def __init__(self, host: Host, name: str, port: int) -> None:
        self.name = name
        self._sockets = [
            host.run(self._open, family, kind, port)
            for family in (socket.AF_INET, socket.AF_INET6)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ]
        self._ending = False
        self._threads = [
            threading.Thread(target=self._serve, args=(each,), daemon=True) for each in self._sockets
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _open(family: int, kind: int, port: int) -> socket.socket:
        opened = socket.socket(family, kind)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("", port))
        if kind == socket.SOCK_STREAM:
            opened.listen()
        opened.settimeout(0.1)
        return opened

    def _serve(self, opened: socket.socket) -> None:
        while not self._ending:
            try:
                if opened.type == socket.SOCK_STREAM:
                    connection, peer = opened.accept()
                    with connection:
                        connection.settimeout(TIMEOUT_S)
                        connection.sendall(self._answer(peer, connection.recv(8192)))
                else:
                    data, peer = opened.recvfrom(65536)
                    opened.sendto(self._answer(peer, data), peer)
            except TimeoutError:
                continue
            except OSError:
                continue

    def _answer(self, peer: Any, data: bytes) -> bytes:
        return f"{self.name} {peer[0]} {peer[1]} ".encode() + data

    def close(self) -> None:
        self._ending = True
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


def ask(
    kind: str, address: str, port: int, data: bytes = b"?", source_port: int = 0, timeout_s: float = TIMEOUT_S
) -> tuple[str, str]:
    """Ask a `Server` over `tcp` or `udp` from the calling thread's namespace.

    Returns its name and the client address it saw; raises OSError without an answer.
    """
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as asking:
        asking.settimeout(timeout_s)
        asking.bind(("", source_port))
        asking.connect((address, port))
        own_port = asking.getsockname()[1]
        asking.send(data)
        answer = asking.recv(65536)
        while kind == "tcp" and len(answer.split(b" ", 3)) < 4:
            answer += asking.recv(65536)
    name, client, seen_port, echo = answer.split(b" ", 3)
    assert echo == data
    assert int(seen_port) == own_port
    return name.decode(), client.decode()


def ping(address: str) -> None:
    """One echo request (RFC 792, RFC 4443) from the calling thread's namespace; TimeoutError without its reply."""
    six = ip_address(address).version == 6
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    with socket.socket(family, socket.SOCK_RAW, protocol) as asking:
        asking.settimeout(TIMEOUT_S)
        rest = struct.pack(">HH", 0x6B75, 1) + b"kuproxy?"
        total = sum(struct.unpack(">7H", struct.pack(">BB", 8, 0) + rest)) % 0xFFFF
        # The kernel computes the checksum of ICMPv6, but not of ICMP.
        checksum = 0 if six else 0xFFFF - total
        asking.sendto(struct.pack(">BBH", 128 if six else 8, 0, checksum) + rest, (address, 0))
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            answer = asking.recv(2048)
            icmp = answer if six else answer[(answer[0] & 15) * 4 :]
            if icmp[0] == (129 if six else 0) and icmp[4:] == rest:
                return
    raise TimeoutError


def sniff(interface: str) -> socket.socket:
    """All that passes an interface of the calling thread's namespace, from now on."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((interface, 0x0003))
    opened.setblocking(False)
    return opened


def drain(opened: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(opened.recv(65536))
        except BlockingIOError:
            return frames
