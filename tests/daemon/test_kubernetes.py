"""From the API server to the tables: over HTTP on loopback, with an engine in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.rig import LocalNode, controller, make_log
from kube_api.server import FakeApi
from kuproxy.daemon.control import Controller
from kuproxy.daemon.kubernetes import SOURCE, KubernetesSource, NodeOptions, Sync, Trouble
from kuproxy.daemon.thread import ControlThread
from kuproxy.kube.client import load_access
from kuproxy.kube.pace import Pace

pytest.importorskip("lightkube", reason="the extra `kubernetes` is not installed")

NODE = "node-a1"
PACE = Pace(first_backoff_s=0.02, max_backoff_s=0.1, watch_idle_s=2.0, list_idle_s=2.0)
Object = dict[str, Any]


class Rig:
    """A source over a fake API server, and what it told."""

    def __init__(self, api: FakeApi, made: Controller, source: KubernetesSource) -> None:
        self.api, self.controller, self.source = api, made, source
        self.syncs: list[Sync] = []
        self.troubles: list[Trouble] = []
        source.listeners.sync.append(self.syncs.append)
        source.listeners.trouble.append(self.troubles.append)

    @property
    def node(self) -> LocalNode:
        forwarder = self.controller.forwarder
        assert isinstance(forwarder, LocalNode)
        return forwarder

    def vips(self) -> dict[str, list[str]]:
        """Pods by VIP, as the tables have them."""
        compiler = self.controller.plane.compiler
        records = [record for record in compiler.records() if not record.removed]
        return {str(each.vip.key): sorted(str(pod) for pod in each.pods) for each in records}

    async def until(self, true: Callable[[], bool], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.01)


def run(
    tmp_path: Path,
    api: FakeApi,
    story: Callable[[Rig], Awaitable[None]],
    options: NodeOptions | None = None,
    files: tuple[Path, ...] = (),
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(api.kubeconfig())
    made = controller(files=files)
    thread = ControlThread()
    source = KubernetesSource(
        made,
        thread,
        lambda: load_access(str(kubeconfig)),
        options or NodeOptions(NODE),
        make_log(),
        pace=PACE,
        random=random.Random(1),
    )

    async def main() -> None:
        task = asyncio.create_task(source.run())
        try:
            await story(Rig(api, made, source))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    try:
        asyncio.run(main())
    finally:
        thread.close()


def add_node(api: FakeApi, name: str = NODE, address: str = "192.0.2.1", **labels: str) -> None:
    status = {"addresses": [{"type": "InternalIP", "address": address}]}
    node = api.store.create("nodes", {"metadata": {"name": name, "labels": labels}, "spec": {}})
    api.store.update("nodes", {**node, "status": status}, "status")


def service(name: str, address: str, protocol: str = "TCP", **spec: Any) -> Object:
    ports = [{"port": 80, "protocol": protocol, "targetPort": 8080}]
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports, **spec},
    }


def endpoints(name: str, *addresses: str, protocol: str = "TCP", **conditions: bool) -> Object:
    return {
        "metadata": {
            "name": f"{name}-x",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [each], "conditions": conditions} for each in addresses],
        "ports": [{"port": 8080, "protocol": protocol}],
    }


def test_services_come_change_and_go(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert rig.vips() == {
            "10.96.0.10/32 protocol tcp port 80": ["10.1.0.1:8080", "10.1.0.2:8080"],
            "10.96.0.10/32": [],  # refuses what is for none of the ports
        }
        assert rig.syncs[0].first
        rig.api.do(lambda: rig.api.store.update("endpointslices", endpoints("web", "10.1.0.3")))
        await rig.until(lambda: len(rig.syncs) > 1)
        assert rig.vips()["10.96.0.10/32 protocol tcp port 80"] == ["10.1.0.3:8080"]
        assert (rig.syncs[-1].services, rig.syncs[-1].changed, rig.syncs[-1].added) == (1, 1, 0)
        rig.api.do(lambda: rig.api.store.delete("services", "shop", "web"))
        await rig.until(lambda: not rig.vips())

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        api.store.create("endpointslices", endpoints("web", "10.1.0.1", "10.1.0.2"))
        run(tmp_path, api, story)


def test_the_own_node_says_whose_address_pods_see(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert [str(each) for each in rig.controller.settings.masquerade] == ["192.0.2.1"]
        assert {str(each) for each in rig.node.node_port_networks or ()} == {"192.0.2.1/32"}
        assert rig.source.node.address(4) is not None
        assert rig.controller.plane.store.sources == (SOURCE,)

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        run(tmp_path, api, story)
