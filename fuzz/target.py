"""What a target is: how cases are drawn, how one is judged, and what a finding says.

A case is a tuple of parts (lines, packets, chunks), so that one that fails can be made smaller without knowing what
its bytes mean.
"""

from __future__ import annotations

import json
import os
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["Batch", "FileTarget", "Finding", "Hang", "Target", "in_child", "within"]

Parts = tuple[bytes, ...]

PATIENCE_S = 30.0  # a case that takes longer hangs; ordinary ones take milliseconds


class Hang(BaseException):
    """A case does not end.  No Exception, so that nothing under test catches it."""


@dataclass(frozen=True)
class Finding:
    """A case that breaks its target's promise."""

    parts: Parts
    what: str  # the error, in words
    where: str  # its kind and place: a smaller case must fail in the same way


@dataclass(frozen=True)
class Batch:
    """What one seed has tried."""

    cases: int
    finding: Finding | None = None


class Target:
    """One thing that reads bytes from outside.  Subclasses say how cases are made, and what must be true of them."""

    name = ""
    promise = ""  # the first line of its module
    keeps = 0  # leading parts without which the others mean nothing
    isolated = False  # a case may take the process with it, or leave something in it
    per_child = 40  # cases that share a process, if isolated

    def draw(self, rng: Random) -> Parts:
        """A case."""
        raise NotImplementedError

    def check(self, parts: Parts) -> None:
        """Returns if the promise is kept; raises whatever tells best how it is broken."""
        raise NotImplementedError

    def batch(self, seed: int) -> Batch:
        """One or more cases that follow from the seed alone; those of isolated targets share a process."""
        cases = [
            self.draw(Random(f"{seed}/{number}")) for number in range(self.per_child if self.isolated else 1)
        ]
        if self.isolated and in_child(lambda: any(_failure(self, parts) for parts in cases)) is False:
            return Batch(len(cases))
        for number, parts in enumerate(cases, start=1):  # each by itself: which is it?
            finding = self.judge(parts)
            if finding is not None:
                return Batch(number, finding)
        return Batch(len(cases))

    def judge(self, parts: Parts) -> Finding | None:
        """Check one case, wherever that is safe."""
        failure = in_child(lambda: _failure(self, parts)) if self.isolated else _failure(self, parts)
        return None if failure is None else Finding(parts, *failure)

    def summary(self) -> list[str]:
        """Lines about what was reached."""
        return []

    def close(self) -> None:
        """Give back what was opened."""


class FileTarget(Target):
    """One whose reader wants files: `directory` is theirs as long as the target lives."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kufuzz-")
        self.directory = Path(self._directory.name)

    def close(self) -> None:
        self._directory.cleanup()


def _failure(target: Target, parts: Parts) -> tuple[str, str] | None:
    try:
        with within(PATIENCE_S):
            target.check(parts)
    except (Exception, Hang) as error:
        return described(error)
    return None


def described(error: BaseException) -> tuple[str, str]:
    """What went wrong, and where: the innermost place in the product, else in the target."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/kuproxy/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    if isinstance(error, AssertionError):  # a promise: its words matter more than the line
        place = frames[-1].name if frames else ""
    return f"{type(error).__name__}: {error}", f"{type(error).__name__} in {place}"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after so long.  In the main thread; compiled code is interrupted when it returns."""

    def ring(*_: object) -> None:
        raise Hang(f"no end after {seconds:g} s")

    former = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    began = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        if before[0]:  # the test runner's own
            signal.setitimer(signal.ITIMER_REAL, max(0.01, before[0] - (time.monotonic() - began)), before[1])


def in_child(function: Callable[[], Any], patience_s: float = 4 * PATIENCE_S) -> Any:
    """What the function returns, by way of JSON, from a process of its own.

    A process that dies or hangs gives a failure, as `described` would.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as answer:
                answer.write(json.dumps(function()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    chunks: list[bytes] = []
    deadline = time.monotonic() + patience_s
    hangs = False
    while not hangs:
        hangs = not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]
        chunk = b"" if hangs else os.read(reader, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(reader)
    if hangs:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if hangs:
        return f"no end after {patience_s:g} s", "hang"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"the process died of {name}", name
    if status:
        raise RuntimeError("the child of the fuzzer itself failed; its traceback stands above")
    answer = json.loads(b"".join(chunks))
    return tuple(answer) if isinstance(answer, list) else answer
