"""Network namespaces and packet sockets for the driver tests; everything made here is removed again."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
ETHERTYPE = 0x88B5  # IEEE 802 local experimental: no kernel answers or routes it

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def ip(*words: str) -> str:
    """Run `ip`; AssertionError with its complaint if it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread's new sockets belong to `namespace`."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        assert _libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(home.fileno(), CLONE_NEWNET) == 0


@contextlib.contextmanager
def namespaces(*names: str) -> Iterator[tuple[str, ...]]:
    """New namespaces without IPv6 (its chatter would mix with the tests' packets), removed in the end."""
    made: list[str] = []
    try:
        for name in names:
            unique = f"kudrv-{os.getpid()}-{next(_numbers)}-{name}"
            ip("netns", "add", unique)
            made.append(unique)
            ip("-n", unique, "link", "set", "lo", "up")
            sysctl(unique, "net/ipv6/conf/all/disable_ipv6", 1)
            sysctl(unique, "net/ipv6/conf/default/disable_ipv6", 1)
        yield tuple(made)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)


def sysctl(namespace: str, key: str, value: int) -> None:
    """Set /proc/sys/net/... of a namespace; nothing happens where the kernel has no such key."""
    with inside(namespace):
        path = f"/proc/sys/{key}"
        if os.path.exists(path):
            with open(path, "w") as file:
                file.write(str(value))


class Peer:
    """A plain packet socket at the far end of the veth pair."""

    def __init__(self, namespace: str, interface: str):
        with inside(namespace):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
            self.socket.bind((interface, ETHERTYPE))
        self.socket.settimeout(0.1)

    def send(self, packet: bytes) -> None:
        self.socket.send(packet)

    def receive(self, at_most: int, wait_s: float = 5.0) -> list[bytes]:
        """Packets as they come: until there are `at_most`, or 0.1 s after the last, or `wait_s` in all."""
        packets: list[bytes] = []
        end = time.monotonic() + wait_s
        while len(packets) < at_most and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                packets.append(self.socket.recv(1 << 17))
                continue
            if packets:
                break
        return packets

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def veth(namespace: str, *, mtu: int = 65535) -> Iterator[tuple[str, str]]:
    """A veth pair, both ends up in `namespace`."""
    ip("link", "add", "near0", "netns", namespace, "mtu", str(mtu),
       "type", "veth", "peer", "name", "far0", "netns", namespace, "mtu", str(mtu))  # fmt: skip
    for end in ("near0", "far0"):
        ip("-n", namespace, "link", "set", end, "up")
    yield "near0", "far0"


def mac(namespace: str, interface: str) -> bytes:
    """The interface's hardware address."""
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        import fcntl

        return fcntl.ioctl(probe, 0x8927, struct.pack("256s", interface.encode()))[18:24]
