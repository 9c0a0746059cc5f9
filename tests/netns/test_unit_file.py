"""The unit for systemd: systemd's own judgement of it, and a daemon that asks for nothing that the unit forbids."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuproxy.confine.privilege import AT_START
from netns.test_daemon import Daemon
from netns.test_privileges import use
from netns.world import world

UNIT = Path(__file__).parents[2] / "packaging/kuproxy.service"
SPEAKER = UNIT.with_name("kuproxy-announce@.service")
DROP_IN = UNIT.with_name("af_xdp.conf")
MOST_EXPOSED = 29  # tenths; systemd calls up to 3.9 "OK", and 9.6 is what a unit without any sandboxing gets
systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze (Debian: systemd)"
)


def settings() -> dict[str, list[str]]:
    """Name → values, in the order of the file."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With a program that is there, which `verify` insists on."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/kuproxy/bin/ku", "/bin/true"))
    return copy


@systemd
def test_systemd_understands_every_line(unit: Path) -> None:
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=mixd"))
    assert "kill mode" in analyze("verify", str(unit)).stderr, "it would have said so"


@systemd
def test_systemd_finds_it_little_exposed(unit: Path) -> None:
    words = ("security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit))
    done = analyze(*words)
    assert done.returncode == 0, done.stdout[-300:]
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=no"))
    assert analyze(*words).returncode != 0, "the threshold is as low as it can be"


@systemd
def test_the_speakers_unit_is_understood_and_less_exposed(tmp_path: Path) -> None:
    copy = tmp_path / SPEAKER.name.replace("@", "@bgp")
    copy.write_text(SPEAKER.read_text().replace("/opt/kuproxy/bin/ku", "/bin/true"))
    done = analyze("verify", str(copy))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED - 10}", str(copy))
    assert done.returncode == 0, done.stdout[-300:]


@systemd
def test_af_xdp_exposes_a_little_more_and_is_a_choice(unit: Path) -> None:
    place = unit.with_name(f"{unit.name}.d")
    place.mkdir()
    shutil.copy(DROP_IN, place)
    verified = analyze("verify", str(unit))
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    for threshold, status in ((MOST_EXPOSED, 1), (MOST_EXPOSED + 3, 0)):
        words = ("security", "--offline=true", f"--threshold={threshold}", str(unit))
        assert analyze(*words).returncode == status, "the drop-in counts, and for no more than its sockets"


def test_capabilities_are_those_that_the_daemon_starts_with() -> None:
    wanted = {f"CAP_{each.name}" for each in AT_START}
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert set(settings()[name][0].split()) == wanted


def _expanded(names: list[str], groups: dict[str, list[str]]) -> Iterator[str]:
    for name in names:
        if name.startswith("@"):
            yield from _expanded(groups[name], groups)
        else:
            yield name


def allowed_calls() -> set[str]:
    """What SystemCallFilter= comes to: lists are added, those with a tilde taken away (systemd.exec(5))."""
    groups: dict[str, list[str]] = {}
    group = ""
    for line in analyze("syscall-filter").stdout.splitlines():
        if line.startswith("@"):
            group = line.strip()
            groups[group] = []
        elif (name := line.strip()) and not name.startswith("#"):
            groups[group].append(name)
    allowed: set[str] = set(_expanded(["@default"], groups))
    for line in settings()["SystemCallFilter"]:
        names = set(_expanded(line.removeprefix("~").split(), groups))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


@systemd
@pytest.mark.netns
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_a_daemon_asks_for_nothing_that_the_unit_forbids() -> None:
    """Start, changes, requests, stop: every system call of every process, and every family of sockets."""
    with world() as made:
        daemon = Daemon(made)
        trace = made.directory / "strace"
        # -D: strace is a grandchild, so that signals reach the daemon itself.
        daemon.command = ("strace", "-D", "-f", "-qq", "-o", str(trace), *daemon.command)
        try:
            daemon.start()
            use(daemon)
            daemon.stop()
        finally:
            daemon.notified.close()
        text = trace.read_text(errors="replace")
    called = set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
    assert {"bpf", "unshare", "setns", "sendmmsg", "capset", "seccomp"} <= called, "it has seen all of it"
    assert not called - allowed_calls()
    families = set(re.findall(r"\bsocket\((AF_\w+)", text))
    assert families <= set(settings()["RestrictAddressFamilies"][0].split())
    flags = set(re.findall(r"\bunshare\((\w+)", text))
    assert flags == {"CLONE_NEWNET"}, "RestrictNamespaces=net"
