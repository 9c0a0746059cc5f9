"""Which process works with a worker's memory: one at most, and the kernel says which.

A record lock on the memory's file belongs to a process and ends with it, so that nobody has to be trusted to give it
back, and no number of a process can be another's by now.  The holder must not close any descriptor of that file.
Source: fcntl(2), "Advisory record locking"; struct flock in <asm-generic/fcntl.h>.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct

from kuproxy.errors import DriverError

__all__ = ["end_holder", "hold", "holder"]

_FLOCK = struct.Struct("=hh4xqqi4x")  # type, whence, start, length, process
_END_PATIENCE_S = 5.0


def hold(fd: int) -> None:
    """Be the process that works with it, until the end.  Raises DriverError if there is one."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise DriverError(f"process {holder(fd)} works with this memory") from None


def holder(fd: int) -> int:
    """The process that works with it; 0: none does."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    found, _, _, _, process_id = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return 0 if found == fcntl.F_UNLCK else int(process_id)


def end_holder(fd: int) -> int:
    """Kill the process that works with it, and wait until it is gone; returns which, 0 if none did.

    Raises DriverError if it does not end.
    """
    process_id = holder(fd)
    if not process_id:
        return 0
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(process_id)
        try:
            if holder(fd) == process_id:  # so the descriptor is its own
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], _END_PATIENCE_S)
        finally:
            os.close(pidfd)
    if holder(fd):
        raise DriverError(f"process {process_id} works with a worker's memory, and does not end")
    return process_id
