"""The commands of docs/install.md, carried out: in a copy of this machine's file system that is thrown away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/install.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## (\w+)$", re.MULTILINE)

# Everything written lands on a tmpfs over the root; /proc and /dev are the machine's.  In a chroot systemctl makes and
# removes links, and ignores what it would have to ask a running systemd.
OVERLAY = """
set -e
mount -t tmpfs tmpfs {work}
mkdir {work}/upper {work}/work {work}/root
mount -t overlay -o lowerdir=/,upperdir={work}/upper,workdir={work}/work overlay {work}/root
mount --bind /proc {work}/root/proc
mount --bind /dev {work}/root/dev
mount -t tmpfs tmpfs {work}/root/tmp
cp -r {source} {work}/root/tmp/source
exec chroot {work}/root sh -c 'cd /tmp/source && exec sh -ex /tmp/source/commands'
"""
# What must be true in between.
AFTER_INSTALL = """
systemd-analyze verify kuproxy.service
grep -q '^group = "kuproxy"' /etc/kuproxy/kuproxy.toml
test "$(ku --version)" != ""
test -e /etc/systemd/system/multi-user.target.wants/kuproxy.service
test "$(stat -c %U:%a /var/lib/kuproxy)" = kuproxy:750
runuser -u kuproxy -- test -r /etc/kuproxy/kuproxy.toml
! runuser -u nobody -- test -r /etc/kuproxy/kuproxy.toml
ls /var/cache/kuproxy/kernels/*/complete
"""
AFTER_REMOVAL = """
test ! -e /opt/kuproxy -a ! -e /etc/kuproxy -a ! -e /usr/local/bin/ku
test ! -e /etc/systemd/system/multi-user.target.wants/kuproxy.service
! id kuproxy
echo everything is gone
"""


def blocks() -> dict[str, str]:
    """Section → its commands."""
    parts = SECTION.split(PAGE.read_text())
    return {name: "".join(BLOCK.findall(text)) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_section_that_needs_commands_has_some() -> None:
    found = blocks()
    assert {name for name, text in found.items() if text} == {"Install", "Upgrade", "Remove"}
    for name in re.findall(r"packaging/[\w.]+|requirements/[\w.]+", "".join(found.values())):
        assert (ROOT / name).exists(), name


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    shutil.which("systemctl") is None or not Path("/etc/debian_version").exists(),
    reason="no Debian with systemd",
)
def test_the_commands_do_what_they_say(tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    work.mkdir()
    ignored = shutil.ignore_patterns(".venv*", ".git", "__pycache__", ".*_cache", ".hypothesis", "results")
    shutil.copytree(ROOT, source, ignore=ignored)
    found = blocks()
    commands = [found["Install"], AFTER_INSTALL, found["Upgrade"], found["Remove"], AFTER_REMOVAL]
    (source / "commands").write_text("\n".join(commands))
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "NUMBA", "VIRTUAL", "XDG"))
    }
    variables["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables |= {"RUNLEVEL": "1", "NUMBA_DISABLE_JIT": "1", "SYSTEMD_OFFLINE": "1"}
    # Without the compiler `warm` does the same in a few seconds; test_container.py compiles.
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", OVERLAY.format(work=work, source=source)],
        env=variables,
        capture_output=True, text=True, timeout=1700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.stdout.endswith("everything is gone\n")
