"""Control's watch over its workers, without a worker."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from kuproxy.datagrams import pair, receive, send
from kuproxy.dataplane.layout import W_PID
from kuproxy.engine.flow_key import VPP
from kuproxy.engine.live import LiveEngine
from kuproxy.engine.live_worker import QUICK_DEATHS, LiveWorker
from kuproxy.engine.memory import SharedMemory, TablesMemory
from kuproxy.engine.nest import Nest
from kuproxy.keeper.vault import Vault


def test_a_worker_is_born_as_soon_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long there was no descriptor for it: what cannot be born has not died."""
    engine = LiveEngine(1)
    (worker,) = engine.workers
    worker.wanted = True
    born, attempts = threading.Event(), []
    said: list[str] = []
    engine.on_replaced = said.append

    def bear(nest: Nest) -> None:
        attempts.append(nest)
        assert engine.missing() == [0]
        if len(attempts) < QUICK_DEATHS + 2:
            raise OSError(errno.EMFILE, "Too many open files")
        worker.process_id, worker._pidfd = os.getpid(), os.pidfd_open(os.getpid())
        born.set()

    monkeypatch.setattr(worker, "bear", bear)
    monkeypatch.setattr("kuproxy.engine.live._RETRY_S", 0.001)
    engine.watch()
    try:
        assert born.wait(10)
        assert engine.missing() == []
        engine._wake()
    finally:
        engine._end_watch()
        worker.process_id = 0
        worker._forget_process()
    assert said == [
        "worker 0 cannot be born: Too many open files",
        f"worker 0: process {os.getpid()} goes on",
    ]
    assert worker.failure is None


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_of_a_build_without_locks_is_adopted_if_it_answers(answers: bool) -> None:
    tables, shared, vault = TablesMemory(), SharedMemory(), Vault()
    memory = LiveWorker(0, tables, shared, 1, Vault(), lambda: VPP).memory
    memory.state.header[W_PID] = os.getpid()
    ours, theirs = pair()
    for name, fd in (
        ("state", os.dup(memory.fixed.fd)), ("flows", os.dup(memory.flows.fd)), ("call", ours.detach())
    ):  # fmt: skip
        vault.put(f"worker/0/{name}", fd)

    def answer() -> None:
        call = receive(theirs)
        assert call is not None and call[0]["do"] == "hello"
        send(theirs, {"id": call[0]["id"]}, [memory.flows.fd])

    other = threading.Thread(target=answer if answers else theirs.close)
    other.start()
    worker = LiveWorker(0, tables, shared, 1, vault, lambda: VPP)
    assert worker.adopt() is answers
    assert worker.process_id == (os.getpid() if answers else 0)
    other.join()
    theirs.close()
    worker._forget_process()
    assert worker._call is not None
    worker._call.close()
