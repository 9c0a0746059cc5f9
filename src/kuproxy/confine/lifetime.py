"""With whom a process ends, to whom its orphans belong, and how much it and its children may hold.

prctl(2) is asked with arguments that no Linux since 3.4 refuses.
"""

from __future__ import annotations

import ctypes
import resource
import signal
from contextlib import suppress

__all__ = ["allow_locked_memory", "become_subreaper", "end_with_parent", "raise_file_limit"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # include/uapi/linux/prctl.h


def end_with_parent() -> None:
    """The kernel kills this process as soon as its parent ends, however that comes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become_subreaper() -> None:
    """From now on orphans among our descendants are our children."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def raise_file_limit() -> None:
    """As many descriptors as the hard limit allows; the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def allow_locked_memory() -> None:
    """Let workers on AF_XDP have 10 MiB of packet memory each: the usual limit is 8 MiB in all.

    Where it is not ours to raise, CAP_IPC_LOCK takes its place (`privilege.to_lock_memory`); a worker that has neither
    says so.
    """
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
