"""Many packets through one world, and the same again from the log."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator

import numpy as np

from differential.plane import STRIDE
from fuzz.packets import vector
from fuzz.packets.mutator import draw
from fuzz.packets.vector import CHANGE, RECORD, STARTS, Log
from fuzz.packets.world import World, as_received, judge, make_pool, words
from fuzz.target import Parts
from kuproxy.dataplane.layout import BATCH, MAX_TRACED
from kuproxy.reference import RefPacket

LOG_BYTES = 96 << 20
_TICKS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 4, 50, 61, 400], np.int64)
_WORDS = words()


class SharedLog:
    """The log, in memory that a child process shares with this one."""

    def __init__(self, size: int = LOG_BYTES) -> None:
        self._map = mmap.mmap(-1, size + 64)
        self.log = Log(np.frombuffer(self._map, np.uint8, size, 64), np.frombuffer(self._map, np.int64, 2, 0))

    def clear(self) -> None:
        """Forget everything."""
        self.log.used[:] = 0

    def parts(self, seed: int, limit: int | None = None) -> Parts:
        """What it holds as a case: the world's seed, then one part a packet or change, at most `limit`."""
        data, end = self.log.data, int(self.log.used[1])
        parts, at = [b"world %d" % seed], 0
        while at < end and (limit is None or len(parts) <= limit):
            length = int.from_bytes(data[at : at + 4].tobytes(), "little")
            parts.append(data[at + 4 : at + RECORD + length].tobytes())
            at += RECORD + length
        return tuple(parts)


def run(seed: int, count: int, log: Log) -> tuple[int, list[tuple[int, int]]]:
    """Put about `count` packets through the world of a seed.

    Returns how many there were and which (node, reason) were counted. Raises AssertionError at the first packet for
    which something is not as it must be.
    """
    world = World(seed, twin=False)
    try:
        return _run(world, seed, count, log)
    finally:
        world.close()


def _run(world: World, seed: int, count: int, log: Log) -> tuple[int, list[tuple[int, int]]]:
    random = np.array([(seed * 0x9E3779B97F4A7C15 | 1) & (2**64 - 1)], np.uint64)
    pool, seen = make_pool(world.rng), vector.empty_seen()
    frame, state = world.plane.frames[0], world.plane.engine.state
    sums = np.zeros(8, np.int64)
    done = 0
    while done < count:
        ticks = int(_TICKS[draw(random, len(_TICKS))])
        if draw(random, 24) == 0:
            change = int(draw(random, 1 << 31))
            if not vector.note_change(log, change, ticks):
                break
            world.pass_time(ticks)
            ticks = 0
            world.change(change)
            state = world.plane.engine.state
        size = BATCH if draw(random, 3) else 1 + int(draw(random, BATCH))
        put = vector.fill(frame, log, random, pool, seen, _WORDS, size, STRIDE, ticks)
        if put == 0:
            break
        world.pass_time(ticks)
        vector.before(state, sums)
        world.plane.engine.process(frame, world.now)
        judge(vector.judge(frame, state, sums, put, STRIDE))
        outside = vector.guards(frame, log, put, STRIDE)
        assert outside < 0, f"packet {outside}: {vector.FAULTS[4]}"
        vector.keep(frame, log, random, seen)
        done += put
    return done, [(int(node), int(reason)) for node, reason in world.plane.counters()]


def fill_world(world: World, seed: int, count: int, log: Log) -> Callable[[int], int]:
    """Let packets through it, and return what puts up to so many more into its first frame, and returns how many."""
    random = np.array([(seed * 0x9E3779B97F4A7C15 | 1) & (2**64 - 1)], np.uint64)
    pool, seen = make_pool(world.rng), vector.empty_seen()
    frame = world.plane.frames[0]

    def put(size: int) -> int:
        log.used[:] = 0
        return int(vector.fill(frame, log, random, pool, seen, _WORDS, size, STRIDE, 0))

    world.plane.engine.trace(MAX_TRACED)
    for _ in range(0, count, BATCH):
        put(BATCH)
        world.plane.engine.process(frame, world.now)
        vector.keep(frame, log, random, seen)
    return put


def _steps(parts: Parts) -> Iterator[tuple[int, int | None, list[RefPacket]]]:
    """(ticks passed, seed of a change or None, a vector or nothing)."""
    waiting: list[RefPacket] = []
    ticks = 0
    for part in parts:
        if len(part) < 5:
            continue
        passed, interface, flags = struct.unpack_from("<HBB", part)
        data = part[4:]
        if waiting and (flags & (STARTS | CHANGE) or len(waiting) == BATCH):
            yield ticks, None, waiting
            waiting = []
            ticks = 0
        if flags & CHANGE:
            yield passed, int.from_bytes(data[:8], "little"), []
        else:
            ticks = ticks if waiting else passed
            waiting.append(as_received(data, interface & 1, flags))
    if waiting:
        yield ticks, None, waiting


def replay(parts: Parts) -> int:
    """The same packets once more, beside the reference. Returns how many; raises AssertionError."""
    world = World(int(parts[0].split()[1]), twin=True)
    received = 0
    try:
        for ticks, change, packets in _steps(parts[1:]):
            world.pass_time(ticks)
            if change is not None:
                world.change(change)
            else:
                world.receive(packets)
                received += len(packets)
        world.compare()
    finally:
        world.close()
    return received
