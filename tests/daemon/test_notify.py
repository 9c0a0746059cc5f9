"""What the service manager hears, and that one which does not listen stops nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from kuproxy.daemon.notify import Notifier
from kuproxy.keeper.vault import Vault


def test_a_manager_that_does_not_read_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier(Vault())
        notifier.ready()
        began = time.monotonic()
        for _ in range(10_000):  # many more than its queue holds
            notifier.alive()
        assert time.monotonic() - began < 5
        assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"WATCHDOG=1"
    notifier.stopping()  # and one that has gone does not, either
