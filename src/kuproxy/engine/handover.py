"""What a control process leaves to its successor, and whether that can use it.

Beside the shared memory itself the vault holds a description of its layout.  A successor of the same layout goes on
with memory and workers as they are; one whose layout differs copies what has the same name, field by field, into memory
of its own, and has new workers born over it.  What would be lost is known before: `losses` compares two descriptions.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kuproxy.dataplane.layout import (
    BASELINES_SPEC,
    MAX_WORKERS,
    SHARED_SPEC,
    STATE_SPEC,
    TABLES_SPEC,
    W_PID,
    Region,
    flow_spec,
)
from kuproxy.errors import HandoverError
from kuproxy.keeper.vault import Vault

__all__ = ["describe", "leave_description", "losses", "migrate", "predecessor", "same_layout"]

# To be raised when the same bytes mean something else than before, although no name or type has changed.
MEANING = 1

Spec = Iterable[tuple[str, Any, tuple[int, ...]]]
_NAME = "description"
_REGIONS = {
    "tables": TABLES_SPEC,
    "baselines": BASELINES_SPEC,
    "shared": SHARED_SPEC,
    "state": STATE_SPEC,
    "flows": flow_spec(0),
}
_COMMON = ("tables", "baselines", "shared")  # one of each; the others are each worker's own
_END_PATIENCE_S = 3.0


def _plain(spec: Spec) -> list[list[Any]]:
    return [[name, np.lib.format.dtype_to_descr(np.dtype(dtype)), list(shape)] for name, dtype, shape in spec]


def describe(workers: int) -> dict[str, Any]:
    """The layout of this build's shared memory, as JSON; of flow tables, one with a single bucket."""
    regions = {name: _plain(spec) for name, spec in _REGIONS.items()}
    return json.loads(
        json.dumps({"meaning": MEANING, "workers": workers, "pid_word": W_PID, "regions": regions})
    )


def leave_description(vault: Vault, workers: int) -> None:
    """Tell a successor what the vault holds."""
    with open(os.memfd_create("kuproxy-description"), "wb") as file:
        file.write(json.dumps(describe(workers)).encode())
        file.flush()
        vault.keep({_NAME: file.fileno()})


def predecessor(vault: Vault) -> dict[str, Any] | None:
    """The description that a predecessor left, None if there was none.

    Raises HandoverError if it means nothing, or if what lies in the vault is not what it describes.
    """
    if _NAME not in vault.names():
        return None
    try:
        with open(vault.take(_NAME), "rb") as file:
            file.seek(0)
            description = json.loads(file.read())
        _check(description)
        _check_sizes(description, vault)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError, OSError) as error:
        raise HandoverError(f"what the former control process left is not understood: {error}") from None
    return description


def _check(description: Any) -> None:
    """Raises ValueError or another of `predecessor`'s if it is not as `describe` makes it."""
    workers, word = description["workers"], description["pid_word"]
    if not isinstance(workers, int) or not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"{workers!r} workers")
    for which in _REGIONS:
        for name, descr, shape in description["regions"][which]:
            dtype = _dtype(descr)
            if not isinstance(name, str) or dtype.hasobject or not dtype.itemsize:
                raise ValueError(f"array {name!r} of {which}")
            if not shape or not all(isinstance(each, int) and 0 < each < 1 << 40 for each in shape):
                raise ValueError(f"{which}.{name} of shape {shape!r}")
    if not description["regions"]["flows"]:
        raise ValueError("flow tables without arrays")
    _, descr, shape = description["regions"]["state"][0]
    if not isinstance(word, int) or not 0 <= word < shape[0] or _dtype(descr).kind not in "iu":
        raise ValueError(f"no word {word!r} of the state's header")


def _bytes(description: dict[str, Any], which: str, buckets: int = 1) -> int:
    """Of a region."""
    *_, (_, dtype, shape, offset) = _places(description["regions"][which], buckets)
    return offset + -(-math.prod(shape) * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE


def _check_sizes(description: dict[str, Any], vault: Vault) -> None:
    """Raises ValueError if some memory is shorter or longer than what it is said to hold: to touch what lies behind a
    file's end is a process's own."""
    names = vault.names()
    for name in names:
        which = name if name in _COMMON else name.rpartition("/")[2] if name.startswith("worker/") else ""
        if which not in _REGIONS:
            continue
        fd = vault.peek(name)
        size = os.fstat(fd).st_size
        buckets = _buckets(description, fd) if which == "flows" else 1
        if size != _bytes(description, which, buckets):
            raise ValueError(f"{name} has {size} bytes")
    missing = [name for name in _COMMON if name not in names]
    if missing:
        raise ValueError(f"there is no {missing[0]}")


def same_layout(description: dict[str, Any]) -> bool:
    """Whether its memory can be used as it is."""
    return describe(description["workers"]) == description


def _dtype(descr: Any) -> np.dtype:
    if isinstance(descr, str):
        return np.dtype(descr)
    return np.dtype(
        [tuple(tuple(part) if isinstance(part, list) else part for part in field) for field in descr]
    )


def losses(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for everything in `old` that has no place in `new`.  Empty: everything is kept."""
    if old["meaning"] != new["meaning"]:
        return ["the memory's meaning has changed: flows, counters and traces begin anew"]
    lines = []
    for region, arrays in old["regions"].items():
        there = {name: (descr, shape) for name, descr, shape in new["regions"].get(region, [])}
        for name, descr, shape in arrays:
            if name not in there:
                lines.append(f"{region}.{name} is gone")
                continue
            other, size = there[name]
            if size[0] < shape[0]:
                lines.append(f"{region}.{name} is shorter: {size[0]} instead of {shape[0]}")
            before, after = _dtype(descr), _dtype(other)
            kept = set(after.names or ())
            lines += [
                f"{region}.{name}: field {each} is gone" for each in before.names or () if each not in kept
            ]
    return lines


def _places(spec: list[list[Any]], scale: int) -> Iterator[tuple[str, np.dtype, tuple[int, ...], int]]:
    """Name, dtype, shape and offset of each array of a region; those of flow tables have `scale` buckets."""
    offset = 0
    for name, descr, shape in spec:
        dtype = _dtype(descr)
        real = (shape[0] * scale, *shape[1:])
        yield name, dtype, real, offset
        offset += -(-math.prod(real) * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE


def _extents(fd: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file holds anything, between two offsets: to read a hole would fill it."""
    while first < end:
        try:
            first = os.lseek(fd, first, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing behind
            return
        stop = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        if first < stop:
            yield first, stop
        first = stop


def _copy(fd: int, dtype: np.dtype, shape: tuple[int, ...], offset: int, target: np.ndarray) -> None:
    """What has the same name and place."""
    with mmap.mmap(fd, 0) as memory:
        source = np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
        row = source.nbytes // shape[0]
        columns = tuple(slice(min(pair)) for pair in zip(shape[1:], target.shape[1:], strict=True))
        for begin, stop in _extents(fd, offset, offset + source.nbytes):
            rows = slice((begin - offset) // row, min(-(-(stop - offset) // row), len(target)))
            part = (rows, *columns)
            if source.dtype.names is None:
                target[part] = source[part]
            else:
                for name in set(source.dtype.names) & set(target.dtype.names or ()):
                    target[name][part] = source[name][part]
        del source


def _region(description: dict[str, Any], which: str, fd: int, buckets: int = 1) -> int:
    """Memory of this build's layout with what the other one holds; its descriptor."""
    spec = flow_spec(buckets.bit_length() - 1) if which == "flows" else _REGIONS[which]
    made = Region(spec, name=which)
    for name, dtype, shape, offset in _places(description["regions"][which], buckets):
        target = made.arrays.get(name)
        if target is not None and target.ndim == len(shape):
            _copy(fd, dtype, shape, offset, target)
    return os.dup(made.fd)


def _buckets(description: dict[str, Any], fd: int) -> int:
    """How many buckets the flow table has."""
    size, buckets = os.fstat(fd).st_size, 1
    while True:
        *_, (_, dtype, shape, offset) = _places(description["regions"]["flows"], buckets)
        if offset + math.prod(shape) * dtype.itemsize > size - mmap.PAGESIZE:
            return buckets
        buckets *= 2


def end_workers(description: dict[str, Any], vault: Vault) -> None:
    """End the predecessor's workers, which do not know the present layout; their packets wait in the rings."""
    for number in range(description["workers"]):
        name = f"worker/{number}/state"
        if name not in vault.names():
            continue
        _, dtype, shape, offset = next(_places(description["regions"]["state"], 1))
        header = np.frombuffer(os.pread(vault.peek(name), dtype.itemsize * shape[0], offset), dtype)
        pid = int(header[description["pid_word"]])
        with contextlib.suppress(OSError, OverflowError):
            pidfd = os.pidfd_open(pid)
            if not _is_sibling(pid):  # the memory is a worker's to write: it must not choose whom we end
                os.close(pidfd)
                continue
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _END_PATIENCE_S)
            os.close(pidfd)


def _is_sibling(pid: int) -> bool:
    """Is it a child of our parent, the keeper, as workers are?"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1]) == os.getppid()
    except (OSError, ValueError, IndexError):
        return False


def migrate(description: dict[str, Any], vault: Vault) -> None:
    """Put memory of this build's layout in the place of the predecessor's; its workers end.

    Raises HandoverError if something there cannot become what has its name here.
    """
    end_workers(description, vault)
    if description["meaning"] != MEANING:
        for name in vault.names():
            if name in _COMMON or name.endswith(("/state", "/flows", "/call")):
                vault.drop(name)
        return
    try:
        _copy_all(description, vault)
    except (ValueError, TypeError) as error:
        raise HandoverError(f"what the former control process left does not fit: {error}") from None


def _copy_all(description: dict[str, Any], vault: Vault) -> None:
    for name in _COMMON:
        vault.put(name, _region(description, name, vault.peek(name)))
    for number in range(description["workers"]):
        state, flows = f"worker/{number}/state", f"worker/{number}/flows"
        if {state, flows} <= set(vault.names()):
            vault.put(state, _region(description, "state", vault.peek(state)))
            fd = vault.peek(flows)
            vault.put(flows, _region(description, "flows", fd, _buckets(description, fd)))
        vault.drop(f"worker/{number}/call")
