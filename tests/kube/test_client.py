"""The watcher over HTTP on loopback, against the fake API server: real sockets, real faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kube_api.server import FakeApi, Fault
from kuproxy.errors import ConfigError
from kuproxy.kube.client import Watcher, load_access
from kuproxy.kube.cluster import Batch, Cluster
from kuproxy.kube.objects import Key
from kuproxy.kube.pace import Pace

pytest.importorskip("lightkube", reason="the extra `kubernetes` is not installed")

QUICK = Pace(first_backoff_s=0.02, max_backoff_s=0.1, page_items=3, watch_idle_s=1.0, list_idle_s=1.0)
NODE = "node-a1"


class Session:
    """A running watcher, and all that its batches have told."""

    def __init__(self, api: FakeApi, watcher: Watcher) -> None:
        self.api = api
        self.watcher = watcher
        self.cluster = watcher.cluster
        self.batches: list[Batch] = []
        self.services: set[Key] = set()
        self.slices: set[Key] = set()
        self._told = asyncio.Event()

    async def listen(self) -> None:
        async for batch in self.watcher.batches():
            self.batches.append(batch)
            for keys, changes in ((self.services, batch.service_changes), (self.slices, batch.slice_changes)):
                for change in changes:
                    (keys.discard if change.new is None else keys.add)(change.key)
            self._told.set()

    async def until(self, true: Callable[[], bool], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                self._told.clear()
                try:
                    async with asyncio.timeout(0.05):
                        await self._told.wait()
                except TimeoutError:
                    pass

    def names(self) -> list[str]:
        return sorted(name for _namespace, name in self.services)


def add_service(api: FakeApi, name: str, **labels: str) -> None:
    meta = {"name": name, "namespace": "shop", "labels": labels}
    api.store.create("services", {"metadata": meta, "spec": {"ports": [{"port": 80}]}})


def add_slice(api: FakeApi, name: str, service: str, *addresses: str) -> None:
    meta = {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}}
    endpoints = [{"addresses": [address]} for address in addresses]
    api.store.create(
        "endpointslices",
        {"metadata": meta, "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}]},
    )


@asynccontextmanager
async def watching(api: FakeApi, kubeconfig: Path, pace: Pace = QUICK) -> AsyncIterator[Session]:
    cluster = Cluster(NODE, random.Random(1), asyncio.get_running_loop().time(), pace)
    session = Session(api, Watcher(cluster, lambda: load_access(str(kubeconfig))))
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(session.watcher.run()), tasks.create_task(session.listen())]
        try:
            yield session
        finally:
            for task in running:
                task.cancel()


def run(
    tmp_path: Path, api: FakeApi, story: Callable[[Session], Awaitable[None]], pace: Pace = QUICK
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with api:
        kubeconfig.write_text(api.kubeconfig(token="first"))

        async def play() -> None:
            async with watching(api, kubeconfig, pace) as session:
                await story(session)

        asyncio.run(play())


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi(bookmark_s=0.2)
    api.store.create("nodes", {"metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.244.1.0/24"]}})
    api.store.create("nodes", {"metadata": {"name": "node-b1"}})
    api.store.create(
        "servicecidrs", {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}
    )
    for number in range(7):  # three pages
        add_service(api, f"web-{number}")
    add_service(api, "foreign", **{"service.kubernetes.io/service-proxy-name": "other"})
    add_slice(api, "web-0-x", "web-0", "10.244.1.1", "10.244.1.2")
    add_slice(api, "web-0-y", "web-0", "10.244.1.3")
    return api


def test_everything_comes_in_one_first_batch(tmp_path: Path, api: FakeApi) -> None:
    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        batch = session.batches[0]
        assert batch.first
        assert session.names() == [f"web-{number}" for number in range(7)]
        assert batch.node_changed
        assert batch.service_cidrs_changed
        cluster = session.cluster
        assert cluster.node is not None
        assert cluster.node.spec is not None
        assert cluster.node.spec.pod_cidrs == ["10.244.1.0/24"]
        assert [cidr.spec.cidrs for cidr in cluster.service_cidrs if cidr.spec] == [["10.96.0.0/16"]]
        assert [each.metadata.name for each in cluster.slices_of(("shop", "web-0"))] == ["web-0-x", "web-0-y"]

    run(tmp_path, api, story)


def test_changes_follow_and_name_the_services_concerned(tmp_path: Path, api: FakeApi) -> None:
    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        api.do(lambda: add_slice(api, "web-3-x", "web-3", "10.244.1.9"))
        await session.until(lambda: len(session.batches) > 1)
        assert session.batches[-1].services == {("shop", "web-3")}
        assert not session.batches[-1].service_changes
        api.do(lambda: api.store.delete("services", "shop", "web-3"))
        await session.until(lambda: ("shop", "web-3") not in session.services)
        assert ("shop", "web-3") not in session.cluster.services

    run(tmp_path, api, story)


def test_nothing_is_told_before_the_last_resource_has_been_listed(tmp_path: Path, api: FakeApi) -> None:
    api.faults.append(Fault("servicecidrs", watch=False, times=1, delay_s=0.5))

    async def story(session: Session) -> None:
        await session.until(lambda: sum(each.synced for each in session.cluster.reflectors) == 3)
        await asyncio.sleep(0.1)
        assert (session.batches, session.cluster.take()) == ([], None)
        await session.until(lambda: bool(session.batches))

    run(tmp_path, api, story)


def test_a_restart_of_the_server_loses_nothing(tmp_path: Path, api: FakeApi) -> None:
    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        await asyncio.to_thread(api.stop)
        add_service(api, "new")
        api.store.delete("services", "shop", "web-0")
        api.store.compact()  # the deletion can only be found by comparing
        await asyncio.to_thread(api.start)
        await session.until(lambda: "new" in session.names())
        await session.until(lambda: "web-0" not in session.names())
        assert len(session.names()) == 7

    run(tmp_path, api, story)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, times=6),
        Fault(status=429, retry_after_s=1, times=3),
        Fault(status=401, times=3),
        Fault(status=403, times=3),
        Fault(break_after=50, times=6),
        Fault(break_after=0, times=3),
        Fault(silent=True, times=2),
        Fault(delay_s=0.2, times=8),
    ],
    ids=["500", "429", "401", "403", "broken", "broken at once", "silent", "slow"],
)
def test_faults_pass(tmp_path: Path, api: FakeApi, fault: Fault) -> None:
    api.faults.append(fault)

    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        await session.until(lambda: fault.times == 0)
        api.do(lambda: add_service(api, "after"))
        await session.until(lambda: "after" in session.names())
        assert len(session.names()) == 8

    run(tmp_path, api, story)


def test_a_watch_that_falls_silent_is_noticed(tmp_path: Path, api: FakeApi) -> None:
    api.faults.append(Fault("services", watch=True, silent=True))

    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        api.do(lambda: add_service(api, "unheard"))
        await session.until(lambda: "unheard" in session.names())

    run(tmp_path, api, story)


def test_a_token_that_has_been_rotated_is_read_again(tmp_path: Path, api: FakeApi) -> None:
    api.tokens = {"first"}

    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        api.do(lambda: setattr(api, "tokens", {"second"}))
        # Each asks with the old one when its watch of a second is over.
        await session.until(lambda: all("401" in each.problem for each in session.cluster.reflectors))
        assert len(session.names()) == 7  # old knowledge is better than none
        (tmp_path / "kubeconfig").write_text(api.kubeconfig(token="second"))
        await session.until(lambda: all(each.problem == "" for each in session.cluster.reflectors))
        renewed = {seen.path for seen in api.seen if seen.authorization == "Bearer second"}
        assert len(renewed) == 4
        api.do(lambda: add_service(api, "after"))
        await session.until(lambda: "after" in session.names())

    run(tmp_path, api, story, replace(QUICK, watch_min_s=1.0, watch_max_s=1.0))


def test_trouble_is_reported_once_and_its_end_too(tmp_path: Path, api: FakeApi) -> None:
    api.faults.append(Fault("services", status=403, times=3))
    lines: list[str] = []

    async def story(session: Session) -> None:
        await session.until(lambda: bool(session.batches))
        await asyncio.sleep(0.05)

    kubeconfig = tmp_path / "kubeconfig"
    with api:
        kubeconfig.write_text(api.kubeconfig())

        async def play() -> None:
            cluster = Cluster(NODE, random.Random(1), asyncio.get_running_loop().time(), QUICK)
            watcher = Watcher(cluster, lambda: load_access(str(kubeconfig)), lines.append)
            task = asyncio.create_task(watcher.run())
            async with asyncio.timeout(10):
                while len([line for line in lines if line.startswith("services")]) < 2:
                    await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(play())
    assert lines == ["services: 403 Ordered: a fault on order", "services: in touch again"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "not found"),
        ("", "cannot be read"),
        ("clusters: [", "cannot be read"),
        ("{clusters: [], contexts: [], users: []}", "context"),
        ("{clusters: [], contexts: [{name: a, context: {cluster: b}}], current-context: a}", "no key 'b'"),
        ("{clusters: [{name: a, cluster: {server: 7}}], contexts: []}", "str"),
        (
            "{clusters: [{name: b, cluster: {server: 'api:6443'}}], contexts: [{name: a, context: {cluster: b}}], "
            "current-context: a}",
            "'api:6443' is not a URL",
        ),
    ],
)
def test_an_access_that_cannot_be_read_is_one_clear_line(tmp_path: Path, text: str | None, what: str) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=what) as caught:
        load_access(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
