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

from daemon.local_node import LocalNode
from kuproxy.client import Client
from kuproxy.daemon.api.app import make_app, make_metrics_app, make_web_app
from kuproxy.daemon.api.auth import Access
from kuproxy.daemon.api.server import Listener, bind_unix
from kuproxy.daemon.control import Controller
from kuproxy.daemon.persist import StateFile
from kuproxy.daemon.thread import ControlThread


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
    web: bool = False,
) -> Iterator[None]:
    """Serve the API, health and metrics alone, or the page, on a socket until the block ends."""
    thread = ControlThread()
    app: Any = make_app(made, access or Access(), thread)
    if metrics_alone:
        app = make_metrics_app(made, thread)
    elif web:
        app = make_web_app(made, thread, ["kuproxy.example"])
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
