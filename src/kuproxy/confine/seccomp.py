"""A filter of system calls for workers: what the loop and the few requests of control need, and nothing else.

A worker reads packets that anybody may have sent.  It has given up its capabilities (privilege.py); the filter takes
from it what even an ordinary process could do: open files, make sockets, start programs or threads, make memory
executable.  What is refused fails with EPERM, as for want of a right, so that a library with an unforeseen wish costs
one request and not the node's forwarding.  Calls of a foreign machine's convention end the process.

Whatever a worker will ever need must be imported, compiled and opened before.  The program is classic BPF over
`struct seccomp_data` (`include/uapi/linux/seccomp.h`, seccomp(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import NamedTuple

from kuproxy.errors import PrivilegeError

__all__ = ["SYSTEM_CALLS", "program", "restrict"]


class _Machine(NamedTuple):
    audit_arch: int  # AUDIT_ARCH_*: ELF machine, little-endian, 64 bits (`include/uapi/linux/audit.h`)
    column: int  # of SYSTEM_CALLS
    seccomp: int  # __NR_seccomp


_MACHINES = {"x86_64": _Machine(0xC000003E, 0, 317), "aarch64": _Machine(0xC00000B7, 1, 277)}
_X32 = 0x40000000  # __X32_SYSCALL_BIT: x86-64's other convention, with the same AUDIT_ARCH

# name → number on x86-64 and on arm64 (-1: has none).  arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl.
SYSTEM_CALLS = {
    # the loop
    "sendmmsg": (307, 269),
    "poll": (7, -1),
    "ppoll": (271, 73),
    "getsockopt": (55, 209),
    "clock_gettime": (228, 113),
    "restart_syscall": (219, 128),  # poll, after SIGSTOP and SIGCONT
    # requests over the control socket, and descriptors with them
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "dup": (32, 23),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "pselect6": (270, 72),
    # a new flow table
    "memfd_create": (319, 279),
    "ftruncate": (77, 46),
    "madvise": (28, 233),
    # Python's memory, locks, clocks, signals, and its end
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "clock_nanosleep": (230, 115),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Allowed unless the third argument asks for executable memory; everything is compiled and loaded by then.
_NOT_EXECUTABLE = {"mmap": (9, 222), "mprotect": (10, 226)}
_PROT_EXEC = 4
_IOCTL = (16, 29)
_IOCTL_REQUESTS = (
    0x8910,  # SIOCGIFNAME: whether the interface is still there
    0x5401,  # TCGETS: Python asks whether what it writes to is a terminal
)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = (
    0x20,
    0x15,
    0x35,
    0x45,
    0x06,
)  # BPF_LD|W|ABS, BPF_JMP|..., BPF_RET
_ALLOW, _REFUSE, _KILL_PROCESS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data

_SET_MODE_FILTER = 1
# All threads at once; and no slower branches for it (before Linux 5.16 a filter implied SSBD).
_TSYNC, _SPEC_ALLOW = 1 << 0, 1 << 2


def _argument(number: int) -> int:
    """Offset of the lower half of an argument: both machines are little-endian."""
    return _ARGUMENTS_AT + 8 * number


def program(machine: str) -> bytes:
    """The filter for a machine, as an array of `struct sock_filter`.  Raises KeyError for an unknown one."""
    arch, column, _ = _MACHINES[machine]
    code: list[tuple[int, int, int, int]] = []

    def emit(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append((operation, if_true, if_false, value))

    emit(_LOAD, _ARCH_AT)
    emit(_EQUAL, arch, 1, 0)
    emit(_RETURN, _KILL_PROCESS)
    emit(_LOAD, _NUMBER_AT)
    emit(_AT_LEAST, _X32, 0, 1)
    emit(_RETURN, _KILL_PROCESS)
    for numbers in SYSTEM_CALLS.values():
        if numbers[column] >= 0:
            emit(_EQUAL, numbers[column], 0, 1)
            emit(_RETURN, _ALLOW)
    for numbers in _NOT_EXECUTABLE.values():
        emit(_EQUAL, numbers[column], 0, 4)
        emit(_LOAD, _argument(2))
        emit(_ANY_BIT, _PROT_EXEC, 1, 0)
        emit(_RETURN, _ALLOW)
        emit(_RETURN, _REFUSE)
    emit(_EQUAL, _IOCTL[column], 0, 1 + 2 * len(_IOCTL_REQUESTS))
    emit(_LOAD, _argument(1))
    for request in _IOCTL_REQUESTS:
        emit(_EQUAL, request, 0, 1)
        emit(_RETURN, _ALLOW)
    emit(_RETURN, _REFUSE)
    return b"".join(struct.pack("=HBBI", *each) for each in code)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def restrict() -> bool:
    """Put the whole process under the filter, for good.  False on a machine that there is no filter for.

    Needs PR_SET_NO_NEW_PRIVS, which `privilege.keep_none` sets.  Raises PrivilegeError when the kernel refuses.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        return False
    code = program(machine)
    libc = ctypes.CDLL(None, use_errno=True)
    fprog = _Program(len(code) // 8, code)
    flags = ctypes.c_ulong(_TSYNC | _SPEC_ALLOW)
    result = libc.syscall(
        ctypes.c_long(_MACHINES[machine].seccomp),
        ctypes.c_ulong(_SET_MODE_FILTER),
        flags,
        ctypes.byref(fprog),
    )
    if result < 0:
        raise PrivilegeError(f"a filter of system calls: {os.strerror(ctypes.get_errno())}")
    if result > 0:
        raise PrivilegeError(f"a filter of system calls: thread {result} has another one")
    return True
