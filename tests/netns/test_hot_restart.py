"""Ten thousand live TCP connections through a daemon whose processes are killed and replaced under them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kuproxy.client import Client
from netns.many_connections import Load, Report, many_connections, vip_script
from netns.processes import children_that_run
from netns.test_daemon import Daemon
from netns.test_privileges import processes_below
from netns.world import world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(280)]

CONNECTIONS = 10_000
REPLACED_WITHIN_S = 30.0
AFTERWARDS_S = 2.0  # messages go on for so long after a replacement: one on every connection
TRIES = 3  # on a machine with other work a segment may be lost to a full ring at any time; a broken connection never

_MODULES = {"kuproxy.daemon.service": "control", "kuproxy.engine.worker": "worker"}


def processes(daemon: Daemon) -> dict[str, list[int]]:
    """Role (keeper, control, worker) → process ids.

    As `/v1/health` lists them; of a daemon that lists none, as the command lines of its children tell.
    """
    found: dict[str, list[int]] = {}
    listed = Client(str(daemon.socket)).request("GET", "/v1/health").get("processes")
    if listed is not None:
        for each in listed:
            found.setdefault(each["role"], []).append(each["pid"])
        return found
    for process_id in processes_below(daemon.process.pid):
        words = Path(f"/proc/{process_id}/cmdline").read_bytes().decode().split("\0")
        for role in (_MODULES[word] for word in words if word in _MODULES):
            found.setdefault(role, []).append(process_id)
    return found


@contextmanager
def loaded(connections: int, settings: str = "", stopped: bool = False) -> Iterator[tuple[Daemon, Load]]:
    """A daemon with these settings more that forwards so many connections, quietly so far.

    `stopped`: it will have ended by itself.
    """
    with world() as made:
        daemon = Daemon(made)
        with daemon.settings.open("a") as file:
            file.write(settings)
        try:
            daemon.start()
            daemon.script("\n".join(vip_script(made)))
            with many_connections(made, connections) as load:
                yield daemon, load
            if not stopped:
                daemon.stop()
        finally:
            daemon.notified.close()


def during(load: Load, act: Callable[[], None]) -> Report:
    """What became of the messages before, while and after something was done."""
    load.begin()
    time.sleep(0.5)
    act()
    time.sleep(AFTERWARDS_S)
    report = load.report()
    print(report)
    return report


def assert_unbroken(report: Report, connections: int = CONNECTIONS) -> None:
    assert not report.broken, report
    assert report.connections == connections, report
    assert report.unanswered == 0, report
    assert report.answered > 0.8 * report.sent > 0, report


@pytest.mark.long
def test_the_rig_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that stand still for a while lose that time's traffic; a pod that dies breaks its connections."""
    monkeypatch.setenv("KU_TEST_FLOW_CACHE", "0")  # with a cache nobody notices
    with loaded(1000) as (daemon, load):
        quiet = during(load, lambda: None)
        assert_unbroken(quiet, 1000)
        workers = processes(daemon)["worker"]

        def stand_still() -> None:
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for worker in workers:
                    os.kill(worker, number)
                time.sleep(0.4)

        stopped = during(load, stand_still)
        assert_unbroken(stopped, 1000)
        assert stopped.longest_gap_ms > 300, stopped
        assert stopped.lost > quiet.lost + 100, stopped
        assert stopped.delayed > quiet.delayed, stopped
        killed = during(load, load.servers[0].kill)
        assert 200 < sum(killed.broken.values()) < 500, killed
        assert killed.connections + sum(killed.broken.values()) == 1000


def replaced(daemon: Daemon, role: str, act: Callable[[int], None]) -> None:
    """Do something to the first process of a role, and wait until another has its place."""
    before = processes(daemon)[role]
    act(before[0])
    began = time.monotonic()
    deadline = time.monotonic() + REPLACED_WITHIN_S
    while True:
        try:
            now = processes(daemon)[role]
            if len(now) == len(before) and before[0] not in now:
                print(f"{role} {before[0]} has a successor after {time.monotonic() - began:.2f} s")
                return
        except Exception as error:  # nobody answers in between
            problem: object = error
        else:
            problem = now
        assert time.monotonic() < deadline, f"{role} {before[0]} was not replaced: {problem}\n{daemon.log}"
        time.sleep(0.05)


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


def least_lost(load: Load, limit_ms: float, act: Callable[[], None]) -> Report:
    """The report of the first try that lost no more than allowed, else of the last; none may break a connection."""
    for _ in range(TRIES):
        report = during(load, act)
        assert_unbroken(report)
        if report.lost_ms <= limit_ms:
            break
    return report


def test_connections_outlive_a_change_of_the_flow_hash() -> None:
    """Another hash while they talk, then `kill -9` of control and of a worker: successors find the flows by its key."""
    with loaded(1000) as (daemon, load):
        assert_unbroken(during(load, lambda: daemon.script("conf flow-hash keyed")), 1000)
        assert "flow hash: keyed" in daemon.ku("show")
        for role in ("control", "worker"):
            assert_unbroken(during(load, lambda role=role: replaced(daemon, role, kill)), 1000)  # type: ignore[misc]
            assert "flow hash: keyed" in daemon.ku("show")
        assert_unbroken(during(load, lambda: daemon.script("conf flow-hash vpp")), 1000)


def test_a_worker_that_is_born_when_control_dies_is_alone_with_its_ring() -> None:
    """The nursery carries out what a dead control process has asked for; its successor knows nothing of it."""
    with loaded(100) as (daemon, load):
        before = processes(daemon)
        (nursery,), (control,), worker = before["nursery"], before["control"], before["worker"][0]

        def act() -> None:
            os.kill(nursery, signal.SIGSTOP)
            kill(worker)
            time.sleep(0.5)  # control asks for another
            replaced(daemon, "control", lambda _: (kill(control), os.kill(nursery, signal.SIGCONT)))

        report = during(load, act)
        assert_unbroken(report, 100)
        # What the keeper has inherited from nurseries.
        workers = children_that_run("kuproxy.engine.nursery", daemon.process.pid)
        assert sorted(workers) == sorted(processes(daemon)["worker"]), daemon.log
        assert len(processes(daemon)["worker"]) == len(before["worker"])


def test_ten_thousand_connections_outlive_every_process() -> None:
    """`kill -9` of control, its upgrade, `kill -9` of a worker: nothing breaks, and hardly anything is lost."""
    with loaded(CONNECTIONS) as (daemon, load):
        if "keeper" not in processes(daemon):
            pytest.skip("this daemon has no keeper: what is killed stays dead")
        assert_unbroken(during(load, lambda: None))

        killed = least_lost(load, 0, lambda: replaced(daemon, "control", kill))
        assert killed.lost == 0, killed

        upgraded = least_lost(
            load, 100, lambda: replaced(daemon, "control", lambda _: print(daemon.ku("upgrade")))
        )
        assert upgraded.lost_ms < 100, upgraded

        worker = least_lost(load, 100, lambda: replaced(daemon, "worker", kill))
        assert worker.lost_ms < 100, worker
        assert sum(len(each) for each in processes(daemon).values()) >= 3
