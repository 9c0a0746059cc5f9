"""A network namespace without a name, which lives exactly as long as the processes that hold it.

The far end of our veth pair lies in it.  When the last holder is gone, be it by kill -9, the kernel takes the
namespace down (`cleanup_net()`), with it that end of the pair, with that the end on the node, and with that every
route through it.  So nothing has to be cleaned up by anybody.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from ..errors import SteeringError

__all__ = ["PrivateNamespace"]

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise SteeringError(f"{what}: {os.strerror(code)}; CAP_SYS_ADMIN (or root) is needed")


class PrivateNamespace:
    """A network namespace held by a file descriptor, close-on-exec unless its holder says otherwise.

    A worker process that inherits the descriptor makes `PrivateNamespace(fd).enter()` its first act.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> PrivateNamespace:
        """A new namespace. The calling thread stays where it is. Raises SteeringError without privilege."""

        def make() -> int:
            _check(_libc.unshare(_CLONE_NEWNET), "a private network namespace")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        return cls(_in_thread(make))

    @classmethod
    def current(cls) -> PrivateNamespace:
        """The namespace of the calling thread."""
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def enter(self) -> None:
        """Move the calling thread into the namespace; threads started afterwards are born there."""
        _check(_libc.setns(self.fd, _CLONE_NEWNET), "entering the private network namespace")

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function inside the namespace, in a thread of its own; its exception is raised here."""

        def inside() -> Result:
            self.enter()
            return function()

        return _in_thread(inside)

    def close(self) -> None:
        """Idempotent. The namespace itself ends with its last holder."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _in_thread(function: Callable[[], Result]) -> Result:
    """Namespaces belong to threads: a thread that ends takes its change of namespace with it."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=body, name="namespace", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
