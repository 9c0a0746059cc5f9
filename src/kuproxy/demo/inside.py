"""Run a command inside a network namespace: `python inside.py NAMESPACE-FILE PARENT-PID COMMAND [ARGUMENT ...]`.

A process of its own, because a namespace belongs to a thread and what a child is born with stays with it.  The
command is killed when its parent ends (PR_SET_PDEATHSIG, which outlives exec), be it by kill -9: nobody has to
clean up.  Standard library only, and started without `site`: this costs 15 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


def main() -> None:
    """Does not return."""
    path, parent, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before we could ask to hear of it
        sys.exit(1)
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        sys.exit(f"entering {path}: {os.strerror(ctypes.get_errno())}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
