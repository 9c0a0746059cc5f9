"""Random services and random packets for them, from a seed."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from random import Random
from typing import Any

from oracle.kube_nft import Object
from oracle.planes import NODE_NAME, SERVICE_RANGE
from oracle.wires import NODE, POD, PODS
from packets import ACK, SYN, TCP, UDP, frame, tcp, udp

NAMESPACE = "oracle"
REMOTE = {
    4: [f"10.244.2.{number}" for number in range(11, 15)],
    6: [f"fd00:10:244:2::{number}" for number in range(11, 15)],
}
CLIENTS = {
    4: ["192.168.50.100", "40.0.0.1", "40.1.2.3", "198.51.100.7", "192.0.2.7"],
    6: ["fd00:50::100", "4000::1", "4000:1::3", "2001:db8:1::7", "2001:db8:2::7"],
}
RANGES = {4: ["198.51.100.0/24", "192.0.2.7/32"], 6: ["2001:db8:1::/48", "2001:db8:2::7/128"]}
FAMILY = {4: "IPv4", 6: "IPv6"}


@dataclass(frozen=True)
class Probe:
    """One packet that begins a flow, by a client that nothing answers for."""

    number: int
    where: str  # the wire, or "node"
    source: str
    source_port: int
    target: str
    port: int
    protocol: int
    flags: int = SYN
    ttl: int = 64
    affine: str = ""  # the service and port, if it has session affinity

    @property
    def mark(self) -> bytes:
        return struct.pack(">I", 0x10000000 + self.number * 256)

    def frame(self, source_port: int = 0) -> bytes:
        """As the client sends it (from another port)."""
        port = source_port or self.source_port
        if self.protocol == UDP:
            return frame(udp(self.source, self.target, port, self.port, self.mark), ttl=self.ttl)
        (sequence,) = struct.unpack(">I", self.mark)
        segment = tcp(
            self.source, self.target, port, self.port, flags=self.flags, sequence=sequence, acknowledgement=77
        )
        return frame(segment, ttl=self.ttl)


class Cases:
    """Configurations and probes; no address of a service and no port of a client comes twice."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._services = self._probes = 0

    def objects(self, version: int) -> list[Object]:
        """Three to six services of one family, and their slices."""
        made: list[Object] = []
        for _ in range(self._random.randint(3, 6)):
            made += self._service(version)
        return made

    # ----------------------------------------------------------------------------------------------- services

    def _service(self, version: int) -> list[Object]:
        chance = self._random.random
        self._services += 1
        number = self._services
        kind = self._random.choice(["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"])
        ports: list[Object] = [{"name": "a", "protocol": "TCP", "port": 80, "targetPort": 8080}]
        if chance() < 0.5:
            number_of_port = self._random.choice([80, 53])
            ports.append({"name": "b", "protocol": "UDP", "port": number_of_port, "targetPort": 5353})
        cluster_ip = _nth(SERVICE_RANGE[version], number)
        spec: dict[str, Any] = {"type": kind}
        external = kind != "ClusterIP"
        if chance() < 0.35:
            external = True
            prefix = "203.0.113.0/24" if version == 4 else "2001:db8:200::/64"
            spec["externalIPs"] = [_nth(prefix, number % 250)]
        if kind != "ClusterIP":
            for index, port in enumerate(ports):
                port["nodePort"] = 30000 + 2 * (number % 1300) + index
        if kind == "LoadBalancer":
            spec["balancer"] = _nth("198.18.0.0/16" if version == 4 else "2001:db8:100::/64", number)
            if chance() < 0.5:
                spec["loadBalancerSourceRanges"] = RANGES[version][: self._random.randint(1, 2)]
        if external and chance() < 0.4:
            spec["externalTrafficPolicy"] = "Local"
        if chance() < 0.2:
            spec["internalTrafficPolicy"] = "Local"
        if chance() < 0.3:
            spec["sessionAffinity"] = "ClientIP"
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": self._random.choice([60, 10800])}}
        name = f"s{number}"
        return [service(name, cluster_ip, ports, **spec), self._slice(name, version, ports)]

    def _slice(self, name: str, version: int, ports: Sequence[Object]) -> Object:
        pick = self._random
        here = pick.sample(sorted(POD[version].values())[:3], pick.choice([0, 0, 1, 1, 2, 3]))
        there = pick.sample(REMOTE[version], pick.choice([0, 0, 1, 2, 3]))
        endpoints = [
            endpoint(address, pick.choice(["ready"] * 5 + ["not ready", "ending", "ended"]), address in here)
            for address in here + there
        ]
        return slice_of(name, version, ports, endpoints)

    # ----------------------------------------------------------------------------------------------- packets

    def probes(self, objects: Sequence[Object], version: int) -> list[Probe]:
        """To every place of every service, some from each kind of client, and beside the services."""
        made = []
        for target, protocol, port, affine in self._places(objects, version):
            wheres = self._random.sample(["out", "out", "pod", "pod", "node"], 3)
            for kind in wheres:
                made.append(self._probe(kind, version, target, protocol, port, affine=affine))
        return made

    def _places(self, objects: Sequence[Object], version: int) -> Iterator[tuple[str, int, int, str]]:
        for served in objects:
            if served["kind"] != "Service" or served["metadata"]["name"] == "sentinel":
                continue
            spec = served["spec"]
            ingress = served["status"].get("loadBalancer", {}).get("ingress", [])
            addresses = [spec["clusterIP"], *spec.get("externalIPs", []), *(each["ip"] for each in ingress)]
            for port in spec["ports"]:
                affine = f"{served['metadata']['name']}:{port['name']}" if "sessionAffinity" in spec else ""
                protocol = TCP if port["protocol"] == "TCP" else UDP
                for address in addresses:
                    yield address, protocol, port["port"], affine
                if "nodePort" in port:
                    yield NODE[version], protocol, port["nodePort"], affine
            yield self._random.choice(addresses), self._random.choice([TCP, UDP]), 4711, ""
            yield self._random.choice(addresses), UDP, 81, ""
        yield _nth(SERVICE_RANGE[version], 0x7777), TCP, 80, ""  # a cluster IP of nobody
        yield NODE[version], self._random.choice([TCP, UDP]), 31999, ""
        yield self._random.choice(REMOTE[version]), self._random.choice([TCP, UDP]), 8080, ""
        yield ("100.64.0.9" if version == 4 else "2001:db8:999::9"), UDP, 53, ""

    def to_sentinel(self, version: int) -> Probe:
        return self._probe("out", version, SENTINEL[version], UDP, 9)

    def _probe(
        self, kind: str, version: int, target: str, protocol: int, port: int, affine: str = ""
    ) -> Probe:
        self._probes += 1
        pick = self._random
        if kind == "pod":
            where = pick.choice(PODS)
            source = POD[version][where]
        else:
            where, source = kind, NODE[version] if kind == "node" else pick.choice(CLIENTS[version])
        flags = SYN if pick.random() < 0.85 else ACK
        port_of_client = 10_000 + self._probes % 18_000  # no service's and no endpoint's
        return Probe(
            self._probes, where, source, port_of_client, target, port, protocol, flags, affine=affine
        )


def endpoint(address: str, state: str = "ready", here: bool = True) -> Object:
    """`state`: ready, not ready, ending (terminating and serving), ended."""
    conditions = {
        "ready": state == "ready",
        "serving": state in ("ready", "ending"),
        "terminating": state in ("ending", "ended"),
    }
    return {"addresses": [address], "conditions": conditions, "nodeName": NODE_NAME if here else "elsewhere"}


def slice_of(name: str, version: int, ports: Sequence[Object], endpoints: Sequence[Object]) -> Object:
    """The only one of a service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE,
            "name": f"{name}-{version}",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": FAMILY[version],
        "ports": [
            {"name": port["name"], "protocol": port["protocol"], "port": port["targetPort"]} for port in ports
        ],
        "endpoints": endpoints,
    }


def service(name: str, cluster_ip: str, ports: Sequence[Object], **spec: Any) -> Object:
    """`balancer`: the address that a load balancer has given it."""
    balancer = spec.pop("balancer", "")
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [FAMILY[6 if ":" in cluster_ip else 4]],
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ports": ports,
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": balancer, "ipMode": "VIP"}]}} if balancer else {},
    }


SENTINEL = {4: "10.96.0.9", 6: "fd00:10:96::9"}


def sentinel(version: int) -> list[Object]:
    """A service whose packets always come to pod4: when its packet has come, those before it have had their time."""
    ports = [{"name": "", "protocol": "UDP", "port": 9, "targetPort": 9}]
    slices = slice_of("sentinel", version, ports, [endpoint(POD[version]["pod4"])])
    return [service("sentinel", SENTINEL[version], ports), slices]


def outer_addresses(objects: Sequence[Object]) -> set[str]:
    """External IPs and those of load balancers."""
    found: set[str] = set()
    for each in objects:
        if each["kind"] == "Service":
            ingress = each["status"].get("loadBalancer", {}).get("ingress", [])
            found.update(each["spec"].get("externalIPs", []), (balancer["ip"] for balancer in ingress))
    return found


def _nth(prefix: str, number: int) -> str:
    """An address of a prefix."""
    network = ip_network(prefix)
    return str(network[(number * 7 + 16) % (network.num_addresses - 2)])
