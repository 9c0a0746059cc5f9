"""The keeper, which starts the control process, holds what must outlive it, and starts it again.

Forwarding needs descriptors: of shared memory, packet sockets, a network namespace, BPF links.  As long as one
process holds them, it goes on.  This process holds them and does nothing else, so there is nothing for it to die of;
the control process, which talks to users, the kernel and API servers, may.  Workers are orphans by design (the
nursery forks them twice), and become children of this process (PR_SET_CHILD_SUBREAPER); they die with it, so that
`kill -9` of the keeper leaves a clean node.

    SIGTERM, SIGINT   end: control stops forwarding, then everything is gone
    SIGHUP            control reads its files again
    SIGUSR2           another control process, from what is on disk now, takes the present one's place

Only the standard library is imported: a Python program of 10 MB that sleeps.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from kuproxy.confine import privilege
from kuproxy.confine.lifetime import allow_locked_memory, become_subreaper, raise_file_limit
from kuproxy.datagrams import AT_ONCE, pair, receive, send

from .notify import ServiceManager
from .wire import BEGIN_ANEW, FD_VARIABLE, REPLACE

__all__ = ["Keeper", "main"]

STOP_PATIENCE_S = 30.0
HANG_S = 180.0  # a ready control process that says nothing for so long is killed; it speaks every second
BACK_OFF_S = (0.0, 0.2, 1.0, 2.0, 5.0, 10.0)  # before the next start, by deaths since it was last ready
_FORWARDED = {signal.SIGHUP: signal.SIGHUP, signal.SIGUSR2: signal.SIGUSR2}


def _names(said: object) -> list[str]:
    """Raises ValueError if they are none."""
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise ValueError("names are a list of text")
    return said


def _log(text: str) -> None:
    print(f"ku daemon: {text}", file=sys.stderr, flush=True)


class Keeper:
    """One keeper, from start to end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._kept: dict[str, int] = {}
        self._control: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._manager = ServiceManager()
        self._ever_ready = self._ready = False  # some control process; the present one
        self._deaths = 0
        self._heard_at = self._due_at = self._stop_by = 0.0
        self._stopping = False

    def run(self) -> int:
        """Until control ends in order, or never came up.  Returns the exit status."""
        wakeup = self._listen_to_signals()
        self._start()
        while True:
            readable = [wakeup] + ([self._connection] if self._connection is not None else [])
            ready, _, _ = select.select(readable, [], [], self._patience())
            if self._connection in ready:
                self._hear()
            if wakeup in ready:
                self._on_signals(wakeup.recv(64))
            status = self._on_time()
            if status is not None:
                return status

    @staticmethod
    def _listen_to_signals() -> socket.socket:
        """Signals become bytes on a socket, so that one select waits for everything."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.detach())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *_FORWARDED):
            signal.signal(number, lambda *_: None)
        return ours

    # ---------------------------------------------------------------------------------------------- control

    def _start(self) -> None:
        ours, theirs = pair()
        environment = {**os.environ, FD_VARIABLE: str(theirs.fileno())}
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(name, None)  # control tells us, and we the service manager
        self._control = subprocess.Popen(self._command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._connection = ours
        self._heard_at = time.monotonic()
        self._ready = False
        self._due_at = 0.0

    def _hear(self) -> None:
        """One message of control's.  What means nothing is said aloud and ignored: forwarding must not end of it."""
        assert self._connection is not None
        fds: list[int] = []
        try:
            heard = receive(self._connection)
            self._heard_at = time.monotonic()
            if heard is None:
                self._connection.close()
                self._connection = None
                return
            message, fds = heard
            self._obey(self._connection, message, fds)
        except (ValueError, TypeError, OverflowError) as error:
            self._heard_at = time.monotonic()
            _log(f"control has said what means nothing, which is ignored: {' '.join(str(error).split())[:200]}")
        finally:
            for fd in fds:  # that nobody has taken
                os.close(fd)

    def _obey(self, connection: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
        """Do what a message says; descriptors that are kept are taken out of `fds`.  Raises ValueError, TypeError."""
        if "keep" in message:
            names = _names(message["keep"])
            if len(names) != len(fds):
                raise ValueError(f"{len(names)} names for {len(fds)} descriptors")
            for name in names:
                self._let_go(name)
                self._kept[name] = fds.pop(0)
        elif "drop" in message:
            for name in _names(message["drop"]):
                self._let_go(name)
        elif "list" in message:
            self._list(connection)
        elif "notify" in message:
            self._notify(message["notify"])

    def _notify(self, text: object) -> None:
        """What control says of itself.  Raises ValueError, OverflowError."""
        if not isinstance(text, str):
            raise ValueError("a notification is text")
        if "READY=1" in text:
            if not self._ever_ready:  # what comes after us only takes over: docs/privileges.md
                privilege.keep_only(
                    *privilege.AFTER_START, *self._to_lock_memory(), pass_on=os.geteuid() != 0
                )
            self._ever_ready = self._ready = True
            self._deaths = 0
        if text.startswith("EXTEND_TIMEOUT_USEC="):  # what is announced is withdrawn first
            self._stop_by = self._heard_at + int(text.partition("=")[2]) / 1e6
        # Our own beat speaks for both: a manager that reads none must not hold up what control says.
        if text != "WATCHDOG=1":
            self._manager.send(text)

    def _to_lock_memory(self) -> tuple[privilege.Capability, ...]:
        """What workers on AF_XDP will need, if these are such: their control has left us what belongs to it."""
        return privilege.to_lock_memory() if any(name.startswith("xdp/") for name in self._kept) else ()

    def _let_go(self, name: str) -> None:
        fd = self._kept.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _list(self, connection: socket.socket) -> None:
        names = list(self._kept)
        parts = [names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)] or [[]]
        with contextlib.suppress(OSError):  # it has died meanwhile, which we shall hear of
            for part in parts:
                end = part is parts[-1]
                send(connection, {"kept": part, "end": end}, [self._kept[name] for name in part])

    # ---------------------------------------------------------------------------------------------- signals

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True
                self._stop_by = time.monotonic() + STOP_PATIENCE_S
                self._signal(signal.SIGTERM)
            elif number in _FORWARDED:
                self._signal(_FORWARDED[signal.Signals(number)])

    def _signal(self, number: int) -> None:
        if self._control is not None:
            self._control.send_signal(number)

    # ------------------------------------------------------------------------------------------------- time

    def _patience(self) -> float:
        """How long select may sleep."""
        now = time.monotonic()
        times = [1.0 if self._manager.watchdog_s is None else self._manager.watchdog_s]
        if self._control is None:
            times.append(self._due_at - now)
        return max(0.0, min(times))

    def _on_time(self) -> int | None:
        """What has ended, what is due.  Returns the exit status at the end."""
        now = time.monotonic()
        self._reap()
        if self._control is None:
            if self._stopping:
                return 0
            if now >= self._due_at:
                self._start()
            self._manager.alive(now)
            return None
        status = self._control.poll()
        if status is not None:
            return self._on_end(status, now)
        if self._stopping and now > self._stop_by:
            _log(f"control does not end within {STOP_PATIENCE_S:g} s: killed")
            self._control.kill()
            self._stop_by = now + STOP_PATIENCE_S
        elif self._ready and not self._stopping and now - self._heard_at > HANG_S:
            _log(f"control has said nothing for {HANG_S:g} s: killed; forwarding goes on")
            self._control.kill()
            self._heard_at = now
        self._manager.alive(now)
        return None

    def _on_end(self, status: int, now: float) -> int | None:
        """Control has ended: so do we, or it is started again."""
        while self._connection is not None:  # what it said last
            self._hear()
        self._control = None
        if status == 0 or self._stopping:
            return max(status, 0)
        if status == BEGIN_ANEW:
            _log(
                "what forwarded is gone, and to begin anew takes rights that have been given up: start me again"
            )
            return 1
        if not self._ever_ready:
            return status if status > 0 else 1
        if status != REPLACE:
            self._deaths += 1
            why = f"status {status}" if status > 0 else signal.Signals(-status).name
            _log(f"control has ended ({why}), and is started again; forwarding goes on")
        self._due_at = now + BACK_OFF_S[min(self._deaths, len(BACK_OFF_S) - 1)] * bool(status != REPLACE)
        return None

    def _reap(self) -> None:
        """Bury the workers that have ended; whose they are is control's affair.  Control is left to Popen."""
        control = self._control.pid if self._control is not None else 0
        with contextlib.suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid == control:
                    return
                os.waitpid(ended.si_pid, 0)


def main() -> int:
    """Entry point; the arguments are the module that is control's program, and what it is told."""
    raise_file_limit()
    allow_locked_memory()
    become_subreaper()
    return Keeper([sys.executable, "-m", *sys.argv[1:]]).run()
