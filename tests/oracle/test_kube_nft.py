"""The rules that the oracle writes are those of a real kube-proxy (1.36.3, nftables, node-a1), for the same objects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from oracle.kube_nft import Node, Object, Table, table

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"
# They are chosen by zone and node, which the oracle leaves out; tests/control compares them.
BY_TOPOLOGY = {"hinted", "near-close", "near-node", "near-zone"}
# Another proxy's (service.kubernetes.io/service-proxy-name).
NOT_OURS = {"other-proxy"}
NODE = Node(
    "node-a1",
    ["172.30.0.11", "fd00:172:30::11"],
    ["10.244.0.0/16", "fd00:244::/48"],
    ["10.96.0.0/16"],
)


def listed(name: str) -> list[Object]:
    return [
        item
        for item in json.loads((FIXTURES / f"lists/{name}.json").read_text())["items"]
        if item["metadata"]["name"] not in NOT_OURS and item["spec"].get("type") != "ExternalName"
    ]


def normal(text: str) -> str:
    """Without the hash in the names, and the count of blanks."""
    text = re.sub(r"\b(service|external|local|firewall|endpoint|affinity)-[A-Z2-7]{8}-", r"\1-", text)
    return " ".join(text.split())


def real(text: str) -> Table:
    """One family's table, from what `nft list ruleset` said."""
    made = Table(text.split(maxsplit=1)[0])
    for kind, name, body in re.findall(r"\t(set|map|chain) (\S+) \{\n(.*?)\n?\t\}", text, re.DOTALL):
        elements = [normal(x) for x in re.split(r",\s", body.partition("elements = {")[2].rpartition("}")[0])]
        elements = [each for each in elements if each]
        if kind == "chain":
            rules = [normal(line) for line in body.splitlines()]
            made.chains[normal(name)] = [rule for rule in rules if rule and not rule.startswith("comment")]
        elif kind == "map":
            made.maps[name] = {
                key: normal(verdict) for key, _, verdict in (each.rpartition(" : ") for each in elements)
            }
        elif name.startswith("affinity-"):
            unit = {"h": 3600, "m": 60, "s": 1}
            [(number, letter)] = re.findall(r"timeout (\d+)([hms])\n?$", body)
            made.affinities[normal(name)] = int(number) * unit[letter]
        else:
            made.sets[name] = set(elements)
    return made


def without_topology(made: Table) -> Table:
    """And without the ranges of the ServiceCIDRs, which nft shows merged."""
    skip = re.compile(rf"shop/({'|'.join(BY_TOPOLOGY)})/")
    made.chains = {name: rules for name, rules in made.chains.items() if not skip.search(name)}
    for name, verdicts in made.maps.items():
        made.maps[name] = {key: verdict for key, verdict in verdicts.items() if not skip.search(verdict)}
    made.sets["hairpin-connections"] = {
        each for each in made.sets["hairpin-connections"] if not each.startswith("10.245.2.")
    }
    made.chains["cluster-ips-check"] = made.chains["cluster-ips-check"][:1]
    return made


@pytest.mark.parametrize("version", [4, 6])
def test_the_same_rules(version: int) -> None:
    text = (FIXTURES / "kube-proxy/kube-proxy-nftables.txt").read_text()
    tables = re.split(r"^table ", text, flags=re.MULTILINE)[1:]
    theirs = without_topology(real(tables[0 if version == 4 else 1]))
    services = [
        service
        for service in listed("services")
        if service["spec"].get("clusterIP") not in (None, "None", "")
    ]
    ours = without_topology(table(services, _slices(), NODE, version))
    assert len(theirs.chains) > (80 if version == 4 else 20)
    assert ours.sets == theirs.sets
    assert ours.maps == theirs.maps
    assert ours.affinities == theirs.affinities
    assert ours.chains == theirs.chains


def _slices() -> list[Object]:
    return json.loads((FIXTURES / "lists/endpointslices.json").read_text())["items"]
