"""One data plane as its owners hold it: the store above, the compiler between, an engine below.

`ku replay`, `ku run` and the tests differ only in the engine that they bring.
"""

import numpy as np

from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.control.report import Baselines, build_report
from kuproxy.control.store import Changes, Store
from kuproxy.control.trace import build_trace
from kuproxy.engine.contract import Engine
from kuproxy.engine.memory import Totals, flows_by_state, pod_counters, pod_flows, totals, vip_counters
from kuproxy.engine.trace import trace_rows
from kuproxy.errors import TableFullError
from kuproxy.model.config import Config, InterfaceMark, Settings
from kuproxy.model.report import Report, WorkerReport


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
        self.driver = ""  # what carries live traffic, for `show`
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
        self._baselines.note_pods(self.compiler.take_new_pods(), self._pod_counts)
        for key, pod in config.flushed:
            self.compiler.flush(key, pod.address, pod.port)
        self._baselines.note(self.compiler.records(), self._vip_counts)
        self.collect()
        return changes

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
            driver=self.driver,
            trace=build_trace(self.compiler, trace_rows(self.engine.states)),
        )

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
