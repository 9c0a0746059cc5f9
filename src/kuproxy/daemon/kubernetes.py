"""The source `kubernetes`: follows an API server, and keeps what the controller holds equal to what it says.

The watcher runs in the event loop; everything from a batch of changed objects to the tables happens in the control
thread, in `take_in`.  While one batch is worked on the next one gathers, so that a burst is taken in few steps and a
single change at once.

Nothing is told to the controller before every resource has been listed once: what the tables hold from before a
restart keeps forwarding until then.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from random import Random
from typing import Any

from kuproxy.codes import Family
from kuproxy.control.book import Claimant, Difference
from kuproxy.control.policy import node_port_networks, pod_ranges
from kuproxy.daemon.control import Controller
from kuproxy.daemon.decide import Decider, HealthCheck, read_node, read_service_cidrs
from kuproxy.daemon.memory import settle
from kuproxy.daemon.programming import Programmer
from kuproxy.daemon.thread import ControlThread
from kuproxy.errors import KuError
from kuproxy.kube.client import Watcher
from kuproxy.kube.cluster import Batch, Cluster
from kuproxy.kube.objects import EndpointSlice
from kuproxy.kube.pace import Pace
from kuproxy.kube.reader import Finding
from kuproxy.model.node import NodeInfo, NodeView, ProxySettings
from kuproxy.model.service import ServiceObjects
from kuproxy.model.vip import Address, Prefix, VipKey

__all__ = [
    "SOURCE",
    "Counts",
    "HealthCheck",
    "KubernetesSource",
    "Listeners",
    "NodeOptions",
    "Sync",
    "Trouble",
]

SOURCE = "kubernetes"
COLLECTOR_PAUSE_S = 60.0  # at most: an API server may be away for hours
RETRY_S = 5.0  # before what was refused is tried again: the other owner may have let it go
BEGIN_TRIES = 12  # after so many, a minute, what is still refused for want of room will not be served


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What the operator of a node says; the rest comes from the API server."""

    node_name: str
    proxy: ProxySettings = field(
        default_factory=ProxySettings
    )  # without service_cidrs, which are objects of the API
    proxy_name: str | None = None  # serve what has this service-proxy-name; None: what has none
    min_interval_s: float = 0.0  # between two updates, as minSyncPeriod
    node_ip: Address | None = None  # the node's primary address, before those of its object


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a service asks for and does not get; without reasons, it has all again."""

    namespace: str
    name: str
    reasons: tuple[str, ...]  # one sentence each


@dataclass(frozen=True, slots=True)
class Sync:
    """One update of the tables."""

    first: bool
    began: float  # wall clock, seconds since the epoch
    duration_s: float  # from the batch to the published tables
    service_changes: int  # changed Service objects
    slice_changes: int
    services: int  # that were decided anew
    added: int  # VIPs
    changed: int
    removed: int
    generation: int
    # From each changed slice's last-change-trigger-time annotation to the published tables (network programming).
    programming_s: tuple[float, ...] = ()
    error: str = ""  # what was refused; the rest is programmed


@dataclass(slots=True)
class Counts:
    """What is known and served now, and what has happened since the start."""

    services: int = 0
    slices: int = 0
    endpoints: int = 0
    syncs: int = 0
    failed: int = 0  # syncs in which something was refused
    last_queued: float = 0.0  # wall clock: when the last change arrived
    last_sync: float = 0.0  # wall clock: when tables and traffic last followed
    pending: bool = False  # something has arrived that the tables do not have yet


@dataclass(slots=True)
class Listeners:
    """Called in the control thread; whoever needs the event loop hands on with `call_soon_threadsafe`.

    All but `arrival`, which is called in the event loop: something has arrived, and nothing waited before.
    """

    arrival: list[Callable[[], None]] = field(default_factory=list)
    synced: list[Callable[[], None]] = field(default_factory=list)  # once, after the first update
    sync: list[Callable[[Sync], None]] = field(default_factory=list)
    trouble: list[Callable[[Trouble], None]] = field(default_factory=list)
    health: list[Callable[[], None]] = field(default_factory=list)  # `health` has changed
    view: list[Callable[[NodeView], None]] = field(default_factory=list)  # before services are decided by it


class KubernetesSource:
    """Follows an API server and keeps the source `kubernetes` of a Controller equal to what it says.

    `load` reads the access (kube.client.load_access) at the start and whenever it is refused.
    """

    def __init__(
        self,
        controller: Controller,
        thread: ControlThread,
        load: Callable[[], Any],
        options: NodeOptions,
        log: Any,
        *,
        pace: Pace | None = None,
        random: Random | None = None,
    ) -> None:
        self.options = options
        self.listeners = Listeners()
        self.counts = Counts()
        self.synced = asyncio.Event()
        self.health: dict[Claimant, HealthCheck] = {}  # replaced as a whole
        self.view = NodeView(NodeInfo(options.node_name), options.proxy)
        self.node_uid = ""  # events about the node name it
        self._controller, self._thread, self._load, self._log = controller, thread, load, log
        self._pace = pace
        self._random = random or Random()
        self._programmer = Programmer(controller, SOURCE)
        self._decider = Decider()
        self._troubles: dict[Claimant, tuple[str, ...]] = {}
        self._listed = False  # a first batch has come
        self._begun = False  # all that the API server has was in the tables at least once
        self._tries = 0  # to program what was refused
        self._found_pods: tuple[Prefix, ...] | None = None  # None: the view's prefixes say who is a pod
        self._refused_services: set[Claimant] = set()
        self._cluster: Cluster | None = None
        self._watcher: Watcher | None = None

    @property
    def node(self) -> NodeInfo:
        """The own Node as last seen; a name alone before that, and when the API server has none."""
        return self.view.node

    @property
    def answers(self) -> dict[int, int]:
        """Answers of the API server by HTTP status; 0: there was none."""
        return self._watcher.answers if self._watcher is not None else {}

    @property
    def waiting(self) -> tuple[int, int]:
        """Services and slices that have changed and are not in the tables yet."""
        return self._cluster.waiting if self._cluster is not None else (0, 0)

    def problems(self) -> list[str]:
        """Why news may be missing, a line each."""
        return self._cluster.problems() if self._cluster is not None else []

    # ------------------------------------------------------------------------------------------- in the event loop

    async def run(self) -> None:
        """List, watch, feed, until cancelled.  Raises ConfigError if the access cannot be read."""
        now = asyncio.get_running_loop().time()
        cluster = Cluster(self.options.node_name, self._random, now, self._pace, self.options.proxy_name)
        self._cluster = cluster
        self._controller.find_service = self._find_service
        self._watcher = Watcher(cluster, self._load, self._report, self._note_arrival)
        await self._thread(self._controller.plane.compiler.warm)
        # A hundred thousand objects arrive that stay; looking through them again and again would double the time.
        gc.disable()
        patience = asyncio.get_running_loop().call_later(COLLECTOR_PAUSE_S, gc.enable)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watcher.run())
                tasks.create_task(self._follow(self._watcher, cluster))
                tasks.create_task(self._retry())
        finally:
            patience.cancel()
            gc.enable()

    def _report(self, line: str) -> None:
        self._log.warning("watch", text=line)

    def _note_arrival(self) -> None:
        self.counts.last_queued = time.time()
        if not self.counts.pending:
            self.counts.pending = True
            self._tell(self.listeners.arrival)

    async def _follow(self, watcher: Watcher, cluster: Cluster) -> None:
        async for batch in watcher.batches(self.options.min_interval_s):
            await self._thread(self.take_in, cluster, batch)
            self.counts.pending = cluster.changed
            if self.counts.pending:
                self._tell(self.listeners.arrival)
            if batch.first:
                self.synced.set()
                del batch  # with all that it names
                await self._thread(settle)

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            if self._programmer.refused:
                await self._thread(self.try_again)

    # ---------------------------------------------------------------------------------------- in the control thread

    def take_in(self, cluster: Cluster, batch: Batch) -> Sync:
        """Bring the tables to what the cluster has."""
        began, start = time.time(), time.perf_counter()
        moved = batch.first
        if batch.first or batch.node_changed or batch.service_cidrs_changed:
            moved = self._look(cluster) or batch.first
        difference, faulty = self._decider.decide(cluster, batch.services, self.view, everything=moved)
        programmed = self._programmer.program(difference)
        self._listed |= batch.first
        self._begin_if(not programmed.is_lacking)
        if batch.first:
            seconds = round(time.perf_counter() - start, 3)
            self._log.info("in step with the API server", services=len(cluster.services), seconds=seconds)
        if self.health is not self._decider.health:
            self.health = self._decider.health
            self._tell(self.listeners.health)
        published = time.time()
        sync = Sync(
            first=batch.first,
            began=began,
            duration_s=time.perf_counter() - start,
            service_changes=len(batch.service_changes),
            slice_changes=len(batch.slice_changes),
            services=len(cluster.services) if moved else len(batch.services),
            added=programmed.added,
            changed=programmed.changed,
            removed=programmed.removed,
            generation=self._controller.generation,
            programming_s=tuple(_programming(batch, began, published)),
            error="; ".join(programmed.refused.values()),
        )
        self._count(cluster, batch, sync, published)
        self._tell_troubles(difference.problems.keys() | faulty, programmed.refused)
        for listener in self.listeners.sync:
            listener(sync)
        return sync

    def _find_service(self, owner: str) -> tuple[ServiceObjects, NodeView] | None:
        """What a VIP with this owner, `namespace/service:port`, is made from."""
        namespace, _, rest = owner.partition("/")
        if self._cluster is None:
            return None
        objects = self._decider.objects(self._cluster, (namespace, rest.partition(":")[0]))
        return None if objects is None else (objects, self.view)

    def _look(self, cluster: Cluster) -> bool:
        """See what has become of the node and the service ranges; whether services are to be decided anew."""
        found: list[Finding] = []
        settings = replace(self.options.proxy, service_cidrs=read_service_cidrs(cluster, found))
        node = read_node(cluster, found)
        if self.options.node_ip is not None:
            node = replace(node, addresses=(self.options.node_ip, *node.addresses))
        view = NodeView(node, settings)
        for finding in found:
            self._log.warning("object left out", text=f"{finding.field}: {finding.message}")
        self.node_uid = cluster.node.metadata.uid if cluster.node is not None else ""
        if view == self.view and self._decider.book:
            return False
        self.view = view
        addresses = [view.node.address(family) for family in Family]
        masquerade = tuple(address for address in addresses if address is not None)
        pods = pod_ranges(view) if self._found_pods is None else self._found_pods
        try:
            self._controller.set_node(masquerade, node_port_networks(view), pods)
        except KuError as error:  # services are served nonetheless
            self._log.error("the node's addresses are not followed", text=str(error))
        for listener in self.listeners.view:
            listener(view)
        return True

    def follow_pods(self, found: tuple[Prefix, ...]) -> None:
        """Who is a pod of this node, where interfaces say it."""
        self._found_pods = found
        self._controller.set_pods(found)

    def _begin_if(self, complete: bool) -> None:
        """Once everything is in the store for the first time, or will not be.

        What a former process has left goes then, so that a kernel that has no memory for a moment must not make us
        forget services that are there.
        """
        if self._begun or not self._listed or not (complete or self._tries >= BEGIN_TRIES):
            return
        self._begun = True
        self._tell(self.listeners.synced)
        self._controller.plane.end_stale(self._decider.book.serving())

    def try_again(self) -> None:
        """What was refused may be possible now."""
        before = self._programmer.refused
        programmed = self._programmer.program(Difference())
        self._tries += 1
        self._begin_if(not programmed.is_lacking)
        if programmed.refused != before:
            self._tell_troubles(set(), programmed.refused)

    def _count(self, cluster: Cluster, batch: Batch, sync: Sync, published: float) -> None:
        counts = self.counts
        counts.services, counts.slices = len(cluster.services), cluster.slice_count
        for change in batch.slice_changes:
            counts.endpoints += _endpoints(change.new) - _endpoints(change.old)
        counts.syncs += 1
        counts.failed += bool(sync.error)
        counts.last_sync = published

    def _tell_troubles(self, changed: set[Claimant], refused: dict[VipKey, str]) -> None:
        """Tell of the services that have other troubles than before, and of those that have none any more."""
        by_service: dict[Claimant, list[str]] = {}
        for key, reason in refused.items():
            namespace, _, rest = self._programmer.owner(key).partition("/")
            by_service.setdefault((namespace, rest.partition(":")[0]), []).append(reason)
        for claimant in changed | by_service.keys() | self._refused_services:
            reasons = [
                *self._decider.faults.get(claimant, ()),
                *map(str, self._decider.book.problems(claimant)),
                *by_service.get(claimant, ()),
            ]
            if tuple(reasons) == self._troubles.get(claimant, ()):
                continue
            self._troubles[claimant] = tuple(reasons)
            if not reasons:
                del self._troubles[claimant]
            trouble = Trouble(*claimant, tuple(reasons))
            self._log.warning(
                "service", service="/".join(claimant), text="; ".join(reasons) or "in order again"
            )
            for listener in self.listeners.trouble:
                listener(trouble)
        self._refused_services = set(by_service)

    @staticmethod
    def _tell(listeners: list[Callable[[], None]]) -> None:
        for listener in listeners:
            listener()


def _endpoints(endpoint_slice: EndpointSlice | None) -> int:
    return len(endpoint_slice.endpoints or ()) if endpoint_slice is not None else 0


def _programming(batch: Batch, began: float, published: float) -> Iterator[float]:
    """Seconds from what made the endpoints change to the published tables, as upstream counts it.

    Not for the first batch: what happened before there was a proxy says nothing about it.
    """
    if batch.first:
        return
    for change in batch.slice_changes:
        annotations = change.new.metadata.annotations if change.new is not None else None
        if annotations is None or not annotations.last_change_trigger_time:
            continue
        try:
            triggered = datetime.fromisoformat(annotations.last_change_trigger_time).timestamp()
        except ValueError:
            continue
        if triggered <= began:
            yield published - triggered
