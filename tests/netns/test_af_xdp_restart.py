"""Live connections through workers on AF_XDP, which are killed and replaced under them: packets may go, flows stay."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from kuproxy.confine.privilege import held
from netns.many_connections import Load
from netns.test_daemon import Daemon
from netns.test_hot_restart import assert_unbroken, during, kill, loaded, processes, replaced
from netns.test_privileges import KEPT
from netns.world import state

pytestmark = [pytest.mark.netns, pytest.mark.timeout(280)]

CONNECTIONS = 1000
WITHIN_S = 30.0


def settings(kind: str, mode: str) -> str:
    return f'[driver]\nkind = "{kind}"\nmode = "{mode}"\n'


def stock(daemon: Daemon) -> int:
    """AF_XDP sockets that the keeper holds: those that no worker has."""
    links = Path(f"/proc/{daemon.process.pid}/fd").iterdir()
    inodes = {match[1] for link in links if (match := re.match(r"socket:\[(\d+)\]", str(link.readlink())))}
    # Of its sockets all but three have no name in /proc/net/unix; the probe is an ordinary datagram socket.
    unix = Path(f"/proc/{daemon.process.pid}/net/unix").read_text()
    return sum(inode not in unix for inode in inodes) - 1


def assert_little_is_held(daemon: Daemon) -> None:
    """Workers hold nothing, the others what af_packet takes, and what it takes to lock memory for the next worker."""
    found = processes(daemon)
    for process_id in found["worker"]:
        assert not held(process_id).permitted and held(process_id).filtered
    for process_id in found["control"] + found["keeper"]:
        assert held(process_id).permitted - KEPT <= {"CAP_IPC_LOCK"}


def check(load: Load, daemon: Daemon, role: str, mode: str) -> None:
    """`kill -9` of one, and everything goes on as it was."""
    assert_unbroken(during(load, lambda: replaced(daemon, role, kill)), CONNECTIONS)
    assert f" driver: af_xdp, {mode} mode\n" in daemon.ku("show ku")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["native", pytest.param("generic", marks=pytest.mark.long)])
def test_connections_outlive_every_process(mode: str) -> None:
    """A worker; control; then a worker again, by a control process that could open no socket in its namespace."""
    with loaded(CONNECTIONS, settings("af_xdp", mode)) as (daemon, load):
        assert_unbroken(during(load, lambda: None), CONNECTIONS)
        before = stock(daemon)
        assert before == 64
        for role, left in (("worker", 63), ("control", 63), ("worker", 62), ("worker", 61)):
            check(load, daemon, role, mode)
            assert stock(daemon) == left
            assert_little_is_held(daemon)
        assert "cannot work" not in daemon.log
        upgraded = during(load, lambda: replaced(daemon, "control", lambda _: print(daemon.ku("upgrade"))))
        assert_unbroken(upgraded, CONNECTIONS)


@pytest.mark.long
def test_another_driver_waits_for_another_keeper() -> None:
    with loaded(100, settings("af_xdp", "native")) as (daemon, load):
        text = daemon.settings.read_text()
        daemon.settings.write_text(text.replace('kind = "af_xdp"', 'kind = "af_packet"'))
        replaced(daemon, "control", kill)
        said = "af_xdp, native mode goes on; af_packet needs a restart of the keeper"
        assert said in daemon.log
        assert " driver: af_xdp, native mode\n" in daemon.ku("show ku")
        assert_unbroken(during(load, lambda: replaced(daemon, "worker", kill)), 100)


@pytest.mark.long
def test_when_the_stock_is_used_up_all_begins_anew() -> None:
    """The keeper says so and ends, for its service manager to start it again; nothing is left on the node."""
    with loaded(10, settings("af_xdp", "native"), stopped=True) as (daemon, _):
        deadline = time.monotonic() + 240
        while daemon.process.poll() is None:
            assert time.monotonic() < deadline, daemon.log
            if stock(daemon):
                replaced(daemon, "worker", kill)
                time.sleep(1.0)  # a worker that lived for less counts as one that cannot work
            else:
                kill(processes(daemon)["worker"][0])
                break
        assert daemon.process.wait(WITHIN_S) == 1, signal.strsignal(-daemon.process.returncode)
        assert "no AF_XDP socket is left for another worker" in daemon.log
        while any("ku0" in line for line in state(daemon.made.node)):  # the kernel does it in the background
            assert time.monotonic() < deadline
            time.sleep(0.05)
