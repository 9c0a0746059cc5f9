"""kube-proxy's nftables rules for given Kubernetes objects, written down independently of kuproxy's own policy.

One table a family, as kube-proxy 1.36 in nftables mode makes it (pkg/proxy/nftables/proxier.go), but for topology
hints and for the hash in its chains' names.  `test_kube_nft.py` compares it with what a real one wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]
Place = tuple[str, int]  # address and port
MARK = "meta mark set meta mark | 0x00004000"


@dataclass(frozen=True)
class Node:
    """What the rules know of the node: its name, primary addresses, and prefixes, one of each family."""

    name: str
    addresses: Sequence[str]
    pods: Sequence[str]  # whose packets are pods' (clusterCIDR)
    services: Sequence[str]  # of all ServiceCIDRs


@dataclass
class Table:
    """`chains` by name, their rules; `maps` by name, their elements; `sets` by name, type and elements."""

    word: str  # "ip" or "ip6"
    chains: dict[str, list[str]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    sets: dict[str, set[str]] = field(default_factory=dict)
    affinities: dict[str, int] = field(default_factory=dict)  # set and its timeout in seconds

    def text(self) -> str:
        """For `nft -f`: the table anew, whatever was there before."""
        address = "ipv4_addr" if self.word == "ip" else "ipv6_addr"
        types = {
            "hairpin-connections": f"{address} . {address} . inet_proto . inet_service",
            "nodeport": "inet_proto . inet_service : verdict",
            "place": f"{address} . inet_proto . inet_service : verdict",
        }
        head = f"table {self.word} kube-proxy"
        lines = [head, f"delete {head}", f"{head} {{"]
        for name, elements in self.sets.items():
            lines += [f"set {name} {{", f"type {types.get(name, address)}", *_elements(elements), "}"]
        for name, timeout in self.affinities.items():
            flags = "size 65535; flags dynamic,timeout"
            lines.append(f"set {name} {{ type {address}; {flags}; timeout {timeout}s; }}")
        for name, rules in self.chains.items():
            lines += [f"chain {name} {{", *rules, "}"]
        for name, verdicts in self.maps.items():
            kind = types["nodeport" if "nodeports" in name else "place"]
            elements = {f"{key} : {verdict}" for key, verdict in verdicts.items()}
            lines += [f"map {name} {{", f"type {kind}", *_elements(elements), "}"]
        return "\n".join([*lines, "}", ""])


def _elements(elements: Iterable[str]) -> list[str]:
    return [f"elements = {{ {', '.join(elements)} }}"] if elements else []


def table(services: Sequence[Object], slices: Sequence[Object], node: Node, version: int) -> Table:
    """The rules of one family."""
    made = Table("ip" if version == 4 else "ip6")
    mine = [each for each in node.pods if ip_network(each).version == version]
    made.chains = _frame(made.word, mine[0], [x for x in node.services if ip_network(x).version == version])
    made.sets = {"hairpin-connections": set(), "cluster-ips": set()}
    made.sets["nodeport-ips"] = {each for each in node.addresses if ip_address(each).version == version}
    for name in ("no-endpoint-services", "no-endpoint-nodeports", "firewall-ips", "service-ips"):
        made.maps[name] = {}
    made.maps["service-nodeports"] = {}
    for service in services:
        cluster_ips = service["spec"].get("clusterIPs", [])
        for address in cluster_ips:
            if address != "None" and ip_address(address).version == version:
                made.sets["cluster-ips"].add(address)
                for port in service["spec"]["ports"]:
                    _Port(made, service, port, slices, node, version, mine[0]).write(address)
    return made


def _frame(word: str, pods: str, services: Sequence[str]) -> dict[str, list[str]]:
    """The chains that every table has."""
    place = f"{word} daddr . meta l4proto . th dport"
    check = [f'{word} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"']
    if services:
        listed = ", ".join(services)
        comment = '"Drop traffic to unallocated ClusterIPs"'
        check.append(f"{word} daddr {{ {listed} }} drop comment {comment}")
    both = ["ct state new jump service-endpoints-check", "ct state new jump cluster-ips-check"]
    hook = "type filter hook"
    return {
        "filter-prerouting-pre-dnat": [
            f"{hook} prerouting priority dstnat - 10; policy accept;",
            "ct state new jump firewall-check",
        ],
        "filter-output-pre-dnat": [
            f"{hook} output priority -110; policy accept;",
            "ct state new jump firewall-check",
        ],
        "filter-input": [
            f"{hook} input priority filter; policy accept;",
            "ct state new jump nodeport-endpoints-check",
            "ct state new jump service-endpoints-check",
        ],
        "filter-forward": [f"{hook} forward priority filter; policy accept;", *both],
        "filter-output": [f"{hook} output priority filter; policy accept;", *both],
        "nat-prerouting": ["type nat hook prerouting priority dstnat; policy accept;", "jump services"],
        "nat-output": ["type nat hook output priority -100; policy accept;", "jump services"],
        "nat-postrouting": ["type nat hook postrouting priority srcnat; policy accept;", "jump masquerading"],
        "nodeport-endpoints-check": [
            f"{word} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports"
        ],
        "service-endpoints-check": [f"{place} vmap @no-endpoint-services"],
        "firewall-check": [f"{place} vmap @firewall-ips"],
        "services": [
            f"{word} daddr @cluster-ips {word} saddr != {pods} {MARK}"
            ' comment "masquerade clusterIP traffic from outside cluster"',
            f"{place} vmap @service-ips",
            f"{word} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        ],
        "masquerading": [
            "meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000 masquerade fully-random",
            f"ct status dnat {word} saddr . {word} daddr . meta l4proto . th dport @hairpin-connections"
            " masquerade fully-random",
        ],
        "cluster-ips-check": check,
        "reject-chain": ["reject"],
    }


class _Port:
    """What one port of a service adds to its family's table."""

    def __init__(
        self,
        made: Table,
        service: Object,
        port: Object,
        slices: Sequence[Object],
        node: Node,
        version: int,
        pods: str,
    ) -> None:
        meta, spec = service["metadata"], service["spec"]
        self.made, self.service, self.spec, self.port, self.pods = made, service, spec, port, pods
        self.version = version
        self.protocol = port.get("protocol", "TCP").lower()
        name = port.get("name") or ""
        self.id = f"{meta['namespace']}/{meta['name']}/{self.protocol}/{name}"
        self.comment = f"{meta['namespace']}/{meta['name']}:{name}"
        found = list(_endpoints(service, port, slices, version))
        self.everywhere = _serving(found)
        self.here = _serving([each for each in found if each[1].get("nodeName") == node.name])
        on_node = {place for place, endpoint in found if endpoint.get("nodeName") == node.name}
        self.external_local = spec.get("externalTrafficPolicy") == "Local"
        internal_local = spec.get("internalTrafficPolicy") == "Local"
        self.inside = self.here if internal_local else self.everywhere
        self.outside = self.here if self.external_local else self.everywhere
        self.affinity_s = 0
        if spec.get("sessionAffinity") == "ClientIP":
            config = spec.get("sessionAffinityConfig", {}).get("clientIP", {})
            self.affinity_s = config.get("timeoutSeconds", 10800)
        for address, number in set(self.everywhere + self.here) & on_node:
            made.sets["hairpin-connections"].add(f"{address} . {address} . {self.protocol} . {number}")
        self.internal_chain = f"{'local' if internal_local else 'service'}-{self.id}"

    def write(self, cluster_ip: str) -> None:
        maps = self.made.maps
        refused = "goto reject-chain" if not self.everywhere else "drop"

        def no_endpoints(kind: str, key: str) -> None:
            maps[f"no-endpoint-{kind}"][f'{key} comment "{self.comment}"'] = refused

        key = f"{cluster_ip} . {self.protocol} . {self.port['port']}"
        if self.inside:
            maps["service-ips"][key] = f"goto {self.internal_chain}"
            self._choose(self.internal_chain, self.inside)
        else:
            no_endpoints("services", key)
        balancers = self._load_balancer_ips()
        external = [x for x in self.spec.get("externalIPs", []) if ip_address(x).version == self.version]
        for address in external + balancers:
            key = f"{address} . {self.protocol} . {self.port['port']}"
            if self.everywhere:
                maps["service-ips"][key] = f"goto external-{self.id}"
            if not self.outside:
                no_endpoints("services", key)
        ranges = [each for each in self._ranges() if ip_network(each).version == self.version]
        for address in balancers if ranges else ():
            maps["firewall-ips"][f"{address} . {self.protocol} . {self.port['port']}"] = (
                f"goto firewall-{self.id}"
            )
            listed = ranges[0] if len(ranges) == 1 else f"{{ {', '.join(ranges)} }}"
            self.made.chains[f"firewall-{self.id}"] = [f"{self.made.word} saddr != {listed} drop"]
        node_port = self.port.get("nodePort")
        if node_port:
            key = f"{self.protocol} . {node_port}"
            if self.everywhere:
                maps["service-nodeports"][key] = f"goto external-{self.id}"
            if not self.outside:
                no_endpoints("nodeports", key)
        if self.everywhere and (external or balancers or node_port):
            self._external()

    def _load_balancer_ips(self) -> list[str]:
        ingress = self.service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        found = [each["ip"] for each in ingress if "ip" in each and each.get("ipMode", "VIP") == "VIP"]
        return [each for each in found if ip_address(each).version == self.version]

    def _ranges(self) -> list[str]:
        """Sorted, and hosts without their length, as `nft list` shows them."""
        written = self.spec.get("loadBalancerSourceRanges", [])
        networks = sorted(map(ip_network, written), key=lambda each: (each.version, each))
        return [str(each).removesuffix("/32").removesuffix("/128") for each in networks]

    def _external(self) -> None:
        chain, service = f"external-{self.id}", f"service-{self.id}"
        word, rules = self.made.word, []
        self._choose(service, self.everywhere)
        if self.external_local:
            rules = [
                f'{word} saddr {self.pods} goto {service} comment "short-circuit pod traffic"',
                f'fib saddr type local {MARK} comment "masquerade local traffic"',
                f'fib saddr type local goto {service} comment "short-circuit local traffic"',
            ]
            if self.here:
                self._choose(f"local-{self.id}", self.here)
                rules.append(f"goto local-{self.id}")
        else:
            rules = [f'{MARK} comment "masquerade"', f"goto {service}"]
        self.made.chains[chain] = rules

    def _choose(self, chain: str, places: list[Place]) -> None:
        """One of these endpoints at random, or the one that the client had."""
        word, chains, count = self.made.word, self.made.chains, len(places)
        if not self.affinity_s:
            listed = ", ".join(f"{i} : {address} . {port}" for i, (address, port) in enumerate(places))
            choice = f"numgen random mod {count} map {{ {listed} }}"
            chains[chain] = [f"meta l4proto {self.protocol} dnat {word} to {choice}"]
            return
        ends = [f"{self.id}__{address.replace(':', '.')}/{port}" for address, port in places]
        for end, (address, port) in zip(ends, places, strict=True):
            self.made.affinities[f"affinity-{end}"] = self.affinity_s
            target = f"[{address}]:{port}" if word == "ip6" else f"{address}:{port}"
            chains[f"endpoint-{end}"] = [
                f"update @affinity-{end} {{ {word} saddr }}",
                f"meta l4proto {self.protocol} dnat to {target}",
            ]
        listed = ", ".join(f"{i} : goto endpoint-{end}" for i, end in enumerate(ends))
        chains[chain] = [
            *(f"{word} saddr @affinity-{end} goto endpoint-{end}" for end in ends),
            f"numgen random mod {count} vmap {{ {listed} }}",
        ]


def _endpoints(
    service: Object, port: Object, slices: Sequence[Object], version: int
) -> Iterable[tuple[Place, Object]]:
    """(address and port, endpoint), of the slices of this service and family."""
    meta = service["metadata"]
    for one in slices:
        labels = one["metadata"].get("labels", {})
        if one["metadata"]["namespace"] != meta["namespace"] or one["addressType"] != f"IPv{version}":
            continue
        if labels.get("kubernetes.io/service-name") != meta["name"]:
            continue
        for each in one.get("ports") or ():
            same = (each.get("name") or "") == (port.get("name") or "")
            if not same or not each.get("port") or each.get("protocol", "TCP") != port.get("protocol", "TCP"):
                continue
            for endpoint in one.get("endpoints") or ():
                yield (endpoint["addresses"][0], each["port"]), endpoint


def _serving(found: Sequence[tuple[Place, Object]]) -> list[Place]:
    """The ready ones; if there are none, those that end and still serve (KEP-1669)."""

    def condition(endpoint: Object, name: str, default: bool) -> bool:
        value = (endpoint.get("conditions") or {}).get(name)
        return default if value is None else bool(value)

    ready, ending = set(), set()
    for place, endpoint in found:
        is_ready = condition(endpoint, "ready", True)
        if is_ready:
            ready.add(place)
        elif condition(endpoint, "serving", is_ready) and condition(endpoint, "terminating", False):
            ending.add(place)
    return sorted(ready or ending, key=lambda place: f"{place[0]}:{place[1]}")  # by its text, as there
