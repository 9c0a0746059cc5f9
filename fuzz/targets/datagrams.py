"""No datagram ends keeper or control, changes what is kept, or leaves a descriptor behind.

What control says to the keeper, what a worker answers to control. Parts are datagrams: how many descriptors, a
zero byte, the bytes. The keeper's own code hears them, without the processes that it starts.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import socket
from random import Random

from fuzz.mutate import damage, damage_tree
from fuzz.target import Parts, Target
from kuproxy.datagrams import pair, receive, send
from kuproxy.dataplane.layout import T_COMMAND
from kuproxy.engine.flow_key import VPP
from kuproxy.engine.live_worker import LiveWorker
from kuproxy.engine.memory import SharedMemory, TablesMemory
from kuproxy.errors import KuError
from kuproxy.keeper.process import Keeper
from kuproxy.keeper.vault import Vault

SAYINGS = (
    {"keep": ["tables", "worker/0/state"]},
    {"keep": ["a", "a"]},
    {"drop": ["tables"]},
    {"drop": []},
    {"list": True},
    {"notify": "WATCHDOG=1"},
    {"notify": "EXTEND_TIMEOUT_USEC=1000000"},
    {"notify": "STOPPING=1"},
    {"id": 17, "flows": 3},
    {"id": 17, "error": "it cannot be"},
    {"id": 0, "error": "last words"},
)
TOKENS = (
    b"{",
    b"}",
    b"[",
    b'"',
    b"\0",
    b"\xff",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"null",
    b"READY=",
    b"\\ud800",
)
MOST = 5  # descriptors


class Datagrams(Target):
    isolated = True  # descriptors are counted

    def draw(self, rng: Random) -> Parts:
        parts = []
        for _ in range(rng.randrange(1, 9)):
            saying = damage_tree(rng, rng.choice(SAYINGS), rng.choice((0, 0, 1, 2)))
            data = json.dumps(saying).encode()
            if rng.randrange(3) == 0:
                data = damage(rng, data, rng.choice((1, 2, 5)), TOKENS)
            if rng.randrange(60) == 0:
                data += b" " * (1 << 17)
            wanted = (
                len(saying["keep"])
                if isinstance(saying, dict) and isinstance(saying.get("keep"), list)
                else 0
            )
            count = wanted if rng.randrange(3) else rng.randrange(MOST)
            parts.append(b"%d\0%s" % (min(count, MOST), data))
        return tuple(parts)

    def check(self, parts: Parts) -> None:
        said = [
            (min(MOST, int(count)), data)
            for count, _, data in (part.partition(b"\0") for part in parts)
            if count.isdigit() and data
        ]
        gc.collect()
        gc.freeze()  # what is here already is not looked at again: collections are cheap from here on
        with contextlib.redirect_stderr(io.StringIO()) as errors:  # the keeper speaks of what it ignores
            self._keeper(said)
        assert "\0" not in errors.getvalue()
        self._worker(said)

    @staticmethod
    def _keeper(said: list[tuple[int, bytes]]) -> None:
        keeper = Keeper(["true"])
        ours, keeper._connection = pair()
        keeper._ever_ready = True  # it gives up nothing of this process's then
        precious = os.memfd_create("precious")
        os.write(precious, b"flows")
        send(ours, {"keep": ["precious"]}, [precious])
        keeper._hear()
        before = _descriptors()
        for count, data in said:
            if b"precious" in data:
                continue  # it may say so
            _say(ours, data, count, precious)
            keeper._hear()
            ours.setblocking(False)
            while True:  # what it answers
                try:
                    heard = receive(ours)
                except (BlockingIOError, ValueError):
                    break
                assert heard is not None, "the keeper has hung up"
                for fd in heard[1]:
                    os.close(fd)
            ours.setblocking(True)
            assert keeper._connection is not None
        extra = _descriptors() - before
        assert extra == len(keeper._kept) - 1, f"{extra} more descriptors for {len(keeper._kept) - 1} names"
        send(ours, {"list": True})
        keeper._hear()
        answer = receive(ours)
        assert answer is not None
        names, fds = answer[0]["kept"], answer[1]
        assert len(names) == len(fds)
        assert os.pread(fds[names.index("precious")], 10, 0) == b"flows", "what was kept is another"
        for fd in [*fds, *keeper._kept.values(), precious]:
            os.close(fd)
        ours.close()
        keeper._connection.close()

    @staticmethod
    def _worker(said: list[tuple[int, bytes]]) -> None:
        """A worker that answers anything: control asks it."""
        tables = TablesMemory()
        worker = LiveWorker(0, tables, SharedMemory(), 2, Vault(), lambda: VPP)
        worker._call, theirs = pair()
        before = _descriptors()
        for number, (count, data) in enumerate(said):
            tables.tables.header[T_COMMAND] = 16  # so that 17 is the number of the question
            _say(theirs, data, count, theirs.fileno())
            send(theirs, {"id": 0, "error": "the end"})  # or it would wait for half a minute
            ask = (
                worker.flush,
                lambda: worker.resize(3 + worker.memory.log2_buckets % 2),
                worker._last_words,
            )[number % 3]
            try:
                ask()
            except KuError as error:
                assert len(str(error)) < 1000 and len(str(error).splitlines()) == 1, str(error)[:2000]
            theirs.setblocking(False)
            while True:
                try:
                    if theirs.recv(1 << 18) == b"":
                        break
                except BlockingIOError:
                    break
            theirs.setblocking(True)
            worker._last_words()
        extra = _descriptors() - before
        assert extra <= 0, f"control keeps {extra} descriptors that a worker sent"
        theirs.close()
        worker._call.close()


def _descriptors() -> int:
    """How many are open, without those that nobody refers to any more."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _say(ours: socket.socket, data: bytes, count: int, fd: int) -> None:
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if data:
        socket.send_fds(ours, [data], [fd] * count)
