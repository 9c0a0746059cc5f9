"""kube-proxy's nftables rules, as `nft list ruleset` prints them, asked what happens to one new packet.

Understands only what kube-proxy writes.  The chains are walked as the kernel would: firewall, DNAT, then what the
filter chains refuse or drop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network, summarize_address_range

from kuproxy.model.vip import Address


@dataclass(frozen=True)
class Verdict:
    """`pods` (address and port), or what else: `pass`, `drop`, `reject`."""

    what: str
    pods: frozenset[tuple[str, int]] = frozenset()
    masquerade: bool = False


class Ruleset:
    """One table of kube-proxy, for one family."""

    def __init__(self, text: str) -> None:
        self.chains = {
            name: [line.strip() for line in body.splitlines()]
            for name, body in re.findall(r"\tchain (\S+) \{\n(.*?)\n?\t\}", text, re.DOTALL)
        }
        self.cluster_ips = self._set(text, "cluster-ips")
        self.nodeport_ips = self._set(text, "nodeport-ips")
        self.maps = {
            name: dict(self._elements(body))
            for name, body in re.findall(r"\tmap (\S+) \{\n(.*?)\n\t\}", text, re.DOTALL)
        }
        cidrs = re.search(r"daddr (\{ [^}]+\}|\S+) drop comment \"Drop traffic to unallocated", text)
        self.service_ranges = []
        for part in re.findall(r"[0-9a-f.:/-]+", cidrs[1]) if cidrs else ():
            if "-" in part:
                first, last = map(ip_address, part.split("-"))
                self.service_ranges += summarize_address_range(first, last)
            else:
                self.service_ranges.append(ip_network(part))

    @staticmethod
    def _set(text: str, name: str) -> set[str]:
        body = re.search(rf"\tset {name} \{{\n(.*?)\n\t\}}", text, re.DOTALL)
        return set(re.findall(r"[0-9a-f.:]{3,}", body[1].partition("elements")[2])) if body else set()

    @staticmethod
    def _elements(body: str) -> list[tuple[str, str]]:
        elements = body.partition("elements = {")[2].rpartition("}")[0]
        pairs = []
        for item in elements.split(",\n"):
            key, _, verdict = item.strip().rpartition(" : ")
            if key:
                pairs.append((re.sub(r' comment ".*"', "", key), verdict.strip()))
        return pairs

    def ask(self, source: Address, local: bool, target: Address, protocol: str, port: int) -> Verdict:
        """`local`: the source is an address of the node (fib saddr type local)."""
        self._source, self._local = source, local
        place = f"{target} . {protocol} . {port}"
        firewall = self.maps["firewall-ips"].get(place)
        if firewall and self._is_refused(firewall.removeprefix("goto ")):
            return Verdict("drop")
        self._masquerade = False
        pods: frozenset[tuple[str, int]] = frozenset()
        if str(target) in self.cluster_ips:
            [rule] = [line for line in self.chains["services"] if "@cluster-ips" in line]
            prefix = re.search(r"saddr != (\S+) ", rule)
            assert prefix is not None
            self._masquerade = source not in ip_network(prefix[1])
        chain = self.maps["service-ips"].get(place)
        on_node = str(target) in self.nodeport_ips
        if not chain and on_node:
            chain = self.maps["service-nodeports"].get(f"{protocol} . {port}")
        if chain:
            pods = self._walk(chain.removeprefix("goto "))
        if pods:
            return Verdict("pods", pods, self._masquerade)
        refused = self.maps["no-endpoint-services"].get(place)
        if not refused and on_node:
            refused = self.maps["no-endpoint-nodeports"].get(f"{protocol} . {port}")
        if refused:
            return Verdict("reject" if "reject" in refused else "drop")
        if str(target) in self.cluster_ips:
            return Verdict("reject")
        if any(target in prefix for prefix in self.service_ranges):
            return Verdict("drop")
        return Verdict("pass")

    def _is_refused(self, chain: str) -> bool:
        [rule] = self.chains[chain]
        allowed = re.fullmatch(r"ip6? saddr != (?:\{ )?([^}]+?)(?: \})? drop", rule)
        assert allowed is not None, rule
        return not any(self._source in ip_network(part) for part in allowed[1].split(", "))

    def _walk(self, chain: str) -> frozenset[tuple[str, int]]:
        for rule in self.chains[chain]:
            source = re.match(r"ip6? saddr ([0-9a-f.:/]+) ", rule)
            if source and self._source not in ip_network(source[1]):
                continue
            if rule.startswith("fib saddr type local") and not self._local:
                continue
            if "numgen" in rule:
                found = re.findall(r"([0-9a-f.:]+) \. (\d+)[ ,]", rule.partition("map {")[2])
                named = re.findall(r"__([0-9a-f.]+)/(\d+)", rule)  # names have no colons
                six = self._source.version == 6
                found += [(address.replace(".", ":") if six else address, port) for address, port in named]
                return frozenset((address, int(port)) for address, port in found)
            if "saddr @affinity" in rule:
                continue  # a new client
            if "meta mark set" in rule:
                self._masquerade = True
            goto = re.search(r"goto (\S+)", rule)
            if goto:
                return self._walk(goto[1])
        return frozenset()
