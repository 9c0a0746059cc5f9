"""Every way in which the real tier breaks something: one small class each, with its undo.

`begin` breaks, `end` mends (idempotent; what was killed needs no mending).  `forwards` says whether new connections
must succeed while it lasts: where control, the API server or a disk is what is broken, nobody who forwards may notice.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kube_api.server import Fault as ApiFault

if TYPE_CHECKING:
    from chaos.rig import Rig

_PIDFD_GETFD = 438  # x86-64 and arm64 alike (include/uapi/asm-generic/unistd.h)
_SO_RCVBUFFORCE = 33
_libc = ctypes.CDLL(None, use_errno=True)


class Fault:
    """One that has not begun.  `number` is the seed's, for whatever there is to choose."""

    forwards: ClassVar[bool] = True

    def __init__(self, rig: Rig, number: int) -> None:
        self.rig, self.number = rig, number

    def begin(self) -> None: ...

    def end(self) -> None: ...


class _OfProcess(Fault):
    """Strikes one process of a role."""

    role: ClassVar[str]

    def victim(self) -> int:
        """0: there is none at the moment."""
        found = self.rig.processes(self.role)
        return found[self.number % len(found)] if found else 0


class _Kill(_OfProcess):
    def begin(self) -> None:
        with suppress(ProcessLookupError):
            if victim := self.victim():
                os.kill(victim, signal.SIGKILL)


class KillWorker(_Kill):
    """SIGKILL of a worker: its packets are lost until the next one has its memory; no connection is."""

    role, forwards = "worker", False


class KillControl(_Kill):
    """SIGKILL of control: workers forward on, the keeper starts a successor, which adopts what it finds."""

    role = "control"


class _Stop(_OfProcess):
    """SIGSTOP, then SIGCONT.  For the process it is also a jump of the monotonic clock."""

    stopped = 0

    def begin(self) -> None:
        self.stopped = self.victim()
        with suppress(ProcessLookupError):
            if self.stopped:
                os.kill(self.stopped, signal.SIGSTOP)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            if self.stopped:
                os.kill(self.stopped, signal.SIGCONT)
        self.stopped = 0


class StopWorker(_Stop):
    """A worker stands still: its packets wait, or are lost."""

    role, forwards = "worker", False


class StopControl(_Stop):
    """Control stands still: nobody who forwards may notice."""

    role = "control"


class LoseNetlink(StopControl):
    """The kernel drops netlink events (ENOBUFS): control stands still, its socket holds next to nothing.

    Among what it misses the node gets an address, at which node ports must be served in the end.
    """

    EVENTS = 20  # the socket holds one or two

    def begin(self) -> None:
        super().begin()
        if self.stopped:
            for opened in _netlink_sockets(self.stopped):
                with opened:
                    before = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
                    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 2048)
                    dropped = _drops(self.stopped)
                    self.rig.change_addresses(self.EVENTS)
                    assert _drops(self.stopped) > dropped, "the kernel has dropped no event"
                    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, before)
        self.rig.add_address(self.number)


def _listening(process_id: int) -> Iterator[list[str]]:
    """Rows of /proc/net/netlink for sockets of its namespace that are in a group of NETLINK_ROUTE."""
    for line in Path(f"/proc/{process_id}/net/netlink").read_text().splitlines()[1:]:
        words = line.split()
        if words[1] == "0" and int(words[3], 16):
            yield words


def _drops(process_id: int) -> int:
    return sum(int(words[8]) for words in _listening(process_id))


def _netlink_sockets(process_id: int) -> list[socket.socket]:
    """Copies of the sockets by which a process hears of events.  Its files must not change meanwhile: stop it."""
    listening = {f"socket:[{words[9]}]" for words in _listening(process_id)}
    found = []
    pidfd = os.pidfd_open(process_id)
    try:
        for name in os.listdir(f"/proc/{process_id}/fd"):
            with suppress(FileNotFoundError):
                if os.readlink(f"/proc/{process_id}/fd/{name}") in listening:
                    copy = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
                    assert copy >= 0, os.strerror(ctypes.get_errno())
                    found.append(socket.socket(fileno=copy))
    finally:
        os.close(pidfd)
    assert found, "control hears of no events"
    return found


class _Api(Fault):
    """The server answers the next requests of a kind badly; open streams end, so that there are some."""

    MOST = 3
    how: Callable[[int], ApiFault]

    def begin(self) -> None:
        fault = type(self).how(1 + self.number % self.MOST)
        self.rig.cluster.api.faults.append(fault)
        self.rig.cluster.api.stop()
        self.rig.cluster.api.start()

    def end(self) -> None:
        self.rig.cluster.api.faults.clear()


class ApiErrors(_Api):
    """Refusals with 500."""

    how = staticmethod(lambda times: ApiFault(times=times, status=500))


class ApiBreaks(_Api):
    """Bodies that break off after some bytes."""

    how = staticmethod(lambda times: ApiFault(times=times, break_after=100))


class ApiAway(Fault):
    """Nobody listens at the API server's address; afterwards it has forgotten what watches had seen."""

    def begin(self) -> None:
        self.rig.cluster.api.stop()

    def end(self) -> None:
        self.rig.start_api()


class ApiStalls(Fault):
    """The API server stands still: streams stay open and say nothing."""

    STALL_S = 0.4

    def begin(self) -> None:
        self.rig.stall_api(self.STALL_S)


class FlapCarrier(Fault):
    """The node's interface to the outside loses its carrier."""

    forwards = False

    def begin(self) -> None:
        self.rig.carrier("down")

    def end(self) -> None:
        self.rig.carrier("up")


class FlapNew(Fault):
    """An interface comes and goes faster than anybody can follow, and stays at last; then it is gone."""

    TIMES = 6

    def begin(self) -> None:
        for _ in range(self.TIMES):
            self.rig.interface(True)
            self.rig.interface(False)
        self.rig.interface(True)

    def end(self) -> None:
        self.rig.interface(False)


class _Limit(_OfProcess):
    """A limit of control's is where its use is already.  It dies with the process: a successor has the old one."""

    role = "control"
    limit: ClassVar[int]
    limited, before = 0, (0, 0)

    def wanted(self, process_id: int) -> int:
        raise NotImplementedError

    def begin(self) -> None:
        self.limited = self.victim()
        with suppress(ProcessLookupError, FileNotFoundError):
            if self.limited:
                self.before = resource.prlimit(self.limited, self.limit)
                resource.prlimit(self.limited, self.limit, (self.wanted(self.limited), self.before[1]))

    def end(self) -> None:
        with suppress(ProcessLookupError):
            if self.limited:
                resource.prlimit(self.limited, self.limit, self.before)
        self.limited = 0


class FewFiles(_Limit):
    """No more file descriptors for control: no new connection of any kind."""

    limit = resource.RLIMIT_NOFILE

    def wanted(self, process_id: int) -> int:
        return 1 + max(map(int, os.listdir(f"/proc/{process_id}/fd")))


class LittleMemory(_Limit):
    """Next to no more address space for control: it may die of that, and nobody who forwards may notice."""

    limit = resource.RLIMIT_AS

    def wanted(self, process_id: int) -> int:
        pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[0])
        return (pages + self.number % 64) * resource.getpagesize()


class FullDisk(Fault):
    """No room in the state directory: what would be kept there is refused, and nothing is changed by it."""

    def begin(self) -> None:
        self.rig.fill_disk()
        self.rig.expect_refusal()

    def end(self) -> None:
        self.rig.empty_disk()


FAULTS: dict[str, type[Fault]] = {
    "kill_worker": KillWorker,
    "kill_control": KillControl,
    "stop_worker": StopWorker,
    "stop_control": StopControl,
    "lose_netlink": LoseNetlink,
    "api_errors": ApiErrors,
    "api_breaks": ApiBreaks,
    "api_away": ApiAway,
    "api_stalls": ApiStalls,
    "flap_carrier": FlapCarrier,
    "flap_new": FlapNew,
    "few_files": FewFiles,
    "little_memory": LittleMemory,
    "full_disk": FullDisk,
}
