"""Giving up capabilities that are not needed any more, and reading which are left.

capabilities(7) are an attribute of *threads*: what is given up here is given up by the calling thread and by the
threads and processes that it starts afterwards.  `holders_of_more` finds the threads that were there before.
docs/privileges.md says which act needs which capability; its table is a test's.

Only the standard library is used: a process that shall hold little should not import much.  Numbers are those of
`include/uapi/linux/capability.h` and `include/uapi/linux/prctl.h`.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from kuproxy.errors import PrivilegeError

__all__ = [
    "AFTER_START",
    "AT_START",
    "Capability",
    "Held",
    "held",
    "holders_of_more",
    "keep_none",
    "keep_only",
    "to_lock_memory",
]


class Capability(IntEnum):
    """`CAP_*`: all that Linux 6.18 knows.  A later kernel's newcomers are given up by their number."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    NET_BIND_SERVICE = 10
    NET_BROADCAST = 11
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    IPC_OWNER = 15
    SYS_MODULE = 16
    SYS_RAWIO = 17
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_PACCT = 20
    SYS_ADMIN = 21
    SYS_BOOT = 22
    SYS_NICE = 23
    SYS_RESOURCE = 24
    SYS_TIME = 25
    SYS_TTY_CONFIG = 26
    MKNOD = 27
    LEASE = 28
    AUDIT_WRITE = 29
    AUDIT_CONTROL = 30
    SETFCAP = 31
    MAC_OVERRIDE = 32
    MAC_ADMIN = 33
    SYSLOG = 34
    WAKE_ALARM = 35
    BLOCK_SUSPEND = 36
    AUDIT_READ = 37
    PERFMON = 38
    BPF = 39
    CHECKPOINT_RESTORE = 40


# What a control process needs once it forwards, and one that takes over from another from its first moment on.
AFTER_START = (Capability.NET_ADMIN, Capability.NET_RAW, Capability.BPF)
# And what it takes to begin: a network namespace (SYS_ADMIN), and giving the rest up (SETPCAP).
AT_START = (*AFTER_START, Capability.SYS_ADMIN, Capability.SETPCAP)

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 47, 2, 4
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits for each set

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """One of two: capabilities 0 to 31, then the rest."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class Held(NamedTuple):
    """What a thread holds: five sets of names (`CAP_NET_RAW`), and two switches."""

    effective: frozenset[str]
    permitted: frozenset[str]
    inheritable: frozenset[str]
    ambient: frozenset[str]
    bounding: frozenset[str]
    no_new_privileges: bool
    filtered: bool  # a seccomp filter is in force

    def to_json(self) -> dict[str, list[str] | bool]:
        """For the API: sets as sorted lists."""
        return {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in self._asdict().items()
        }


def _name(number: int) -> str:
    try:
        return f"CAP_{Capability(number).name}"
    except ValueError:
        return f"CAP_{number}"


def held(process_id: int | None = None, thread_id: int | None = None) -> Held:
    """The sets of a thread; by default the calling one's.  Raises ProcessLookupError when it has ended.

    `process_id` alone means that process's first thread.
    """
    process = "thread-self" if process_id is None else str(process_id)
    thread = "" if thread_id is None else f"task/{thread_id}"
    try:
        text = Path("/proc", process, thread, "status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {process} has ended") from None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def names(field: str) -> frozenset[str]:
        mask = int(fields.get(field, "0"), 16)
        return frozenset(_name(number) for number in range(mask.bit_length()) if mask >> number & 1)

    return Held(
        effective=names("CapEff"),
        permitted=names("CapPrm"),
        inheritable=names("CapInh"),
        ambient=names("CapAmb"),
        bounding=names("CapBnd"),
        no_new_privileges=fields.get("NoNewPrivs", "0").strip() == "1",
        filtered=fields.get("Seccomp", "0").strip() == "2",
    )


def holders_of_more(keep: Iterable[Capability] = ()) -> list[int]:
    """Ids of this process's threads that are permitted more than `keep`; empty when all have given it up."""
    allowed = {_name(each) for each in keep}
    found = []
    for thread_id in map(int, os.listdir("/proc/self/task")):
        try:
            if held(os.getpid(), thread_id).permitted - allowed:
                found.append(thread_id)
        except ProcessLookupError:
            continue  # it has ended meanwhile
    return found


def keep_only(*keep: Capability, pass_on: bool = False) -> None:
    """Give up every capability but these, for good, in the calling thread.

    Afterwards no program that is executed can gain any (PR_SET_NO_NEW_PRIVS).  Root's programs begin with what is kept;
    another user's begin with nothing, unless `pass_on` says that they shall have it too (the ambient set).
    What is not held in the first place is not gained.

    The bounding set can be reduced only by a holder of CAP_SETPCAP; without it, it stays, which no_new_privs makes
    harmless.  Raises PrivilegeError when the kernel refuses anything else.
    """
    _call("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)
    _call("the ambient set", _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    now = held()
    wanted = [each for each in keep if _name(each) in now.permitted]
    if "CAP_SETPCAP" in now.effective:
        number = 0
        while (present := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:  # EINVAL beyond the last one
            if present and number not in wanted:
                _call(f"{_name(number)} in the bounding set", _PR_CAPBSET_DROP, number)
            number += 1
    _set(wanted, inheritable=pass_on)
    if pass_on:
        for each in wanted:
            _call(f"{_name(each)} in the ambient set", _PR_CAP_AMBIENT, _AMBIENT_RAISE, each)


def to_lock_memory() -> tuple[Capability, ...]:
    """What it takes to have packet memory of AF_XDP locked: nothing where RLIMIT_MEMLOCK sets no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return () if limit == resource.RLIM_INFINITY else (Capability.IPC_LOCK,)


def keep_none() -> None:
    """`keep_only` of nothing: for workers, once their sockets are open."""
    keep_only()


def _set(numbers: Iterable[int], inheritable: bool) -> None:
    mask = sum(1 << number for number in numbers)
    data = (_Data * 2)()
    for index, word in enumerate((mask & 0xFFFFFFFF, mask >> 32)):
        data[index] = _Data(word, word, word if inheritable else 0)
    if _libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), data) != 0:
        raise _refused("capabilities")


def _call(what: str, option: int, *arguments: int) -> None:
    words = (*arguments, 0, 0, 0, 0)[:4]
    if _libc.prctl(option, *words) != 0:
        raise _refused(what)


def _refused(what: str) -> PrivilegeError:
    return PrivilegeError(f"giving up {what}: {os.strerror(ctypes.get_errno())}")
