"""`ku run` end to end: the kernel's own TCP and UDP through it, and real programs as peers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kuproxy.demo.manifest import ECHO, HTTP
from kuproxy.demo.pods import LARGE, large_body
from netns.world import (
    BULK,
    BULK_PORT,
    CLIENT,
    NODE,
    NONE,
    POD1,
    WEB,
    Kept,
    World,
    captured,
    connect,
    echo,
    listener,
    listens,
    ping,
    plain,
    program_exists,
    programs_of,
    read_exactly,
    state,
    web,
    world,
)

pytestmark = pytest.mark.netns

PODS = {"pod1", "pod2", "pod3"}
MEGABYTE = 1_000_000
REFUSED_WITHIN_S = 0.05


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    """One world for the tests that leave it as it was."""
    with world() as made:
        made.start()
        yield made
        status, report = made.plane.stop()
        assert status == 0, made.plane.log
        assert report["received"] == sum(report["outcomes"].values())


@pytest.fixture
def fresh() -> Iterator[World]:
    """A world for one test, without `ku run` so far."""
    with world() as made:
        yield made


# --- traffic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", WEB)
def test_every_pod_serves_and_sees_the_client(shared: World, address: str) -> None:
    assert {web(shared.client, address) for _ in range(40)} == PODS
    assert {echo(shared.client, address) for _ in range(40)} == PODS
    seen: list[str] = []
    with listener(shared.pods[0], BULK_PORT.target, lambda opened, peer: seen.append(peer)):
        for host in (shared.client, shared.node):
            connect(host, BULK[WEB.index(address)], BULK_PORT.port).close()
            _eventually(lambda: seen)
            expected = CLIENT if host is shared.client else NODE
            assert seen.pop() == expected[WEB.index(address)]


def _transfer(opened: socket.socket, peer: str) -> None:
    """A bulk server: takes 50 MB and answers their digest, then sends 50 MB and takes the digest for judgement."""
    data = read_exactly(opened, 50 * MEGABYTE)
    opened.sendall(hashlib.sha256(data).digest())
    data.reverse()
    opened.sendall(data)


@pytest.mark.parametrize(
    ("address", "port"),
    [(BULK[0], BULK_PORT.port), (BULK[1], BULK_PORT.port), (NODE[0], BULK_PORT.node_port)],
)
def test_bulk_tcp_arrives_unchanged_each_way(shared: World, address: str, port: int) -> None:
    data = random.Random(0).randbytes(50 * MEGABYTE)
    with (
        listener(shared.pods[0], BULK_PORT.target, _transfer),
        connect(shared.client, address, port) as opened,
    ):
        opened.settimeout(30)
        opened.sendall(data)
        assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
        assert read_exactly(opened, 50 * MEGABYTE) == data[::-1]


@pytest.mark.parametrize("address", [*WEB, *NODE])
@pytest.mark.parametrize("length", [0, 1, 1400, 4000, 9000, 20_000])
def test_datagrams_come_back(shared: World, address: str, length: int) -> None:
    """Those beyond 1500 bytes are fragments both ways."""
    port = ECHO.port if address in WEB else ECHO.node_port
    data = random.Random(length).randbytes(length)
    assert echo(shared.client, address, port, data) in PODS
    if length < 1500 or address in WEB:
        assert echo(shared.node, address, port, data) in PODS


@pytest.mark.xfail(strict=True, reason="lo's MTU lets datagrams through whole, the way to the pod does not")
@pytest.mark.parametrize("address", NODE)
def test_large_datagrams_of_the_node_to_its_own_node_port(shared: World, address: str) -> None:
    assert echo(shared.node, address, ECHO.node_port, b"x" * 4000) in PODS


@pytest.mark.parametrize("address", WEB)
def test_the_first_packet_to_a_pod_without_neighbour_entry_arrives(shared: World, address: str) -> None:
    for _ in range(3):
        for interface in ("pod1", "pod2", "pod3", "client0"):
            _ip("-n", shared.node.name, "neigh", "flush", "dev", interface)
        assert echo(shared.client, address) in PODS
        for interface in ("pod1", "pod2", "pod3", "client0"):
            _ip("-n", shared.node.name, "neigh", "flush", "dev", interface)
        began = time.monotonic()
        assert web(shared.client, address) in PODS
        assert time.monotonic() - began < 0.9  # a lost SYN would be sent again after 1 s


@pytest.mark.parametrize("where", ["client", "node", "pod"])
@pytest.mark.parametrize("address", NONE)
def test_without_endpoints_it_is_refused_at_once(shared: World, address: str, where: str) -> None:
    host = {"client": shared.client, "node": shared.node, "pod": shared.pods[2]}[where]
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            connect(host, address, HTTP.port)
        assert time.monotonic() - began < REFUSED_WITHIN_S
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):  # ICMP port unreachable
            echo(host, address)
        assert time.monotonic() - began < REFUSED_WITHIN_S


def test_node_ports_at_every_node_address_but_loopback(shared: World) -> None:
    for network in range(4):
        for address in plain(network, 1):
            for host in (shared.client, shared.node):
                assert web(host, address, HTTP.node_port) in PODS
                assert echo(host, address, ECHO.node_port) in PODS
            # A pod asks for another one: if it were chosen itself, it would see its own address as the client's.
            with listener(shared.pods[0], BULK_PORT.target, lambda opened, peer: None):
                connect(shared.pods[1], address, BULK_PORT.node_port).close()
    for loopback in ("127.0.0.1", "127.8.7.6", "::1"):
        with pytest.raises(ConnectionRefusedError):
            connect(shared.node, loopback, HTTP.node_port)
        with pytest.raises(ConnectionRefusedError):
            echo(shared.node, loopback, ECHO.node_port)


def test_a_pod_reaches_another_pod_by_its_service(shared: World) -> None:
    seen: list[str] = []
    with listener(shared.pods[0], BULK_PORT.target, lambda opened, peer: seen.append(peer)):
        for address, port in (
            (BULK[0], BULK_PORT.port),
            (BULK[1], BULK_PORT.port),
            (NODE[0], BULK_PORT.node_port),
        ):
            connect(shared.pods[1], address, port).close()
            _eventually(lambda: seen)
            assert seen.pop() in plain(2, 2)


def test_foreign_traffic_is_not_touched(shared: World) -> None:
    before = shared.plane.report()
    with listener(shared.pods[0], 9999, lambda opened, peer: opened.sendall(peer.encode())):
        for family in (0, 1):
            for host, address in (
                (shared.client, POD1[family]),
                (shared.pods[0], CLIENT[family]),
                (shared.pods[2], POD1[family]),
                (shared.client, NODE[family]),
            ):
                ping(host, address)
            with connect(shared.client, POD1[family], 9999) as opened:
                assert opened.recv(100).decode() == CLIENT[family]
    assert shared.plane.report()["received"] == before["received"]
    # Straight to a pod's served port: its replies come up, and are passed on as they are. From ports that no
    # flow to a VIP has had: the pod could not tell the two apart, nor can its replies.
    for family, address in enumerate(POD1):
        assert web(shared.client, address, HTTP.target, source_port=20001 + family) == "pod1"
        assert echo(shared.client, address, ECHO.target, source_port=20001 + family) == "pod1"
    assert shared.plane.report()["outcomes"]["drop"] == before["outcomes"]["drop"]


def test_nothing_untranslated_is_seen_by_pods_or_clients(shared: World) -> None:
    hosts = (shared.client, *shared.pods)
    with captured(*hosts) as captures:
        for address in WEB:
            for _ in range(20):
                web(shared.client, address)
                echo(shared.client, address, data=b"x" * 4000)
                web(shared.node, address)
        for address in NODE:
            web(shared.client, address, HTTP.node_port)
        seen = [[each.frame for each in capture.close()] for capture in captures]
    frames = {host.name: each for host, each in zip(hosts, seen, strict=True)}
    of_client = _addresses(frames.pop(shared.client.name))
    assert {source for source, _ in of_client} <= {*WEB, *NODE, *CLIENT}
    assert any(source in WEB for source, _ in of_client)
    for number, (name, each) in enumerate(frames.items(), 1):
        at_pod = _addresses(each)
        assert {destination for _, destination in at_pod} == set(plain(number, 2)), name
        assert {source for source, _ in at_pod} == {*CLIENT, *NODE}, name


def _addresses(frames: list[bytes]) -> list[tuple[str, str]]:
    """Source and destination of TCP, UDP and fragments."""
    found = []
    for frame in frames:
        kind, packet = frame[12:14], frame[14:]
        if kind == b"\x08\x00" and packet[9] in (6, 17):
            found.append((socket.inet_ntop(2, packet[12:16]), socket.inet_ntop(2, packet[16:20])))
        elif kind == b"\x86\xdd" and packet[6] in (6, 17, 44):
            found.append((socket.inet_ntop(10, packet[8:24]), socket.inet_ntop(10, packet[24:40])))
    return found


# --- change --------------------------------------------------------------------------------------------------


def test_pods_come_and_go_without_breaking_connections(fresh: World) -> None:
    fresh.start()
    fresh.serve(["pod1", "pod2"])
    ways = [*((address, HTTP.port) for address in WEB), *((address, HTTP.node_port) for address in NODE)]
    kept = [Kept(host, *way) for host in (fresh.client, fresh.node) for way in ways * 4]
    try:
        pods = [each.get()[0] for each in kept]
        assert set(pods) == {"pod1", "pod2"}
        for serving in (["pod1", "pod2", "pod3"], ["pod2", "pod3"], ["pod3"], ["pod1"], ["pod1", "pod2"]):
            fresh.serve(serving)
            assert [each.get()[0] for each in kept] == pods
            assert {web(fresh.client, *way) for way in ways for _ in range(12)} == set(serving)
            name, body = kept[0].get(LARGE)
            assert (name, body) == (pods[0], large_body(pods[0]))
        fresh.serve([])  # no endpoint at all: open connections go on, new ones are refused
        assert [each.get()[0] for each in kept] == pods
        for address in WEB:
            with pytest.raises(ConnectionRefusedError):
                connect(fresh.client, address, HTTP.port)
        fresh.serve(["pod2"])
        assert {web(fresh.client, *way) for way in ways} == {"pod2"}
    finally:
        for each in kept:
            each.close()


def test_a_service_comes_and_goes(fresh: World) -> None:
    fresh.start()
    documents = fresh.documents()
    without = [each for each in documents if not each["metadata"]["name"].startswith("web")]
    assert web(fresh.client, WEB[0]) in PODS
    before = state(fresh.node)
    fresh.plane.change(without)
    assert f"{WEB[0]} via" not in "\n".join(state(fresh.node))
    for way in ((WEB[0], HTTP.port), (NODE[0], HTTP.node_port)):
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            connect(fresh.client, *way)
    fresh.plane.change(documents)
    assert state(fresh.node) == before
    for way in ((WEB[0], HTTP.port), (NODE[0], HTTP.node_port), (WEB[1], HTTP.port)):
        assert web(fresh.client, *way) in PODS
        assert web(fresh.node, *way) in PODS


def test_a_faulty_configuration_is_refused_and_the_old_one_stays(fresh: World) -> None:
    fresh.start()
    applied = fresh.plane.count("applied")
    for number, fault in enumerate(
        ("kind: Service\nspec: [", "kind: Service\napiVersion: v1\nspec: {}\n"), 1
    ):
        fresh.plane.config.write_text(fault)
        fresh.plane.process.send_signal(signal.SIGHUP)
        _eventually(lambda n=number: fresh.plane.count("config refused, the former one stays") >= n)
        assert "services.yaml:" in fresh.plane.log.splitlines()[-1]
        assert {web(fresh.client, WEB[0]) for _ in range(40)} == PODS
        assert web(fresh.client, NODE[1], HTTP.node_port) in PODS
    assert fresh.plane.count("applied") == applied
    fresh.serve(["pod2"])
    assert {web(fresh.client, WEB[0]) for _ in range(20)} == {"pod2"}


# --- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_nothing_stays(fresh: World, number: signal.Signals) -> None:
    before = state(fresh.node)
    fresh.start()
    assert "ku0" in "\n".join(state(fresh.node))
    assert {web(host, WEB[0]) for host in (fresh.client, fresh.node)} <= PODS
    programs = programs_of(fresh.plane.process.pid)
    assert len(programs) >= 4
    (worker,) = [word for word in fresh.plane.log.split() if word.startswith("worker=")]
    fresh.plane.process.send_signal(number)
    status = fresh.plane.process.wait(5)
    assert status == (-9 if number == signal.SIGKILL else 0), fresh.plane.log
    _eventually(lambda: state(fresh.node) == before)
    _eventually(lambda: not any(map(program_exists, programs)))
    _eventually(lambda: not _lives(int(worker.split("=")[1])))
    fresh.start()  # and at once again
    assert web(fresh.client, WEB[1]) in PODS


def test_a_worker_that_dies_is_replaced(fresh: World) -> None:
    """Another process goes on with its memory and its sockets: connections do not notice."""
    before = state(fresh.node)
    fresh.start()
    kept = Kept(fresh.client, WEB[0], 80)
    name, _ = kept.get()
    (worker,) = [word for word in fresh.plane.log.split() if word.startswith("worker=")]
    _kill(int(worker.split("=")[1]))
    assert kept.get()[0] == name
    assert {web(fresh.client, WEB[0]) for _ in range(40)} == PODS
    assert "has ended" in fresh.plane.log and "goes on in its place" in fresh.plane.log
    kept.close()
    assert fresh.plane.stop()[0] == 0
    assert state(fresh.node) == before


def test_a_second_run_in_the_same_place_is_refused(shared: World) -> None:
    command = [str(word) for word in shared.plane.process.args]  # the same again
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 2
    assert "there is an interface ku0 already" in second.stderr
    assert web(shared.client, WEB[0]) in PODS


# --- real programs -------------------------------------------------------------------------------------------


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"netns: no program `{name}`")
    return path


@pytest.mark.parametrize("address", BULK)
def test_iperf3(shared: World, address: str) -> None:
    iperf = _program("iperf3")
    server = shared.pods[0].start(iperf, "-s", "-p", str(BULK_PORT.target), stdout=subprocess.DEVNULL)
    try:
        _eventually(lambda: listens(shared.pods[0], BULK_PORT.target))
        for options in (("-n", "50M"), ("-n", "50M", "-R"), ("-n", "20M", "-P", "4")):
            command = shared.client.command(iperf, "-J", "-c", address, "-p", str(BULK_PORT.port), *options)
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            result: dict[str, Any] = json.loads(done.stdout)
            assert done.returncode == 0, result.get("error")
            assert result["end"]["sum_sent"]["bytes"] >= 20 * MEGABYTE
            # The server stops counting when the first stream has ended.
            assert result["end"]["sum_received"]["bytes"] > 10 * MEGABYTE
    finally:
        server.terminate()
        server.wait(5)


NGINX = """
daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root};
    uwsgi_temp_path {root}; scgi_temp_path {root};
    server {{ listen {port}; listen [::]:{port}; root {root}; add_header X-Pod nginx; }}
}}
"""


def test_nginx(shared: World) -> None:
    nginx = _program("nginx")
    root = shared.directory / "nginx"
    root.mkdir()
    content = random.Random(1).randbytes(5 * MEGABYTE)
    (root / "file").write_bytes(content)
    (root / "nginx.conf").write_text(NGINX.format(root=root, port=BULK_PORT.target))
    shared.directory.chmod(0o755)
    server = shared.pods[0].start(nginx, "-c", str(root / "nginx.conf"), stderr=subprocess.DEVNULL)
    try:
        _eventually(lambda: listens(shared.pods[0], BULK_PORT.target))
        for address in BULK:
            connection = Kept(shared.client, address, BULK_PORT.port)
            for _ in range(10):
                assert connection.get("/file") == ("nginx", content)
            connection.close()
    finally:
        server.terminate()
        server.wait(5)


# --- help ----------------------------------------------------------------------------------------------------


def _eventually(condition: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def _lives(process_id: int) -> bool:
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)
