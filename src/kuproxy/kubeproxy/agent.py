"""What runs beside the workers of a kube-proxy: the source `kubernetes`, the ports, the events.

Everything here lives in the event loop; the source's listeners are called in the control thread and hand over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kuproxy.codes import Family
from kuproxy.control.policy import node_port_addresses
from kuproxy.daemon.control import Controller
from kuproxy.daemon.kubernetes import SOURCE, HealthCheck, KubernetesSource, NodeOptions, Sync, Trouble
from kuproxy.daemon.metrics import exposition
from kuproxy.daemon.thread import ControlThread
from kuproxy.errors import ConfigError, KuError, Problem
from kuproxy.kube.client import create
from kuproxy.kubeproxy.config import Endpoint, ProxyConfig, read_config
from kuproxy.kubeproxy.events import Event, Recorder, about_node, about_service
from kuproxy.kubeproxy.health import FAMILIES, ProxyHealth
from kuproxy.kubeproxy.listen import Answer, Handler, Ports, Question, bind, text
from kuproxy.kubeproxy.local_pods import follow_pods, interfaces_of
from kuproxy.kubeproxy.metrics import ProxyMetrics
from kuproxy.kubeproxy.service_health import EVERYWHERE, ServiceHealth
from kuproxy.kubeproxy.zpages import configz, flagz, statusz
from kuproxy.model.node import NodeView
from kuproxy.model.vip import Address, Vip
from kuproxy.steering.steering import Steering

__all__ = ["PROXY_MODE", "Agent"]

# What /proxyMode says: neither iptables nor nftables has rules to look at (docs/adr/020).
PROXY_MODE = "kuproxy"
RETRY_S = 5.0  # before a port that is taken is tried again, as upstream
HEALTH_RETRY_S = 30.0
LOOK_S = 2.0  # between two looks at the configuration file


class Agent:
    """The kube-proxy of one node, but for the packets."""

    def __init__(
        self,
        config: ProxyConfig,
        node_name: str,
        load: Callable[[], Any],
        file: Path | None,
        log: Any,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        """`load` reads the access to the API server (kube.client.load_access).  Raises ConfigError if it cannot.

        `flags`: all of them with their values, to be shown.
        """
        self._flags = flags or {}
        self._started_s = time.time()
        self.config, self.node_name = config, node_name
        self._load, self._file, self._log = load, file, log
        self._content = _content(file)
        self._health = ProxyHealth(config.healthy_within_s)
        self._metrics = ProxyMetrics(self._health, host=urlsplit(load().cluster.server).netloc)
        self._recorder = Recorder(node_name, self._post, self._not_sent)
        self._told: set[tuple[HealthCheck, str]] = set()  # ports that could not be opened, and why

    # ---------------------------------------------------------------------------------------- the API server

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        await create(self._load(), path, body)

    def _not_sent(self, event: Event, why: str) -> None:
        self._log.warning("event not sent", reason=event.reason, note=event.note, text=why)

    # ------------------------------------------------------------------------------------------------ running

    async def run(self, controller: Controller, thread: ControlThread, steering: Steering) -> None:
        """Until cancelled.  Raises KuError."""
        options = NodeOptions(self.node_name, self.config.proxy, node_ip=self.config.node_ip)
        source = KubernetesSource(controller, thread, self._load, options, self._log)
        self._metrics.answers = lambda: source.answers
        checks = asyncio.Event()
        self._listen(source, checks)
        source.listeners.synced.append(controller.complete_start)
        jobs = [source.run(), self._recorder.run(), self._look_at_file()]
        jobs += [self._serve_health_checks(source, steering, checks), self._say_without_node(source)]
        is_pods = interfaces_of(self.config.proxy)
        if is_pods is not None:
            jobs.append(follow_pods(is_pods, source, thread, steering, self._log))
        if self.config.healthz is not None:
            handler = self._health_handler(source)
            jobs.append(self._serve(self.config.healthz, handler, "FailedToStartProxierHealthcheck"))
        if self.config.metrics is not None:
            handler = self._metrics_handler(controller, thread, source)
            jobs.append(self._serve(self.config.metrics, handler, "FailedToStartMetricServer"))
        self._recorder.record(Event(about_node(self.node_name), "Normal", "Starting", "StartKubeProxy"))
        try:
            async with asyncio.TaskGroup() as tasks:
                for job in jobs:
                    tasks.create_task(job)
        except ExceptionGroup as group:
            raise _first(group) from None

    def _listen(self, source: KubernetesSource, checks: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def in_loop(function: Callable[..., None]) -> Callable[..., None]:
            def handed(*arguments: Any) -> None:
                loop.call_soon_threadsafe(function, *arguments)

            return handed

        def arrived() -> None:
            for family in FAMILIES:
                self._health.queued(family)

        def seen(view: NodeView) -> None:
            self._health.node_eligible = not view.node.being_deleted
            checks.set()  # its addresses may be others

        source.listeners.arrival.append(arrived)
        source.listeners.sync.append(in_loop(self._synced))
        source.listeners.trouble.append(in_loop(self._trouble))
        source.listeners.health.append(in_loop(checks.set))
        source.listeners.view.append(in_loop(seen))

    def _synced(self, sync: Sync) -> None:
        if sync.first:
            took = f"{sync.duration_s:.3f}"
            self._log.info("all is known", services=sync.services, vips=sync.added, seconds=took)
        self._metrics.synced(sync.duration_s, sync.service_changes, sync.slice_changes, full=sync.first)
        for seconds in sync.programming_s:
            self._metrics.programmed(seconds)
        for family in FAMILIES:
            self._health.updated(family)

    def _trouble(self, trouble: Trouble) -> None:
        if trouble.reasons:
            about = about_service(trouble.namespace, trouble.name)
            note = f"node {self.node_name}: {'; '.join(trouble.reasons)}"
            self._recorder.record(Event(about, "Warning", "ServiceNotServed", "SyncProxyRules", note))

    async def _say_without_node(self, source: KubernetesSource) -> None:
        """Whoever has another name than its Node is served nothing that is local: worth a line."""
        await source.synced.wait()
        if not source.node_uid:
            text = "the API server has no such Node: no endpoint counts as local; see --hostname-override"
            self._log.warning("node", name=self.node_name, text=text)

    async def _look_at_file(self) -> None:
        """A configuration that has changed is taken over by a new start, as upstream does; a wrong one is not.

        One that could not be read for a moment, or was wrong, and is again what it was at the start, has not changed.
        """
        seen = self._content
        while self._file is not None:
            await asyncio.sleep(LOOK_S)
            content, before = _content(self._file), seen
            seen = content
            if content in (before, self._content):
                continue
            try:
                read_config(self._file)
            except KuError as error:
                for line in str(error).splitlines():
                    self._log.error("changed configuration refused, the former one stays", text=line)
            else:
                raise ConfigError(Problem("has changed", str(self._file), hint="a new start takes it over"))

    # -------------------------------------------------------------------------------------------------- ports

    async def _serve(self, at: Endpoint, handler: Handler, reason: str) -> None:
        """Open a port as soon as nobody else has it."""
        while True:
            try:
                opened = bind(at)
                break
            except OSError as error:
                note = f"{at}: {error.strerror}"
                self._log.error("cannot listen", address=str(at), text=error.strerror)
                if self.config.raw.bind_address_hard_fail:
                    about = about_node(self.node_name)
                    await self._recorder.send(Event(about, "Warning", reason, "StartKubeProxy", note))
                    raise ConfigError(Problem(note, hint="bindAddressHardFail ends the proxy")) from None
                await asyncio.sleep(RETRY_S)
        ports = Ports(handler)
        await ports.open(opened)
        try:
            await asyncio.Event().wait()
        finally:
            ports.stop()

    def _health_handler(self, source: KubernetesSource) -> Handler:
        async def handle(question: Question) -> Answer:
            if question.path == "/readyz":  # upstream has none: rollouts want to know when this node forwards
                return (
                    text("ok") if source.synced.is_set() else text("not everything has been listed yet", 503)
                )
            return self._health.answer(question.path)

        return handle

    def _metrics_handler(
        self, controller: Controller, thread: ControlThread, source: KubernetesSource
    ) -> Handler:
        def scrape() -> tuple[bytes, str]:
            """In the control thread, which alone may look at the store."""
            plane, metrics = controller.plane, self._metrics
            metrics.pending = source.waiting
            metrics.queued_at_s, metrics.synced_at_s = source.counts.last_queued, source.counts.last_sync
            metrics.ended_flows = {f"IPv{int(family)}": plane.ended_flows[family] for family in Family}
            metrics.no_local_endpoints = _without_local(plane.store.source(SOURCE))
            content, media = exposition(controller)
            return content + metrics.exposition(), media

        pages: dict[str, Callable[[Question], Answer]] = {
            "/healthz": lambda _: text("ok"),
            "/proxyMode": lambda _: text(PROXY_MODE),
            "/configz": lambda _: configz(self.config.raw),
            "/flagz": lambda question: flagz(question.accept, self._flags),
            "/statusz": lambda question: statusz(question.accept, self._started_s, time.time()),
        }

        async def handle(question: Question) -> Answer:
            if question.path != "/metrics":
                page = pages.get(question.path)
                return text("404 page not found\n", 404) if page is None else page(question)
            content, media = await thread(scrape)
            return Answer(200, {"Content-Type": media}, content)

        return handle

    async def _serve_health_checks(
        self, source: KubernetesSource, steering: Steering, changed: asyncio.Event
    ) -> None:
        services = ServiceHealth(self._health.is_healthy)
        failed: list[tuple[HealthCheck, OSError]] = []
        try:
            while True:
                try:
                    async with asyncio.timeout(HEALTH_RETRY_S if failed else None):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
                addresses = _health_addresses(source.view, steering.node_addresses)
                failed = await services.sync(source.health.values(), addresses)
                self._tell_failed(failed)
        finally:
            services.stop()

    def _tell_failed(self, failed: list[tuple[HealthCheck, OSError]]) -> None:
        """Once for each port, until it is open or fails otherwise."""
        now = {(check, error.strerror or str(error)) for check, error in failed}
        for check, error in now - self._told:
            note = f"node {self.node_name} failed to start healthcheck on port {check.port}: {error}"
            self._log.error("health check", service=f"{check.namespace}/{check.name}", text=note)
            about = about_service(check.namespace, check.name)
            self._recorder.record(Event(about, "Warning", "FailedToStartServiceHealthcheck", "Listen", note))
        self._told = now


def _first(error: Exception) -> Exception:
    """What went wrong first, out of groups within groups."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _content(file: Path | None) -> bytes | None:
    """None: there is nothing to read, or not now (a mounted ConfigMap is replaced by a rename)."""
    try:
        return file.read_bytes() if file is not None else None
    except OSError:
        return None


def _health_addresses(view: NodeView, present: frozenset[Address]) -> Iterable[str]:
    """Where node ports are served; everywhere if they are."""
    if view.settings.node_port_addresses == ():
        return EVERYWHERE
    return map(str, node_port_addresses(view, present) & present)


def _without_local(vips: Iterable[Vip]) -> dict[tuple[str, str], int]:
    """Service ports of traffic policy Local whose endpoints are all elsewhere, by family and policy.

    Whoever has no endpoint at all refuses; what is not answered has some that may not serve.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for vip in vips:
        if vip.reject or not vip.key.port:
            continue
        policy = "internal" if not vip.pods else "external" if vip.outside_pods == () else ""
        if policy:
            found.setdefault((f"IPv{int(vip.key.family)}", policy), set()).add(vip.owner)
    return {key: len(owners) for key, owners in found.items()}
