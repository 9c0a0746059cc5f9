"""The one decorator for kernels, and the cache they are kept in.

Numba's own cache key knows a function's file but not the helpers and constants that file imports, so a changed
helper would silently run as stale machine code.  Here the cache directory itself is named by a digest of every
source that kernels are made from and of the compiler's versions: any change starts a fresh cache.

`NUMBA_DISABLE_JIT=1` runs every kernel as plain Python, `NUMBA_BOUNDSCHECK=1` checks every array access; both are
read when this module is imported.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config

COMPILED = not config.DISABLE_JIT
BOUNDS_CHECKED = bool(config.BOUNDSCHECK) and COMPILED

_PACKAGE = Path(__file__).resolve().parent.parent
# Rooms that kernels are compiled from.
_KERNEL_SOURCES = ("codes.py", "engine", "dataplane", "drivers", "wire")


def source_digest() -> str:
    """Hex digest of all kernel sources and of the compiler's versions (16 digits)."""
    digest = hashlib.blake2b(digest_size=8)
    for version in (numba.__version__, llvmlite.__version__, np.__version__, str(BOUNDS_CHECKED)):
        digest.update(version.encode() + b"\0")
    for name in _KERNEL_SOURCES:
        root = _PACKAGE / name
        files = [root] if root.is_file() else sorted(root.rglob("*.py"))
        for path in files:
            digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _cache_root() -> Path:
    """`$KUPROXY_CACHE`, else `$XDG_CACHE_HOME/kuproxy`, else `~/.cache/kuproxy`, else a private temporary one."""
    chosen = os.environ.get("KUPROXY_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        root = (Path(base) if base else Path.home() / ".cache") / "kuproxy"
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    except (OSError, RuntimeError):
        pass  # no home, or a read-only one: kernels are then compiled again by each process
    return Path(tempfile.gettempdir()) / f"kuproxy-{os.getuid()}"


def cache_directory() -> Path:
    """Where this build's compiled kernels are kept."""
    return _cache_root() / "kernels" / source_digest()


config.CACHE_DIR = str(cache_directory())


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` for the data plane: no GIL, cached, C's division (no exceptions on zero).

    `_nrt=False` leaves Numba's reference counts out: they would cost an atomic increment for every array that a helper
    receives (a graph of small helpers ran 5 times slower with them). So kernels allocate nothing and return no arrays.
    """
    return numba.njit(nogil=True, cache=True, error_model="numpy", _nrt=False)(function)


def helper(function: Callable[..., Any]) -> Any:
    """A kernel that is always inlined into its callers.

    A bundle crosses a real call as some 150 machine words, which costs more than most helpers' own work.
    """
    return numba.njit(nogil=True, cache=True, error_model="numpy", _nrt=False, forceinline=True)(function)
