"""The one decorator for kernels, and the cache they are kept in.

Numba's own cache key knows a function's file but not the helpers and constants that file imports, so a changed
helper would silently run as stale machine code.  Here the cache directory itself is named by a digest of every
source that kernels are made from and of the compiler's versions: any change starts a fresh cache.  Those sources are
the files that use these decorators, and whatever they import, directly or not.

`NUMBA_DISABLE_JIT=1` runs every kernel as plain Python, `NUMBA_BOUNDSCHECK=1` checks every array access; both are
read when this module is imported.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config

COMPILED = not config.DISABLE_JIT
BOUNDS_CHECKED = bool(config.BOUNDSCHECK) and COMPILED

_PACKAGE = Path(__file__).resolve().parent.parent
# Rooms in which kernels live.
_KERNEL_ROOMS = ("engine", "dataplane", "drivers", "wire")
_KERNELS = re.compile(r"^from kuproxy\.dataplane\._jit import [^\n]*\b(kernel|helper)\b", re.MULTILINE)
_IMPORTS = re.compile(
    r"^\s*(?:from\s+kuproxy\.?([\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+kuproxy\.([\w.]+))",
    re.MULTILINE,
)


def _file_of(module: str) -> Path | None:
    """The source of a module, named from below the package; None for names that are no module."""
    path = _PACKAGE.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imported(text: str) -> Iterator[Path]:
    """Files of the package that a source imports: modules, and modules imported as names of a package."""
    for package, names, module in _IMPORTS.findall(text):
        base = package or module
        parts = [f"{base}.{name}".strip(".") for name in re.findall(r"\w+", names)]
        for each in (base, *parts):
            found = _file_of(each) if each else None
            if found is not None:
                yield found


def kernel_sources() -> list[Path]:
    """Every file that a compiled kernel may depend on, sorted."""
    texts = {path: path.read_text() for room in _KERNEL_ROOMS for path in (_PACKAGE / room).rglob("*.py")}
    waiting = [path for path, text in texts.items() if _KERNELS.search(text)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(texts.get(path) or path.read_text())
    return sorted(found)


def source_digest() -> str:
    """Hex digest of all kernel sources and of the compiler's versions (16 digits)."""
    digest = hashlib.blake2b(digest_size=8)
    for version in (numba.__version__, llvmlite.__version__, np.__version__, str(BOUNDS_CHECKED)):
        digest.update(version.encode() + b"\0")
    for path in kernel_sources():
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
