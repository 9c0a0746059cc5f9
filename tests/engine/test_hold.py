"""One process at most works with a worker's memory, and the kernel tells which."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kuproxy.engine.hold import end_holder, hold, holder
from kuproxy.errors import DriverError

HOLD = "import sys; from kuproxy.engine.hold import hold; hold(int(sys.argv[1])); print('held', flush=True); input()"


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("memory")
    yield fd
    os.close(fd)


@pytest.fixture
def other(memory: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(memory)],
        pass_fds=[memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_kernel_tells_who_works_with_it(memory: int, other: subprocess.Popen[str]) -> None:
    assert holder(memory) == other.pid
    with pytest.raises(DriverError, match=f"process {other.pid} works with this memory"):
        hold(memory)


def test_nobody_gives_it_back(memory: int, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert holder(memory) == 0
    hold(memory)


def test_whoever_holds_it_can_be_ended(memory: int, other: subprocess.Popen[str]) -> None:
    assert end_holder(memory) == other.pid
    assert other.wait() == -9
    assert end_holder(memory) == 0
