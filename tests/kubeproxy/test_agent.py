"""A whole kube-proxy but for the packets: a fake API server below, real ports above, an engine in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from daemon.rig import controller
from kube_api.server import FakeApi
from kubeproxy.test_ports import ask, free_ports
from kuproxy.daemon.thread import ControlThread
from kuproxy.errors import ConfigError, KuError
from kuproxy.kube.client import load_access
from kuproxy.kubeproxy.agent import Agent
from kuproxy.kubeproxy.config import proxy_config
from kuproxy.kubeproxy.flags import configuration
from kuproxy.model.vip import Address

NODE = "node-a1"
Object = dict[str, Any]


@dataclass(slots=True)
class Addresses:
    """What the agent asks of steering."""

    node_addresses: frozenset[Address] = frozenset()


class Log:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **words: Any) -> None:
        self.lines.append((event, words))

    warning = error = info


@dataclass(slots=True)
class Rig:
    api: FakeApi
    agent: Agent
    healthz: int
    metrics: int
    file: Path
    log: Log

    async def until(self, true: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not await true():
                await asyncio.sleep(0.02)

    async def synced(self) -> None:
        async def well() -> bool:
            return (await self.get("/readyz")).startswith(b"HTTP/1.1 200")

        await self.until(well)

    async def get(self, path: str, port: int = 0) -> bytes:
        try:
            return await ask(port or self.healthz, path)
        except OSError:
            return b""

    def events(self) -> list[Object]:
        listed: list[Object] = self.api.do(
            lambda: self.api.store.list("events", lambda _: True, 0, "", "", "")
        )["items"]
        return listed


def node(**extra: Any) -> Object:
    return {
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"], **extra},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]},
    }


def service(port: int) -> Object:
    return {
        "metadata": {"namespace": "default", "name": "lb"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7"],
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}],
        },
    }


def endpoints(*nodes: str) -> Object:
    return {
        "metadata": {
            "namespace": "default", "name": "lb-1", "labels": {"kubernetes.io/service-name": "lb"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {"addresses": [f"10.244.{index}.9"], "nodeName": name, "conditions": {"ready": True}}
            for index, name in enumerate(nodes, 1)
        ],
    }  # fmt: skip


def run(
    tmp_path: Path,
    story: Callable[[Rig], Awaitable[None]],
    extra: str = "",
    *,
    metrics: int = 0,
    with_node: bool = True,
) -> None:
    """Let a kube-proxy run until the story ends.  What ends the proxy is raised."""
    healthz, other = free_ports(2)
    metrics, log = metrics or other, Log()
    with FakeApi() as api:
        if with_node:
            api.do(lambda: api.store.create("nodes", node()))
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(api.kubeconfig())
        file = tmp_path / "config.conf"
        file.write_text(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n"
            f"clientConnection: {{kubeconfig: {kubeconfig}}}\nclusterCIDR: 10.244.0.0/16\n"
            f"healthzBindAddress: 127.0.0.1:{healthz}\nmetricsBindAddress: 127.0.0.1:{metrics}\n{extra}"
        )
        config = proxy_config(configuration(file, {}).config)
        agent = Agent(config, NODE, lambda: load_access(str(kubeconfig)), file, log)
        made, thread = controller(), ControlThread()

        async def main() -> None:
            steering: Any = Addresses(frozenset({IPv4Address("127.0.0.1")}))
            running = asyncio.create_task(agent.run(made, thread, steering))
            told = asyncio.create_task(story(Rig(api, agent, healthz, metrics, file, log)))
            await asyncio.wait([running, told], return_when=asyncio.FIRST_COMPLETED)
            both = [running] if running.done() else [told]
            for task in (running, told):
                task.cancel()
            await asyncio.gather(running, told, return_exceptions=True)
            both[0].result()

        try:
            asyncio.run(main())
        finally:
            made.stop()
            thread.close()


def test_its_ports_and_what_they_say(tmp_path: Path) -> None:
    (check,) = free_ports(1)

    async def story(rig: Rig) -> None:
        store = rig.api.store
        await rig.synced()
        assert (await rig.get("/healthz")).startswith(b"HTTP/1.1 200")
        assert (await rig.get("/proxyMode", rig.metrics)).endswith(b"\r\n\r\nkuproxy")
        assert (await rig.get("/healthz", rig.metrics)).endswith(b"\r\n\r\nok")
        assert (await rig.get("/other", rig.metrics)).startswith(b"HTTP/1.1 404")
        assert await rig.get("/", check) == b""

        # A service with a health-check port, whose endpoints come here and go elsewhere.
        rig.api.do(lambda: store.create("services", service(check)))
        rig.api.do(lambda: store.create("endpointslices", endpoints(NODE, "other")))

        async def says(*wanted: bytes) -> bool:
            answer = await rig.get("/", check)
            return all(each in answer for each in wanted)

        await rig.until(lambda: says(b"HTTP/1.1 200 OK", b"Endpoint-Weight: 1", b'"name": "lb"'))
        rig.api.do(lambda: store.update("endpointslices", endpoints("elsewhere", "other")))
        await rig.until(lambda: says(b"HTTP/1.1 503", b"Endpoint-Weight: 0"))
        metrics = (await rig.get("/metrics", rig.metrics)).decode()
        assert 'no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1.0' in metrics
        assert 'no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0.0' in metrics
        assert "kubeproxy_sync_proxy_rules_service_changes_total 1.0" in metrics
        assert "kubeproxy_sync_proxy_rules_endpoint_changes_total 2.0" in metrics
        assert 'kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1.0' in metrics
        assert 'rest_client_requests_total{code="200",host="127.0.0.1:' in metrics
        assert "kuproxy_vip_first_packets_total{" in metrics, "our own, beside upstream's"
        rig.api.do(lambda: store.delete("services", "default", "lb"))

        async def closed() -> bool:
            return await rig.get("/", check) == b""

        await rig.until(closed)

    run(tmp_path, story)


@pytest.mark.parametrize("going", ["deleted", "tainted"])
def test_a_node_that_is_going_sends_load_balancers_away(tmp_path: Path, going: str) -> None:
    async def story(rig: Rig) -> None:
        await rig.synced()
        if going == "tainted":
            new = node(taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])
        else:
            new = node()
            new["metadata"]["deletionTimestamp"] = "2026-11-22T04:00:00Z"
        rig.api.do(lambda: rig.api.store.update("nodes", new))

        async def gone() -> bool:
            return (await rig.get("/healthz")).startswith(b"HTTP/1.1 503")

        await rig.until(gone)
        assert b'"nodeEligible":false,"healthy":true' in await rig.get("/healthz")
        assert (await rig.get("/livez")).startswith(b"HTTP/1.1 200")

    run(tmp_path, story)


def test_events_of_a_start_and_of_a_port_that_is_taken(tmp_path: Path) -> None:
    (check,) = free_ports(1)

    async def story(rig: Rig) -> None:
        await rig.synced()
        with closing(socket.create_server(("127.0.0.1", check))):
            rig.api.do(lambda: rig.api.store.create("services", service(check)))

            async def told() -> bool:
                return len(rig.events()) == 2

            await rig.until(told)
        starting, failed = sorted(rig.events(), key=lambda event: event["reason"], reverse=True)
        assert (starting["reason"], starting["action"]) == ("Starting", "StartKubeProxy")
        assert starting["involvedObject"]["name"] == NODE
        assert (failed["reason"], failed["type"]) == ("FailedToStartServiceHealthcheck", "Warning")
        assert (
            failed["message"]
            == f"node {NODE} failed to start healthcheck on port {check}: Address already in use"
        )

    run(tmp_path, story, "nodePortAddresses: []\n")


def test_a_service_that_cannot_be_served_has_an_event(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await rig.synced()
        store = rig.api.store
        for name, address in (("lb", "10.96.0.7"), ("lb-late", "10.96.0.8")):
            made = service(0)
            made["metadata"]["name"] = name
            made["spec"] |= {
                "clusterIP": address, "clusterIPs": [address], "externalIPs": ["192.0.2.1"], "healthCheckNodePort": 0,
                "externalTrafficPolicy": "Cluster", "type": "ClusterIP",
            }  # fmt: skip
            del made["spec"]["ports"][0]["nodePort"]
            rig.api.do(lambda made=made: store.create("services", made))

        async def told() -> bool:
            return any(event["reason"] == "ServiceNotServed" for event in rig.events())

        await rig.until(told)
        [event] = [each for each in rig.events() if each["reason"] == "ServiceNotServed"]
        assert event["involvedObject"]["name"] == "lb-late", "the older one keeps what both claim"
        assert event["message"].startswith(f"node {NODE}: ")
        assert "192.0.2.1" in event["message"]

    run(tmp_path, story)


def test_a_metrics_port_that_is_taken_ends_a_proxy_that_fails_hard(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    events: list[Object] = []

    async def story(rig: Rig) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            events.extend(rig.events())

    with closing(taken), pytest.raises(ConfigError, match="Address already in use; bindAddressHardFail ends"):
        run(tmp_path, story, "bindAddressHardFail: true\n", metrics=taken.getsockname()[1])
    assert "FailedToStartMetricServer" in {event["reason"] for event in events}


def test_a_changed_configuration_ends_it_and_a_wrong_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kuproxy.kubeproxy.agent.LOOK_S", 0.05)

    async def story(rig: Rig) -> None:
        await rig.synced()
        good = rig.file.read_text()
        rig.file.write_text(good + "nonsense: 1\n")
        await asyncio.sleep(0.3)
        assert (await rig.get("/livez")).startswith(b"HTTP/1.1 200")
        for away in (False, True):  # as it was when we started: nothing has changed
            if away:
                rig.file.unlink()
                await asyncio.sleep(0.3)
            rig.file.write_text(good)
            await asyncio.sleep(0.3)
            assert (await rig.get("/livez")).startswith(b"HTTP/1.1 200")
        rig.file.write_text(good + "bindAddressHardFail: true\n")
        await asyncio.sleep(10)

    with pytest.raises(KuError, match=r"config\.conf: has changed"):
        run(tmp_path, story)


def test_without_its_node_it_serves_and_says_so(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await rig.synced()
        assert (await rig.get("/healthz")).startswith(b"HTTP/1.1 200")
        assert "no endpoint counts as local; see --hostname-override" in str(rig.log.lines)

    run(tmp_path, story, with_node=False)
