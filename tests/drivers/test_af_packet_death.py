"""A user of the ring dies between any two of its stores, its successor as well: the ring stays in step with the kernel.

The kernels run as plain Python with stores that count, against a model of packet_rcv: it fills the frame at its head
if that was given back, else it drops.  A cursor that is one frame off lets packets wait for a whole lap, for ever.
Source: tpacket_rcv(), packet_increment_rx_head() in net/packet/af_packet.c.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from drivers.test_af_packet_ring import fake_ring, fill, status
from kuproxy.drivers import af_packet
from kuproxy.drivers.af_packet import R_CURSOR

FRAMES, VECTOR = 3, 2
ENOUGH = 1000  # stores that nobody survives to make


class Death(Exception):
    """SIGKILL."""


class Process:
    """Runs kernels over the ring until it has made so many stores."""

    def __init__(self, ring: Any, frame: Any, stores: int = ENOUGH) -> None:
        self.left = stores
        self._frame = frame
        self._ring = ring._replace(words=Words(ring.words, self))
        self._functions = {
            "acquire32": lambda data, at: int(data[at : at + 4].view(np.uint32)[0]),
            "load32": lambda data, at: int(data[at : at + 4].view(np.uint32)[0]),
            "load16": lambda data, at: int(data[at : at + 2].view(np.uint16)[0]),
            "store32": self._store32,
            "release32": self._store32,
            "release64": self._store64,
            "complete_sctp": lambda *_: False,
            "BATCH": VECTOR,
        }
        for name in ("_is_taken", "_give_back"):
            if hasattr(af_packet, name):
                self._functions[name] = self._plain(name)
        self.receive: Callable[[], int] = lambda: self._run("receive")
        self.resume: Callable[[], int] = lambda: self._run("resume")

    def _plain(self, name: str) -> Any:
        kernel = getattr(af_packet, name)
        code = getattr(kernel, "py_func", kernel)
        return types.FunctionType(code.__code__, code.__globals__ | self._functions, name)

    def _run(self, name: str) -> int:
        return self._plain(name)(self._ring, self._frame)

    def store(self) -> None:
        if self.left == 0:
            raise Death
        self.left -= 1

    def _store32(self, data: np.ndarray, at: int, value: int) -> None:
        self.store()
        data[at : at + 4].view(np.uint32)[0] = value

    def _store64(self, words: Words, at: int, value: int) -> None:
        words[at] = value


class Words:
    """R_WORDS that outlive the process."""

    def __init__(self, words: np.ndarray, process: Process) -> None:
        self._words, self._process = words, process

    def __getitem__(self, at: int) -> int:
        return int(self._words[at])

    def __setitem__(self, at: int, value: int) -> None:
        self._process.store()
        self._words[at] = value


class Kernel:
    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.head = self.accepted = 0

    def deliver(self, packets: int) -> None:
        """They are told apart by their lengths."""
        for _ in range(packets):
            if status(self._frame, self.head) == af_packet.STATUS_KERNEL:
                fill(self._frame, self.head, 60 + self.accepted)
                self.head = (self.head + 1) % FRAMES
                self.accepted += 1


def _taken(process: Process, frame: Any) -> list[int]:
    n = process.receive()
    return [int(length) - 60 for length in frame.packets["length"][:n]]


@pytest.mark.parametrize("before", range(FRAMES))
@pytest.mark.parametrize("waiting", range(FRAMES + 1))
def test_a_user_dies_anywhere(before: int, waiting: int) -> None:
    """`before`: where in the ring; `waiting`: packets of its first vector and the next."""
    deaths = 0
    for late, later, stores, in_resume in product(range(FRAMES + 1), (0, 1, FRAMES), range(20), (ENOUGH, *range(5))):
        ring, frame = fake_ring(FRAMES)
        kernel = Kernel(frame)
        first = Process(ring, frame)
        for _ in range(before):
            kernel.deliver(1)
            first.receive()
        first.receive()
        seen = before
        kernel.deliver(waiting)
        first.left = stores
        try:
            seen += len(_taken(first, frame))
            kernel.deliver(late)
            seen += len(_taken(first, frame))
            continue  # it lived
        except Death:
            deaths += 1
        kernel.deliver(later)
        successor = Process(ring, frame, in_resume)
        try:
            successor.resume()
        except Death:
            kernel.deliver(1)
            successor = Process(ring, frame)
            successor.resume()
        successor.left = ENOUGH
        got: list[int] = []
        while more := _taken(successor, frame):
            got += more
        where = f"late {late}, later {later}, stores {stores}, in resume {in_resume}"
        # In order, without a gap, none that the first had; at most the vector in its hands is lost.
        assert got == list(range(kernel.accepted - len(got), kernel.accepted)), where
        assert seen <= kernel.accepted - len(got) <= seen + VECTOR, where
        assert ring.words[R_CURSOR] == kernel.head, where
        for _ in range(2 * FRAMES):
            kernel.deliver(1)
            assert _taken(successor, frame) == [kernel.accepted - 1], f"a packet waits: {where}"
    assert deaths > 100
