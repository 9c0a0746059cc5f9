"""Processes as the kernel lists them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["children_of", "children_that_run"]


def children_of(process_id: int) -> list[int]:
    """Those that its main thread, or a process that has left them to it, has started."""
    return [int(word) for word in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


def children_that_run(module: str, process_id: int) -> list[int]:
    """Those with a module among the words of their command line."""
    found = []
    for child in children_of(process_id):
        with suppress(FileNotFoundError, ProcessLookupError):
            if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                found.append(child)
    return found
