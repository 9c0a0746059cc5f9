"""Real traffic through `ku run` and `ku daemon` with the driver af_xdp, while client and pods keep all their offloads.

What the frames' checksums are is judged by tshark here, by scapy in test_checksums.py, and by the kernel in both.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kuproxy.demo.manifest import ECHO, HTTP
from kuproxy.demo.pods import LARGE, large_body
from kuproxy.demo.topology import Host
from netns.test_daemon import Daemon
from netns.world import (
    BULK,
    BULK_PORT,
    NODE,
    WEB,
    Kept,
    World,
    connect,
    echo,
    listener,
    read_exactly,
    state,
    web,
    world,
)

pytestmark = pytest.mark.netns

MODES = ("native", "generic")
PODS = {"pod1", "pod2", "pod3"}
MEGABYTE = 1_000_000


@pytest.fixture(scope="module", params=MODES)
def running(request: pytest.FixtureRequest) -> Iterator[World]:
    with world() as made:
        made.start("--driver", "af_xdp", "--xdp-mode", request.param)
        assert f'driver="af_xdp, {request.param} mode"' in made.plane.log
        yield made
        status, report = made.plane.stop()
        assert status == 0, made.plane.log
        assert report["received"] == sum(report["outcomes"].values())


def _exchange(opened: socket.socket, peer: str) -> None:
    """Takes 8 MB and answers their digest, then sends 8 MB."""
    data = read_exactly(opened, 8 * MEGABYTE)
    opened.sendall(hashlib.sha256(data).digest())
    opened.sendall(data)


@contextmanager
def _recorded(directory: Path, *hosts: Host) -> Iterator[list[Path]]:
    """What comes in at each host's eth0, into a file each."""
    paths = [directory / f"{host.name}.pcap" for host in hosts]
    with ExitStack() as stack:
        for host, path in zip(hosts, paths, strict=True):
            words = (
                "tcpdump",
                "-i",
                "eth0",
                "-Q",
                "in",
                "-U",
                "--immediate-mode",
                "-w",
                str(path),
                "-B",
                "65536",
                "-Z",
                "root",
            )
            recording = host.start(*words, stdin=None, stdout=None, stderr=subprocess.PIPE)
            assert recording.stderr is not None
            stack.callback(recording.stderr.close)
            stack.callback(recording.wait, 10)
            stack.callback(recording.send_signal, signal.SIGINT)
            assert any(b"listening on" in line for line in recording.stderr)  # or it has ended
        yield paths


def _count(path: Path, condition: str) -> int:
    checks = [word for name in ("ip", "tcp", "udp") for word in ("-o", f"{name}.check_checksum:TRUE")]
    words = ["tshark", "-n", "-r", str(path), *checks, "-Y", condition, "-T", "fields", "-e", "frame.number"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    return len(done.stdout.split())


BAD = " || ".join(f"{name}.checksum.status == 0" for name in ("ip", "tcp", "udp", "icmpv6", "icmp"))
GOOD = "tcp.checksum.status == 1 || udp.checksum.status == 1"


@pytest.mark.skipif(
    not (shutil.which("tshark") and shutil.which("tcpdump")), reason="no tshark or no tcpdump"
)
def test_no_bad_checksum_leaves_while_all_offloads_are_on(running: World, tmp_path: Path) -> None:
    for host in (running.client, *running.pods):
        command = ["ip", "netns", "exec", host.name, "ethtool", "-k", "eth0"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        for feature in ("tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"):
            assert f"{feature}: on" in text, host.name
    with _recorded(tmp_path, running.client, *running.pods) as paths:
        for address in WEB:
            for _ in range(30):
                web(running.client, address)
                web(running.node, address)
                echo(running.client, address, data=b"x" * 4000)
        with (
            listener(running.pods[0], BULK_PORT.target, _exchange),
            connect(running.client, BULK[0], BULK_PORT.port) as opened,
        ):
            opened.settimeout(60)
            data = random.Random(0).randbytes(8 * MEGABYTE)
            opened.sendall(data)
            assert read_exactly(opened, 32) == hashlib.sha256(data).digest()
            assert read_exactly(opened, len(data)) == data
    for path in paths:
        assert _count(path, BAD) == 0, path
        assert _count(path, GOOD) > 50, path
    assert _count(paths[0], "tcp.checksum.status == 1 && tcp.len > 1000") > 500, "the bulk was seen"


def test_every_way_serves(running: World) -> None:
    for address, tcp, udp in (
        *((each, HTTP.port, ECHO.port) for each in WEB),
        *((each, HTTP.node_port, ECHO.node_port) for each in NODE),
    ):
        assert {web(running.client, address, tcp) for _ in range(40)} == PODS
        assert {echo(running.client, address, udp) for _ in range(40)} == PODS
        assert web(running.node, address, tcp) in PODS
        kept = Kept(running.client, address, tcp)
        name, body = kept.get(LARGE)
        kept.close()
        assert body == large_body(name)


def test_a_datagram_longer_than_a_chunk_comes_from_the_node_itself(running: World) -> None:
    """Its packets are as long as the links to the pods allow, fragments among them."""
    for address in WEB:
        assert echo(running.node, address, data=random.Random(1).randbytes(30_000)) in PODS


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_after_kill(mode: str) -> None:
    with world() as made:
        before = state(made.node)
        made.start("--driver", "af_xdp", "--xdp-mode", mode)
        assert web(made.client, WEB[0]) in PODS
        made.plane.process.kill()
        made.plane.process.wait(10)
        deadline = time.monotonic() + 15
        while state(made.node) != before:  # the kernel takes a namespace down in the background
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_daemon_takes_it_from_its_settings() -> None:
    with world() as made:
        daemon = Daemon(made)
        with daemon.settings.open("a") as settings:
            settings.write('[driver]\nkind = "af_xdp"\nmode = "native"\n')
        daemon.start()
        try:
            daemon.serve_web()
            for address in WEB:
                assert {web(made.client, address) for _ in range(40)} == PODS
            assert " driver: af_xdp, native mode\n" in daemon.ku("show ku")
        finally:
            daemon.stop()
            daemon.notified.close()
