"""One data plane as its owners hold it: the store above, the compiler between, an engine below.

`ku replay`, `ku run` and the tests differ only in the engine that they bring.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.control.report import Baselines, build_report
from kuproxy.control.store import Changes, Store
from kuproxy.control.trace import build_trace
from kuproxy.engine.contract import Engine
from kuproxy.engine.memory import (
    Totals,
    flows_by_state,
    many_pod_counters,
    pod_counters,
    pod_flows,
    totals,
    vip_counters,
)
from kuproxy.engine.trace import trace_rows
from kuproxy.errors import TableFullError
from kuproxy.model.config import Config, InterfaceMark, Settings
from kuproxy.model.report import Report, WorkerReport
from kuproxy.model.vip import Address, Pod, Vip, VipKey

Undo = tuple[list[Vip], list[VipKey]]


class Plane:
    """Takes configurations, publishes the differences, tells what was counted."""

    def __init__(self, engine: Engine, *, decrement_ttl: bool, any_node_address: bool):
        self.engine = engine
        self.store = Store()
        self.compiler = Compiler(
            engine.tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address
        )
        self._baselines = Baselines()
        self._marks: tuple[InterfaceMark, ...] = ()
        self.compiler.set_timeouts(self.store.settings.timeouts)

    @property
    def settings(self) -> Settings:
        """As last applied."""
        return self.store.settings

    def apply(self, config: Config, source: str = "files") -> Changes:
        """Make `source` hold the VIPs of `config`. Raises ConflictError or TableFullError, changing nothing.

        The flow table's size is the engine's affair: compare `settings.buckets`.
        """
        before = self.store.source(source)
        changes = self.store.replace(source, config.vips)
        try:
            self.compiler.check(changes)
        except TableFullError:
            self.store.replace(source, before)
            raise
        self.store.settings = config.settings
        self._marks = config.interfaces
        self.compiler.set_timeouts(config.settings.timeouts)
        self.compiler.set_masquerade(config.settings.masquerade)
        self.compiler.set_tunnel_sources(config.settings.ip4_src_address, config.settings.ip6_src_address)
        self._set_translation(config.settings)
        self.compiler.apply(changes)
        self._note_pods()
        for key, pod in config.flushed:
            self.compiler.flush(key, pod.address, pod.port)
        self._baselines.note(self.compiler.records(), self._vip_counts)
        self.collect()
        return changes

    def update(
        self,
        source: str,
        add: Iterable[Vip] = (),
        remove: Iterable[VipKey] = (),
        flushed: Iterable[tuple[VipKey, Pod]] = (),
    ) -> tuple[Changes, Undo]:
        """Let `source` hold, or hold anew, what is in `add`, and let go `remove`; end the UDP flows of `flushed`.

        Returns what has changed, and the `add` and `remove` that would undo it. The cost follows the change. Raises
        ConflictError or TableFullError, changing nothing.
        """
        add, remove = list(add), list(remove)
        former = self.store.excerpt(source, [*(vip.key for vip in add), *remove])
        changes = self.store.update(source, add, remove)
        try:
            self.compiler.check(changes)
        except TableFullError:
            self.store.update(source, *former)
            raise
        self.compiler.apply(changes)
        self._note_pods()
        records = [
            self.compiler.record(vip.key) for vip in (*changes.added, *(new for _, new in changes.changed))
        ]
        self._baselines.note([record for record in records if record is not None], self._vip_counts)
        for key, pod in flushed:
            self.compiler.flush(key, pod.address, pod.port)
        return changes, former

    def set_masquerade(self, addresses: tuple[Address, ...]) -> None:
        """Change the source of masqueraded packets alone."""
        self.store.settings = replace(self.store.settings, masquerade=addresses)
        self.compiler.set_masquerade(addresses)

    def end_stale(self, serving: Iterable[tuple[VipKey, frozenset[Pod]]]) -> int:
        """End the flows of pods that were removed and are not among those that serve their VIP; returns how many pods.

        For pods that stopped serving while nobody looked: what `update` is told cannot name them.
        """
        ended = 0
        for key, pods in serving:
            record = self.compiler.record(key)
            for pod in list(record.draining) if record is not None else ():
                if pod not in pods:
                    self.compiler.flush(key, pod.address, pod.port)
                    ended += 1
        return ended

    def _set_translation(self, settings: Settings) -> None:
        self.compiler.set_translation(
            settings.nat46_prefix, settings.nat64_pool, settings.nat64_ports, settings.translation_mtu
        )

    def collect(self) -> int:
        """Free removed pods that no flow refers to; returns how many."""
        return self.compiler.collect(self.engine.acknowledged(), self._pod_flows)

    def totals(self) -> Totals:
        """Counters of all workers together."""
        return totals(self.engine.states)

    def report(self) -> Report:
        """Everything that `show` can tell."""
        sums = self.totals()
        return build_report(
            self.compiler,
            self.store.settings,
            counters=sums.counters,
            vip_counters=self._own_counts,
            pod_flows=self._pod_flows,
            pod_counters=self._own_pod_counts,
            workers=[
                WorkerReport(index, flows, capacity, flows_by_state(state))
                for index, (flows, capacity, state) in enumerate(
                    zip(sums.flows, sums.capacity, self.engine.states, strict=True)
                )
            ],
            interfaces=self._marks,
            trace=build_trace(self.compiler, trace_rows(self.engine.states)),
        )

    def _note_pods(self) -> None:
        indices = self.compiler.take_new_pods()
        self._baselines.note_pods(indices, many_pod_counters(self.engine.states, indices))

    def _vip_counts(self, index: int) -> np.ndarray:
        return vip_counters(self.engine.states, index)

    def _own_counts(self, record: VipRecord) -> np.ndarray:
        return self._baselines.since(record, self._vip_counts)

    def _pod_counts(self, index: int) -> np.ndarray:
        return pod_counters(self.engine.states, index)

    def _own_pod_counts(self, index: int) -> np.ndarray:
        return self._baselines.pod_since(index, self._pod_counts)

    def _pod_flows(self, index: int) -> int:
        return pod_flows(self.engine.states, index)
