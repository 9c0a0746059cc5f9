"""One data plane as its owners hold it: the store above, the compiler between, an engine below.

`ku replay`, `ku run` and the tests differ only in the engine that they bring.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np

from kuproxy.codes import Family
from kuproxy.control.compile import Compiler, VipRecord
from kuproxy.control.report import Baselines, build_report
from kuproxy.control.store import Changes, Store
from kuproxy.control.trace import build_trace
from kuproxy.engine.cached import Counts
from kuproxy.engine.contract import Counted, Engine
from kuproxy.engine.flows import flow_rows
from kuproxy.engine.memory import (
    Totals,
    flows_by_state,
    last_tick,
    many_pod_counters,
    pod_counters,
    pod_flows,
    totals,
    vip_counters,
)
from kuproxy.engine.trace import trace_rows
from kuproxy.errors import TableFullError
from kuproxy.model.config import Config, FlowFilter, InterfaceMark, Settings, Show, ShowKind
from kuproxy.model.report import (
    KERNEL,
    CacheReport,
    Carried,
    FlowList,
    FlowReport,
    ReplyReport,
    Report,
    WorkerReport,
)
from kuproxy.model.vip import Address, Pod, Prefix, Vip, VipKey

Undo = tuple[list[Vip], list[VipKey]]


class Steered(Protocol):
    """What brings live traffic up: steering.steering."""

    def refused(self) -> int:
        """Packets in a pod's name that came in where they may not."""

    def way_to(self, pod: Address, client: Address) -> str:
        """The interfaces through which this node sends to a pod what is from a client; empty: it is not known."""


class Kernel(Protocol):
    """What the kernel does for the workers: daemon.flow_cache."""

    counts: Counts

    def refresh(self) -> None:
        """Count what has come up to now."""
        ...

    def carried(self, worker: int, slot: int) -> Carried | None:
        """What it makes of a flow, None: it does not carry it."""
        ...

    def report(self) -> CacheReport:
        """What there is to say."""
        ...


class Plane:
    """Takes configurations, publishes the differences, tells what was counted."""

    def __init__(self, engine: Engine, *, decrement_ttl: bool, any_node_address: bool):
        self.engine = engine
        self.store = Store()
        self.compiler = Compiler(
            engine.tables, decrement_ttl=decrement_ttl, any_node_address=any_node_address
        )
        self._baselines = Baselines(engine.baselines.vips, engine.baselines.pods)
        self._marks: tuple[InterfaceMark, ...] = ()
        self.adopted = 0  # VIPs that another control process has left, and that are served
        self._adopting = self.compiler.inherited  # until `finish_adoption`
        if self.compiler.inherited:
            self.adopted = self.compiler.adopt(_sum_of_references(engine))
            self._baselines.adopt(self.compiler.records())
        else:
            self.compiler.set_timeouts(self.store.settings.timeouts)
        # Flows that ended because their pod stopped serving, as far as they were counted by then.
        self.ended_flows: dict[Family, int] = dict.fromkeys(Family, 0)
        self._own_addresses: tuple[Address, ...] = ()
        self.driver = ""  # what carries live traffic, for `show`
        self.kernel: Kernel | None = None  # what the kernel does for the workers
        self.kept_counts: Counts | None = None  # what it has done for them and does no more
        self.cache_failure = ""  # why it does nothing, although it should
        self.steering: Steered | None = None  # None: there is no live traffic

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
        self._set_addresses()
        self.compiler.set_tunnel_sources(config.settings.ip4_src_address, config.settings.ip6_src_address)
        self.compiler.set_second_chance(config.settings.second_chance_s)
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
        self._end_second_chances()
        self._note_pods()
        records = [
            self.compiler.record(vip.key) for vip in (*changes.added, *(new for _, new in changes.changed))
        ]
        self._baselines.note([record for record in records if record is not None], self._vip_counts)
        for key, pod in flushed:
            self._end_flows(key, pod)
        return changes, former

    def _end_flows(self, key: VipKey, pod: Pod) -> None:
        """Of a pod that was removed from the VIP."""
        record = self.compiler.record(key)
        for each, index in record.draining.items() if record is not None else ():
            if (each.address, each.port) == (pod.address, pod.port):
                self.ended_flows[key.family] += self._pod_flows(index)
        self.compiler.flush(key, pod.address, pod.port)

    def set_masquerade(self, addresses: tuple[Address, ...]) -> None:
        """Change the source of masqueraded packets alone."""
        self.store.settings = replace(self.store.settings, masquerade=addresses)
        self._set_addresses()

    def set_pod_ranges(self, prefixes: tuple[Prefix, ...]) -> None:
        """Change alone by which addresses pods are known."""
        self.store.settings = replace(self.store.settings, pod_ranges=prefixes)
        self._set_addresses()

    def end_stale(self, serving: Iterable[tuple[VipKey, frozenset[Pod]]]) -> int:
        """End the flows of pods that were removed and are not among those that serve their VIP; returns how many pods.

        For pods that stopped serving while nobody looked: what `update` is told cannot name them.
        """
        ended = 0
        for key, pods in serving:
            record = self.compiler.record(key)
            for pod in list(record.draining) if record is not None else ():
                if pod not in pods:
                    self._end_flows(key, pod)
                    ended += 1
        return ended

    def follow_node(
        self, addresses: Iterable[Address], with_node_ports: Iterable[Address], primary: Iterable[Address]
    ) -> None:
        """The node has these addresses, answers node ports at those, and speaks with the primary one of each family.

        The primary ones are also the source of masqueraded packets, in a family for which none was set.
        """
        self.compiler.set_node_ranges(addresses)
        self.compiler.set_node_addresses(with_node_ports)
        self._own_addresses = tuple(primary)
        self.compiler.set_own_addresses(self._own_addresses)
        self._set_addresses()

    def _set_addresses(self) -> None:
        """What masqueraded packets come from, and who is a pod.

        Several sources say it, and the last may be late: what a former control process knew counts until then.
        """
        if self._adopting:
            return
        settings = self.store.settings
        said = {address.version: address for address in settings.masquerade}
        own = {address.version: address for address in reversed(self._own_addresses)}
        self.compiler.set_masquerade((own | said).values())
        self.compiler.set_pod_ranges(settings.pod_ranges)

    def _set_translation(self, settings: Settings) -> None:
        self.compiler.set_translation(
            settings.nat46_prefix, settings.nat64_pool, settings.nat64_ports, settings.translation_mtu
        )

    def finish_adoption(self) -> int:
        """All sources have spoken: VIPs of a former control process that nobody asked for go. Returns how many."""
        self._adopting = False
        self._set_addresses()
        gone = self.compiler.finish_adoption()
        self.collect()
        return gone

    def collect(self) -> int:
        """End second chances whose time is over, and free removed pods that no flow refers to; returns how many."""
        self._end_second_chances()
        return self.compiler.collect(self.engine.acknowledged(), self._pod_flows)

    def _end_second_chances(self) -> None:
        """Those whose time is over; that of others begins. Until all sources have spoken a predecessor's stand."""
        if not self._adopting:
            self.compiler.end_second_chances(last_tick(self.engine.states))

    def beside(self) -> list[Counts]:
        """Whose packets count beside those of the workers, as of the last `refresh`."""
        counts = self.kept_counts if self.kernel is None else self.kernel.counts
        return [] if counts is None else [counts]

    def refresh(self) -> None:
        """Count what the kernel has done up to now."""
        if self.kernel is not None:
            self.kernel.refresh()

    def cache_report(self) -> CacheReport | None:
        """What the kernel does for the workers, None: it was not asked to."""
        if self.kernel is not None:
            return self.kernel.report()
        return CacheReport(on=False, why=self.cache_failure) if self.cache_failure else None

    def _reply_report(self) -> ReplyReport | None:
        return None if self.steering is None else ReplyReport(self._reply_path(), self.steering.refused())

    def _reply_path(self) -> str:
        return "marked" if self._marks else str(self.settings.reply_path)

    def place_of_replies(self, pod: Address, client: Address) -> str:
        """In words: where a pod's replies to a client have to come in, so that steering brings them up."""
        way = self.steering.way_to(pod, client) if self.steering is not None else ""
        return {
            "marked": f"by marked interfaces: {', '.join(mark.name for mark in self._marks)}",
            "any": "by any interface",
            "strict": f"where this node sends to {pod}" + (f": by {way}" if way else ""),
        }[self._reply_path()]

    def totals(self) -> Totals:
        """Counters of all workers together."""
        return totals(self.engine.states)

    def report(self) -> Report:
        """Everything that `show` can tell."""
        sums = self.totals()
        self.refresh()
        report = build_report(
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
        return replace(report, cache=self.cache_report(), replies=self._reply_report())

    def flows(self, wanted: FlowFilter) -> FlowList:
        """The flows that fit, a page of them, read while the workers go on."""
        records = list(self.compiler.records())
        vips = pods = None
        if wanted.vip is not None:
            vips = {record.index for record in records if record.vip.key.prefix == wanted.vip}
        if wanted.pod is not None:
            pods = {
                index
                for record in records
                for places in (record.pods, record.draining, {p: i for i, p in record.flushed.items()})
                for pod, index in places.items()
                if pod.address == wanted.pod
            }
        worker, slot = wanted.after or (0, -1)
        rows = flow_rows(
            self.engine.tables,
            self.engine.states,
            worker=worker,
            slot=slot + 1,
            vips=vips,
            pods=pods,
            clients=None if wanted.client is None else {wanted.client},
            flow_states=None if wanted.state is None else {wanted.state},
        )
        found: list[FlowReport] = []
        for row in rows:
            if len(found) == wanted.limit:
                return FlowList(tuple(found), (found[-1].worker, found[-1].slot))
            record = self.compiler.record_at(row.pop("vip_index"))
            del row["pod_index"]
            former = row.pop("otherwise_index")
            row["otherwise"] = None if record is None else record.pod_at(former)
            if self.kernel is not None:
                carried = self.kernel.carried(row["worker"], row["slot"])
                if carried is not None:
                    row |= {"tier": KERNEL, "expires_in_s": carried.expires_in_s, "ways": carried.ways}
            found.append(FlowReport(vip=None if record is None else record.vip.key, **row))
        return FlowList(tuple(found))

    def told(self, report: Report, show: Show) -> Report:
        """`report` with what only this `show` asks for."""
        return replace(report, flows=self.flows(show.flows)) if show.kind is ShowKind.FLOWS else report

    @property
    def _counted(self) -> list[Counted]:
        """Whose counters are added up."""
        return [*self.engine.states, *self.beside()]

    def _note_pods(self) -> None:
        indices = self.compiler.take_new_pods()
        self._baselines.note_pods(indices, many_pod_counters(self._counted, indices))

    def _vip_counts(self, index: int) -> np.ndarray:
        return vip_counters(self._counted, index)

    def _own_counts(self, record: VipRecord) -> np.ndarray:
        return self._baselines.since(record, self._vip_counts)

    def _pod_counts(self, index: int) -> np.ndarray:
        return pod_counters(self._counted, index)

    def _own_pod_counts(self, index: int) -> np.ndarray:
        return self._baselines.pod_since(index, self._pod_counts)

    def _pod_flows(self, index: int) -> int:
        return pod_flows(self.engine.states, index)


def _sum_of_references(engine: Engine) -> np.ndarray:
    """int[MAX_PODS]: flows of all workers that refer to each pod."""
    return np.add.reduce([state.pod_refs for state in engine.states])
