"""From the API server to the tables: over HTTP on loopback, with an engine in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.rig import LocalNode, controller, make_log
from kube_api.server import FakeApi, Fault
from kuproxy.codes import PodFlag, Protocol
from kuproxy.daemon.control import Controller
from kuproxy.daemon.kubernetes import (
    BEGIN_TRIES,
    SOURCE,
    HealthCheck,
    KubernetesSource,
    NodeOptions,
    Sync,
    Trouble,
)
from kuproxy.daemon.thread import ControlThread
from kuproxy.errors import SteeringError
from kuproxy.kube.client import load_access
from kuproxy.kube.pace import Pace
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix, vip_type

pytest.importorskip("lightkube", reason="the extra `kubernetes` is not installed")

NODE = "node-a1"
PACE = Pace(first_backoff_s=0.02, max_backoff_s=0.1, watch_idle_s=2.0, list_idle_s=2.0)
Object = dict[str, Any]


class Rig:
    """A source over a fake API server, and what it told."""

    def __init__(
        self, api: FakeApi, made: Controller, source: KubernetesSource, thread: ControlThread
    ) -> None:
        self.api, self.controller, self.source, self.thread = api, made, source, thread
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
            await story(Rig(api, made, source, thread))
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


def stored(rig: Rig) -> set[str]:
    return {str(vip.key) for vip in rig.controller.plane.store.source(SOURCE)}


def test_nothing_is_programmed_before_all_is_listed(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await rig.until(lambda: 503 in rig.source.answers)
        await asyncio.sleep(0.1)
        assert not rig.source.synced.is_set()
        assert rig.vips() == {}
        await rig.until(rig.source.synced.is_set)
        assert len(rig.vips()) == 2

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        api.faults.append(Fault("endpointslices", watch=False, times=4, status=503))
        run(tmp_path, api, story)


def test_what_a_file_holds_stays_with_it_and_holds_up_nobody_else(tmp_path: Path) -> None:
    script = tmp_path / "vips.ku"
    script.write_text(
        "ku vip 10.96.0.10/32 protocol tcp port 80\nku pod 10.96.0.10/32 protocol tcp port 80 10.9.9.9\n"
    )

    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert rig.vips()["10.96.0.10/32 protocol tcp port 80"] == ["10.9.9.9:80"]
        assert stored(rig) == {"10.96.0.10/32", "10.96.0.11/32", "10.96.0.11/32 protocol tcp port 80"}
        (trouble,) = rig.troubles
        assert (trouble.namespace, trouble.name) == ("shop", "web")
        assert "belongs to ku; shop/web asks for it too" in trouble.reasons[0]
        assert rig.syncs[0].error
        # As soon as the file lets it go, the service has it.
        script.write_text("")
        await rig.thread(rig.controller.reload)
        await rig.thread(rig.source.try_again)
        assert rig.vips()["10.96.0.10/32 protocol tcp port 80"] == ["10.1.0.1:8080"]
        assert rig.troubles[-1].reasons == ()

    with FakeApi() as api:
        add_node(api)
        for name, address in (("web", "10.96.0.10"), ("shop", "10.96.0.11")):
            api.store.create("services", service(name, address))
            api.store.create("endpointslices", endpoints(name, "10.1.0.1"))
        run(tmp_path, api, story, files=(script,))


@pytest.mark.parametrize("tries", [0, BEGIN_TRIES - 1, BEGIN_TRIES])
def test_while_the_kernel_has_no_room_nothing_is_complete(tmp_path: Path, tries: int) -> None:
    """What a predecessor left is served until what replaces it has been taken, or has been tried often enough."""

    async def story(rig: Rig) -> None:
        synced: list[int] = []
        refusing = [True]
        steer = rig.node.steer

        def refuse(plane: Any, marks: Any) -> None:
            if refusing[0]:
                raise SteeringError("update of 7 entries in BPF map 'steer': Cannot allocate memory")
            steer(plane, marks)

        rig.node.steer = refuse  # type: ignore[method-assign]
        rig.source.listeners.synced.append(lambda: synced.append(1))
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert len(rig.troubles) == 1 and "Cannot allocate memory" in rig.troubles[0].reasons[0]
        assert not synced
        for _ in range(tries):
            await rig.thread(rig.source.try_again)
        assert synced == ([1] if tries == BEGIN_TRIES else []) and not stored(rig)
        refusing[0] = False
        await rig.thread(rig.source.try_again)
        assert synced == [1] and len(stored(rig)) == 2

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        run(tmp_path, api, story)


def test_udp_flows_end_with_the_last_endpoint_and_the_service_comes_back(tmp_path: Path) -> None:
    key = VipKey(parse_prefix("10.96.0.53/32"), Protocol.UDP, 80)

    def flags(rig: Rig, index: int) -> int:
        return int(rig.controller.plane.engine.tables.pods[index]["flags"])

    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        record = rig.controller.plane.compiler.record(key)
        assert record is not None
        ((_pod, index),) = record.pods.items()
        # A flow refers to the pod, so that it is not freed.
        rig.node.engine.state.pod_refs[index] = 1
        # Not ready any more, it drains: it still serves the flows that it has.
        draining = endpoints("dns", "10.1.0.1", protocol="UDP", ready=False, serving=True, terminating=True)
        rig.api.do(lambda: rig.api.store.update("endpointslices", draining))
        await rig.until(lambda: len(rig.syncs) > 1)
        assert flags(rig, index) == PodFlag.USED  # the only one, and it serves while it terminates
        gone = endpoints("dns", "10.1.0.1", protocol="UDP", ready=False, serving=False, terminating=True)
        rig.api.do(lambda: rig.api.store.update("endpointslices", gone))
        await rig.until(lambda: len(rig.syncs) > 2)
        assert flags(rig, index) == PodFlag.FLUSHED
        assert rig.vips()[str(key)] == []
        rig.api.do(
            lambda: rig.api.store.update("endpointslices", endpoints("dns", "10.1.0.1", protocol="UDP"))
        )
        await rig.until(lambda: len(rig.syncs) > 3)
        assert rig.vips()[str(key)] == ["10.1.0.1:8080"]

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("dns", "10.96.0.53", "UDP"))
        api.store.create("endpointslices", endpoints("dns", "10.1.0.1", protocol="UDP"))
        run(tmp_path, api, story)


def test_pods_that_stopped_serving_unseen_are_found_by_what_they_drain_for() -> None:
    """After a restart the tables know draining pods of which the API server says nothing any more."""
    key = VipKey(parse_prefix("10.96.0.53/32"), Protocol.UDP, 80)
    made = controller()
    pods = [Pod(parse_address(f"10.1.0.{number}"), 8080) for number in (1, 2)]
    vip = Vip(key, vip_type(key.prefix), target_port=80, pods=tuple(pods))
    made.update(SOURCE, [vip])
    made.update(SOURCE, [replace(vip, pods=(pods[0],))])
    assert made.plane.end_stale([(key, frozenset(pods))]) == 0
    assert made.plane.end_stale([(key, frozenset(pods[:1]))]) == 1
    record = made.plane.compiler.record(key)
    assert record is not None and list(record.flushed.values()) == pods[1:]


def test_a_node_that_moves_and_new_ranges_decide_everything_anew(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        cidr = {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.98.0.0/16"]}}
        rig.api.do(lambda: rig.api.store.create("servicecidrs", cidr))
        await rig.until(lambda: "10.98.0.0/16" in rig.vips())
        node = rig.api.store.get("nodes", "", NODE)
        taint = {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}
        rig.api.do(lambda: rig.api.store.update("nodes", {**node, "spec": taint}))
        await rig.until(lambda: rig.source.node.being_deleted)
        rig.api.do(lambda: rig.api.store.delete("servicecidrs", "", "more"))
        await rig.until(lambda: "10.98.0.0/16" not in rig.vips())

    with FakeApi() as api:
        add_node(api)
        run(tmp_path, api, story)


def test_load_balancers_hear_how_many_endpoints_are_here(tmp_path: Path) -> None:
    def local(*nodes: str) -> Object:
        made = endpoints("web", *(f"10.1.0.{number}" for number in range(1, len(nodes) + 1)))
        for each, node in zip(made["endpoints"], nodes, strict=True):
            each["nodeName"] = node
        return made

    async def story(rig: Rig) -> None:
        heard: list[int] = []
        rig.source.listeners.health.append(lambda: heard.append(len(rig.source.health)))
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert rig.source.health == {("shop", "web"): HealthCheck("shop", "web", 32000, 1)}
        rig.api.do(lambda: rig.api.store.update("endpointslices", local(NODE, "other", NODE)))
        await rig.until(lambda: rig.source.health["shop", "web"].local_endpoints == 2)
        rig.api.do(lambda: rig.api.store.delete("services", "shop", "web"))
        await rig.until(lambda: not rig.source.health)
        assert heard[-1] == 0

    with FakeApi() as api:
        add_node(api)
        spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}
        api.store.create("services", service("web", "10.96.0.10", **spec))
        api.store.create("endpointslices", local(NODE, "other"))
        run(tmp_path, api, story)


def test_another_proxys_services_are_served_by_its_name(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert stored(rig) == {"10.96.0.11/32", "10.96.0.11/32 protocol tcp port 80"}

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        other = service("other", "10.96.0.11")
        other["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "ku"}
        api.store.create("services", other)
        run(tmp_path, api, story, NodeOptions(NODE, proxy_name="ku"))


def test_programming_latency_is_counted_from_the_trigger(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await asyncio.wait_for(rig.source.synced.wait(), 10)
        assert rig.syncs[0].programming_s == ()
        changed = endpoints("web", "10.1.0.2")
        now = datetime.now(UTC).isoformat()
        changed["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": now}
        rig.api.do(lambda: rig.api.store.update("endpointslices", changed))
        await rig.until(lambda: len(rig.syncs) > 1)
        (latency,) = rig.syncs[1].programming_s
        assert 0 < latency < 5
        assert rig.source.counts.endpoints == 1

    with FakeApi() as api:
        add_node(api)
        api.store.create("services", service("web", "10.96.0.10"))
        api.store.create("endpointslices", endpoints("web", "10.1.0.1"))
        run(tmp_path, api, story)
