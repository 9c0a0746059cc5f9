"""The machine that figures were taken on: what one must know before comparing two files."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import llvmlite
import numba
import numpy as np

from kuproxy.dataplane._jit import source_digest

_ROOT = Path(__file__).resolve().parent.parent


def _first(path: str | Path, key: str = "") -> str:
    """First line of a file, or the value of its first `key : value`; empty if there is none."""
    try:
        for line in Path(path).read_text().splitlines():
            if not key:
                return line.strip()
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def _caches() -> str:
    parts = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_first(index / name) for name in ("level", "type", "size"))
        parts.append(f"L{level} {kind.lower()} {size}")
    return ", ".join(parts) or "unknown"


def _commit() -> str:
    def git(*words: str) -> str:
        run = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "src/kuproxy")
        return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes in src" if changed else "")
    except OSError:
        return "unknown"


def describe() -> dict[str, str]:
    """Name and value of everything that a reader of figures may ask for."""
    cpu = "/proc/cpuinfo"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "kernels": source_digest(),
        "cpu": f"{_first(cpu, 'model name') or platform.machine()}, "
        f"family {_first(cpu, 'cpu family') or '?'} model {_first(cpu, 'model') or '?'}",
        "mhz": _first(cpu, "cpu MHz") or "unknown",
        "cpus": str(os.cpu_count()),
        "caches": _caches(),
        "hypervisor": "yes" if " hypervisor" in _first(cpu, "flags") else "no",
        "memory": _first("/proc/meminfo", "MemTotal"),
        "huge pages": f"anonymous {_first('/sys/kernel/mm/transparent_hugepage/enabled')}; "
        f"shared {_first('/sys/kernel/mm/transparent_hugepage/shmem_enabled')}",
        "kernel": platform.release(),
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": np.__version__,
    }


def rss_bytes(kind: str = "VmRSS") -> int:
    """Resident memory of this process: VmRSS, RssAnon or RssShmem."""
    return int((_first("/proc/self/status", kind) or "0 kB").split()[0]) * 1024
