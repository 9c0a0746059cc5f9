"""`ku run` on a path with routers: MTU discovery, traceroute, ping, reversed fragments, curl; all four VIP types."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from netns import path
from netns.lab import Host, drain, sniff
from netns.path import CLIENT, KINDS, PORT_VIPS, WHOLE_VIPS, World

pytestmark = pytest.mark.netns

BULK_PORT = 9000
MEGABYTE = 1_000_000
NARROW = 1300
_IP_MTU, _IPV6_MTU = 14, 24  # include/uapi/linux/in.h, in6.h
HEADERS = {4: 20, 6: 40}
PREFIX = "64:ff9b:1::"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with path.path(tmp_path_factory.mktemp("path")) as made:
        yield made


def _families(kind: str) -> tuple[int, int]:
    """The client's, the pod's."""
    return int(kind[3]), int(kind[4])


def _open(host: Host, family: int, kind: socket.SocketKind, port: int = 0) -> socket.socket:
    opened = host.run(socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, kind)
    opened.settimeout(10)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("", port))
    return opened


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"netns: no program `{name}`")
    return found


# --- path MTU discovery --------------------------------------------------------------------------------------


def _mtu(opened: socket.socket, family: int) -> int:
    """What a connected socket's kernel believes of its path."""
    if family == 4:
        return opened.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    return opened.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)


def _read(opened: socket.socket, length: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < length:
        piece = opened.recv(length - len(pieces))
        assert piece, f"ended after {len(pieces)} of {length} bytes"
        pieces += piece
    return bytes(pieces)


@contextmanager
def _narrow(world: World, link: int) -> Iterator[None]:
    world.forget_paths()
    world.set_mtu(link, NARROW)
    try:
        yield
    finally:
        world.set_mtu(link, 1500)
        world.forget_paths()


def _transfer(world: World, host: Host, address: str, pod_family: int) -> tuple[int, int]:
    """2 MB each way over one connection; returns what the two kernels, the host's and the pod's, have learnt."""
    family = 6 if ":" in address else 4
    data = random.Random(address).randbytes(2 * MEGABYTE)
    seen: list[int] = []

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(10)
            got = _read(connection, len(data))
            connection.sendall(hashlib.sha256(got).digest() + got[::-1])
            seen.append(_mtu(connection, pod_family))

    with _open(world.pod, pod_family, socket.SOCK_STREAM, BULK_PORT) as listening:
        listening.listen()
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        with _open(host, family, socket.SOCK_STREAM) as opened:
            opened.connect((address, BULK_PORT))
            assert _mtu(opened, family) == 1500
            opened.sendall(data)
            assert _read(opened, 32) == hashlib.sha256(data).digest()
            assert _read(opened, len(data)) == data[::-1]
            thread.join()
            return _mtu(opened, family), seen[0]


@pytest.mark.parametrize("link", range(2, 6), ids=["a-b", "b-node", "node-c", "c-d"])
@pytest.mark.parametrize("kind", KINDS)
def test_tcp_adapts_to_a_narrow_hop(world: World, kind: str, link: int) -> None:
    """Routers, or the node itself, tell the sender at the other side of the translation; both senders adapt."""
    family, pod_family = _families(kind)
    with _narrow(world, link):
        mtus = _transfer(world, world.client, WHOLE_VIPS[kind], pod_family)
    # The narrow link speaks the family of its side; the other side's packets grow or shrink by the headers' difference.
    there = family if link <= path.NODE else pod_family
    assert mtus == tuple(NARROW + HEADERS[each] - HEADERS[there] for each in (family, pod_family))


@pytest.mark.parametrize("kind", KINDS)
def test_tcp_of_the_node_adapts(world: World, kind: str) -> None:
    family, pod_family = _families(kind)
    with _narrow(world, 5):
        mtus = _transfer(world, world.node, WHOLE_VIPS[kind], pod_family)
    assert mtus == (NARROW + HEADERS[family] - HEADERS[pod_family], NARROW)


@pytest.mark.parametrize("link", range(2, 6), ids=["a-b", "b-node", "node-c", "c-d"])
@pytest.mark.parametrize("family", [4, 6])
def test_connections_without_a_vip_adapt_too(world: World, family: int, link: int) -> None:
    """Errors about them come up, for the pod's address belongs to VIPs, and are passed on as they are."""
    with _narrow(world, link):
        assert _transfer(world, world.client, path.POD[family], family) == (NARROW, NARROW)


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_hop_behind_a_port(world: World, kind: str) -> None:
    """The router embeds the pod's port, which the client has never heard of."""
    family, pod_family = _families(kind)
    with _narrow(world, 5), _open(world.client, family, socket.SOCK_STREAM) as opened:
        opened.connect((PORT_VIPS[kind], 80))
        opened.sendall(b"x" * 1400)
        answer = b""
        while len(answer) < 1400:
            piece = opened.recv(8192)
            if not piece:
                break
            answer += piece
        assert answer.startswith(b"pod ")
        assert _mtu(opened, family) == NARROW + HEADERS[family] - HEADERS[pod_family]


# --- traceroute and ping ---------------------------------------------------------------------------------------


def _trace(world: World, address: str, *options: str) -> list[str]:
    command = [_program("traceroute"), "-n", "-q", "1", "-w", "2", "-m", "9", *options, address]
    done = world.client.run(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    )
    assert done.returncode == 0, done.stderr
    return [line.split()[1] for line in done.stdout.splitlines()[1:]]


def _expected(kind: str, address: str) -> list[str]:
    """RFC 7915 section 4.1: IPv4 routers get addresses within the prefix; RFC 6791: IPv6 ones borrow the node's."""
    family, pod_family = _families(kind)
    node = path.address("node", family)
    before = [path.address(name, family) for name in ("a", "b")]
    behind = [path.address(name, pod_family) for name in ("c", "d")]
    if kind == "nat46":
        behind = [node, node]
    elif kind == "nat64":
        behind = [PREFIX + _hex(each) for each in behind]
    return [*before, node, *behind, address]


def _hex(ipv4: str) -> str:
    first, second = struct.unpack(">2H", socket.inet_aton(ipv4))
    return f"{first:x}:{second:x}"


@pytest.mark.parametrize("how", ["-U", "-T", "-I"])
@pytest.mark.parametrize("kind", KINDS)
def test_traceroute_shows_the_path(world: World, kind: str, how: str) -> None:
    address = WHOLE_VIPS[kind]
    options = {"-U": ["-U", "-p", "8080"], "-T": ["-T", "-p", "8080"], "-I": ["-I"]}[how]
    assert _trace(world, address, *options) == _expected(kind, address)


@pytest.mark.parametrize("kind", KINDS)
def test_traceroute_to_ports_that_nobody_serves(world: World, kind: str) -> None:
    """The classic one ends with the pod's own "port unreachable", which comes from the VIP."""
    address = WHOLE_VIPS[kind]
    assert _trace(world, address) == _expected(kind, address)


@pytest.mark.parametrize("kind", KINDS)
def test_traceroute_to_a_port(world: World, kind: str) -> None:
    address = PORT_VIPS[kind]
    assert _trace(world, address, "-T", "-p", "80") == _expected(kind, address)
    node = 3
    assert _trace(world, address, "-I") == [*_expected(kind, address)[: node - 1], address]


@pytest.mark.parametrize("how", ["-U", "-T", "-I"])
@pytest.mark.parametrize("family", [4, 6])
def test_traceroute_without_a_vip(world: World, family: int, how: str) -> None:
    """From an address without a flow through a VIP: a flow of ICMP is no more than two addresses."""
    names = ("a", "b", "node", "c", "d", "pod")
    options = ["-s", path.SECOND_CLIENT[family], *([how] if how == "-I" else [how, "-p", "8080"])]
    assert _trace(world, path.POD[family], *options) == [path.address(name, family) for name in names]


@pytest.mark.parametrize("size", [0, 56, 1400, 4000])
@pytest.mark.parametrize("kind", KINDS)
def test_ping(world: World, kind: str, size: int) -> None:
    """Of a pod, and of a VIP that answers itself. Fragments of ICMP cannot be translated (RFC 7915 section 1.2)."""
    for address, whole in ((WHOLE_VIPS[kind], True), (PORT_VIPS[kind], False)):
        fails = size > 1500 and (kind in ("nat46", "nat64") or not whole)
        assert _answers(world.client, address, size) != fails


def _answers(host: Host, address: str, size: int = 56) -> bool:
    command = [_program("ping"), "-n", "-c", "2", "-i", "0.2", "-W", "1", "-s", str(size), address]
    done = host.run(lambda: subprocess.run(command, capture_output=True, timeout=20, check=False))
    return done.returncode == 0


@pytest.mark.parametrize("family", [4, 6])
def test_what_pods_ask_is_no_reply(world: World, family: int) -> None:
    """Even to a client that has just now a flow of ICMP to the same pod: it sees the pod's own address."""
    assert _answers(world.client, WHOLE_VIPS[f"nat{family}{family}"])
    with world.client.run(sniff, "right") as sniffer:
        assert _answers(world.pod, CLIENT[family])
        frames = drain(sniffer)
    kind, source, message, request = (8, 26, 34, 8) if family == 4 else (0x86, 22, 54, 128)
    sources = {
        each[source : source + (4 if family == 4 else 16)]
        for each in frames
        if each[12] == kind and len(each) > message and each[message] == request
    }
    assert sources == {ip_address(path.POD[family]).packed}


# --- fragments --------------------------------------------------------------------------------------------------


def _fragments(family: int, address: str, source_port: int, port: int, data: bytes) -> list[bytes]:
    """A UDP datagram in fragments of 1280 bytes of payload, as a raw socket sends them."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    addresses = socket.inet_pton(kind, CLIENT[family]) + socket.inet_pton(kind, address)
    udp = struct.pack(">4H", source_port, port, 8 + len(data), 0) + data
    total = sum(struct.unpack(f">{len(udp) // 2}H", udp)) + 17 + len(udp)
    total += sum(struct.unpack(f">{len(addresses) // 2}H", addresses))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + struct.pack(">H", total ^ 0xFFFF or 0xFFFF) + udp[8:]
    packets = []
    for at in range(0, len(udp), 1280):
        piece = udp[at : at + 1280]
        more = at + 1280 < len(udp)
        if family == 4:
            field = at // 8 | (0x2000 if more else 0)
            header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(piece), source_port, field, 64, 17, 0)
        else:
            header = struct.pack(">IHBB", 6 << 28, 8 + len(piece), 44, 64)
            piece = struct.pack(">BBHI", 17, 0, at | more, source_port) + piece
        packets.append(header + addresses + piece)
    return packets


@pytest.mark.parametrize("kind", KINDS)
def test_reversed_fragments_arrive_whole(world: World, kind: str) -> None:
    family, _ = _families(kind)
    data = random.Random(kind).randbytes(4000)
    for address, port in ((WHOLE_VIPS[kind], 8080), (PORT_VIPS[kind], 80)):
        raw = world.client.run(
            socket.socket,
            socket.AF_INET if family == 4 else socket.AF_INET6,
            socket.SOCK_RAW,
            socket.IPPROTO_RAW,
        )
        with raw, _open(world.client, family, socket.SOCK_DGRAM) as opened:
            opened.connect((address, port))
            packets = _fragments(family, address, opened.getsockname()[1], port, data)
            assert len(packets) == 4
            for packet in reversed(packets):
                raw.sendto(packet, (address, 0))
                time.sleep(0.01)
            assert opened.recv(65536).split(b" ", 3)[3] == data


# --- curl and nginx -----------------------------------------------------------------------------------------------

NGINX = """
daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; client_max_body_size 20m; client_body_temp_path {root}/body; proxy_temp_path {root};
    fastcgi_temp_path {root}; uwsgi_temp_path {root}; scgi_temp_path {root};
    server {{ listen {listen}; root {root}; dav_methods PUT; }}
}}
"""


@pytest.mark.parametrize("kind", KINDS)
def test_curl_and_a_server_of_one_family(world: World, kind: str, tmp_path: Path) -> None:
    """10 MB each way."""
    nginx, curl = _program("nginx"), _program("curl")
    listen = "8081" if kind[4] == "4" else "[::]:8081 ipv6only=on"
    data = random.Random(kind).randbytes(10 * MEGABYTE)
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(data)
    (tmp_path / "nginx.conf").write_text("user root;" + NGINX.format(root=tmp_path, listen=listen))
    server = world.pod.start(nginx, "-c", str(tmp_path / "nginx.conf"))
    address = f"[{PORT_VIPS[kind]}]" if ":" in PORT_VIPS[kind] else PORT_VIPS[kind]
    url = f"http://{address}:81"
    common = [curl, "-gsSf", "-m", "30", "--retry", "20", "--retry-delay", "1", "--retry-connrefused"]
    try:
        for options in (("-T", str(sent), f"{url}/stored"), ("-o", str(got), f"{url}/stored")):
            done = world.client.run(
                lambda words=options: subprocess.run(
                    [*common, *words], capture_output=True, text=True, timeout=60, check=False
                )
            )
            assert done.returncode == 0, done.stderr
    finally:
        server.terminate()
        server.communicate(timeout=5)
    assert (tmp_path / "stored").read_bytes() == data
    assert got.read_bytes() == data
