"""Whatever shared memory holds, control reads it, repair makes it sound, and a successor uses or refuses it.

What a worker left half written, or wrote on purpose: control looks at it without an error, and the next worker
forwards. What a control process left, of whatever layout: used, or a HandoverError says that all must begin
anew.

Parts: which of the two with a seed, then bytes that lie wrong ("entries 5 4 ff00": array, row, offset,
hexadecimal), or the description of another layout and files of another size.
"""

from __future__ import annotations

import json
import os
import signal
import time
from random import Random
from typing import Any

import numpy as np

from differential.plane import STRIDE
from engine.soundness import check as check_soundness
from fuzz.mutate import NUMBERS, damage, damage_tree
from fuzz.packets import vector
from fuzz.packets.run import LOG_BYTES, SharedLog, fill_world, run
from fuzz.packets.world import World, judge
from fuzz.target import Parts, Target
from kuproxy.control.trace import build_trace
from kuproxy.dataplane.layout import W_OUTCOMES, W_PID, W_RECEIVED, Region
from kuproxy.engine import handover
from kuproxy.engine.flows import flow_rows
from kuproxy.engine.memory import (
    BaselinesMemory,
    SharedMemory,
    TablesMemory,
    WorkerMemory,
    flows_by_state,
    pod_flows,
    totals,
    worker_activity,
)
from kuproxy.engine.repair import repair
from kuproxy.engine.trace import trace_rows
from kuproxy.errors import HandoverError
from kuproxy.keeper.vault import Vault

# What a worker writes; counters may have any value.
ARRAYS = (
    "entries",
    "entries",
    "flows",
    "flows",
    "reverse",
    "header",
    "held",
    "fragments",
    "pod_refs",
    "vip_flows",
    "affinity",
    "trace",
    "trace_numbers",
)
COUNTS = {W_RECEIVED, *range(W_OUTCOMES, W_OUTCOMES + 5)}
PACKETS = 600
SMALL = 1 << 10  # rows of the former layout's arrays, at most


class Handover(Target):
    keeps = 1
    isolated = True
    per_child = 8

    def __init__(self) -> None:
        run(0, 1, SharedLog(1 << 20).log)  # compiled before there are children
        assert LOG_BYTES > 1 << 20

    # -------------------------------------------------------------------------------------------------- cases

    def draw(self, rng: Random) -> Parts:
        seed = rng.randrange(50)
        if rng.randrange(3) == 0:
            return self._layout(rng, seed)
        parts = [b"state %d" % seed]
        for _ in range(rng.choice((1, 1, 3, 10, 60))):
            array = rng.choice(ARRAYS)
            value = rng.choice(
                (
                    bytes(4),
                    b"\xff" * 8,
                    b"\xff",
                    rng.randbytes(4),
                    (1 << rng.randrange(32)).to_bytes(8, "little"),
                )
            )
            parts.append(f"{array} {rng.randrange(5000)} {rng.randrange(128)} {value.hex()}".encode())
        return tuple(parts)

    @staticmethod
    def _layout(rng: Random, seed: int) -> Parts:
        description = small_description()
        if rng.randrange(4):
            description = damage_tree(rng, description, rng.choice((1, 1, 2, 4)), _odd)
        data = json.dumps(description).encode()
        if rng.randrange(6) == 0:
            data = damage(rng, data, rng.choice((1, 2)))
        parts = [b"layout %d" % seed, data]
        for _ in range(rng.choice((0, 0, 1, 2))):
            name = rng.choice(
                ("tables", "baselines", "shared", "worker/0/state", "worker/0/flows", "worker/1/state")
            )
            parts.append(f"{name} {rng.choice((-1, 0, 1, 4095, 4096, 12288, 1 << 20))}".encode())
        return tuple(parts)

    # ------------------------------------------------------------------------------------------------ promise

    def check(self, parts: Parts) -> None:
        kind, _, seed = parts[0].partition(b" ")
        if kind == b"layout":
            self._take_over(parts[1:])
        else:
            self._go_on(int(seed), parts[1:])

    def _go_on(self, seed: int, parts: Parts) -> None:
        world = World(seed, twin=False)
        source = fill_world(world, seed, PACKETS, SharedLog(1 << 20).log)
        state, tables = world.plane.engine.state, world.plane.engine.tables
        for part in parts:
            _scribble(state._asdict(), part)
        self._read(world)
        repair(tables, state)
        check_soundness(tables, state, counts=False)
        self._read(world)
        frame, sums = world.plane.frames[0], np.zeros(8, np.int64)
        for _ in range(4):
            put = source(100)
            vector.before(state, sums)
            world.plane.engine.process(frame, world.now)
            judge(vector.judge(frame, state, sums, put, STRIDE))
            world.plane.engine.maintain(world.now)
            world.pass_time(60)
        check_soundness(tables, state, counts=False)
        world.close()

    @staticmethod
    def _read(world: World) -> None:
        """Everything that control looks at."""
        engine = world.plane.engine
        for _ in flow_rows(engine.tables, engine.states):
            pass
        for _ in build_trace(world.plane.compiler, trace_rows(engine.states)):
            pass
        totals(engine.states)
        flows_by_state(engine.state)
        worker_activity(engine.state)
        pod_flows(engine.states, 1)

    @staticmethod
    def _take_over(parts: Parts) -> None:
        vault, bystander = Vault(), _bystander()
        try:
            _fill(vault, parts, bystander)
            try:
                left = handover.predecessor(vault)
                if left is None:
                    return
                if not handover.same_layout(left):
                    assert all(
                        len(line.splitlines()) == 1
                        for line in handover.losses(left, handover.describe(left["workers"]))
                    )
                    handover.migrate(left, vault)
            except HandoverError as error:
                assert len(str(error).splitlines()) == 1, f"{error}"
                return
            _use(vault, left["workers"])
        finally:
            alive = os.waitpid(bystander, os.WNOHANG) == (0, 0)
            os.kill(bystander, signal.SIGKILL)
            if alive:
                os.waitpid(bystander, 0)
        assert alive, "a process was ended that is no worker"


def _odd(rng: Random) -> Any:
    return rng.choice(
        (
            *NUMBERS,
            "<u8",
            "|O",
            "<U9",
            "f8",
            "V0",
            "",
            None,
            [],
            [0],
            [["a", "<u8"]],
            [1 << 62],
            "flows",
            {},
            -3,
        )
    )


def small_description() -> dict[str, Any]:
    """As another build might have left it, of few rows and two workers."""
    description = handover.describe(2)
    for arrays in description["regions"].values():
        for array in arrays:
            array[2][0] = min(array[2][0], SMALL)
    return description


def _scribble(arrays: dict[str, np.ndarray], part: bytes) -> None:
    words = part.decode("ascii", "replace").split()
    if len(words) != 4 or words[0] not in arrays:
        return
    try:
        row, offset, value = int(words[1]), int(words[2]), bytes.fromhex(words[3])
    except ValueError:
        return
    array = arrays[words[0]]
    # Where something lies, if anything does: an empty table has little to damage.
    used = (
        np.flatnonzero(array.view(np.uint8).reshape(len(array), -1).any(axis=1))
        if len(array) < 1 << 16
        else np.arange(8)
    )
    place = int(used[row % len(used)]) if len(used) and row % 4 else row % len(array)
    if words[0] == "header" and place in COUNTS:
        return
    raw = array[place : place + 1].view(np.uint8).reshape(-1)
    offset %= len(raw)
    raw[offset : offset + len(value)] = np.frombuffer(value, np.uint8)[: len(raw) - offset]


def _bystander() -> int:
    """A process that is nobody's worker."""
    child = os.fork()
    if child == 0:
        while True:
            time.sleep(60)
    return child


def _fill(vault: Vault, parts: Parts, bystander: int) -> None:
    """What a predecessor with a small layout leaves, and a description that may be of another."""
    small = small_description()["regions"]
    fds: dict[str, int] = {}
    for name in ("tables", "baselines", "shared"):
        fds[name] = _region(small[name])
    for number in range(2):
        fds[f"worker/{number}/state"] = _region(small["state"], bystander)
        fds[f"worker/{number}/flows"] = _region(small["flows"])
    for part in parts[1:]:
        name, _, size = part.decode("ascii", "replace").partition(" ")
        if name in fds and size.lstrip("-").isdigit():
            if int(size) < 0:
                os.close(fds.pop(name))
            else:
                os.ftruncate(fds[name], int(size))
    if parts:
        fds["description"] = os.memfd_create("description")
        os.write(fds["description"], parts[0])
    for name, fd in fds.items():
        vault.put(name, fd)


def _region(arrays: list[list[Any]], pid: int = 0) -> int:
    made = Region([(name, handover._dtype(descr), tuple(shape)) for name, descr, shape in arrays])
    if pid:
        made.arrays["header"][W_PID] = pid
    return os.dup(made.fd)


def _use(vault: Vault, workers: int) -> None:
    """As `LiveEngine` does."""
    TablesMemory(vault.take("tables"))
    BaselinesMemory(vault.take("baselines"))
    shared = SharedMemory(vault.take("shared"))
    for number in range(workers):
        names = {f"worker/{number}/state", f"worker/{number}/flows"}
        if names <= set(vault.names()):
            state, flows = (vault.take(f"worker/{number}/{what}") for what in ("state", "flows"))
            WorkerMemory.of(state, flows, shared)
