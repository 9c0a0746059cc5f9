"""A real `ku daemon` on a node with real traffic, driven by the command `ku` alone."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kuproxy.client import Client, Refusal
from kuproxy.dataplane.layout import W_KERNELS
from kuproxy.demo.manifest import write_manifest
from netns.world import BULK, WEB, Kept, World, cache_entries, cache_shortcuts, echo, state, web, world

pytestmark = pytest.mark.netns

START_WITHIN_S = 100  # the kernels may have to be compiled
PODS = {"pod1", "pod2", "pod3"}
SERVICE = f"""\
ku vip {WEB[0]}/32 protocol tcp port 80 target_port 8080 node_port 30080
ku vip {WEB[1]}/128 protocol tcp port 80 target_port 8080
"""


class Daemon:
    """One `ku daemon` in the node of a world, and the command that talks to it."""

    def __init__(self, made: World) -> None:
        self.made, self.directory = made, made.directory
        self.socket = self.directory / "ku.sock"
        self.settings = self.directory / "kuproxy.toml"
        self.log_path = self.directory / "daemon.log"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(self.directory / "notify.sock"))
        self.notified.settimeout(START_WITHIN_S)
        self.command: tuple[str, ...] = (sys.executable, "-m", "kuproxy.keeper", "kuproxy.daemon.service")
        self.configure()

    def configure(self, *files: str) -> None:
        self.settings.write_text(
            f'state_directory = "{self.directory}/state"\nfiles = {json.dumps(files)}\n'
            f'[api]\nsocket = "{self.socket}"\n'
        )
        entries = cache_entries()
        if entries:
            with self.settings.open("a") as file:
                file.write(f'[cache]\nflow_cache = "on"\nflow_cache_entries = {entries}\n')
                file.write(f'flow_cache_shortcuts = "{cache_shortcuts()}"\n')

    def start(self) -> None:
        """Returns when it says that it is ready."""
        environment = os.environ | {
            "NOTIFY_SOCKET": str(self.directory / "notify.sock"),
            "WATCHDOG_USEC": "1000000",
        }
        with self.log_path.open("ab") as log:
            words = (*self.command, "--settings", str(self.settings))
            self.process = self.made.node.start(
                *words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.wait_for(b"READY=1")

    def wait_for(self, message: bytes) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            if self.notified.recv(1000).startswith(message):
                return
        raise AssertionError(f"no {message!r}:\n{self.log}")

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ku(self, line: str, status: int = 0) -> str:
        """What `ku` prints; with a status other than 0, what it says on stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "kuproxy", *line.split(), "--socket", str(self.socket)],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    def script(self, text: str) -> None:
        for line in text.splitlines():
            self.ku(line.removeprefix("ku "))

    def serve_web(self) -> None:
        self.script(SERVICE)
        for family, address in enumerate(WEB):
            addresses = " ".join((each.ipv4, each.ipv6)[family] for each in self.made.endpoints)
            self.ku(f"pod {address}/{(32, 128)[family]} {addresses}")

    def json(self, line: str) -> Any:
        return json.loads(self.ku(f"{line} --json"))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(15) == 0, self.log


@contextmanager
def serving_daemon(settings: str = "") -> Iterator[Daemon]:
    """One with these settings besides, that serves the world's web VIPs; whatever happens, it ends."""
    with world() as made:
        running = Daemon(made)
        with running.settings.open("a") as file:
            file.write(settings)
        running.start()
        running.serve_web()
        try:
            yield running
            running.stop()
        finally:
            running.process.kill()
            running.notified.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with world() as made:
        running = Daemon(made)
        try:
            yield running
        finally:
            running.notified.close()


def test_a_day_of_a_daemon(daemon: Daemon) -> None:
    """Commands make traffic flow; it is counted, shown, traced, flushed; a crash forgets nothing; the end is clean."""
    made = daemon.made
    before = state(made.node)
    assert "no daemon listens at" in daemon.ku("show vips", status=2)
    daemon.start()
    with pytest.raises(OSError):
        web(made.client, WEB[0])
    daemon.serve_web()
    for address in WEB:
        assert {web(made.client, address) for _ in range(40)} == PODS
    assert web(made.client, WEB[0]) in PODS

    # What was counted, in three ways.
    [v4, v6] = daemon.json("show vips verbose")["vips"]
    assert v4["counters"]["first_packet"] >= 41 and v6["counters"]["first_packet"] >= 40
    assert "first session packet:" in daemon.ku("sh ku v v")
    client = Client(str(daemon.socket))
    kept = Kept(made.client, WEB[0], 80)
    name, _ = kept.get()
    pod = next(each for each in made.endpoints if each.name == name)
    target = f"/v1/flows?client={kept.sock.getsockname()[0]}&state=tcp-established&pod={pod.ipv4}"
    [flow] = client.request("GET", target)["flows"]
    assert (flow["client_port"], flow["destination_port"]) == (kept.sock.getsockname()[1], 80)
    assert flow["destination"] == WEB[0]
    assert flow["pod_port"] == 8080
    assert "kp-balance" in daemon.ku("show node counters")

    # Trace and flush, while a connection is open.
    daemon.ku("trace add 4")
    assert kept.get()[0] == name
    assert "kp-input" in daemon.ku("show trace")
    assert "flows forgotten" in daemon.ku("test kube-proxy flowtable flush")
    assert kept.get()[0] == name, "the same pods, so the same slot"
    kept.close()

    # What cannot be leaves everything as it was.
    assert "30080 is the node port of" in daemon.ku("vip 9.9.9.9/32 port 1 node_port 30080", status=2)
    assert daemon.ku("vip nonsense", status=2).startswith("ku: prefix: 'nonsense' is not an IP address")
    assert web(made.client, WEB[0]) in PODS

    # It dies without a word, and comes back with what it was told.
    shown = daemon.ku("show vips")
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    assert daemon.ku("show vips") == shown
    assert {web(made.client, WEB[1]) for _ in range(40)} == PODS
    assert web(made.client, WEB[0]) in PODS
    daemon.wait_for(b"WATCHDOG=1")

    daemon.stop()
    assert not daemon.socket.exists()
    assert state(made.node) == before


def test_files_and_commands_side_by_side(daemon: Daemon) -> None:
    """`ku reload` and SIGHUP apply the difference of the files; what commands made stays."""
    made = daemon.made
    manifest = daemon.directory / "services.yaml"
    write_manifest(manifest, made.documents(["pod1"]))
    daemon.configure("services.yaml")
    daemon.start()
    assert {web(made.client, WEB[0]) for _ in range(10)} == {"pod1"}
    daemon.ku("vip 10.96.0.77/32 protocol tcp port 80 target_port 8080")
    daemon.ku(f"pod 10.96.0.77/32 {made.endpoints[2].ipv4}")
    kept = Kept(made.client, WEB[0], 80)
    assert kept.get()[0] == "pod1"
    write_manifest(manifest, made.documents(["pod2"]))
    changed = daemon.json("reload")
    assert (changed["added"], changed["removed"]) == (0, 0)
    assert changed["changed"] == 4, "web, with two ports in two families, and nothing else"
    assert daemon.json("reload")["changed"] == 0
    assert {web(made.client, WEB[0]) for _ in range(10)} == {"pod2"}
    assert kept.get()[0] == "pod1", "a removed pod serves its own flows"
    kept.close()
    write_manifest(manifest, made.documents(["pod1", "pod2", "pod3"]))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(b"RELOADING=1")
    daemon.wait_for(b"READY=1")
    assert {web(made.client, WEB[0]) for _ in range(40)} == PODS
    assert echo(made.client, WEB[1]) in PODS
    assert web(made.client, "10.96.0.77") == "pod3"
    assert "it belongs to the source files" in daemon.ku(
        f"vip {BULK[0]}/32 protocol tcp port 5001 target_port 9", status=2
    )
    manifest.write_text("kind: [")
    assert "services.yaml:2: not YAML" in daemon.ku("reload", status=2)
    assert web(made.client, WEB[0]) in PODS
    daemon.stop()


def test_a_successor_that_cannot_start_ends_nothing(daemon: Daemon) -> None:
    """Its settings are broken when control dies: what forwards goes on, and takes it up again when they are mended."""
    made = daemon.made
    before = state(made.node)
    daemon.start()
    daemon.serve_web()
    client = Client(str(daemon.socket))
    kept = Kept(made.client, WEB[0], 80)
    name, _ = kept.get()
    good = daemon.settings.read_text()
    daemon.settings.write_text("nonsense = 1\n" + good)
    processes = {each["role"]: each["pid"] for each in client.request("GET", "/v1/health")["processes"]}
    os.kill(processes["control"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while "nonsense: is not known here" not in daemon.log:
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.1)
    assert daemon.process.poll() is None
    assert kept.get()[0] == name
    assert {web(made.client, WEB[0]) for _ in range(40)} == PODS
    daemon.settings.write_text(good)
    deadline = time.monotonic() + 30
    while True:  # it waits a little longer after each failure
        try:
            health = client.request("GET", "/v1/health")
            break
        except Refusal:
            assert time.monotonic() < deadline, daemon.log
            time.sleep(0.1)
    assert health["vips"] == 2
    workers = [each["pid"] for each in health["processes"] if each["role"] == "worker"]
    assert processes["worker"] in workers, "the workers are those from before"
    assert kept.get()[0] == name
    kept.close()
    daemon.stop()
    assert state(made.node) == before


def test_an_upgrade_in_place(daemon: Daemon) -> None:
    """The installed version, which is the same here, takes over; counters go on, and so do settings of commands."""
    made = daemon.made
    daemon.start()
    daemon.serve_web()
    daemon.ku("conf timeout 77")
    assert web(made.client, WEB[0]) in PODS
    kept = Kept(made.client, WEB[0], 80)
    name, _ = kept.get()
    [v4, _] = daemon.json("show vips verbose")["vips"]
    assert "would take over" in daemon.ku("upgrade check")
    said = daemon.json("upgrade")
    assert (said["same_layout"], said["losses"]) == (True, [])
    [after, _] = daemon.json("show vips verbose")["vips"]
    assert after["counters"]["first_packet"] == v4["counters"]["first_packet"]
    assert kept.get()[0] == name
    assert "timeout: 77s" in daemon.ku("show kube-proxy")
    assert daemon.log.count("left to a successor") == 1
    assert "'nonsense' is not known here" in daemon.ku("upgrade nonsense", status=2)

    # Workers of another build: they say so in their memory, and make room, too.
    before = _workers(daemon)
    for pid in before:
        _claim_other_kernels(pid)
    daemon.ku("upgrade")
    deadline = time.monotonic() + 60
    while "runs this build's kernels now" not in daemon.log:
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.05)
    assert not set(before) & set(_workers(daemon))
    assert kept.get()[0] == name
    [after, _] = daemon.json("show vips verbose")["vips"]
    assert after["counters"]["first_packet"] == v4["counters"]["first_packet"]
    kept.close()
    daemon.stop()


def _workers(daemon: Daemon) -> list[int]:
    listed = Client(str(daemon.socket)).request("GET", "/v1/health")["processes"]
    return [each["pid"] for each in listed if each["role"] == "worker"]


def _claim_other_kernels(pid: int) -> None:
    """Write into a worker's memory that it runs other kernels; the header is the first of its arrays."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if "kuproxy-state" in os.readlink(link):
            with link.open("r+b", buffering=0) as memory:
                memory.seek(8 * W_KERNELS)
                memory.write((1).to_bytes(8, "little"))
            return
    raise AssertionError(f"process {pid} has no memory of a worker")


def test_the_shell_on_a_terminal(daemon: Daemon) -> None:
    """Completion, a refusal, history: through a pseudo-terminal, as somebody types."""
    daemon.start()
    daemon.ku("vip 90.0.0.0/8")
    ours, theirs = pty.openpty()
    home = os.environ | {"XDG_STATE_HOME": str(daemon.directory), "TERM": "xterm"}
    words = [sys.executable, "-m", "kuproxy.shell", "--socket", str(daemon.socket)]
    shell = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=home, close_fds=True)
    os.close(theirs)
    try:
        _until(ours, b"ku#")
        os.write(ours, b"sh kube v\t")
        _until(ours, b"ips")  # the rest of the word, which nobody typed
        os.write(ours, b"\r")
        _until(ours, b"90.0.0.0/8 port:0")
        os.write(ours, b"ku vip nonsense\r")
        _until(ours, b"is not an IP address")
        os.write(ours, b"ku vip 91.0.0.0/8 ta\t")
        _until(ours, b"rget_port")
        os.write(ours, b" 7 port 7\r")
        os.write(ours, b"quit\r")
        assert shell.wait(10) == 0
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    assert "91.0.0.0/8 port:7 target_port:7" in daemon.ku("show vips")
    assert "sh kube vips" in Path(daemon.directory, "kuproxy/history").read_text()
    daemon.stop()


def _until(terminal: int, wanted: bytes) -> None:
    seen = b""
    deadline = time.monotonic() + 20
    os.set_blocking(terminal, False)
    while wanted not in seen:
        assert time.monotonic() < deadline, seen[-2000:]
        try:
            more = os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        if b"\x1b[6n" in more:  # where is the cursor?
            os.write(terminal, b"\x1b[1;1R")
        seen += more
