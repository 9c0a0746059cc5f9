"""The keeper, over a control process that only counts its predecessors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CONTROL = Path(__file__).with_name("control.py")
KEEPER = """
import sys
from kuproxy.confine.lifetime import become_subreaper
from kuproxy.keeper.process import Keeper
become_subreaper()
sys.exit(Keeper(sys.argv[1:]).run())
"""
PATIENCE_S = 20


class Kept:
    """A keeper and what its control processes say."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.settimeout(PATIENCE_S)
        self.manager.bind(str(directory / "notify"))

    def start(self) -> None:
        environment = os.environ | {
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "WATCHDOG_USEC": "200000",
        }
        words = [sys.executable, "-c", KEEPER, sys.executable, str(CONTROL), str(self.directory)]
        self.process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)

    @property
    def said(self) -> list[tuple[int, str]]:
        path = self.directory / "said"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), text) for pid, _, text in (line.partition(" ") for line in lines)]

    def until(self, condition: Callable[[list[tuple[int, str]]], bool]) -> list[tuple[int, str]]:
        deadline = time.monotonic() + PATIENCE_S
        while not condition(self.said):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        return self.said

    def control(self, number: int) -> int:
        """Process id of the control process with this number."""
        found = self.until(lambda said: any(text.startswith(f"start {number} ") for _, text in said))
        return next(pid for pid, text in found if text.startswith(f"start {number} "))

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    try:
        yield made
    finally:
        if hasattr(made, "process") and made.process.poll() is None:
            made.process.kill()
            made.process.communicate()
        for pid, _ in made.said:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        made.manager.close()


def test_what_control_leaves_its_successor_finds(kept: Kept) -> None:
    kept.start()
    first = kept.control(0)
    os.kill(first, signal.SIGKILL)
    second = kept.control(1)
    os.kill(kept.process.pid, signal.SIGUSR2)
    third = kept.control(2)
    assert len({first, second, third}) == 3
    assert [text for pid, text in kept.said if pid == second] == ["start 1 225", "leave"]
    os.kill(kept.process.pid, signal.SIGHUP)
    kept.until(lambda said: (third, "reload") in said)
    kept.process.terminate()
    status, errors = kept.end()
    assert status == 0
    assert (third, "stop") in kept.said
    assert errors.count("forwarding goes on") == 1, "a replacement is no death"


def test_the_service_manager_hears_of_it(kept: Kept) -> None:
    kept.start()
    kept.control(0)
    heard = set()
    while heard != {b"READY=1", b"WATCHDOG=1"}:
        heard.add(kept.manager.recv(100))
    kept.process.terminate()
    assert kept.end()[0] == 0


def test_a_stop_takes_as_long_as_control_asks_for(kept: Kept) -> None:
    """The keeper and the service manager wait for so long, and not for ever: what is announced is withdrawn first."""
    (kept.directory / "order").write_text("linger")
    kept.start()
    kept.control(0)
    kept.process.terminate()
    heard = set()
    while b"EXTEND_TIMEOUT_USEC=1000000" not in heard:
        heard.add(kept.manager.recv(100))
    assert "killed" in kept.end()[1]


def test_a_control_process_that_never_came_up_is_not_started_again(kept: Kept) -> None:
    (kept.directory / "order").write_text("fail")
    kept.start()
    assert kept.end()[0] == 2
    assert kept.said == []


def test_one_that_came_up_once_is(kept: Kept) -> None:
    """However often its successors fail: what forwards is here."""
    kept.start()
    first = kept.control(0)
    (kept.directory / "order").write_text("fail")
    os.kill(first, signal.SIGKILL)
    time.sleep(1.0)
    assert kept.process.poll() is None
    (kept.directory / "order").unlink()
    kept.control(1)
    time.sleep(0.5)  # until it has said that it is ready
    kept.process.terminate()
    assert kept.end()[0] == 0


def test_orphans_are_buried(kept: Kept) -> None:
    """A worker's end leaves no zombie behind: it is the keeper's child when its parent has ended."""
    (kept.directory / "order").write_text("orphan")
    kept.start()
    kept.control(0)
    [orphan] = [int(text.split()[1]) for _, text in kept.until(lambda s: len(s) > 1) if "orphan" in text]
    parent = Path(f"/proc/{orphan}/stat").read_text().split()[3]
    assert int(parent) == kept.process.pid
    os.kill(orphan, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{orphan}").exists():
        assert time.monotonic() < deadline, "a zombie"
        time.sleep(0.05)
    kept.process.terminate()
    assert kept.end()[0] == 0
