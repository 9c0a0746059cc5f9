"""Where workers are born: a process that has loaded the kernels, and forks a worker in some milliseconds.

Starting Python and loading the compiled loop takes a second or two, which a worker that was killed does not have: its
packets wait in a ring that is full after some milliseconds of load.  So it is done once, here, and a worker is a
fork of this process; the machine code is shared, too.  Each worker is forked twice, so that it belongs to the
guardian (the nearest subreaper: the keeper, or the control process of `ku run`) and outlives this process and
control; it dies with the guardian.

Started by `engine.nest` as `python -m kuproxy.engine.nursery FD GUARDIAN [locking]`; it ends when its socket closes.
The compiler leaves nearly a gigabyte behind, which every worker would inherit: a nursery that has compiled kernels
begins anew, with what is in the cache by then.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time

from kuproxy.confine import privilege
from kuproxy.confine.lifetime import end_with_parent
from kuproxy.datagrams import receive, send
from kuproxy.dataplane._jit import cache_directory
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.way import load_loops
from kuproxy.engine.worker import REHEARSAL, WorkerOptions, carry_out, run_worker

__all__ = ["load_kernels"]

_ADOPTION_PATIENCE_S = 5.0
_ANEW = "anew"  # the last word of our own command line, then


def load_kernels() -> None:
    """Have everything compiled that a worker calls; from the cache, if it is there."""
    engine = LocalEngine(0)
    driver = MemoryDriver([])
    load_loops(engine, driver.frame)
    for request in REHEARSAL:
        carry_out(request, engine.tables, engine.worker)


def _in_cache() -> int:
    """Files of this build's compiled kernels."""
    return sum(1 for _ in cache_directory().rglob("*"))


def _load_lean() -> None:
    """`load_kernels`, and none of the compiler's memory; does not return where that takes a new beginning."""
    before = _in_cache()
    load_kernels()
    if _in_cache() > before and _ANEW not in sys.argv[3:]:
        os.execv(sys.executable, [sys.executable, "-m", "kuproxy.engine.nursery", *sys.argv[1:], _ANEW])


def _wait_for_guardian(guardian: int) -> bool:
    """Until our parent, which is ending, has left us to the guardian."""
    deadline = time.monotonic() + _ADOPTION_PATIENCE_S
    while os.getppid() != guardian:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    end_with_parent()
    return os.getppid() == guardian


def _bear(connection: socket.socket, options: WorkerOptions, fds: dict[str, int], guardian: int) -> int:
    """Fork a worker; returns its process id. `connection` stays ours alone."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        grandchild = os.fork()
        if grandchild:
            os.write(write, grandchild.to_bytes(4, "little"))
            os._exit(0)
        os.close(write)
        connection.close()
        status = 1
        try:
            if _wait_for_guardian(guardian):
                status = run_worker(options, fds)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        data = answer.read(4)
    os.waitpid(child, 0)
    return int.from_bytes(data, "little")


def main() -> int:
    """Entry point of the process."""
    connection, guardian = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; control decides
    _load_lean()
    # And so do all that are born here, which give up the rest when their driver is open.
    privilege.keep_only(*(privilege.to_lock_memory() if "locking" in sys.argv[3:] else ()))
    gc.collect()
    gc.freeze()  # so that collections in workers do not write to pages that are shared
    send(connection, {"ready": True})
    while True:
        call = receive(connection)
        if call is None:
            return 0
        request, fds = call
        options = WorkerOptions.from_json(request["options"])
        answer: dict[str, int | str]
        try:
            handed = dict(zip(options.handed, fds, strict=True))
            answer = {"pid": _bear(connection, options, handed, guardian)}
        except OSError as error:
            answer = {"error": f"fork: {error.strerror}"}
        for fd in fds:
            os.close(fd)
        try:
            send(connection, answer)
        except OSError:
            return 0  # control has died; its successor finds out who was born


if __name__ == "__main__":
    sys.exit(main())
