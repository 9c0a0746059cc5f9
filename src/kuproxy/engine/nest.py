"""The nursery, seen from the control process: start it, have workers born."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading

from kuproxy.confine.lifetime import become_subreaper
from kuproxy.datagrams import pair, receive, send
from kuproxy.engine.worker import WorkerOptions
from kuproxy.errors import DriverError

__all__ = ["Nest"]

START_TIMEOUT_S = 600  # the first start of a build compiles the kernels: two minutes, more on a busy machine
BIRTH_TIMEOUT_S = 10


class Nest:
    """Owns the nursery's process, which ends with this one.  Threads may share it."""

    def __init__(self, guardian: int, locking: bool = False) -> None:
        """`guardian` is the process with which workers shall end: the nearest subreaper.

        `locking`: workers will lock packet memory when they begin, and need what that takes.
        """
        self._guardian, self._locking = guardian, locking
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process_id(self) -> int:
        """0 if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Begin to load the kernels; does not wait."""
        ours, theirs = pair()
        self._connection, self._loaded = ours, False
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kuproxy.engine.nursery",
                str(theirs.fileno()),
                str(self._guardian),
                *(["locking"] if self._locking else []),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def bear(self, options: WorkerOptions, fds: dict[str, int]) -> int:
        """A new worker's process id.  Waits for the nursery to be ready.  Raises DriverError."""
        with self._lock:
            self._wait()
            try:
                handed = [fds[name] for name in options.handed]
                send(self._connection, {"options": options.to_json()}, handed)
            except OSError as error:
                raise DriverError(f"the nursery of workers has ended: {error.strerror}") from None
            return int(self._hear(BIRTH_TIMEOUT_S)["pid"])

    def wait(self) -> None:
        """Until the kernels are loaded, in a new nursery if this one has ended.  Raises DriverError."""
        with self._lock:
            self._wait()

    def _wait(self) -> None:
        if not self.process_id:
            self.start()
        if not self._loaded:
            self._hear(START_TIMEOUT_S)
            self._loaded = True

    def _hear(self, timeout_s: float) -> dict[str, int]:
        ready, _, _ = select.select([self._connection], [], [], timeout_s)
        answer = receive(self._connection) if ready else None
        if answer is None:
            raise DriverError(
                f"the nursery of workers does not answer within {timeout_s:g} s"
                if not ready
                else "the nursery of workers has ended"
            )
        if "error" in answer[0]:
            raise DriverError(f"the nursery of workers: {answer[0]['error']}")
        return answer[0]

    def stop(self) -> None:
        """End it; workers stay."""
        if self._process is None:
            return
        self._connection.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:  # it is still loading
            self._process.kill()
            self._process.wait()
        self._process = None


def guardian(of_keeper: bool) -> int:
    """The process that orphans of ours belong to: the keeper, or this one, which then has to become a subreaper."""
    if of_keeper:
        return os.getppid()
    become_subreaper()
    return os.getpid()
