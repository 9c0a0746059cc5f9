"""A controller over an engine in this process, and its API on a real Unix socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from kuproxy.client import Client
from kuproxy.daemon.api.app import make_app, make_metrics_app
from kuproxy.daemon.api.auth import Access
from kuproxy.daemon.api.server import Listener, bind_unix
from kuproxy.daemon.control import Controller
from kuproxy.daemon.persist import StateFile
from kuproxy.daemon.thread import ControlThread
from kuproxy.engine.local import LocalEngine
from kuproxy.model.config import InterfaceMark
from kuproxy.model.vip import Prefix
from kuproxy.plane import Plane


class LocalNode:
    """A Forwarder without a network: steering is remembered, the engine is real."""

    def __init__(self) -> None:
        self.engine = LocalEngine()
        self.marks: tuple[InterfaceMark, ...] = ()
        self.node_port_networks: frozenset[Prefix] | None = None
        self.now = 1000

    def start(self, plane: Plane) -> None: ...

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        self.marks = marks

    def serve_node_ports(self, plane: Plane, networks: frozenset[Prefix] | None) -> None:
        self.node_port_networks = networks

    def resize(self, log2_buckets: int) -> None:
        self.engine.resize(log2_buckets, self.now)

    def flush(self) -> int:
        return self.engine.flush()

    def trace(self, packets: int) -> None:
        self.engine.trace(packets)

    def check(self) -> None: ...

    def take_over(self) -> list[str]:
        return []

    def processes(self) -> list[tuple[str, int]]:
        return []

    def leave(self) -> None: ...

    def stop(self) -> None: ...


def make_log() -> Any:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return structlog.get_logger()


def controller(directory: Path | None = None, files: tuple[Path, ...] = ()) -> Controller:
    """Started."""
    state_file = StateFile(directory) if directory is not None else None
    made = Controller(LocalNode(), files, make_log(), state_file)
    made.start(made.read_files())
    return made


@contextmanager
def served(made: Controller, access: Access | None = None, mode: int = 0o660) -> Iterator[Client]:
    """The API of a controller, in a thread of its own."""
    with tempfile.TemporaryDirectory(prefix="kutest-") as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "ku.sock"
        with listening(made, bind_unix(path, mode, None), access):
            yield Client(str(path))


@contextmanager
def listening(
    made: Controller,
    opened: socket.socket,
    access: Access | None = None,
    context: ssl.SSLContext | None = None,
    *,
    metrics_alone: bool = False,
) -> Iterator[None]:
    """Serve the API, or health and metrics alone, on a socket until the block ends."""
    thread = ControlThread()
    app = make_metrics_app(made, thread) if metrics_alone else make_app(made, access or Access(), thread)
    listener = Listener(app, opened, context)
    runner = threading.Thread(target=lambda: asyncio.run(listener.serve()), daemon=True)
    runner.start()
    try:
        yield
    finally:
        listener.stop()
        runner.join(10)
        thread.close()
        assert not runner.is_alive()


def as_user(uid: int, function: Callable[[], str]) -> str:
    """What a function returns in a child process that is this user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(write, function().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(child, 0)
    return text
