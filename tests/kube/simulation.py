"""A day in the life of a watcher, in virtual time: the fake API server's store, a bad network, and a consumer.

Everything is decided by one seed.  Storms and calms take turns; in a storm the server answers with errors, breaks
off, falls silent, restarts and compacts, and events arrive twice and in the wrong order.  At the end of every calm
the consumer, who knows nothing but the batches, must have exactly what the server has.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec

from kube_api.errors import ApiError
from kube_api.selectors import selector
from kube_api.store import Store, Watch
from kuproxy.kube.cluster import Batch, Cluster
from kuproxy.kube.objects import Key
from kuproxy.kube.reflector import Reflector, Request

DAY_S = 24 * 3600.0
STORM_S = 100 * 60.0
CALM_S = 20 * 60.0  # longer than any Retry-After, back-off and silence together
BOOKMARK_S = 60.0
NODE = "node-a1"
PLURALS = ("services", "endpointslices", "nodes", "servicecidrs")
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
Object = dict[str, Any]


class World:
    """Clock, server, network and consumer."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.store = Store()
        self.cluster = Cluster(NODE, random.Random(seed + 1), self.now)
        self.consumer = Consumer(self.cluster)
        self.storm = True
        self.down_until = 0.0
        self.faults: dict[str, int] = {}
        self.checkpoints = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._poked: set[str] = set()
        self.wires = [Wire(self, reflector) for reflector in self.cluster.reflectors]
        self.store.changed = self._server_changed
        self._workload = Workload(self)

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), act))

    def count(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1

    def chance(self, probability: float) -> bool:
        """True now and then, while there is a storm."""
        return self.storm and self.random.random() < probability

    def _server_changed(self) -> None:
        # All that happens at one moment reaches a watch together, so that there is something to shuffle.
        for wire in self.wires:
            wire.poll_soon()

    def run(self, until_s: float = DAY_S) -> None:
        self._workload.start()
        self.at(STORM_S, self._calm)
        for wire in self.wires:
            wire.adjust()
        while self._queue and self._queue[0][0] <= until_s:
            self.now, _order, act = heapq.heappop(self._queue)
            act()
            if self.random.random() < 0.3:  # the consumer sleeps now and then
                self.consumer.take()

    def _calm(self) -> None:
        self.storm = False
        self.down_until = 0.0
        self.at(CALM_S, self._check)

    def _check(self) -> None:
        self.consumer.take()
        self.consumer.check(self.store)
        self.checkpoints += 1
        self.storm = True
        self.at(STORM_S, self._calm)


class Wire:
    """The connection of one reflector: does what it wants, as well as the weather allows."""

    def __init__(self, world: World, reflector: Reflector[Any]) -> None:
        self.world = world
        self.reflector = reflector
        self._serial = 0
        self._watch: Watch | None = None
        self._sent: list[bytes] = []
        self._polling = False
        self._tick_at = math.inf

    def adjust(self) -> None:
        """Make the connection what the reflector wants, and see to its next deadline."""
        request = self.reflector.wanted
        if request is None:
            self._watch = None
        elif request.serial != self._serial:
            self._serial = request.serial
            self._watch = None
            self._open(request)
        # A deadline moves with every byte: one timer is out, and looks again when it comes too early.
        deadline = max(self.reflector.deadline, self.world.now)
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.world.at(deadline - self.world.now, lambda: self._tick(deadline))

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = math.inf
            self.reflector.tick(self.world.now)
            self.adjust()

    def _tell(self, delay_s: float, serial: int, what: Callable[[float], None]) -> None:
        """Tell the reflector something, unless the connection has gone by then."""

        def act() -> None:
            if serial == self._serial:
                what(self.world.now)
                self.adjust()

        self.world.at(delay_s, act)

    def _open(self, request: Request) -> None:
        world, serial = self.world, request.serial
        latency = world.random.uniform(0.001, 0.05)
        if world.now < world.down_until:
            world.count("refused")
            self._tell(latency, serial, lambda now: self.reflector.fail(serial, now, "connection refused"))
            return
        if world.chance(0.03):
            world.count("silent")  # accepted, and never answered
            return
        if world.chance(0.15):
            code, retry_after = world.random.choice(
                ((500, ""), (429, "2"), (503, "30"), (401, ""), (403, ""), (504, ""), (404, ""))
            )
            world.count(str(code))
            if code == 404 and self.reflector.resource.optional:
                code = 503  # a server that has the resource does not say that
            body = msgspec.json.encode(ApiError(code, "Simulated", "a bad day").status)
            self._answer(latency, serial, code, body, retry_after)
            return
        params = dict(request.params)
        matches = selector(params.get("labelSelector", ""), params.get("fieldSelector", ""))
        plural = self.reflector.resource.plural
        try:
            if not request.watch:
                listed = world.store.list(
                    plural,
                    matches,
                    limit=int(params.get("limit", 0)) and world.random.choice((1, 3, 500)),
                    continue_=params.get("continue", ""),
                    version=params.get("resourceVersion", ""),
                    match=params.get("resourceVersionMatch", ""),
                )
                self._answer(latency, serial, 200, msgspec.json.encode(listed), "")
                return
            watch = world.store.watch(plural, matches, params["resourceVersion"])
        except ApiError as error:
            world.count(str(error.code))
            if request.watch:  # a watch is refused by an event
                line = msgspec.json.encode({"type": "ERROR", "object": error.status}) + b"\n"
                self._answer(latency, serial, 200, line, "")
            else:
                after = str(error.retry_after_s or "")
                self._answer(latency, serial, error.code, msgspec.json.encode(error.status), after)
            return
        self._watch, self._sent = watch, []
        self._tell(latency, serial, lambda now: self.reflector.head(serial, now, 200))
        self.poll_soon()
        self._bookmark_after(serial, BOOKMARK_S)
        self.world.at(float(params["timeoutSeconds"]), lambda: self._server_closes(serial))
        if world.chance(0.3):
            world.at(world.random.uniform(1, 600), lambda: self._breaks(serial))

    def _answer(self, latency: float, serial: int, code: int, body: bytes, retry_after: str) -> None:
        """A whole answer, in pieces; now and then only the beginning of it."""
        broken = self.world.chance(0.05)
        if broken:
            self.world.count("broken answer")
            body = body[: self.world.random.randrange(len(body) + 1)]

        def act(now: float) -> None:
            self.reflector.head(serial, now, code, retry_after)
            self._pieces(serial, now, body)
            if broken:
                self.reflector.fail(serial, now, "connection reset")
            else:
                self.reflector.end(serial, now)

        self._tell(latency, serial, act)

    def _pieces(self, serial: int, now: float, data: bytes) -> None:
        """Cut anywhere: most often whole, sometimes into single bytes."""
        size = self.world.random.choice((1, 7, 200, 4096, 1 << 20)) if len(data) < 5000 else 4096
        for start in range(0, len(data), size):
            self.reflector.body(serial, now, data[start : start + size])

    # ---------------------------------------------------------------------------------------- watches

    def poll_soon(self) -> None:
        if self._watch is None or self._polling:
            return
        self._polling = True
        self.world.at(0.001, self._poll)

    def _poll(self) -> None:
        self._polling = False
        watch, serial = self._watch, self._serial
        if watch is None:
            return
        try:
            events = watch.poll()
        except ApiError as error:
            self.world.count(f"watch {error.code}")
            events = [{"type": "ERROR", "object": error.status}]
            self._watch = None
        lines = [msgspec.json.encode(event) + b"\n" for event in events]
        if not lines:
            return
        world = self.world
        if len(lines) > 1 and self._watch is not None and world.chance(0.3):
            world.count("reordered")
            world.random.shuffle(lines)
        if self._sent and world.chance(0.2):
            world.count("duplicates")
            lines += world.random.choices(self._sent, k=3)
        self._sent = (self._sent + lines)[-20:]
        data = b"".join(lines)
        delay = world.random.uniform(0.001, 0.02)
        self._tell(delay, serial, lambda now: self._pieces(serial, now, data))
        if self._watch is None:
            self._tell(delay, serial, lambda now: self.reflector.end(serial, now))

    def _bookmark_after(self, serial: int, delay_s: float) -> None:
        def act() -> None:
            if serial == self._serial and self._watch is not None:
                self._send_bookmark(serial)
                self._bookmark_after(serial, BOOKMARK_S)

        self.world.at(delay_s, act)

    def _send_bookmark(self, serial: int) -> None:
        """It comes after whatever is still on its way."""
        assert self._watch is not None
        self._poll()
        if self._watch is not None and self._watch.current:
            line = msgspec.json.encode(self._watch.bookmark()) + b"\n"
            self._tell(0.03, serial, lambda now: self._pieces(serial, now, line))

    def _server_closes(self, serial: int) -> None:
        if serial == self._serial and self._watch is not None:
            self._send_bookmark(serial)
            self._watch = None
            self._tell(0.05, serial, lambda now: self.reflector.end(serial, now))

    def _breaks(self, serial: int) -> None:
        """The stream breaks in the middle of a line, ends without an error, or says nothing more."""
        if serial != self._serial or self._watch is None:
            return
        self._watch = None
        how = self.world.random.choice(("reset", "end", "silence"))
        self.world.count(f"watch {how}")
        half = b'{"type":"ADDED","object":{"kind":'
        if how == "reset":
            self._tell(0.03, serial, lambda now: self.reflector.body(serial, now, half))
            self._tell(0.04, serial, lambda now: self.reflector.fail(serial, now, "connection reset"))
        elif how == "end":
            self._tell(0.04, serial, lambda now: self.reflector.end(serial, now))

    def cut(self) -> None:
        """The server has gone."""
        serial, self._watch = self._serial, None
        self._tell(0.0, serial, lambda now: self.reflector.fail(serial, now, "connection reset by peer"))


class Workload:
    """What users and controllers do to the cluster, and what befalls the server."""

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self) -> None:
        store = self.world.store
        store.create("nodes", {"metadata": {"name": NODE, "labels": {}}, "spec": {}})
        store.create("nodes", {"metadata": {"name": "node-b1"}, "spec": {}})
        store.create(
            "servicecidrs", {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}
        )
        for _ in range(20):
            self._change()
        self._later()
        self._trouble()

    def _later(self) -> None:
        def act() -> None:
            # Mostly single changes, sometimes a roll-out; none in a calm but for the node's heartbeat.
            if self.world.storm:
                for _ in range(self.world.random.choice((1, 1, 1, 2, 8))):
                    self._change()
            else:
                self._heartbeat()
            self._later()

        self.world.at(self.world.random.expovariate(1 / 150.0), act)

    def _trouble(self) -> None:
        def act() -> None:
            world = self.world
            if world.storm:
                what = world.random.choice(("compact", "compact", "restart", "cache"))
                world.count(what)
                if what == "compact":
                    world.store.compact()
                elif what == "cache":
                    world.store.cache_lag = world.random.choice((0, 5, 50))
                else:
                    world.store.restart()
                    world.down_until = world.now + world.random.uniform(1, 200)
                    for wire in world.wires:
                        wire.cut()
            self._trouble()

        self.world.at(self.world.random.expovariate(1 / 1200.0), act)

    def _heartbeat(self) -> None:
        node = self.world.store.get("nodes", "", NODE)
        status = {"conditions": [{"type": "Ready", "lastHeartbeatTime": f"{self.world.now:.3f}"}]}
        self.world.store.update("nodes", {**node, "status": status}, "status")

    def _change(self) -> None:
        store, choose = self.world.store, self.world.random
        what = choose.random()
        if what < 0.1:
            self._heartbeat()
        elif what < 0.15:
            node = store.get("nodes", "", NODE)
            zone = {"topology.kubernetes.io/zone": choose.choice("abc")}
            store.update("nodes", {**node, "metadata": {**node["metadata"], "labels": zone}})
        elif what < 0.2:
            name = choose.choice("xyz")
            self._toggle("servicecidrs", "", name, {"spec": {"cidrs": [f"10.9{choose.randrange(9)}.0.0/16"]}})
        elif what < 0.5:
            name = f"service-{choose.randrange(12)}"
            # Few addresses and ports, so that services claim the same.
            port = {"name": "http", "port": choose.randrange(80, 84), "protocol": choose.choice(("TCP", "UDP"))}
            address = f"10.96.0.{choose.randrange(4)}"
            spec = {"ports": [port], "clusterIP": address, "clusterIPs": [address]}
            labels = choose.choice(({}, {}, {}, {PROXY_NAME: "other"}))
            self._toggle("services", choose.choice(("shop", "edge")), name, {"spec": spec}, labels)
        else:
            number = choose.randrange(24)
            labels = {"kubernetes.io/service-name": f"service-{choose.choice((number // 2, number // 2, 0))}"}
            if choose.random() < 0.1:
                labels["service.kubernetes.io/headless"] = ""
            count = choose.randrange(5)
            endpoints = [self._endpoint() for _ in range(count)] or None
            ports = [{"name": "http", "port": 80, "protocol": each} for each in ("TCP", "UDP")]
            body: Object = {"addressType": "IPv4", "endpoints": endpoints, "ports": ports}
            self._toggle("endpointslices", choose.choice(("shop", "edge")), f"slice-{number}", body, labels)

    def _endpoint(self) -> Object:
        choose = self.world.random
        serving = choose.random() < 0.8
        conditions = {"ready": serving and choose.random() < 0.8, "serving": serving, "terminating": not serving}
        return {"addresses": [f"10.1.0.{choose.randrange(250)}"], "conditions": conditions}

    def _toggle(
        self, plural: str, namespace: str, name: str, body: Object, labels: dict[str, str] | None = None
    ) -> None:
        """Create what is not there; change or delete what is."""
        store = self.world.store
        meta: Object = {"name": name, "labels": labels or {}}
        if namespace:
            meta["namespace"] = namespace
        try:
            store.get(plural, namespace, name)
        except ApiError:
            store.create(plural, {"metadata": meta, **body})
            return
        if self.world.random.random() < 0.4:
            store.delete(plural, namespace, name)
        else:
            store.update(plural, {"metadata": meta, **body})


class Consumer:
    """Knows only what batches have told."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.batches = 0
        self.services: dict[Key, Any] = {}
        self.slices: dict[Key, Any] = {}

    def take(self) -> None:
        batch = self.cluster.take()
        if batch is None:
            return
        assert self.cluster.synced
        assert batch.first == (self.batches == 0)
        self.batches += 1
        self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        for view, changes in ((self.services, batch.service_changes), (self.slices, batch.slice_changes)):
            for change in changes:
                assert view.get(change.key) == change.old, (
                    "the change does not start where the last one ended"
                )
                assert change.old != change.new
                if change.new is None:
                    del view[change.key]
                else:
                    view[change.key] = change.new
        touched = {change.key for change in batch.service_changes}
        for change in batch.slice_changes:
            touched |= {each.service for each in (change.old, change.new) if each and each.service}
        assert touched == batch.services

    def check(self, store: Store) -> None:
        """No lost and no stale object."""
        cluster = self.cluster
        assert cluster.synced, cluster.problems()
        expected = {each.resource.plural: _expected(store, each) for each in cluster.reflectors}
        assert self.services == expected["services"] == cluster.services
        assert self.slices == expected["endpointslices"]
        assert cluster.node == expected["nodes"].get(("", NODE))
        assert cluster.service_cidrs == tuple(cidr for _, cidr in sorted(expected["servicecidrs"].items()))
        by_service: dict[Key, list[Any]] = {}
        for _key, each in sorted(self.slices.items()):
            if each.service:
                by_service.setdefault(each.service, []).append(each)
        for key in {*by_service, *self.services}:
            assert cluster.slices_of(key) == by_service.get(key, [])


def _expected(store: Store, reflector: Reflector[Any]) -> dict[Key, Any]:
    """What a watcher should have of a resource, decoded as it decodes."""
    resource = reflector.resource
    matches = selector(resource.label_selector, resource.field_selector)
    found = {}
    for key, obj in store.objects(resource.plural, matches).items():
        item = resource.decoder.item(msgspec.json.encode(obj))
        item.meta.resource_version = ""
        found[key] = item
    return found
