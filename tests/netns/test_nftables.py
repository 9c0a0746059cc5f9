"""The same services as kube-proxy's nftables rules in a kernel, the same packets to both: the same fate.

What differs all the same is in `test_nftables_differences.py` and docs/nftables.md.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.nft import Verdict
from oracle.cases import Cases, Probe, outer_addresses, sentinel
from oracle.fates import Fate, ask
from oracle.planes import Ours, Theirs
from oracle.wires import NODE_OWN
from packets import TCP

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft"),
]
ORDINARY_S = 30.0  # beside some ten seconds of starting
SEED = int(os.environ.get("ORACLE_SEED", "1"))
Both = tuple[Ours, Theirs]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """New ones for each seed: conntrack remembers the former's flows, whose addresses and ports come again."""
    with ExitStack() as stack:
        theirs = Theirs()
        stack.callback(theirs.close)
        ours = Ours(tmp_path)
        stack.callback(ours.close)
        yield ours, theirs


def compare(both: Both, cases: Cases, version: int, tally: Counter[str]) -> int:
    """One configuration; returns how many packets were compared."""
    ours, theirs = both
    objects = [*cases.objects(version), *sentinel(version)]
    for plane in both:
        plane.serve(objects)
    probes = cases.probes(objects, version)
    outer = outer_addresses(objects)
    marker = cases.to_sentinel(version)
    told = ask(ours, probes, marker), ask(theirs, probes, marker)
    for probe in probes:
        our, their = (each[probe] for each in told)
        rules = theirs.rules[version].ask(
            ip_address(probe.source),
            probe.where == "node",
            ip_address(probe.target),
            "tcp" if probe.protocol == TCP else "udp",
            probe.port,
        )
        problem = differs(probe, our, their, rules, probe.target in outer)
        if not problem and probe.affine and our.what == "translated":
            # The kernel may remember several, where a client came by several addresses with other endpoints each.
            same = [each for each in probes if (each.source, each.affine) == (probe.source, probe.affine)]
            known = {told[1][each].endpoint for each in same}
            if our.second != our.endpoint or their.second not in known:
                problem = f"no affinity: {our.endpoint}, then {our.second}; {known}, then {their.second}"
        fates = f"kuproxy  {our} {our.seen}\nnftables {their} {their.seen}"
        assert not problem, f"{problem}\n{probe}\n{fates}\nrules {rules}\n{objects}"
        tally[their.what] += 1
        if their.source:
            tally[f"{their.source} source"] += 1
        tally[f"at {probe.where if probe.where in ('out', 'node') else 'pod'}"] += 1
        tally["hairpin"] += their.endpoint is not None and their.endpoint[0] == probe.source
        tally["affine"] += bool(probe.affine) and their.what == "translated"
    return len(probes)


def differs(probe: Probe, our: Fate, their: Fate, rules: Verdict, routed: bool) -> str:
    """What is wrong; empty if nothing is.  `routed`: the target is an address of a service, though no cluster IP."""
    if rules.what == "pass" and routed:
        # A route leads whatever goes to a VIP's address to us, where other ports end (docs/nftables.md).
        both = (our.what, their.what)
        return "" if both == ("dropped", "passed") else f"{both}, not (dropped, passed)"
    if our.what != their.what:
        return f"{our.what}, not {their.what}"
    crossed = probe.where == "node" and their.what == "translated"  # ours has crossed a hop (docs/nftables.md)
    if our.ttl != their.ttl - crossed:
        return f"TTL {our.ttl}, not {their.ttl}"
    if their.what != "translated":
        # That the rules, read by a person's eyes, say so too.
        expected = {"pass": ("passed", "local"), "drop": ("dropped",), "reject": ("refused",)}[rules.what]
        return "" if their.what in expected else f"the rules say {rules.what}"
    for name, fate in (("kuproxy", our), ("nftables", their)):
        if fate.endpoint not in rules.pods:
            return f"{name}: {fate.endpoint} is none of {sorted(rules.pods)}"
        hairpin = fate.endpoint[0] == probe.source
        node = rules.masquerade or hairpin or probe.source in NODE_OWN[ip_address(probe.source).version]
        if fate.source != ("node" if node else "kept"):
            return f"{name}: the source is {fate.source}, not {'node' if node else 'kept'}"
        if fate.reply != "restored":
            return f"{name}: reply {fate.reply}"
        if fate.again != "same":
            return f"{name}: the next packet of the flow went to {fate.again} endpoint"
        if fate.second not in rules.pods:
            return f"{name}: second connection to {fate.second}"
    return ""


def run(both: Both, seed: int, seconds: float, least: int) -> Counter[str]:
    """Configurations for so long, at least so many."""
    cases, tally = Cases(seed), Counter[str]()
    until = time.monotonic() + seconds
    configurations = packets = 0
    while time.monotonic() < until or configurations < least:
        configurations += 1
        packets += compare(both, cases, 4 if configurations % 2 else 6, tally)
    tally["packets"], tally["configurations"] = packets, configurations
    print(dict(tally))
    return tally


def test_the_same_fate(both: Both) -> None:
    tally = run(both, SEED, ORDINARY_S, 8)
    for what in ("translated", "refused", "dropped", "passed", "local", "hairpin", "affine"):
        assert tally[what] >= 3, tally
    for what in ("node source", "kept source", "at out", "at node", "at pod"):
        assert tally[what] >= 10, tally


@pytest.mark.long
@pytest.mark.parametrize("seed", [101, 202, 303, 404])
def test_the_same_fate_for_long(both: Both, seed: int) -> None:
    run(both, seed, 60.0, 20)
