"""The worker process: maps the shared memory it was handed, opens its driver, runs the compiled loop.

Started by engine.live as `python -m kuproxy.engine.worker '<JSON>'`. It imports no more than the loop needs, and
dies with its parent.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass

from kuproxy.dataplane import flow_table
from kuproxy.dataplane.layout import COMMAND_CALL, COMMAND_HOLD, T_COMMAND
from kuproxy.drivers.contract import BROKEN
from kuproxy.engine.loop import tick_now
from kuproxy.engine.memory import TablesMemory, WorkerMemory
from kuproxy.engine.trace import start_trace
from kuproxy.engine.way import open_way
from kuproxy.engine.wiring import Wiring
from kuproxy.errors import KuError

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told when it starts."""

    worker: int
    parent: int  # process id
    tables_fd: int
    state_fd: int
    flows_fd: int
    control_fd: int
    log2_buckets: int
    namespace_fd: int  # -1: the one it is born in
    device: str
    destination_mac: str  # hexadecimal, of the interface behind which the kernel routes
    source_mac: str
    driver: Wiring

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WorkerOptions":
        options = json.loads(text)
        return cls(**options | {"driver": Wiring(**options["driver"])})


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends, in whatever way."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)


def _enter(namespace_fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Worker:
    """One worker's process."""

    def __init__(self, options: WorkerOptions):
        self._options = options
        self._control = socket.socket(fileno=options.control_fd)
        self._tables = TablesMemory(options.tables_fd).tables
        self._memory = WorkerMemory(options.log2_buckets, options.state_fd, options.flows_fd)
        if options.namespace_fd >= 0:
            _enter(options.namespace_fd)
        self._driver, self._forward = open_way(
            options.driver,
            options.device,
            bytes.fromhex(options.destination_mac),
            bytes.fromhex(options.source_mac),
            queue=options.worker,
        )

    def _reply(self, message: dict[str, object], fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], fds)

    def _answer(self) -> None:
        """Carry out one request of the parent's. The parent sets the command word back when it has the answer."""
        request = json.loads(self._control.recv(65536))
        try:
            if request["do"] == "resize":
                self._memory.resize(self._tables, request["log2_buckets"], int(tick_now()))
                self._reply({"ok": True}, (self._memory.flows.fd,))
            elif request["do"] == "flush":
                self._reply({"ok": True, "flows": int(flow_table.flush(self._memory.state))})
            elif request["do"] == "trace":
                start_trace(self._memory.state, request["packets"])
                self._reply({"ok": True})
            else:
                self._reply({"ok": False, "error": f"unknown request {request['do']!r}"})
        except KuError as error:
            self._reply({"ok": False, "error": str(error)})

    def _loop(self) -> int:
        """Forward until the command word changes; returns it."""
        driver = self._driver
        command = int(
            self._forward(driver.frame, self._tables, self._memory.state, driver.ring, self._options.worker)
        )
        if command == BROKEN:
            driver.check()
            raise KuError(f"{self._options.device}: poll failed")
        return command

    def _await_change(self, command: int) -> None:
        """Until the parent sets another command; it is but a moment."""
        while self._tables.header[T_COMMAND + self._options.worker] == command:
            os.sched_yield()

    def run(self) -> int:
        """Forward until told to stop. Returns the exit status."""
        self._loop()  # the word is COMMAND_HOLD: this compiles the loop, or loads it, and returns
        self._reply({"ready": True})
        self._await_change(COMMAND_HOLD)
        while True:
            command = self._loop()
            if command != COMMAND_CALL:
                return 0
            self._answer()
            self._await_change(COMMAND_CALL)


def main() -> int:
    """Entry point of the process."""
    options = WorkerOptions.from_json(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with(options.parent)
    try:
        return Worker(options).run()
    except (KuError, OSError) as error:
        control = socket.socket(fileno=os.dup(options.control_fd))
        control.send(json.dumps({"error": str(error)}).encode())
        return 1


if __name__ == "__main__":
    sys.exit(main())
