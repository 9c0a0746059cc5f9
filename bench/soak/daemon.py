"""The daemon that is soaked, and its processes as the kernel describes them."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kuproxy.client import Client, Refusal
from kuproxy.demo.topology import Host
from kuproxy.errors import KuError

START_WITHIN_S = 300  # the kernels may have to be compiled
STOP_WITHIN_S = 30
_ROLES = {"kuproxy.daemon.service": "control", "kuproxy.engine.worker": "worker"}


class Daemon:
    """One `ku daemon` on the node."""

    def __init__(
        self, node: Host, directory: Path, files: list[Path], environment: dict[str, str] | None = None
    ) -> None:
        """Start it; returns when it is ready.  Raises KuError with its log.  `environment`: None, as ours."""
        self.socket, self._log = directory / "ku.sock", directory / "daemon.log"
        settings = directory / "kuproxy.toml"
        settings.write_text(
            f"state_directory = {json.dumps(str(directory / 'state'))}\n"
            f"files = {json.dumps([str(each) for each in files])}\n"
            f"[api]\nsocket = {json.dumps(str(self.socket))}\n"
        )
        words = (sys.executable, "-m", "kuproxy.keeper", "kuproxy.daemon.service", "--settings", str(settings))
        with self._log.open("wb") as log:
            self.process = node.start(*words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.client = Client(str(self.socket))
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise KuError(f"the daemon does not start:\n{self.log}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.request("GET", "/v1/health")["ready"])
        except (Refusal, KeyError):
            return False

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def lines(self, *lines: str) -> str:
        """Carry out lines of the `ku` language.  Raises Refusal."""
        return str(self.client.request("POST", "/v1/ku", {"lines": "\n".join(lines)}))

    def metrics(self) -> bytes:
        """What Prometheus reads.  Raises OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
            opened.settimeout(10)
            opened.connect(str(self.socket))
            opened.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
            parts = list(iter(lambda: opened.recv(65536), b""))
        return b"".join(parts)

    def request(self, method: str, target: str, body: object = None) -> Any:
        """Raises Refusal."""
        return self.client.request(method, target, body)

    def stop(self) -> int:
        """SIGTERM; returns the exit status.  Raises KuError when it does not end."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise KuError(f"the daemon did not end within {STOP_WITHIN_S} s:\n{self.log}") from None


@dataclass(frozen=True)
class Usage:
    """What one process takes; memory in KiB (proc(5), smaps_rollup)."""

    rss_kib: int
    pss_kib: int
    anonymous_kib: int  # its own: heap, stacks, compiled code; not the shared tables
    descriptors: int
    threads: int


METRICS = tuple(Usage.__dataclass_fields__)


def usage(process_id: int) -> Usage:
    """Raises FileNotFoundError or ProcessLookupError when it has ended."""
    process = Path("/proc", str(process_id))
    sizes = {}
    for line in (process / "smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            sizes[name] = int(rest.split()[0])
    descriptors = len(os.listdir(process / "fd"))
    threads = len(os.listdir(process / "task"))
    return Usage(sizes["Rss"], sizes["Pss"], sizes["Anonymous"], descriptors, threads)


def _children() -> dict[int, list[int]]:
    """Parent → children, of all processes there are."""
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(entry))
    return found


def _role(process_id: int) -> str:
    words = Path("/proc", str(process_id), "cmdline").read_bytes().decode(errors="replace").split("\0")
    return next((_ROLES[word] for word in words if word in _ROLES), "other")


def processes(daemon: Daemon) -> dict[str, int]:
    """Name (`control`, `worker 0`) → process id: as `/v1/health` lists them, else from the tree of processes."""
    listed = daemon.request("GET", "/v1/health").get("processes")
    if listed is None:
        children, waiting, listed = _children(), [daemon.process.pid], []
        while waiting:
            each = waiting.pop(0)
            waiting += children.get(each, ())
            listed.append({"role": _role(each), "pid": each})
    names: dict[str, int] = {}
    roles: dict[str, int] = {}
    for each in listed:
        role = each["role"]
        number = roles.get(role, 0)
        roles[role] = number + 1
        names[role if role in ("keeper", "control") else f"{role} {number}"] = each["pid"]
    return names
