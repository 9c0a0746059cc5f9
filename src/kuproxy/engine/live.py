"""Live workers, seen from the control process: it makes their memory, starts them, calls them, stops them."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kuproxy.dataplane.layout import (
    COMMAND_CALL,
    COMMAND_HOLD,
    COMMAND_RUN,
    COMMAND_STOP,
    T_COMMAND,
    T_GENERATION,
    W_ACK,
    Region,
    WorkerState,
    as_state,
    flow_spec,
)
from kuproxy.engine.memory import TablesMemory, WorkerMemory
from kuproxy.engine.wiring import AF_PACKET, Wiring
from kuproxy.engine.worker import WorkerOptions
from kuproxy.errors import DriverError, TableFullError

START_TIMEOUT_S = 600  # the first start of a build compiles the kernels: two minutes, more on a busy machine
CALL_TIMEOUT_S = 30  # a resize of 16 million entries takes a few seconds
STOP_TIMEOUT_S = 3


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a worker's packets come and go."""

    device: str
    destination_mac: bytes
    source_mac: bytes
    namespace_fd: int = -1
    driver: Wiring = AF_PACKET


class LiveWorker:
    """One worker process and its memory."""

    def __init__(self, number: int, tables: TablesMemory, log2_buckets: int):
        self.number = number
        self._tables = tables
        self.memory = WorkerMemory(log2_buckets)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def process_id(self) -> int:
        """0 if it is not running."""
        return self._process.pid if self._process is not None else 0

    def start(self, attachment: Attachment) -> None:
        """Start the process; returns when it forwards. Raises DriverError with its reason if it cannot."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = WorkerOptions(
            worker=self.number,
            parent=os.getpid(),
            tables_fd=self._tables.region.fd,
            state_fd=self.memory.fixed.fd,
            flows_fd=self.memory.flows.fd,
            control_fd=theirs.fileno(),
            log2_buckets=self.memory.log2_buckets,
            namespace_fd=attachment.namespace_fd,
            device=attachment.device,
            destination_mac=attachment.destination_mac.hex(),
            source_mac=attachment.source_mac.hex(),
            driver=attachment.driver,
        )
        fds = [options.tables_fd, options.state_fd, options.flows_fd, options.control_fd]
        fds += [each for each in (options.namespace_fd, options.driver.sockets_fd) if each >= 0]
        self._tables.tables.header[T_COMMAND + self.number] = COMMAND_HOLD
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kuproxy.engine.worker", options.to_json()],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._control = ours
        self._receive(START_TIMEOUT_S)
        self._tables.tables.header[T_COMMAND + self.number] = COMMAND_RUN

    def _receive(self, timeout_s: float) -> tuple[dict[str, object], list[int]]:
        assert self._control is not None
        ready, _, _ = select.select([self._control], [], [], timeout_s)
        if not ready:
            raise DriverError(f"worker {self.number} does not answer within {timeout_s:g} s")
        data, fds, _, _ = socket.recv_fds(self._control, 65536, 1)
        if not data:
            raise DriverError(f"worker {self.number} ended with status {self.ended()}")
        message = json.loads(data)
        if "error" in message:
            raise DriverError(f"worker {self.number}: {message['error']}")
        return message, list(fds)

    def _call(self, request: dict[str, object]) -> tuple[dict[str, object], list[int]]:
        """Take the worker out of its loop for one request."""
        assert self._control is not None
        word = T_COMMAND + self.number
        self._control.send(json.dumps(request).encode())
        self._tables.tables.header[word] = COMMAND_CALL
        try:
            return self._receive(CALL_TIMEOUT_S)
        finally:
            self._tables.tables.header[word] = COMMAND_RUN

    def resize(self, log2_buckets: int) -> None:
        """Change the flow table's size; live flows move.

        Raises TableFullError, changing nothing, if they do not fit.
        """
        if log2_buckets == self.memory.log2_buckets:
            return
        try:
            _, fds = self._call({"do": "resize", "log2_buckets": log2_buckets})
        except DriverError as error:
            raise TableFullError(str(error)) from None
        self.memory.flows.close()
        self.memory.flows = Region(flow_spec(log2_buckets), fds[0], name="flows")
        self.memory.state = as_state(self.memory.fixed, self.memory.flows)

    def flush(self) -> int:
        """Forget all flows; returns how many."""
        reply, _ = self._call({"do": "flush"})
        return int(str(reply["flows"]))

    def trace(self, packets: int) -> None:
        """Trace that many packets more, from the next one on."""
        self._call({"do": "trace", "packets": packets})

    def ended(self) -> int | None:
        """Exit status if the process has ended by itself, else None."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._tables.tables.header[T_COMMAND + self.number] = COMMAND_STOP
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None


class LiveEngine:
    """The workers of a node."""

    def __init__(self, log2_buckets: int, workers: int = 1):
        self._memory = TablesMemory()
        self.tables = self._memory.tables
        self.workers = [LiveWorker(number, self._memory, log2_buckets) for number in range(workers)]

    @property
    def states(self) -> Sequence[WorkerState]:
        """The state bundles of all workers."""
        return [worker.memory.state for worker in self.workers]

    def start(self, attachments: Sequence[Attachment]) -> None:
        """Start every worker; on failure none is left running."""
        try:
            for worker, attachment in zip(self.workers, attachments, strict=True):
                worker.start(attachment)
        except BaseException:
            self.stop()
            raise

    def acknowledged(self) -> int:
        """The generation that every worker has seen; a worker that does not run looks at nothing."""
        published = int(self.tables.header[T_GENERATION])
        seen = [int(w.memory.state.header[W_ACK]) if w.process_id else published for w in self.workers]
        return min(seen)

    def resize(self, log2_buckets: int) -> None:
        """See LiveWorker.resize."""
        for worker in self.workers:
            worker.resize(log2_buckets)

    def trace(self, packets: int) -> None:
        """Trace that many packets more at each worker."""
        for worker in self.workers:
            worker.trace(packets)

    def flush(self) -> int:
        """Forget all flows; returns how many."""
        return sum(worker.flush() for worker in self.workers)

    def stop(self) -> None:
        """End every worker."""
        for worker in self.workers:
            worker.stop()
