"""Live workers, seen from the control process: it makes their memory, has them born, calls, replaces and stops them.

Memory and packet sockets belong to the node, not to a process: a worker that was killed is replaced by another that
goes on with both (with AF_XDP, with the memory and a socket of its own), and a control process that was killed leaves
them, and the running workers, to its successor, by way of the vault.  One thread does nothing but wait for a worker's
end, so that however busy control is, a worker is replaced within some milliseconds.
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
    T_GENERATION,
    T_WORKERS,
    W_ACK,
    W_KERNELS,
    W_PID,
    WorkerState,
)
from kuproxy.engine.flow_key import VPP, FlowKey, Wish
from kuproxy.engine.memory import BaselinesMemory, SharedMemory, TablesMemory, WorkerMemory
from kuproxy.engine.nest import Nest, guardian
from kuproxy.engine.touch import send_touches
from kuproxy.engine.wiring import AF_PACKET, Wiring
from kuproxy.engine.worker import WorkerOptions, kernels_word
from kuproxy.errors import DriverError, HandoverError, KuError, TableFullError
from kuproxy.keeper.vault import Vault

__all__ = ["Attachment", "LiveEngine", "LiveWorker"]

CALL_TIMEOUT_S = 30  # a resize of 16 million entries takes a few seconds
STOP_TIMEOUT_S = 3
BIRTH_PATIENCE_S = 30  # mapping a ring and a table of millions of flows, on a busy machine
QUICK_DEATH_S = 1.0  # a worker that lives no longer than this counts as one that cannot work
QUICK_DEATHS = 5
_RETRY_S = 0.2
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
        pid = int(self.memory.state.header[W_PID])
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        self.process_id, self._pidfd = pid, pidfd
        with contextlib.suppress(BlockingIOError, ValueError):
            while (heard := receive(self._call, socket.MSG_DONTWAIT)) is not None:
                _close(heard[1])  # answers to what our predecessor asked
        try:
            self._take_flows(self._ask({"do": "hello"})[1])
        except DriverError:  # the number is another process's by now
            self._forget_process()
            return False
        self.wanted = self.adopted = True
        return True

    def bear(self, nest: Nest) -> None:
        """Have a process work with this memory and these sockets, or others.  Raises DriverError, HandoverError."""
        assert self._attachment is not None
        here = self._attachment
        macs = here.destination_mac.hex(), here.source_mac.hex()
        options = WorkerOptions(self.number, here.device, *macs, here.driver, here.filtered)
        with self._lock:
            self._forget_process()
            self.wanted, self.adopted = True, False
            self._tables.tables.header[T_COMMAND + self.number] = COMMAND_RUN
            self.memory.state.header[W_KERNELS] = 0  # nobody works yet
            nest.wait()  # so that no socket is opened in vain
            handed = self._sockets if here.driver.lasting else here.open_sockets()
            ours, theirs = pair()
            fds = {
                "tables": self._tables.region.fd,
                "shared": self.memory.shared.region.fd,
                "state": self.memory.fixed.fd,
                "flows": self.memory.flows.fd,
                "call": theirs.fileno(),
                **handed,
            }
            try:
                pid = nest.bear(options, fds)
            finally:
                theirs.close()
                if not here.driver.lasting:
                    for fd in handed.values():
                        os.close(fd)
            if self._call is not None:
                self._call.close()
            self._call = ours
            self._vault.keep({self._name("call"): ours.fileno()})
            self.process_id, self._born_at = pid, time.monotonic()
            self._pidfd = _open_pidfd(pid)

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
        if not self.wanted:
            return False
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], 0)[0])

    def replace(self, nest: Nest) -> str:
        """Another process in place of one that has ended, a line for the log; "" if none has.

        Raises DriverError, and HandoverError when there can be none any more.
        """
        with self._lock:
            return self._replace(nest) if self.has_ended else ""

    def _replace(self, nest: Nest) -> str:
        ended, why = self.process_id, self._last_words()
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
    """-1 if it has ended and been buried already."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


class LiveEngine:
    """The workers of a node."""

    def __init__(
        self, log2_buckets: int, workers: int = 1, vault: Vault | None = None, locking: bool = False
    ) -> None:
        """Over the memory that the vault has, if it has; see `engine.handover` for when it may be used.

        `locking`: their driver locks memory, see `Nest`.
        """
        self.vault = vault if vault is not None else Vault()
        self._memory = TablesMemory(self._kept("tables"))
        self.tables = self._memory.tables
        self._baselines = BaselinesMemory(self._kept("baselines"))
        self.baselines = self._baselines.baselines
        shared = SharedMemory(self._kept("shared"))
        regions = (self._memory.region, self._baselines.region, shared.region)
        names = ("tables", "baselines", "shared")
        self.vault.keep({name: region.fd for name, region in zip(names, regions, strict=True)})
        self.tables.header[T_WORKERS] = workers
        self.workers: list[LiveWorker] = []

        def key_of_new() -> FlowKey:
            """As the workers have it that are there already."""
            return self.flow_key if self.workers else VPP

        for number in range(workers):
            self.workers.append(
                LiveWorker(number, self._memory, shared, log2_buckets, self.vault, key_of_new)
            )
        self.on_replaced: Callable[[str], None] = lambda line: None  # called in another thread
        self._nest = Nest(guardian(self.vault.connected), locking)
        self._watch: threading.Thread | None = None
        self._wake_r, self._wake_w = -1, -1
        self._ending = False

    def _kept(self, name: str) -> int | None:
        return self.vault.take(name) if name in self.vault.names() else None

    @property
    def tables_memory(self) -> TablesMemory:
        """The region that the tables lie in."""
        return self._memory

    @property
    def memories(self) -> Sequence[WorkerMemory]:
        """The regions of all workers."""
        return [worker.memory for worker in self.workers]

    @property
    def states(self) -> Sequence[WorkerState]:
        """The state bundles of all workers."""
        return [worker.memory.state for worker in self.workers]

    def start(self, attachments: Sequence[Attachment]) -> int:
        """Have every worker work; on failure none is left running but those of a former control process.

        Returns how many were running already.
        """
        try:
            self._nest.start()
            adopted = 0
            for worker, attachment in zip(self.workers, attachments, strict=True):
                worker.prepare(attachment)
            for worker in self.workers:
                if worker.adopt():
                    adopted += 1
                else:
                    worker.bear(self._nest)
            for worker in self.workers:
                worker.await_work()
        except BaseException:
            for worker in self.workers:
                if not worker.adopted:
                    worker.stop()
            self._nest.stop()
            raise
        return adopted

    def watch(self) -> None:
        """Replace workers that end, from now on; the thread that does so may do what the caller may."""
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch = threading.Thread(target=self._replace_the_dead, name="workers", daemon=True)
        self._watch.start()

    def _replace_the_dead(self) -> None:
        """The watching thread, until `stop`."""
        pause_s = 1.0
        while not self._ending:
            poll = select.poll()
            poll.register(self._wake_r, select.POLLIN)
            for worker in self.workers:
                if worker.pidfd >= 0:
                    poll.register(worker.pidfd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(pause_s * 1000)}
            if self._wake_r in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_r, 4096)
            pause_s = 1.0
            for worker in self.workers:
                if worker.has_ended and not self._ending:
                    try:
                        line = worker.replace(self._nest)
                        if line:
                            self.on_replaced(line)
                    except (DriverError, HandoverError) as error:
                        pause_s = _RETRY_S
                        self.on_replaced(str(error))

    @property
    def outdated(self) -> bool:
        """Whether some worker that a former control process left runs kernels of another build than this one."""
        words = [int(w.memory.state.header[W_KERNELS]) for w in self.workers if w.adopted]
        return any(word != kernels_word() for word in words)

    def renew(self) -> None:
        """Replace the workers' processes, one after the other, by such of this build; their packets wait meanwhile.

        Waits until the kernels are loaded, or compiled.  Raises DriverError; then the former ones go on.
        """
        self._nest.wait()
        for worker in self.workers:
            worker.renew(self._nest)
        self._wake()

    def _wake(self) -> None:
        if self._wake_w >= 0:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_w, b"!")

    def acknowledged(self) -> int:
        """The generation that every worker has seen; a worker that does not run looks at nothing."""
        published = int(self.tables.header[T_GENERATION])
        seen = [int(w.memory.state.header[W_ACK]) if w.process_id else published for w in self.workers]
        return min(seen)

    def resize(self, log2_buckets: int) -> None:
        """See LiveWorker.resize; all workers' tables or none."""
        before = self.workers[0].memory.log2_buckets
        for number, worker in enumerate(self.workers):
            try:
                worker.resize(log2_buckets)
            except TableFullError:
                for done in self.workers[:number]:
                    done.resize(before)
                raise

    def rehash(self, flow_hash: Wish) -> None:
        """Find flows by this hash; all workers' or none."""
        before = self.flow_key
        wanted = before.meeting(flow_hash)
        for number, worker in enumerate(self.workers):
            try:
                worker.rehash(wanted)
            except TableFullError:
                for done in self.workers[:number]:
                    done.rehash(before)
                raise

    @property
    def flow_key(self) -> FlowKey:
        """By which hash the workers find flows."""
        return FlowKey.read(self.workers[0].memory.state)

    def trace(self, packets: int) -> None:
        """Trace that many packets more at each worker."""
        for worker in self.workers:
            worker.trace(packets)

    def flush(self) -> int:
        """Forget all flows; returns how many."""
        return sum(worker.flush() for worker in self.workers)

    def check(self) -> None:
        """Raises DriverError if some worker cannot work, HandoverError if it could after a new beginning."""
        for worker in self.workers:
            if worker.failure is not None:
                raise worker.failure

    def processes(self) -> list[tuple[str, int]]:
        """(role, process id) of all that run."""
        rows = [("worker", worker.process_id) for worker in self.workers]
        return [row for row in [("nursery", self._nest.process_id), *rows] if row[1]]

    def leave(self) -> None:
        """Let go, for a successor: workers go on, and everything they need is in the vault."""
        self._end_watch()
        self._nest.stop()

    def stop(self) -> None:
        """End every worker."""
        self._end_watch()
        for worker in self.workers:
            worker.stop()
        self._nest.stop()

    def _end_watch(self) -> None:
        self._ending = True
        self._wake()
        if self._watch is not None:
            self._watch.join()
            self._watch = None
            os.close(self._wake_r)
            os.close(self._wake_w)
            self._wake_r = self._wake_w = -1
