"""Least privilege: which capabilities each act needs, and that a daemon works with what it keeps."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forked import forked
from kuproxy.confine.privilege import AFTER_START, Capability, Held, held, keep_only
from kuproxy.dataplane._jit import cache_directory
from kuproxy.errors import PrivilegeError
from netns.test_daemon import PODS, Daemon
from netns.world import WEB, web, world

pytestmark = pytest.mark.netns

PAGE = Path(__file__).parents[2] / "docs/privileges.md"
ROW = re.compile(
    r"^\| (?P<act>[^|]+) \| ?(?P<root>[A-Z_ ]*) \| ?(?P<other>[A-Z_ ]*) \| [^|]+ \|$", re.MULTILINE
)
KEPT = frozenset(f"CAP_{each.name}" for each in AFTER_START)


def test_the_page_says_what_each_act_needs() -> None:
    """The table in docs/privileges.md is what the kernel does here."""
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    done = subprocess.run(
        [sys.executable, "-m", "netns.acts"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stderr
    written = {
        row["act"]: [row["root"].split(), row["other"].split()] for row in ROW.finditer(PAGE.read_text())
    }
    assert written == json.loads(done.stdout)


def test_what_is_given_up_is_gone() -> None:
    """From all five sets, for this process and for what it executes, and it cannot be taken back."""

    def give_up() -> list[object]:
        keep_only(Capability.NET_RAW)
        mine = held()
        executed = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True)
        return [mine.to_json(), executed.stdout]

    mine, executed = forked(give_up)
    assert mine["effective"] == mine["permitted"] == mine["bounding"] == ["CAP_NET_RAW"]
    assert mine["inheritable"] == mine["ambient"] == []
    assert mine["no_new_privileges"] is True and mine["filtered"] is False
    only_raw = f"{1 << Capability.NET_RAW:016x}"
    assert re.search(rf"^CapPrm:\t{only_raw}$", executed, re.MULTILINE)
    assert re.search(rf"^CapBnd:\t{only_raw}$", executed, re.MULTILINE)

    def take_back() -> list[str]:
        keep_only(Capability.NET_RAW)
        keep_only(Capability.NET_RAW, Capability.SYS_ADMIN)  # what is not held is not gained
        return sorted(held().permitted)

    assert forked(take_back) == ["CAP_NET_RAW"]


def test_without_setpcap_the_bounding_set_stays_and_the_rest_goes() -> None:
    def give_up() -> object:
        keep_only(*(each for each in Capability if each != Capability.SETPCAP))
        keep_only(Capability.BPF)
        return held().to_json()

    kept = forked(give_up)
    assert kept["permitted"] == kept["effective"] == ["CAP_BPF"]
    assert "CAP_SYS_ADMIN" in kept["bounding"]


def test_a_refusal_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kuproxy.confine.privilege._VERSION_3", 1)

    def give_up() -> str:
        try:
            keep_only()
        except PrivilegeError as error:
            return str(error)
        return ""

    assert forked(give_up) == "giving up capabilities: Invalid argument"


def processes_below(process_id: int) -> list[int]:
    """A process and all that come from it."""
    children = subprocess.run(["pgrep", "-P", str(process_id)], capture_output=True, text=True, check=False)
    return [process_id, *(each for child in children.stdout.split() for each in processes_below(int(child)))]


def threads_of(process_id: int) -> list[Held]:
    return [held(process_id, int(each)) for each in os.listdir(f"/proc/{process_id}/task")]


def assert_little_is_held(top: int, filtered: bool = True) -> None:
    """Threads of control hold three capabilities, those of workers and of the nursery none; workers are filtered."""
    without: list[bool] = []  # of each process with no capability, whether it is filtered
    for process_id in processes_below(top):
        for each in threads_of(process_id):
            assert each.permitted in (KEPT, frozenset()), (process_id, sorted(each.permitted - KEPT))
            assert each.permitted == each.effective
            assert not each.inheritable
            assert not each.ambient
            assert each.no_new_privileges
            if each.permitted:
                assert not each.filtered
            else:
                without.append(each.filtered)
    assert without.count(False) == 1 if filtered else not any(without), "the nursery forks"
    assert len(without) > 1


def use(daemon: Daemon) -> None:
    """All that a daemon does after its start and that asks the kernel for something."""
    made = daemon.made
    daemon.serve_web()
    for address in WEB:
        assert {web(made.client, address) for _ in range(40)} == PODS
    made.node.netlink(
        lambda netlink: [
            netlink.link("add", ifname="later0", kind="veth", peer="later1"),
            netlink.link("set", index=netlink.link_lookup(ifname="later0")[0], state="up"),
        ]
    )
    deadline = time.monotonic() + 5
    while "attached to later0" not in daemon.log:
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.05)
    daemon.ku("conf buckets 4096")
    daemon.ku("trace add 4")
    assert "flows forgotten" in daemon.ku("test kube-proxy flowtable flush")
    daemon.ku("conf ip4-src-address 10.244.0.1")
    daemon.ku("vip 10.99.0.0/24 encap gre4")
    daemon.ku("reload")
    assert web(made.client, WEB[0]) in PODS


def test_a_daemon_works_with_what_it_keeps() -> None:
    with world() as made:
        daemon = Daemon(made)
        try:
            daemon.start()
            assert_little_is_held(daemon.process.pid)
            use(daemon)
            assert "kept more than it should" not in daemon.log
            daemon.stop()
        finally:
            daemon.notified.close()


def test_workers_without_a_filter() -> None:
    """`worker_filter = false`, should a library need what nobody has foreseen."""
    with world() as made:
        daemon = Daemon(made)
        daemon.settings.write_text("worker_filter = false\n" + daemon.settings.read_text())
        try:
            daemon.start()
            assert_little_is_held(daemon.process.pid, filtered=False)
            use(daemon)
            daemon.stop()
        finally:
            daemon.notified.close()


# Runs the daemon as another user, with the capabilities that packaging/kuproxy.service gives it.  The last one stands
# for the package's files, which everybody may read where they are installed, but not everywhere where they are tested.
AS_ANOTHER_USER = """
import ctypes, os, sys
from kuproxy.confine.privilege import AT_START, Capability, keep_only
libc = ctypes.CDLL(None)
libc.prctl(28, 4, 0, 0, 0)  # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP: capabilities stay
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
keep_only(*AT_START, Capability.DAC_READ_SEARCH, pass_on=True)
os.execv(sys.executable, [sys.executable, "-m", "kuproxy.daemon.service", *sys.argv[1:]])
"""


def link(source: str, target: str) -> None:
    """Instead of a copy, where both are on one file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_a_daemon_needs_no_root() -> None:
    """User `nobody` with five capabilities starts it, and it goes on with three."""
    with world() as made:
        daemon = Daemon(made)
        os.chmod(made.directory, 0o777)
        os.chmod(made.directory / "notify.sock", 0o777)
        # The cache of kernels stays root's: it can be read, but not written.
        shutil.copytree(
            cache_directory(), made.directory / "kernels" / cache_directory().name, copy_function=link
        )
        kernels = f"KUPROXY_CACHE={made.directory}"
        locator = "NUMBA_CACHE_LOCATOR_CLASSES=kuproxy.kept_cache.KeptCacheLocator"
        daemon.command = ("env", kernels, locator, sys.executable, "-c", AS_ANOTHER_USER)
        try:
            daemon.start()
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", status, re.MULTILINE)
            assert_little_is_held(daemon.process.pid)
            use(daemon)
            daemon.stop()
        finally:
            daemon.notified.close()
