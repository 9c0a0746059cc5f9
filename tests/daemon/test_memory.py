"""What is given back after the first list: only pages that can be had again."""

import ctypes
import gc
import mmap

import pytest

from kuproxy.daemon.memory import settle, unwritten_library_pages


def _mapping(head: str, resident: int, anonymous: int) -> str:
    return f"{head}\nSize: 9000 kB\nRss: {resident} kB\nAnonymous: {anonymous} kB\nVmFlags: rd ex\n"


@pytest.mark.parametrize(
    ("head", "resident", "anonymous", "taken"),
    [
        ("1000000-2000000 r-xp 00001000 fe:00 77    /lib/libllvm.so", 9000, 0, True),
        ("1000000-2000000 r--p 00001000 fe:00 77    /lib/libllvm.so", 9000, 0, True),
        ("1000000-2000000 r--p 00001000 fe:00 77    /lib/libllvm.so", 9000, 4, False),  # relocated
        ("1000000-2000000 rw-p 00001000 fe:00 77    /lib/libllvm.so", 9000, 0, False),
        ("1000000-2000000 r--s 00001000 fe:00 77    /dev/shm/tables", 9000, 0, False),
        ("1000000-2000000 r--p 00000000 00:00 0 ", 9000, 0, False),  # of no file: nowhere to read it from
        ("1000000-2000000 r-xp 00000000 00:00 0     [vdso]", 9000, 0, False),
        ("1000000-2000000 r-xp 00001000 fe:00 77    /lib/libm.so", 100, 0, False),  # not worth it
    ],
)
def test_only_unwritten_pages_of_files_are_left(
    head: str, resident: int, anonymous: int, taken: bool
) -> None:
    smaps = _mapping(head, resident, anonymous) + _mapping(
        "7f000000-7f100000 rw-p 00000000 00:00 0 ", 5000, 5000
    )
    assert list(unwritten_library_pages(smaps)) == ([(0x1000000, 0x1000000)] if taken else [])


def test_what_is_there_stays_and_garbage_goes(tmp_path) -> None:
    class Loop:
        gone = 0

        def __del__(self) -> None:
            Loop.gone += 1

    path = tmp_path / "file"
    path.write_bytes(b"kept" * (1 << 20))
    gc.disable()
    try:
        loop = Loop()
        loop.self = loop  # type: ignore[attr-defined]
        del loop
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as kept:
            assert len(kept[:]) == 4 << 20  # all of it is resident
            settle()
            assert kept[:] == b"kept" * (1 << 20)
        assert gc.isenabled()
        assert Loop.gone == 1
        assert ctypes.CDLL(None).getpid() > 0
    finally:
        gc.enable()
        gc.unfreeze()
