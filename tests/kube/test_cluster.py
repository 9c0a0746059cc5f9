"""All resources together: when something is told, and to which services it belongs."""

from __future__ import annotations

import json
import random
import statistics
import time
from typing import Any

import pytest

from kuproxy.kube.cluster import Cluster
from kuproxy.kube.objects import Key

Object = dict[str, Any]


class World:
    """A cluster whose reflectors are answered by hand; they are known by their plural."""

    def __init__(self) -> None:
        self.cluster = Cluster("node-a1", random.Random(1), 0.0)
        self._each = {reflector.resource.plural: reflector for reflector in self.cluster.reflectors}
        self._version = 100
        for reflector in self._each.values():
            reflector.tick(0.0)

    def list(self, plural: str, *items: Object) -> None:
        body = {"metadata": {"resourceVersion": "100"}, "items": list(items)}
        self.list_body(plural, json.dumps(body).encode())

    def list_body(self, plural: str, body: bytes) -> None:
        reflector = self._each[plural]
        request = reflector.wanted
        assert request is not None
        reflector.head(request.serial, 0.0, 200)
        reflector.body(request.serial, 0.0, body)
        reflector.end(request.serial, 0.0)
        request = reflector.wanted
        assert request is not None
        reflector.head(request.serial, 0.0, 200)

    def sync(self, *left_out: str) -> None:
        for plural in ("services", "endpointslices", "nodes", "servicecidrs"):
            if plural not in left_out:
                self.list(plural)

    def event(self, plural: str, kind: str, obj: Object) -> None:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        reflector = self._each[plural]
        request = reflector.wanted
        assert request is not None
        line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
        reflector.body(request.serial, 0.0, line)

    def names_of(self, service: Key) -> list[str]:
        return [each.metadata.name for each in self.cluster.slices_of(service)]


def a_slice(name: str, service: str = "", address: str = "10.244.1.1", version: int = 50) -> Object:
    labels = {"kubernetes.io/service-name": service} if service else {}
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": labels, "resourceVersion": str(version)},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"port": 80}],
    }


@pytest.mark.parametrize("last", ["services", "endpointslices", "nodes", "servicecidrs"])
def test_nothing_is_told_until_the_last_has_synced(last: str) -> None:
    world = World()
    world.sync(last)
    assert (world.cluster.synced, world.cluster.changed, world.cluster.take()) == (False, False, None)
    world.list(last)
    assert world.cluster.synced
    assert world.cluster.changed


def test_the_first_batch_comes_even_from_an_empty_cluster() -> None:
    world = World()
    world.sync()
    batch = world.cluster.take()
    assert batch is not None
    assert (batch.first, batch.services) == (True, frozenset())
    assert world.cluster.take() is None
    assert not world.cluster.changed


def test_a_slice_that_changes_hands_concerns_both_services() -> None:
    world = World()
    world.sync()
    world.event("endpointslices", "ADDED", a_slice("x", "web"))
    world.event("endpointslices", "ADDED", a_slice("y", "web"))
    world.cluster.take()
    assert world.names_of(("shop", "web")) == ["x", "y"]
    world.event("endpointslices", "MODIFIED", a_slice("x", "api"))
    batch = world.cluster.take()
    assert batch is not None
    assert batch.services == {("shop", "web"), ("shop", "api")}
    assert (world.names_of(("shop", "web")), world.names_of(("shop", "api"))) == (["y"], ["x"])


def test_a_slice_without_a_service_concerns_none() -> None:
    world = World()
    world.sync()
    world.cluster.take()
    world.event("endpointslices", "ADDED", a_slice("x"))
    batch = world.cluster.take()
    assert batch is not None
    assert (batch.services, len(batch.slice_changes)) == (frozenset(), 1)


def test_the_view_stands_still_between_two_batches() -> None:
    world = World()
    world.sync()
    world.cluster.take()
    world.event("services", "ADDED", {"metadata": {"name": "web", "namespace": "shop"}})
    world.event("endpointslices", "ADDED", a_slice("x", "web"))
    world.event("nodes", "ADDED", {"metadata": {"name": "node-a1"}})
    assert (world.cluster.services, world.names_of(("shop", "web")), world.cluster.node) == ({}, [], None)
    world.cluster.take()
    assert list(world.cluster.services) == [("shop", "web")]
    assert world.names_of(("shop", "web")) == ["x"]
    assert world.cluster.node is not None
    world.event("nodes", "DELETED", {"metadata": {"name": "node-a1"}})
    batch = world.cluster.take()
    assert batch is not None
    assert (batch.node_changed, world.cluster.node) == (True, None)


def test_problems_name_the_resource() -> None:
    world = World()
    reflector = world.cluster.reflectors[0]
    assert reflector.wanted is not None
    reflector.fail(reflector.wanted.serial, 0.0, "connection refused")
    assert world.cluster.problems() == ["services: connection refused"]
    world.list("endpointslices", {**a_slice("bad"), "ports": 80})
    assert world.cluster.problems()[1].startswith("endpointslices shop/bad: left out: ")


@pytest.mark.long
def test_ten_thousand_services_with_a_hundred_thousand_endpoints() -> None:
    """Well below the 3 s from first byte to tables, so that the rest has its share; a change costs what it is."""
    managed = {
        "manager": "kube-controller-manager",
        "fieldsV1": {f"f:{n}": {"f:ports": {}} for n in range(40)},
    }
    services, slices = [], []
    for number in range(10_000):
        each = a_slice(f"svc-{number}-x", f"svc-{number}")
        each["metadata"]["managedFields"] = [managed]
        each["endpoints"] = [
            {
                "addresses": [f"10.{number // 250}.{number % 250}.{pod}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{pod}",
                "zone": "zone-a",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": f"svc-{number}-{pod}"},
            }
            for pod in range(10)
        ]
        slices.append(each)
        meta = {
            "name": f"svc-{number}",
            "namespace": "shop",
            "resourceVersion": "7",
            "managedFields": [managed],
        }
        spec = {"clusterIP": f"10.96.{number // 250}.{number % 250}", "ports": [{"port": 80}]}
        services.append({"metadata": meta, "spec": spec})
    bodies = {
        plural: json.dumps({"metadata": {"resourceVersion": "100"}, "items": items}).encode()
        for plural, items in (("services", services), ("endpointslices", slices))
    }
    world = World()
    world.sync("services", "endpointslices")
    start = time.perf_counter()
    for plural, body in bodies.items():
        world.list_body(plural, body)
    batch = world.cluster.take()
    seconds = time.perf_counter() - start
    assert batch is not None
    assert len(batch.services) == 10_000
    size = sum(map(len, bodies.values())) / 1e6
    print(f"{size:.0f} MB decoded and indexed in {seconds:.2f} s")
    assert seconds < 3

    took = []
    for number in range(200):
        changed = {**slices[number], "endpoints": slices[number]["endpoints"][:9]}
        start = time.perf_counter()
        world.event("endpointslices", "MODIFIED", changed)
        batch = world.cluster.take()
        took.append(time.perf_counter() - start)
        assert batch is not None
        assert batch.services == {("shop", f"svc-{number}")}
    print(f"a change takes {statistics.median(took) * 1e6:.0f} µs")
    assert statistics.median(took) < 0.002
