"""Control's watch over its workers, without a worker."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from kuproxy.engine.live import LiveEngine
from kuproxy.engine.live_worker import QUICK_DEATHS
from kuproxy.engine.nest import Nest


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
