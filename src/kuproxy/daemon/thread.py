"""The control thread: everything that touches store, tables or netlink happens in it, one thing after the other.

The asyncio loop beside it does connections and timers, so that a change that waits for a disk or for a worker keeps no
client waiting for its headers.  (pyroute2's calls could not run in the loop's thread at all: each runs a loop itself.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["ControlThread"]

P = ParamSpec("P")
T = TypeVar("T")


class ControlThread:
    """One thread."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="control")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it there, and wait.  A cancelled wait does not undo the call."""
        future = self._executor.submit(function, *args, **kwargs)
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        self._executor.shutdown()
