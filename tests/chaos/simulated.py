"""The simulated tier: hours of virtual time over real control code, real tables and real kernels, all in one process.

Below the day of `kube.simulation` (an API server that errs, breaks off, falls silent, restarts and compacts) stands the
daemon's own controller over an engine in memory, and TCP connections pass through its graph as packets.  On top of the
server's troubles, by the same seed: control dies, between two writes or after any of them, and a successor adopts what
it finds; a worker dies over a half written flow; the disk is full; wall clock and tick counter jump.

Everything here is deterministic: the same seed gives the same packets, the same deaths, the same tables.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import packets
from control.test_adoption import Killed, dying_at
from daemon.local_node import LocalNode
from daemon.rig import make_log
from daemon.test_simulated_days import TablesConsumer
from engine.test_repair import check as check_worker
from kube.simulation import CALM_S, NODE, STORM_S, Wire, World
from kuproxy.codes import InterfaceFlag, Protocol
from kuproxy.daemon import kubernetes
from kuproxy.daemon.control import Controller
from kuproxy.daemon.kubernetes import SOURCE, KubernetesSource, NodeOptions
from kuproxy.daemon.persist import StateFile
from kuproxy.daemon.thread import ControlThread
from kuproxy.dataplane.layout import TICKS_PER_SECOND
from kuproxy.drivers.memory import MemoryDriver
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.repair import repair
from kuproxy.errors import KuError
from kuproxy.kube.cluster import Cluster
from kuproxy.model.vip import Vip, VipKey, parse_prefix

UNTIL_S = STORM_S + CALM_S + 1.0  # one storm, one calm, and the check at its end
STRIKES_EVERY_S = 400.0  # on average
TALK_EVERY_S = 60.0  # a message on every connection; flows time out later than that
MOST_CONNECTIONS = 40
MOST_LASTING = 6
LASTING = parse_prefix("10.96.1.1/32")  # the service that nobody changes
FIRST_TICKS = (100, 2**31 - 20_000, 2**32 - 20_000)  # the tick counter wraps within half an hour


class AdoptingNode(LocalNode):
    """Forwards with an engine that outlives its control."""

    def __init__(self, engine: LocalEngine) -> None:
        super().__init__()
        self.engine = engine


@dataclass(slots=True)
class Connection:
    """One TCP connection, from the client's side."""

    key: VipKey
    client: str
    port: int
    pod: IPv4Address  # that its first packet went to


class Chaos(World):
    """A world whose consumer is a whole control process, which may die at any time."""

    def __init__(self, seed: int, directory: Path) -> None:
        super().__init__(seed)
        self.dice = Random(f"chaos {seed}")
        self.directory = directory
        self.engine = LocalEngine(8)
        self.first_tick = self.dice.choice(FIRST_TICKS)
        self.wall_s = 1.8e9
        self.driver = MemoryDriver(largest=1514)
        self.connections: list[Connection] = []
        self.sent = self.opened = 0
        self._dies_at: int | None = None
        self._ports = iter(range(1024, 60000))
        self._state: StateFile | None = None
        self._begin_control()
        self._later(STRIKES_EVERY_S, self._strike)
        self._later(TALK_EVERY_S, self._talk)

    def run(self, until_s: float = UNTIL_S) -> None:
        """With one service that nobody changes: what the dice leave of the others may have no pods all night."""
        port = {"name": "http", "port": 80, "protocol": "TCP"}
        address = str(LASTING.network_address)
        spec = {"ports": [port], "clusterIP": address, "clusterIPs": [address]}
        self.store.create("services", {"metadata": {"namespace": "shop", "name": "lasting"}, "spec": spec})
        labels = {"kubernetes.io/service-name": "lasting"}
        endpoints = [{"addresses": [f"10.1.1.{number}"], "conditions": {"ready": True}} for number in (1, 2, 3)]
        slice_ = {"addressType": "IPv4", "endpoints": endpoints, "ports": [port]}
        self.store.create(
            "endpointslices", {"metadata": {"namespace": "shop", "name": "lasting-1", "labels": labels}, **slice_}
        )
        super().run(until_s)

    def _later(self, mean_s: float, act: Any) -> None:
        def again() -> None:
            act()
            self._later(mean_s, act)

        self.at(self.dice.uniform(0.5, 1.0) * mean_s, again)

    # ---------------------------------------------------------------------------------------------- control

    def _begin_control(self) -> None:
        """A control process over whatever the engine holds; it knows the cluster from a new list alone."""
        if self._state is not None:
            self._state.close()
        self._state = StateFile(self.directory)
        made = Controller(AdoptingNode(self.engine), (), make_log(), self._state)
        made.plane.compiler.set_interface(0, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        made.start(made.read_files(), complete=False)
        source = KubernetesSource(made, ControlThread(), lambda: None, NodeOptions(NODE), make_log())
        self.controller = made
        self.consumer = ControlConsumer(self, made, source)

    def _control_dies(self, why: str) -> None:
        self.count(why)
        for wire in self.wires:
            _forget(wire)
        self.cluster = Cluster(NODE, Random(self.dice.random()), self.now)
        self.wires = [Wire(self, reflector) for reflector in self.cluster.reflectors]
        self._begin_control()
        for wire in self.wires:
            wire.adjust()

    @contextmanager
    def mortal(self) -> Any:
        """Where control may die over a write; its successor comes at once, and has to make sense of that."""
        step, self._dies_at = self._dies_at, None
        if step is None:
            yield
            return
        try:
            with dying_at(step):
                yield
        except Killed:
            self._control_dies("control died over a write")

    # --------------------------------------------------------------------------------------------- strikes

    def _strike(self) -> None:
        if not self.storm:
            return
        acts = (self._kill, self._kill_soon, self._kill_worker, self._fill_disk, self._jump)
        self.dice.choice(acts)()
        check_worker(self.engine.tables, self.engine.state)

    def _kill(self) -> None:
        self._control_dies("control died")

    def _kill_soon(self) -> None:
        self._dies_at = self.dice.randrange(12)

    def _kill_worker(self) -> None:
        """Sums that its death left wrong, and a flow of which only the first half was written."""
        self.count("worker died")
        state = self.engine.state
        free = np.flatnonzero(state.entries["pod"] == 0)
        slot = int(free[self.dice.randrange(len(free))])
        state.entries[slot]["pod"], state.entries[slot]["vip"] = 1, 1
        state.pod_refs[1] += self.dice.randrange(3)
        repair(self.engine.tables, state)

    def _fill_disk(self) -> None:
        """A command that cannot be kept is refused and changes nothing; once there is room, it is carried out."""
        self.count("disk full")
        made, line = self.controller, "ku vip 10.50.0.1/32 protocol tcp port 80"
        before = (made.commands.state(), made.generation)
        patch = pytest.MonkeyPatch()
        patch.setattr(os, self.dice.choice(("write", "fsync")), _no_space)
        try:
            with pytest.raises(KuError, match="No space left on device; nothing was changed"):
                made.run(line)
        finally:
            patch.undo()
        assert (made.commands.state(), made.generation) == before
        made.run(line)
        made.run(f"{line} del")

    def _jump(self) -> None:
        """The wall clock is set, back or forth, by up to a year."""
        self.count("clock set")
        self.wall_s += self.dice.uniform(-1.0, 1.0) * 365 * 86400

    # ------------------------------------------------------------------------------------------- packets

    @property
    def tick(self) -> int:
        return (self.first_tick + int(self.now * TICKS_PER_SECOND)) % (1 << 32)

    def _through(self, frame: bytes) -> bytes | None:
        """What the graph sends for one frame; None: nothing."""
        driver = self.driver
        driver.clear()
        driver.inject([frame])
        driver.receive(driver.frame)
        self.engine.process(driver.frame, self.tick)
        driver.transmit(driver.frame)
        self.sent += 1
        return driver.transmitted[0].data if driver.transmitted else None

    def _from_client(self, one: Connection, flags: int) -> bytes | None:
        address = str(one.key.prefix.network_address)
        return self._through(packets.frame(packets.tcp(one.client, address, one.port, one.key.port, flags=flags)))

    def _talk(self) -> None:
        """Every connection reaches the pod that it has always reached, and one more is opened."""
        for one in self.connections:
            out = self._from_client(one, packets.ACK)
            assert out is not None and _destination(out) == one.pod, f"a connection to a healthy pod broke: {one}"
            back = self._through(packets.reply_to(out))
            assert back is not None, one
            assert _source(back) == one.key.prefix.network_address, one
        self.engine.maintain(self.tick)
        check_worker(self.engine.tables, self.engine.state)
        if len(self.connections) < MOST_CONNECTIONS:
            self._open()

    def _open(self) -> None:
        vips = [vip for vip in self.consumer.served() if vip.key.protocol is Protocol.TCP and vip.pods]
        if sum(one.key.prefix == LASTING for one in self.connections) >= MOST_LASTING:
            vips = [vip for vip in vips if vip.key.prefix != LASTING]
        if not vips:
            return
        vip = vips[self.dice.randrange(len(vips))]
        one = Connection(vip.key, "40.0.0.1", next(self._ports), IPv4Address(0))
        out = self._from_client(one, packets.SYN)
        assert out is not None, f"{vip.key} does not answer"
        one.pod = _destination(out)
        assert one.pod in {pod.address for pod in vip.pods}, f"{vip.key} sends to a pod that does not serve it"
        self.opened += 1
        assert self._through(packets.reply_to(out)) is not None
        self._from_client(one, packets.ACK)
        self.connections.append(one)

    def still_healthy(self) -> None:
        """Connections to pods that serve no more are nobody's promise."""
        pods = {vip.key: {pod.address for pod in vip.pods} for vip in self.consumer.served()}
        self.connections = [each for each in self.connections if each.pod in pods.get(each.key, ())]


def _forget(wire: Wire) -> None:
    """Its reflector is gone: whatever is still under way to it goes nowhere."""
    wire._serial, wire._watch, wire._tick_at = -1, None, -1.0


class ControlConsumer(TablesConsumer):
    """The store, the tables and the state file of one control process."""

    def __init__(self, chaos: Chaos, made: Controller, source: KubernetesSource) -> None:
        super().__init__(chaos.cluster, made, source)
        self.chaos = chaos

    def served(self) -> list[Vip]:
        """As the configuration has it, by this control process; nothing before it knows."""
        return list(self.controller.plane.store.source(SOURCE))

    def take(self) -> None:
        with self.chaos.mortal():
            super().take()

    def _apply(self, batch: Any) -> None:
        super(TablesConsumer, self)._apply(batch)
        self.source.take_in(self.cluster, batch)
        if batch.first:
            self.controller.complete_start()
        self.controller.tend()
        self.chaos.still_healthy()


def _no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _source(frame: bytes) -> IPv4Address:
    return IPv4Address(frame[26:30])


def _destination(frame: bytes) -> IPv4Address:
    return IPv4Address(frame[30:34])


def live_through(seed: int, directory: Path) -> Chaos:
    """A storm and a calm; raises AssertionError with the seed printed."""
    world = Chaos(seed, directory)
    patch = pytest.MonkeyPatch()
    clock = SimpleNamespace(**{name: getattr(kubernetes.time, name) for name in ("perf_counter", "monotonic")})
    clock.time = lambda: world.wall_s + world.now
    patch.setattr(kubernetes, "time", clock)
    try:
        world.run()
    except BaseException:
        print(f"seed {seed}, second {world.now:.3f}, tick {world.tick}; so far: {world.faults}")
        print(f'again: make chaos ARGS="--seed {seed}"')
        raise
    finally:
        patch.undo()
    return world

