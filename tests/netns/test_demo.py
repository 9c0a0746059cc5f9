"""`ku demo` as a user runs it: its numbers, its end, and that nothing stays, however it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

COMMAND = [sys.executable, "-m", "kuproxy.demo"]
REQUESTS = 1500
PODS = {"pod1", "pod2", "pod3", "pod4"}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    subprocess.run([sys.executable, "-m", "kuproxy.warm"], check=True, timeout=280)


def _left(process_id: int) -> list[str]:
    """What a run has left: namespaces, files, processes."""
    left = [str(path) for path in Path("/run/netns").glob(f"kudemo-{process_id}-*")]
    left += [str(path) for path in Path(tempfile.gettempdir()).glob(f"kudemo-{process_id}-*")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if f"kudemo-{process_id}-".encode() in words:
            left.append(f"{path}: {words!r}")
    return left


def _links() -> set[str]:
    return {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}


def _descendants(process_id: int) -> set[int]:
    """All processes below one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = set(), [process_id]
    while todo:
        for child in children.get(todo.pop(), ()):
            found.add(child)
            todo.append(child)
    return found


def _eventually(condition: Callable[[], object], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_its_numbers() -> None:
    links = _links()
    began = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, "--json", "--requests", str(REQUESTS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (output, errors)
    assert time.monotonic() - began < 60
    result = json.loads(output.splitlines()[-1])
    assert result["failed"] == result["broken_connections"] == 0
    assert result["new_connections"] == REQUESTS
    assert result["requests"] > REQUESTS + 60 * 20
    assert result["requests"] == sum(result["per_pod"].values())
    assert set(result["per_pod"]) == PODS
    assert result["kept_on_drained_pod"] > 0
    first, second, third = result["phases"]
    assert set(first["new_connections"]) >= PODS - {"pod4"}
    assert set(second["new_connections"]) == PODS
    assert set(third["new_connections"]) == PODS - {"pod2"}
    assert (
        len(result["per_target"]) == 16
    )  # TCP and UDP, cluster IP and node port, IPv4 and IPv6, client and node
    assert result["outcomes"]["drop"] == 0
    assert "pod4 joined: " in errors
    assert _left(process.pid) == []
    assert _links() == links


@pytest.mark.long
def test_its_tables() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--requests", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (output, errors)
    assert re.search(r"^failed +0$", output, re.MULTILINE)
    assert re.search(r"^connections broken +0 ", output, re.MULTILINE)
    assert re.search(r"^  pod4 +\d+ +\d+\.\d% +0\.0% +\d+ +\d+\.\d% +25\.0% ", output, re.MULTILINE)
    assert "ku# show ku vip verbose\nip4-nat44 [" in output
    assert "ku# show node counters\n" in output
    assert output.splitlines()[-1].startswith("nothing failed, nothing broke")
    assert _left(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["network namespaces", "three pods: "])
def test_whatever_ends_it_nothing_stays(number: signal.Signals, moment: str) -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while moment not in (line := process.stderr.readline()):
        assert line, "it ended by itself"
    time.sleep(0.1)
    below = _descendants(process.pid)
    process.send_signal(number)
    process.stderr.close()
    assert process.wait(15) == (-9 if number == signal.SIGKILL else 128 + number)
    _eventually(lambda: not any(Path("/proc", str(each)).exists() for each in below))
    if number == signal.SIGKILL:  # names of namespaces outlive everybody; the next start takes them away
        subprocess.run([sys.executable, "-c", REMOVE], check=True, timeout=20)
    assert _left(process.pid) == []


REMOVE = "from kuproxy.demo.story import remove_leftovers; remove_leftovers()"


WITHOUT_PRIVILEGE = """
import ctypes, os, sys
for capability in (12, 13, 21):
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP: gone with the next exec
os.execv(sys.executable, [sys.executable, "-m", "kuproxy.demo"])
"""


def test_without_privilege_one_line_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVILEGE], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "ku demo makes network namespaces and needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN: run it as root\n"
    )
