"""A kernel that refuses, floods, deaths over an update: control, tables and graph of a node in virtual time.

Real: the API server's store, the watcher, the rules, the compiler, the tables, the compiled graph with its flows.
Played: the network to the API server, the clock, the kernel's answers to steering, and death.  One seed decides all of
it, so that a run can be had again, step by step.

Invariants, asked after every fault:
- a connection to a pod that still serves goes to that very pod;
- a new connection goes to a pod that serves, or is refused where there is none;
- while nobody disturbs it, the control process' view, its tables and the API server come to say the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import packets
from control.test_adoption import Killed, dying_at
from daemon.local_node import LocalNode
from daemon.rig import make_log
from daemon.test_simulated_days import TablesConsumer
from kube.simulation import NODE, Consumer, Wire, World
from kuproxy.codes import InterfaceFlag, Origin, Outcome, Protocol, Reason
from kuproxy.daemon import kubernetes
from kuproxy.daemon.control import Controller
from kuproxy.daemon.kubernetes import RETRY_S, SOURCE, KubernetesSource, NodeOptions
from kuproxy.daemon.thread import ControlThread
from kuproxy.dataplane.layout import TICK_MASK, TICKS_PER_SECOND
from kuproxy.engine.batch import Batch
from kuproxy.engine.local import LocalEngine
from kuproxy.engine.packets import PacketIn
from kuproxy.errors import KuError, SteeringError
from kuproxy.kube.cluster import Cluster
from kuproxy.model.config import Config
from kuproxy.model.vip import Vip, VipKey

HOURS = 3600.0
CHECK_EVERY_S = 240.0  # less than a UDP flow is remembered (300 s)
MOST_FLOWS = 48


class Node(LocalNode):
    """Outlives its control process, as the memory that the keeper holds does; steering fails when it is told to."""

    def __init__(self, world: ChaosWorld) -> None:
        super().__init__()
        self.world, self.engine = world, world.engine
        self.refusals = 0  # calls of `steer` that fail from now on

    def start(self, plane: Any) -> None:
        plane.compiler.set_interface(0, int(InterfaceFlag.NAT4_IN))

    def steer(self, plane: Any, marks: Any) -> None:
        if self.refusals:
            self.refusals -= 1
            self.world.refused += 1
            raise SteeringError("update of 7 entries in BPF map 'steer': Cannot allocate memory")
        super().steer(plane, marks)


@dataclass(slots=True)
class Flow:
    """A connection that a client has."""

    key: VipKey
    client: str
    port: int
    pod: tuple[str, int]


class Tables(TablesConsumer):
    """As the daemon, with real flows instead of one for every pod.  Its death is the world's affair."""

    dies: Callable[[str], None]
    served: Callable[[], None]  # what is served has changed

    def take(self) -> None:
        try:
            super().take()
        except Killed:
            self.dies("while it wrote")
        except KuError as error:  # nothing that it does by itself may fail: the process ends
            self.dies(str(error))

    def _apply(self, batch: Any) -> None:
        Consumer._apply(self, batch)
        self.source.take_in(self.cluster, batch)
        self.served()
        self.controller.tend()


class ChaosWorld(World):
    """A day's world in which besides the node itself is in trouble."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seed = seed
        self.trouble = Random(f"chaos {seed}")  # apart from the world's, so that neither moves the other
        self.engine = LocalEngine(log2_buckets=6)
        self.log: list[str] = []
        self.flows: list[Flow] = []
        self.opened = self.continued = self.deaths = self.refused = 0
        self.wall_s = 0.0  # by how much the wall's clock is wrong
        # Near its end, so that the clock of 32 bits begins anew while flows live.
        self._tick_base = TICK_MASK - int(self.trouble.uniform(0, 2) * HOURS * TICKS_PER_SECOND)
        self._clients = iter(range(1, 60_000))
        self._born()
        self.at(CHECK_EVERY_S, self._look)
        self.at(RETRY_S, self._retry)
        self._trouble_comes()

    def _retry(self) -> None:
        """The daemon's timer."""
        try:
            if self.consumer.source._programmer.refused:
                self.consumer.source.try_again()
        except KuError as error:
            self._dies(str(error))
        self.at(RETRY_S, self._retry)

    def _calm(self) -> None:
        super()._calm()
        self.node.refusals, self._armed = 0, False

    def say(self, what: str) -> None:
        self.log.append(f"{self.now:10.3f} {what}")

    # ------------------------------------------------------------------------------------------- life and death

    def _born(self) -> None:
        """A control process: the first one, or a successor that finds the tables."""
        self.node = Node(self)
        made = Controller(self.node, (), make_log(), None)
        made.start(Config(), complete=False)
        self.cluster = Cluster(NODE, Random(self.seed + 1 + self.deaths), self.now)
        source = KubernetesSource(made, ControlThread(), lambda: None, NodeOptions(NODE), make_log())
        source.listeners.synced.append(made.complete_start)
        self.consumer: Tables = Tables(self.cluster, made, source)
        self.consumer.dies, self.consumer.served = self._dies, self._forget_flows
        self._armed = False
        self._in_hand: set[VipKey] = set()
        self._watch_hands(source)
        self.controller = made
        self.wires = [Wire(self, reflector) for reflector in self.cluster.reflectors]
        self.batch = Batch(self.engine)

    def _watch_hands(self, source: KubernetesSource) -> None:
        """Know which VIPs an update is about while it is half done."""
        programmer = source._programmer
        program = programmer.program

        def watched(difference: Any) -> Any:
            flushed = {key for key, _ in difference.flushed}
            self._in_hand = {vip.key for vip in difference.add} | {*difference.remove, *programmer.refused} | flushed
            done = program(difference)
            self._in_hand = set()
            return done

        programmer.program = watched  # type: ignore[method-assign]

    def _dies(self, how: str) -> None:
        """What it had decided last counts, also if it died over writing it down."""
        self.say(f"control dies: {how}")
        self.deaths += 1
        self.count("control died")
        self._forget_flows()
        # What it was about to change is between two states: nobody is promised anything of that.
        self.flows = [flow for flow in self.flows if flow.key not in self._in_hand]
        for wire in self.wires:  # whatever is on its way reaches nobody
            wire._serial, wire._watch, wire._tick_at = -1, None, math.nan
        self._born()
        for wire in self.wires:
            wire.adjust()
        self._check_flows("a death")

    # ---------------------------------------------------------------------------------------------------- faults

    def _trouble_comes(self) -> None:
        def act() -> None:
            if self.storm:
                fault = self.trouble.choice(
                    (self._kill, self._kill, self._kill_within, self._kernel_refuses, self._clock_jumps, self._flood)
                )
                self.say(fault.__name__.strip("_"))
                fault()
                self._check_flows(fault.__name__)
            self._trouble_comes()

        self.at(self.trouble.expovariate(1 / 400.0), act)

    def _kill(self) -> None:
        self._dies("killed")

    def _kill_within(self) -> None:
        """The next update is its last: it dies over some step of writing it."""
        consumer, apply = self.consumer, self.consumer.source.take_in
        step = self.trouble.randrange(40)
        self._armed = True

        def last(cluster: Any, batch: Any) -> Any:
            consumer.source.take_in = apply  # type: ignore[method-assign]
            if not self._armed:
                return apply(cluster, batch)
            with dying_at(step):
                return apply(cluster, batch)

        consumer.source.take_in = last  # type: ignore[method-assign]

    def _kernel_refuses(self) -> None:
        self.count("steering refused")
        self.node.refusals = self.trouble.choice((1, 1, 2, 5))

    def _clock_jumps(self) -> None:
        """That of the wall."""
        self.count("clock jumped")
        self.wall_s += self.trouble.uniform(-9e5, 9e5)

    def _flood(self) -> None:
        """A thousand clients that nobody knows, in a table with room for a quarter of them."""
        self.count("flood")
        vips = [vip for vip in self._store() if vip.key.port and vip.pods]
        if not vips:
            return
        frames = []
        for number in range(1000):
            vip = self.trouble.choice(vips)
            client = f"203.0.{number >> 8}.{number & 255}"
            frames.append(self._frame(vip.key, client, 1024 + number, packets.SYN))
        self.batch.run([PacketIn(each) for each in frames], self._tick)

    # ----------------------------------------------------------------------------------------------------- flows

    @property
    def _tick(self) -> int:
        return (self._tick_base + int(self.now * TICKS_PER_SECOND)) & TICK_MASK

    def _store(self) -> list[Vip]:
        return list(self.controller.plane.store.source(SOURCE))

    def _frame(self, key: VipKey, client: str, port: int, flags: int) -> bytes:
        address = key.prefix.network_address
        if key.protocol is Protocol.UDP:
            return packets.frame(packets.udp(client, address, port, key.port))
        return packets.frame(packets.tcp(client, address, port, key.port, flags=flags))

    def _send(self, frame: bytes) -> Any:
        return self.batch.run([PacketIn(frame)], self._tick)[0]

    def _look(self) -> None:
        self._check_flows("nothing")
        self._open_some()
        self.at(CHECK_EVERY_S, self._look)

    def _forget_flows(self) -> None:
        """Those whose pod serves no more: they may end, or drain, and nobody is promised anything."""
        if self.consumer.batches:
            serving = {vip.key: places(vip) for vip in self._store()}
            self.flows = [flow for flow in self.flows if flow.pod in serving.get(flow.key, ())]

    def _check_flows(self, after: str) -> None:
        """Every connection whose pod still serves goes on to it, and its answers come back as the VIP's."""
        self.engine.maintain(self._tick)
        self._forget_flows()
        for flow in self.flows:
            done = self._send(self._frame(flow.key, flow.client, flow.port, packets.ACK))
            self.continued += 1
            assert done.outcome is Outcome.TRANSMIT, (after, flow, done.outcome, done.reason)
            assert destination_of(done.data) == flow.pod, (after, flow, destination_of(done.data), done.reason)
            self._answer(flow.key, done.data)

    def _answer(self, key: VipKey, frame: bytes) -> None:
        back = self._send(packets.reply_to(frame))
        assert back.outcome is Outcome.TRANSMIT, (key, back.reason)
        assert source_of(back.data) == (str(key.prefix.network_address), key.port), (key, source_of(back.data))

    def _open_some(self) -> None:
        """New connections, each whole: request, answer, request."""
        vips = [vip for vip in self._store() if vip.key.port and vip.key.prefix.prefixlen == 32]
        for vip in self.trouble.sample(vips, min(len(vips), 4)) if vips else ():
            number = next(self._clients)
            client, port = f"198.51.{number >> 8 & 255}.{number & 255 or 1}", 20_000 + number % 30_000
            done = self._send(self._frame(vip.key, client, port, packets.SYN))
            wanted = places(vip)
            if not wanted:  # dropped, or refused with an answer
                assert done.outcome is not Outcome.TRANSMIT or destination_of(done.data)[0] == client, (vip.key, done)
                continue
            assert done.outcome is Outcome.TRANSMIT and destination_of(done.data) in wanted, (vip.key, done)
            pod = destination_of(done.data)
            if done.reason is Reason.UNTRACKED or len(self.flows) >= MOST_FLOWS:
                continue
            self._answer(vip.key, done.data)
            again = self._send(self._frame(vip.key, client, port, packets.ACK))
            if again.reason is Reason.UNTRACKED:
                continue
            assert destination_of(again.data) == pod
            self.opened += 1
            self.flows.append(Flow(vip.key, client, port, pod))


def places(vip: Vip) -> set[tuple[str, int]]:
    """Where clients from outside may go."""
    return {(str(pod.address), vip.pod_port(pod)) for pod in vip.pods_for(Origin.OUTSIDE)}


def destination_of(frame: bytes) -> tuple[str, int]:
    l3, l4, _, _ = packets.headers(frame)
    return str(ip_address(frame[l3 + 16 : l3 + 20])), int.from_bytes(frame[l4 + 2 : l4 + 4], "big")


def source_of(frame: bytes) -> tuple[str, int]:
    l3, l4, _, _ = packets.headers(frame)
    return str(ip_address(frame[l3 + 12 : l3 + 16])), int.from_bytes(frame[l4 : l4 + 2], "big")


def live_through(seed: int, hours: float, told: Callable[[str], None] = print) -> ChaosWorld:
    """Raises what breaks, after saying how it came to it and how to have it again."""
    patch = pytest.MonkeyPatch()
    try:
        world = ChaosWorld(seed)
        wall = SimpleNamespace(time=lambda: time.time() + world.wall_s, perf_counter=time.perf_counter)
        patch.setattr(kubernetes, "time", wall)
        world.run(hours * HOURS)
    except BaseException:
        told("\n".join(world.log))
        told(f"seed {seed}, second {world.now:.3f}; faults: {world.faults}")
        told(f'again: make chaos ARGS="-k refusals --seed {seed}"')
        raise
    finally:
        patch.undo()
    return world
