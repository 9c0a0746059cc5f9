"""The live workers of a node: started together, watched, and changed together.

One thread does nothing but wait for a worker's end, so that however busy control is, a worker is replaced within some
milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Sequence

from kuproxy.dataplane.layout import T_GENERATION, T_WORKERS, W_ACK, W_KERNELS, WorkerState
from kuproxy.engine.flow_key import VPP, FlowKey, Wish
from kuproxy.engine.live_worker import Attachment, LiveWorker
from kuproxy.engine.memory import BaselinesMemory, SharedMemory, TablesMemory, WorkerMemory
from kuproxy.engine.nest import Nest, guardian
from kuproxy.engine.worker import kernels_word
from kuproxy.errors import DriverError, HandoverError, TableFullError
from kuproxy.keeper.vault import Vault

__all__ = ["LiveEngine"]

_RETRY_S = 0.2


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
        told = ""  # what kept a worker from being born, once
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
                    except (DriverError, HandoverError) as error:
                        pause_s, line = _RETRY_S, str(error)
                    except OSError as error:
                        pause_s, line = _RETRY_S, f"worker {worker.number} cannot be born: {error.strerror}"
                    if line and line != told:
                        self.on_replaced(line)
                    told = line

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

    def missing(self) -> list[int]:
        """Numbers of the workers whose process has ended, and that have no other yet."""
        return [worker.number for worker in self.workers if worker.has_ended]

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
