"""Manifests are taken, or refused with one line for each problem; what is taken has no contradictions.

YAML or JSON. A problem names the file, and a line that there is. Parts: the suffix, then the file's lines.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import yaml

from fuzz.mutate import damage, damage_tree
from fuzz.promises import told_well
from fuzz.target import FileTarget, Parts
from kuproxy.control.store import Store
from kuproxy.errors import ConfigError
from kuproxy.load import load_config

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}, "annotations": {}},
    "spec": {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00::10"],
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080},
            {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"},
        ],
        "externalIPs": ["198.51.100.7"],
        "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Cluster",
        "healthCheckNodePort": 32000,
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "publishNotReadyAddresses": False,
        "trafficDistribution": "PreferClose",
    },
    "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}]}},
}
SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "ports": [
        {"name": "http", "port": 8080, "protocol": "TCP"},
        {"name": "dns", "port": 5353, "protocol": "UDP"},
    ],
    "endpoints": [
        {
            "addresses": ["10.1.0.5"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": "a",
            "zone": "z1",
            "hints": {"forZones": [{"name": "z1"}]},
        },
        {"addresses": ["10.1.0.6"]},
    ],
}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z1"}},
    "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.5"}]},
}
CIDR = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "ServiceCIDR",
    "metadata": {"name": "kubernetes"},
    "spec": {"cidrs": ["10.96.0.0/16", "fd00::/108"]},
}
OBJECTS = (SERVICE, SERVICE, SLICE, SLICE, NODE, CIDR)


def some_objects(rng: Random) -> list[dict[str, Any]]:
    """Of a cluster, often with a second service of another name."""
    chosen = [json.loads(json.dumps(rng.choice(OBJECTS))) for _ in range(rng.randrange(1, 5))]
    for each in chosen:
        if rng.randrange(2):
            each["metadata"]["name"] = rng.choice(("web", "api", "web-1", "web-2"))
    return chosen


class Manifests(FileTarget):
    keeps = 1

    def __init__(self) -> None:
        super().__init__()
        self.accepted = self.cases = 0

    def draw(self, rng: Random) -> Parts:
        objects = some_objects(rng)
        times = rng.choice((0, 1, 1, 2, 4, 9))
        if rng.randrange(3):
            documents = [damage_tree(rng, each, times) for each in objects]
            data = yaml.safe_dump_all(
                documents, allow_unicode=True, default_flow_style=rng.choice((None, True, False))
            )
            suffix = b".yaml"
        else:
            whole = {"apiVersion": "v1", "kind": "List", "items": objects}
            data = json.dumps(damage_tree(rng, whole, times), indent=rng.choice((None, 1)))
            suffix = b".json"
        raw = data.encode("utf-8", "surrogatepass")
        if rng.randrange(2):
            raw = damage(rng, raw, rng.choice((1, 1, 3)))
        return (suffix, *raw.split(b"\n"))

    def check(self, parts: Parts) -> None:
        self.cases += 1
        data = b"\n".join(parts[1:])
        path = self.directory / f"objects{parts[0].decode()}"
        path.write_bytes(data)
        try:
            config = load_config([path])
        except ConfigError as error:
            # YAML ends lines as Python does not: what counts is that the line is there.
            told_well(error, str(path), len(data.decode("utf-8", "replace").splitlines()) + 1)
            return
        self.accepted += 1
        for note in config.notes:
            assert len(str(note).splitlines()) == 1, f"a note of several lines: {str(note)!r}"
        Store().replace("again", config.vips)
        assert load_config([path]) == config, "read twice, it means two things"

    def summary(self) -> list[str]:
        return [f"{self.accepted:,} of {self.cases:,} files were taken"]
