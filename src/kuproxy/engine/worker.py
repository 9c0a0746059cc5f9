"""A worker's process: maps the shared memory it was handed, takes over its driver's sockets, runs the compiled loop.

It is forked by engine.nursery, with everything loaded.  Memory and sockets may be those of a worker that was killed:
what that one left half done is put in order first, and packets that waited in the ring meanwhile are forwarded.  With
AF_XDP the sockets are new ones, and those packets are lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kuproxy.confine import privilege, seccomp
from kuproxy.datagrams import receive, send
from kuproxy.dataplane import flow_table
from kuproxy.dataplane._jit import source_digest
from kuproxy.dataplane.layout import COMMAND_RUN, COMMAND_STOP, W_KERNELS, W_PID, W_STARTS, Tables
from kuproxy.drivers.contract import BROKEN
from kuproxy.engine.flow_key import FlowKey
from kuproxy.engine.hold import hold
from kuproxy.engine.loop import tick_now
from kuproxy.engine.memory import SharedMemory, TablesMemory, WorkerMemory
from kuproxy.engine.repair import repair
from kuproxy.engine.touch import receive_touches, touch_all
from kuproxy.engine.trace import start_trace
from kuproxy.engine.way import open_way
from kuproxy.engine.wiring import AF_PACKET, Wiring
from kuproxy.errors import KuError

__all__ = ["REHEARSAL", "WorkerOptions", "carry_out", "run_worker"]

# What every worker is handed, in this order, before what its driver wants: memory, the socket that calls come by.
_MEMORY = ("tables", "shared", "state", "flows", "call")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told when it starts."""

    worker: int
    device: str
    destination_mac: str  # hexadecimal, of the interface behind which the kernel routes
    source_mac: str
    driver: Wiring = AF_PACKET
    filtered: bool = True  # under seccomp.py's filter, once it forwards

    @property
    def handed(self) -> tuple[str, ...]:
        """Names of the descriptors that it gets, in their order."""
        return (*_MEMORY, *self.driver.handed)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerOptions:
        options = json.loads(text)
        return cls(**options | {"driver": Wiring(**options["driver"])})


def kernels_word() -> int:
    """What stands in W_KERNELS: the digest of the kernels' sources, as int64."""
    return int.from_bytes(bytes.fromhex(source_digest())[:8], "little", signed=True)


def carry_out(
    request: dict[str, Any], tables: Tables, memory: WorkerMemory, fds: Sequence[int] = ()
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """One call of control's, with its descriptors, between two vectors; returns the answer, and descriptors for it."""
    try:
        if request["do"] == "resize":
            memory.resize(tables, request["log2_buckets"], int(tick_now()))
            return {}, (memory.flows.fd,)
        if request["do"] == "rehash":
            memory.rehash(tables, FlowKey(*request["flow_key"]), int(tick_now()))
            return {}, (memory.flows.fd,)
        if request["do"] == "hello":
            return {}, (memory.flows.fd,)
        if request["do"] == "flush":
            return {"flows": int(flow_table.flush(memory.state))}, ()
        if request["do"] == "trace":
            start_trace(memory.state, request["packets"])
            return {}, ()
        if request["do"] == "touch":
            return {"flows": sum(touch_all(memory.state, receive_touches(fd)) for fd in fds)}, ()
    except (KuError, OSError) as error:
        return {"error": str(error)}, ()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return {"error": f"a request without sense: {type(error).__name__}: {error}"}, ()
    return {"error": f"unknown request {request['do']!r}"}, ()


# One of each kind: carried out by the nursery, on memory of no account, they load whatever calls will ever need.
REHEARSAL: tuple[dict[str, Any], ...] = (
    {"do": "hello"},
    {"do": "resize", "log2_buckets": 1},
    {"do": "rehash", "flow_key": [1, 2, 3]},
    {"do": "flush"},
    {"do": "trace", "packets": 1},
    {"do": "touch"},
)


class Worker:
    """One worker's process."""

    def __init__(self, options: WorkerOptions, fds: dict[str, int]) -> None:
        self._number, self._filtered = options.worker, options.filtered
        self._call = socket.socket(fileno=fds["call"])
        self._tables = TablesMemory(fds["tables"]).tables
        self._memory = WorkerMemory.of(fds["state"], fds["flows"], SharedMemory(fds["shared"]))
        hold(self._memory.fixed.fd)
        self._header = self._memory.state.header
        self._header[W_PID] = os.getpid()
        if self._header[W_STARTS]:
            repair(self._tables, self._memory.state)
        macs = bytes.fromhex(options.destination_mac), bytes.fromhex(options.source_mac)
        self._driver, self._forward = open_way(
            options.driver, options.device, macs, options.worker, fds, self._header
        )
        self._header[W_STARTS] += 1

    def _answer_calls(self) -> None:
        """Carry out what control has asked for; it may have died since."""
        while True:
            try:
                call = receive(self._call, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ValueError:
                continue  # no message: not worth an end
            if call is None:
                return
            request, handed = call
            answer, fds = carry_out(request, self._tables, self._memory, handed)
            for fd in handed:
                os.close(fd)
            try:
                send(self._call, {"id": request.get("id"), **answer}, fds)
            except OSError:
                return  # control has died; its successor will ask again

    def _give_up(self) -> None:
        """Sockets are open, memory is mapped, kernels came with the nursery: nothing is left to be allowed for."""
        privilege.keep_none()
        if self._filtered:
            seccomp.restrict()

    def run(self) -> int:
        """Forward until told to stop. Returns the exit status."""
        kernels = kernels_word()  # of files, which the filter does not let it read
        self._give_up()
        self._header[W_KERNELS] = kernels  # which says that it works
        driver = self._driver
        served = COMMAND_RUN
        while True:
            command = int(
                self._forward(
                    driver.frame, self._tables, self._memory.state, driver.ring, self._number, served
                )
            )
            if command == BROKEN:
                driver.check()
                raise KuError(f"{driver.interfaces[0]}: poll failed")
            if command == COMMAND_STOP:
                return 0
            served = command
            self._answer_calls()


def run_worker(options: WorkerOptions, fds: dict[str, int]) -> int:
    """The life of a worker; returns its exit status.  The last it says to control is why it failed."""
    worker: Worker | None = None  # outside the block, so that its socket outlives it
    try:
        worker = Worker(options, fds)
        return worker.run()
    except Exception as error:  # whatever it is, somebody should hear of it
        with contextlib.suppress(OSError):  # written, not sent: the filter lets no socket be looked at
            os.write(fds["call"], json.dumps({"id": 0, "error": f"{type(error).__name__}: {error}"}).encode())
        return 1
