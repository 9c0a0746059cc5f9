"""The flow cache's own costs: a packet in the program, a flow entered, a turn, and a pod that has to go at once.

What it is worth in live traffic is measured elsewhere.  Needs root; without, there are no cases.
"""

import os
import struct
import time
from types import SimpleNamespace

import numpy as np

from bench.harness import Case, Sample, Scale
from bench.suites.graph import count_name
from bench.world import make_vip
from kuproxy.codes import FlowFlag, FlowState, InterfaceFlag, Protocol
from kuproxy.control.compile import Compiler
from kuproxy.control.store import Store
from kuproxy.daemon import flow_cache
from kuproxy.daemon.cache_choice import CacheChoice
from kuproxy.daemon.flow_cache import FlowCache
from kuproxy.daemon.targets import TargetBook
from kuproxy.dataplane.layout import T_FLOW_TIMEOUT, TICK_MASK, W_POLLS, WAYS
from kuproxy.engine.local import LocalEngine
from kuproxy.keeper.vault import Vault
from kuproxy.model.config import Settings
from kuproxy.steering.bpf import Verdict
from kuproxy.steering.cache_program import cache
from kuproxy.steering.maps import Stats, SteeringMaps

PODS = 100
AT_ONCE = 16384
_REPEAT = 1_000_000


def _tick() -> int:
    return time.monotonic_ns() // 100_000_000 & TICK_MASK


class Rig:
    """A worker's table with so many established flows of one VIP, and a cache with room for all of them."""

    def __init__(self, flows: int) -> None:
        self.flows = flows
        log2_buckets = max(1, (flows // WAYS).bit_length())
        self.engine = LocalEngine(log2_buckets)
        self.store = Store()
        self.compiler = Compiler(self.engine.tables, decrement_ttl=False, any_node_address=False)
        self.compiler.set_interface(0, int(InterfaceFlag.NAT4_IN))
        for kind in FlowState:
            self.engine.tables.header[T_FLOW_TIMEOUT + kind] = 74400
        self.vip = make_vip(4, 1, range(1, PODS + 1), 1024)
        self.compiler.apply(self.store.update("bench", add=[self.vip]))
        self.engine.acknowledge()
        self._fill()
        shown = SimpleNamespace(tables=self.engine.tables, states=self.engine.states, workers=[])
        node: frozenset[object] = frozenset()
        steering = SimpleNamespace(addresses=node, node_addresses=node, stats=lambda: Stats(0, 0, 0, 0))
        choice = CacheChoice(flow_cache="on", flow_cache_entries=2 * flows)
        self.cache = FlowCache(choice, shown, Vault(), steering)  # type: ignore[arg-type]
        self.targets = TargetBook()
        self.follow()

    def _fill(self) -> None:
        state, number = self.engine.states[0], np.arange(self.flows)
        [record] = self.compiler.records()
        pods = np.array(list(record.pods.values()), np.uint32)
        entries, flows = state.entries[: self.flows], state.flows[: self.flows]
        entries["hash"], entries["vip"] = number + 1, record.index
        entries["pod"] = pods[number % len(pods)]
        last = (number >> 15).astype(np.uint64) << np.uint64(24)  # 10.0.0.n, as it lies in packets
        flows["client_lo"] = (np.uint64(10) + last) << np.uint64(32)
        flows["client_port"] = 1024 + (number & 0x7FFF)
        flows["vip_lo"] = self.engine.tables.vips["lo"][record.index]
        flows["vip_port"] = flows["pod_port"] = max(80, self.vip.key.port)
        flows["protocol"], flows["family"] = int(Protocol.TCP), 4
        flows["generation"] = self.engine.tables.vips["generation"][record.index]
        flows["source_port"] = flows["client_port"]
        flows["state"] = int(FlowState.TCP_ESTABLISHED)
        flows["flags"] = int(FlowFlag.CLIENT | FlowFlag.POD)
        flows["created"] = (_tick() - 100) & TICK_MASK
        self.touch()

    def touch(self) -> None:
        """As if a packet of each had just come."""
        state = self.engine.states[0]
        state.entries["expires"][: self.flows] = (_tick() + 74400) & TICK_MASK

    def follow(self) -> None:
        before, now, _, done = self.targets.change(self.compiler, Settings())
        self.cache.follow_tables(before, now)
        done()

    def turn(self) -> None:
        self.engine.states[0].header[W_POLLS] += 2
        lines = self.cache.turn()
        assert not lines, lines

    def fill_cache(self) -> None:
        """Until the kernel has all flows."""
        flow_cache._SETTLE_NS = 0
        while self.cache.report().flows < self.flows:
            self.touch()
            self.turn()

    def close(self) -> None:
        self.cache.maps.close()


class ProgramCase(Case):
    """One packet through the program: with an entry, and without."""

    def __init__(self) -> None:
        super().__init__("flow-cache-ip4tcp-program", "BPF_PROG_TEST_RUN of 1,000,000; a hit rewrites one frame once")
        self._rig: Rig | None = None

    def prepare(self) -> None:
        self._rig = rig = Rig(1024)
        rig.fill_cache()
        self._maps = SteeringMaps()
        self._program = cache(1).load({**self._maps.by_name(), **rig.cache.maps.by_name()})
        key = rig.cache.maps.keys_of(np.array([1]))[0, 0]
        addresses = key["source"][12:].tobytes() + key["destination"][12:].tobytes()
        ports = struct.pack(">2H", key["source_port"], key["destination_port"])
        head = bytes.fromhex("4500002800000000400600000000")[:12]
        tcp = ports + bytes(8) + bytes([0x50, 0x10]) + bytes(6)
        frame = bytes(12) + b"\x08\x00" + head + addresses + tcp
        assert len(frame) == 54
        self._frame, self._other = frame, frame[:-20] + b"\x00\x07" + frame[-18:]
        assert self._program.test_run(self._frame).verdict == Verdict.REDIRECT
        assert self._program.test_run(self._other).verdict == Verdict.NEXT

    def sample(self) -> Sample:
        assert self._rig is not None
        # A frame is changed by its first run; with new addresses like the old ones it hits again and again.
        rows, pair = self._rig.cache.maps.rows, 1
        saved = rows[2 * pair].copy()
        rows["addresses"][2 * pair, :8] = np.frombuffer(self._frame[26:34], np.uint8)
        rows["source_port"][2 * pair], rows["destination_port"][2 * pair] = struct.unpack(">2H", self._frame[34:38])
        rows["mac"][2 * pair] = 0
        hit = self._program.test_run(self._frame, repeat=_REPEAT)
        miss = self._program.test_run(self._other, repeat=_REPEAT)
        for name in ("addresses", "source_port", "destination_port", "mac"):
            rows[name][2 * pair] = saved[name]
        return {"hit": float(hit.duration_ns), "miss": float(miss.duration_ns)}

    def finish(self) -> None:
        self._program.close()
        self._maps.close()
        if self._rig is not None:
            self._rig.close()


class EnterCase(Case):
    """From a worker's table to entries in the kernel, all in one turn; and back."""

    unit = "us"

    def __init__(self, flows: int) -> None:
        super().__init__(f"flow-cache-enter-{count_name(flows)}flow", "per flow, in one turn of control")
        self._flows = flows

    def prepare(self) -> None:
        self._rig = Rig(self._flows)

    def sample(self) -> Sample:
        rig = self._rig
        rig.touch()
        begin = time.thread_time()
        rig.turn()
        enter = time.thread_time() - begin
        entered = min(self._flows, AT_ONCE)
        assert int(np.count_nonzero(rig.cache._book.stages)) == entered
        rig.cache._release(rig.cache._used(), "changed")
        begin = time.thread_time()
        rig.cache._recycle()
        leave = time.thread_time() - begin
        return {"enter": enter * 1e6 / entered, "leave": leave * 1e6 / entered}

    def finish(self) -> None:
        self._rig.close()


class HeldCase(Case):
    """With so many flows in the kernel: a turn, and a pod's removal with a flush, until no packet more can go to it."""

    unit = "ms"

    def __init__(self, flows: int) -> None:
        super().__init__(f"flow-cache-hold-{count_name(flows)}flow", "remove: a hundredth of them must go, at once")
        self._flows = flows

    def prepare(self) -> None:
        self._rig = Rig(self._flows)
        self._rig.fill_cache()

    def sample(self) -> Sample:
        rig = self._rig
        rig.touch()
        begin = time.thread_time()
        rig.turn()
        turn = time.thread_time() - begin
        [record] = rig.compiler.records()
        index = next(iter(record.pods.values()))
        flags = rig.engine.tables.pods["flags"]
        kept = int(flags[index])
        flags[index] = 2  # PodFlag.FLUSHED
        begin = time.thread_time()
        rig.follow()
        remove = time.thread_time() - begin
        assert 0 < rig.flows - rig.cache.report().flows <= self._flows // PODS + 1
        flags[index] = kept
        rig.fill_cache()
        return {"turn": turn * 1e3, "remove": remove * 1e3}

    def finish(self) -> None:
        self._rig.close()


def cases(scale: Scale) -> list[Case]:
    """At the scale's numbers of flows, 100,000 at most."""
    if os.geteuid() != 0:
        return []
    sizes = [each for each in scale.flows if each <= 100_000]
    return [ProgramCase(), EnterCase(min(AT_ONCE, max(sizes))), *(HeldCase(each) for each in sizes)]
