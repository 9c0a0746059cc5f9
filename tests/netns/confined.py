"""Run a command as a container runtime does: `python confined.py CAPABILITIES WRITABLE SYSCTL COMMAND [ARGUMENT ...]`.

Only these capabilities (comma-separated) can be had, /proc/sys cannot be written, and of the file system only the
directories in WRITABLE (colon-separated); SYSCTL is where the network's settings are mounted instead.
"""

from __future__ import annotations

import ctypes
import os
import sys

# include/uapi/linux/capability.h
NUMBERS = {
    "CHOWN": 0, "SETPCAP": 8, "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "PERFMON": 38,
    "BPF": 39,
}  # fmt: skip
LAST = 40
CLONE_NEWNS = 0x20000  # include/uapi/linux/sched.h
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18  # include/uapi/linux/mount.h
PR_CAPBSET_DROP = 24  # include/uapi/linux/prctl.h

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None) != 0:
        sys.exit(f"mounting {target}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Does not return."""
    capabilities, writable, sysctl, *command = sys.argv[1:]
    allowed = {NUMBERS[name] for name in capabilities.split(",")}
    if libc.unshare(CLONE_NEWNS) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    mount("none", "/", MS_REC | MS_PRIVATE)
    for directory in writable.split(":"):
        mount(directory, directory, MS_BIND)
    os.makedirs(sysctl, exist_ok=True)
    mount("/proc/sys/net", sysctl, MS_BIND)
    mount("/proc/sys", "/proc/sys", MS_BIND)
    mount("none", "/proc/sys", MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount("none", "/", MS_REMOUNT | MS_BIND | MS_RDONLY)
    for number in range(LAST + 1):
        if number not in allowed:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    os.chdir("/")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
