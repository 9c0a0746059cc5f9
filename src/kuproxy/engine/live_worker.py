"""A live worker, seen from the control process: it makes its memory, has it born, calls, replaces and stops it.

Memory and packet sockets belong to the node, not to a process: a worker that was killed is replaced by another that
goes on with both (with AF_XDP, with the memory and a socket of its own), and a control process that was killed leaves
them, and the running workers, to its successor, by way of the vault.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kuproxy.datagrams import pair, receive, send
from kuproxy.dataplane.layout import (
    COMMAND_CALL,
    COMMAND_RUN,
    COMMAND_STOP,
    T_COMMAND,
    W_KERNELS,
    W_PID,
)
from kuproxy.engine.flow_key import FlowKey
from kuproxy.engine.hold import end_holder, holder
from kuproxy.engine.memory import SharedMemory, TablesMemory, WorkerMemory
from kuproxy.engine.nest import Nest
from kuproxy.engine.touch import send_touches
from kuproxy.engine.wiring import AF_PACKET, Wiring
from kuproxy.engine.worker import WorkerOptions
from kuproxy.errors import DriverError, HandoverError, KuError, TableFullError
from kuproxy.keeper.vault import Vault

__all__ = ["Attachment", "LiveWorker"]

CALL_TIMEOUT_S = 30  # a resize of 16 million entries takes a few seconds
STOP_TIMEOUT_S = 3
BIRTH_PATIENCE_S = 30  # mapping a ring and a table of millions of flows, on a busy machine
QUICK_DEATH_S = 1.0  # a worker that lives no longer than this counts as one that cannot work
QUICK_DEATHS = 5
_LAST_WORDS = 0  # instead of the number of a call: what a worker ends of


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a worker's packets come and go."""

    device: str
    destination_mac: bytes
    source_mac: bytes
    # Opens what the driver wants to be handed, by name (`Wiring.handed`); the caller closes it.
    open_sockets: Callable[[], dict[str, int]]
    driver: Wiring = AF_PACKET
    filtered: bool = True  # whether the worker's system calls are


class LiveWorker:
    """One worker: its memory, its sockets, and the process that works with them now."""

    def __init__(
        self,
        number: int,
        tables: TablesMemory,
        shared: SharedMemory,
        log2_buckets: int,
        vault: Vault,
        flow_key: Callable[[], FlowKey],
    ) -> None:
        self.number = number
        self.process_id = 0  # 0 if none is running
        self.wanted = False  # whether one should run
        self.adopted = False  # whether a former control process had it born
        self.failure: KuError | None = None  # why it cannot work
        self._tables, self._vault = tables, vault
        self._lock = threading.RLock()  # calls and replacements exclude each other
        self._pidfd = -1
        self._call: socket.socket | None = None
        self._sockets: dict[str, int] = {}
        self._attachment: Attachment | None = None
        self._born_at = 0.0
        self._quick_deaths = 0
        left = {name: self._name(name) for name in ("state", "flows", "rx", "tx", "call")}
        left = {name: kept for name, kept in left.items() if kept in vault.names()}
        if {"state", "flows"} <= set(left):
            self.memory = WorkerMemory.of(vault.take(left["state"]), vault.take(left["flows"]), shared)
        else:
            self.memory = WorkerMemory(
                log2_buckets, shared=shared, number=number, flow_key=flow_key()
            )
            fds = {"state": self.memory.fixed.fd, "flows": self.memory.flows.fd}
            vault.keep({self._name(name): fd for name, fd in fds.items()})
        if {"rx", "tx"} <= set(left):  # sockets of AF_XDP are never kept, see Wiring.lasting
            self._sockets = {name: vault.take(left[name]) for name in ("rx", "tx")}
        if "call" in left:
            self._call = socket.socket(fileno=vault.take(left["call"]))

    def _name(self, what: str) -> str:
        return f"worker/{self.number}/{what}"

    @property
    def pidfd(self) -> int:
        """Readable when the process has ended; -1 if there is none."""
        return self._pidfd

    # ------------------------------------------------------------------------------------------------ birth

    def prepare(self, attachment: Attachment) -> None:
        """Open the sockets that last, if no predecessor of control has.  Raises DriverError."""
        self._attachment = attachment
        if attachment.driver.lasting and not self._sockets:
            self._sockets = attachment.open_sockets()
            self._vault.keep({self._name(name): fd for name, fd in self._sockets.items()})

    def adopt(self) -> bool:
        """Take over the process that a former control process left; False if none is alive."""
        if self._call is None:
            return False
        # A worker of a build that took no lock tells its number itself; whether it is one, `hello` shows.
        pid = holder(self.memory.fixed.fd) or int(self.memory.state.header[W_PID])
        pidfd = _open_pidfd(pid) if pid > 0 else -1
        if pidfd < 0:
            return False
        self.process_id, self._pidfd = pid, pidfd
        with contextlib.suppress(BlockingIOError, ValueError):
            while (heard := receive(self._call, socket.MSG_DONTWAIT)) is not None:
                _close(heard[1])  # answers to what our predecessor asked
        try:
            self._take_flows(self._ask({"do": "hello"})[1])
        except DriverError:  # it is deaf: `bear` ends it
            self._forget_process()
            return False
        self.wanted = self.adopted = True
        return True

    def bear(self, nest: Nest) -> None:
        """Have a process work with this memory and these sockets, or others.

        Raises DriverError, HandoverError, and OSError where there are no more descriptors.
        """
        assert self._attachment is not None
        here = self._attachment
        macs = here.destination_mac.hex(), here.source_mac.hex()
        options = WorkerOptions(self.number, here.device, *macs, here.driver, here.filtered)
        with self._lock:
            self._forget_process()
            self.wanted, self.adopted = True, False
            end_holder(self.memory.fixed.fd)  # whoever was born when control ended, and nobody knows of
            self._tables.tables.header[T_COMMAND + self.number] = COMMAND_RUN
            self.memory.state.header[W_KERNELS] = 0  # nobody works yet
            nest.wait()  # so that no socket is opened in vain
            with contextlib.ExitStack() as handed:
                fds = {
                    "tables": self._tables.region.fd,
                    "shared": self.memory.shared.region.fd,
                    "state": self.memory.fixed.fd,
                    "flows": self.memory.flows.fd,
                    "call": handed.enter_context(self._new_call()).fileno(),
                }
                if here.driver.lasting:
                    fds |= self._sockets
                else:
                    opened = here.open_sockets()
                    handed.callback(_close, [*opened.values()])
                    fds |= opened
                pid = nest.bear(options, fds)
            try:
                self._pidfd = _open_pidfd(pid)
            except OSError:  # so nobody would hear of its end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise
            self.process_id, self._born_at = pid, time.monotonic()

    def _new_call(self) -> socket.socket:
        """The other end of another call socket, kept before there is a process: a successor may find it born."""
        ours, theirs = pair()
        if self._call is not None:
            self._call.close()
        self._call = ours
        self._vault.keep({self._name("call"): ours.fileno()})
        return theirs

    def await_work(self) -> None:
        """Until the process has said in its memory that it works.  Raises DriverError with its reason if it cannot."""
        deadline = time.monotonic() + BIRTH_PATIENCE_S
        header = self.memory.state.header
        while int(header[W_PID]) != self.process_id or not header[W_KERNELS]:
            if self.has_ended:
                raise DriverError(f"worker {self.number} cannot work: {self._last_words() or 'it ended at once'}")
            if time.monotonic() > deadline:
                raise DriverError(f"worker {self.number} does not work after {BIRTH_PATIENCE_S:g} s")
            time.sleep(0.001)

    @property
    def has_ended(self) -> bool:
        """Whether a process should run, and does not."""
        pidfd = self._pidfd  # whoever asks in another thread may find it closed: that has ended, too
        if not self.wanted or pidfd < 0:
            return self.wanted
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def replace(self, nest: Nest) -> str:
        """Another process in place of one that has ended, a line for the log; "" if none has.

        Raises DriverError, and HandoverError when there can be none any more.
        """
        with self._lock:
            return self._replace(nest) if self.has_ended else ""

    def _replace(self, nest: Nest) -> str:
        ended, why = self.process_id, self._last_words()
        if ended:  # else it could not be born
            lived = time.monotonic() - self._born_at
            self._quick_deaths = self._quick_deaths + 1 if lived < QUICK_DEATH_S else 0
        if self._quick_deaths >= QUICK_DEATHS:
            self._forget_process()
            self.wanted = False
            self.failure = DriverError(
                f"worker {self.number} cannot work: {why or 'it ends at once, again and again'}"
            )
            raise self.failure
        try:
            self.bear(nest)
        except HandoverError as error:
            self.wanted, self.failure = False, error
            raise
        if not ended:
            return f"worker {self.number}: process {self.process_id} goes on"
        reason = f" ({why})" if why else ""
        return (
            f"worker {self.number}: process {ended} has ended{reason}, {self.process_id} goes on in its place"
        )

    def renew(self, nest: Nest) -> None:
        """Another process in the place of the present one, which ends in order."""
        with self._lock:
            self.stop()
            self.bear(nest)

    def _last_words(self) -> str:
        if self._call is not None:
            with contextlib.suppress(BlockingIOError, OSError, ValueError):
                while (heard := receive(self._call, socket.MSG_DONTWAIT)) is not None:
                    _close(heard[1])
                    if "error" in heard[0]:
                        return _one_line(heard[0]["error"])
        return ""

    def _forget_process(self) -> None:
        if self.process_id:
            with contextlib.suppress(ChildProcessError):  # the keeper's child, usually
                os.waitpid(self.process_id, os.WNOHANG)
        self.process_id = 0
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    # ------------------------------------------------------------------------------------------------ calls

    def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Take the worker out of its loop for one request, with these descriptors.  Raises DriverError."""
        assert self._call is not None
        header, word = self._tables.tables.header, T_COMMAND + self.number
        number = max(int(header[word]), COMMAND_CALL) + 1
        deadline = time.monotonic() + CALL_TIMEOUT_S
        try:
            send(self._call, {**request, "id": number}, fds)
        except OSError as error:
            raise DriverError(f"worker {self.number} has ended: {error.strerror}") from None
        header[word] = number
        while True:
            ready, _, _ = select.select([self._call], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise DriverError(f"worker {self.number} does not answer within {CALL_TIMEOUT_S:g} s")
            try:
                answer = receive(self._call)
            except ValueError as error:
                raise DriverError(f"worker {self.number} does not answer as it should: {error}") from None
            if answer is None:
                raise DriverError(f"worker {self.number} has ended, and is being replaced; ask again")
            message, fds = answer
            if message.get("id") in (number, _LAST_WORDS):
                break
            _close(fds)
        if "error" in message:
            _close(fds)
            raise DriverError(f"worker {self.number}: {_one_line(message['error'])}")
        return message, fds

    def _take_flows(self, fds: list[int]) -> None:
        try:
            self.memory.take_flows(fds[0])
        except (IndexError, ValueError, OSError) as error:
            _close(fds)
            raise DriverError(f"worker {self.number} hands over what is no flow table: {error}") from None
        _close(fds[1:])
        self._vault.keep({self._name("flows"): fds[0]})

    def resize(self, log2_buckets: int) -> None:
        """Change the flow table's size; live flows move.

        Raises TableFullError, changing nothing, if they do not fit.
        """
        with self._lock:
            if log2_buckets == self.memory.log2_buckets:
                return
            try:
                _, fds = self._ask({"do": "resize", "log2_buckets": log2_buckets})
            except DriverError as error:
                raise TableFullError(str(error)) from None
            self._take_flows(fds)

    def rehash(self, flow_key: FlowKey) -> None:
        """Find flows by another hash.  Raises TableFullError, changing nothing, if they do not fit then."""
        with self._lock:
            if flow_key == FlowKey.read(self.memory.state):
                return
            try:
                _, fds = self._ask({"do": "rehash", "flow_key": list(flow_key)})
            except DriverError as error:
                raise TableFullError(str(error)) from None
            self._take_flows(fds)

    def _flows_told(self, request: dict[str, Any], fds: Sequence[int] = ()) -> int:
        """How many flows the answer tells of.  Raises DriverError."""
        message, sent = self._ask(request, fds)
        _close(sent)
        flows = message.get("flows")
        if not isinstance(flows, int):
            raise DriverError(f"worker {self.number} does not say how many flows")
        return flows

    def flush(self) -> int:
        """Forget all flows; returns how many."""
        with self._lock:
            return self._flows_told({"do": "flush"})

    def trace(self, packets: int) -> None:
        """Trace that many packets more, from the next one on."""
        with self._lock:
            _close(self._ask({"do": "trace", "packets": packets})[1])

    def touch(self, touches: np.ndarray) -> int:
        """Let flows live until then, TOUCH[n]; returns how many were those that were meant.  Raises DriverError."""
        fd = send_touches(touches)
        try:
            with self._lock:
                return self._flows_told({"do": "touch"}, [fd])
        finally:
            os.close(fd)

    # -------------------------------------------------------------------------------------------------- end

    def stop(self) -> None:
        """End the process; memory and sockets stay."""
        with self._lock:
            self.wanted = False
            if not self.process_id:
                return
            self._tables.tables.header[T_COMMAND + self.number] = COMMAND_STOP
            if self._pidfd >= 0:
                ended, _, _ = select.select([self._pidfd], [], [], STOP_TIMEOUT_S)
                if not ended:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.process_id, signal.SIGKILL)
                    select.select([self._pidfd], [], [], STOP_TIMEOUT_S)
            self._forget_process()


def _one_line(said: object) -> str:
    """What a worker gives as its reason."""
    return " ".join(str(said).split())[:500]


def _close(fds: Sequence[int]) -> None:
    """Descriptors that nobody has a use for."""
    for fd in fds:
        os.close(fd)


def _open_pidfd(pid: int) -> int:
    """-1 if it has ended and been buried already.  Raises OSError if this process may have no more descriptors."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
