"""The filter of workers' system calls, in processes that put themselves under it."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import forked
from kuproxy.confine import privilege, seccomp

HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),
}
known = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this machine"
)


def under_filter(function: Callable[[], object]) -> object:
    """What a function returns, or the number of its error, in a process under the filter; -N: a signal ended it."""

    def call() -> object:
        privilege.keep_none()
        assert seccomp.restrict()
        try:
            return function()
        except OSError as error:
            return {"errno": error.errno}

    return forked(call)


def _start_thread() -> None:
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        raise PermissionError(1, "thread") from None


def _kill_parent() -> None:
    os.kill(os.getppid(), 0)


FORBIDDEN: dict[str, Callable[[], object]] = {
    "open a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "list a directory": lambda: os.listdir("/"),
    "remove a file": lambda: os.unlink("/tmp/nothing"),
    "make a socket": lambda: socket.socket().fileno(),
    "execute a program": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "start a thread": _start_thread,
    "signal another process": _kill_parent,
    "make executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "become another user": lambda: os.setuid(0),
    "choose a processor": lambda: os.sched_setaffinity(0, {0}),
    "open another process": lambda: os.pidfd_open(1),
}


@known
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_no_worker_needs_is_refused(what: str) -> None:
    assert under_filter(FORBIDDEN[what]) == {"errno": 1}


@known
def test_executable_memory_cannot_be_had_later() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mmap.restype = ctypes.c_void_p

    def turn_executable() -> list[int]:
        page = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, -1, 0)
        return [libc.mprotect(page, 4096, mmap.PROT_READ), libc.mprotect(page, 4096, mmap.PROT_EXEC)]

    assert under_filter(turn_executable) == [0, -1]


@known
def test_what_workers_need_is_allowed() -> None:
    """A new region of memory, handed over a socket; sleeping; locks; an answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work() -> str:
        fd = os.memfd_create("flows", os.MFD_CLOEXEC)
        os.ftruncate(fd, 1 << 22)
        memory = mmap.mmap(fd, 1 << 22)
        memory[:5] = b"hello"
        socket.send_fds(theirs, [b"here"], (fd,))
        memory.close()
        os.close(fd)
        os.sched_yield()
        time.sleep(0.01)
        threading.Lock().acquire(timeout=0.01)
        return theirs.recv(100).decode()

    ours.send(b"go on")
    assert under_filter(work) == "go on"
    message, [fd], _, _ = socket.recv_fds(ours, 100, 1)
    assert message == b"here"
    assert os.pread(fd, 5, 0) == b"hello"
    for each in (fd, ours.detach(), theirs.detach()):
        os.close(each)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 alone has a second convention")
def test_another_convention_ends_the_process() -> None:
    """x32's getpid: the same architecture to audit, other numbers."""
    libc = ctypes.CDLL(None)
    assert under_filter(lambda: libc.syscall(ctypes.c_long(0x40000000 | 39))) == -signal.SIGSYS


@known
def test_all_threads_are_under_it() -> None:
    """Those that were there before, too."""

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            go_on, started = threading.Event(), threading.Event()

            def wait() -> None:
                privilege.keep_none()
                started.set()
                go_on.wait()

            threading.Thread(target=wait, daemon=True).start()
            started.wait()
            privilege.keep_none()
            seccomp.restrict()
            os.write(writer, b"under")
            time.sleep(30)
        finally:
            os._exit(0)
    assert os.read(reader, 10) == b"under"
    filtered = [privilege.held(child, int(each)).filtered for each in os.listdir(f"/proc/{child}/task")]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert filtered == [True, True]


def test_numbers_are_those_of_the_kernels_headers() -> None:
    """Where they are installed (linux-libc-dev); arm64 uses the generic table."""
    looked = 0
    every = {**seccomp.SYSTEM_CALLS, **seccomp._NOT_EXECUTABLE, "ioctl": seccomp._IOCTL}
    for column, header in HEADERS.items():
        if not header.exists():
            continue
        text = header.read_text()
        numbers = {
            name.removeprefix("3264_"): int(number)
            for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)
        }
        for name, known_as in every.items():
            if column == 1 and known_as[1] < 0:
                assert name not in numbers, name
                continue
            assert numbers[name] == known_as[column], (name, header)
            looked += 1
    if not looked:
        pytest.skip("no kernel headers here")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_program_is_well_formed(machine: str) -> None:
    """Jumps go forward and stay inside, and the last word is a refusal: seccomp_check_filter() demands as much."""
    code = seccomp.program(machine)
    count = len(code) // 8
    assert count * 8 == len(code) and count < 4096
    for index in range(count):
        operation = int.from_bytes(code[index * 8 : index * 8 + 2], "little")
        if operation & 0x07 == 0x05:  # BPF_JMP
            assert index + 1 + max(code[index * 8 + 2 : index * 8 + 4]) < count
    assert code[-8:-6] == b"\x06\x00"
    assert int.from_bytes(code[-4:], "little") == 0x00050001


def test_no_filter_for_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert seccomp.restrict() is False
