"""Verdicts: those that serve are those of `categorize`, and the sentence says why in its own terms."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import pytest

from kuproxy.control.policy import Candidate, categorize, verdicts
from kuproxy.model.node import NodeInfo
from kuproxy.model.service import Endpoint
from kuproxy.model.vip import Pod

NODES, ZONES = ("a", "b", ""), ("z1", "z2")


def random_candidates(rng: Random) -> list[Candidate]:
    made = []
    for number in range(rng.randrange(6)):
        ready = rng.random() < 0.6
        address = ip_address(f"10.0.0.{number + 1}")
        endpoint = Endpoint(
            (address,),
            ready=ready,
            serving=ready or rng.random() < 0.5,
            terminating=not ready and rng.random() < 0.6,
            node_name=rng.choice(NODES),
            hint_zones=tuple(rng.sample(ZONES, rng.choice([1, 1, 1, 2]))) if rng.random() < 0.9 else (),
            hint_nodes=(rng.choice(NODES[:2]),) if rng.random() < 0.5 else (),
        )
        made.append(Candidate(endpoint, Pod(address)))
    return made


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("node", [None, NodeInfo("a", "z1"), NodeInfo("c", "z3")])
def test_verdicts_are_those_of_the_policy(node: NodeInfo | None, local: bool) -> None:
    rng = Random(f"{node} {local}")
    seen = set()
    for _ in range(2000):
        candidates = random_candidates(rng)
        categories = categorize(candidates, node)
        serving = list(categories.local if local else categories.cluster)
        told = verdicts(candidates, node, local=local)
        assert [each.candidate for each in told if each.serves] == serving
        for each in told:
            seen.add(each.rule)
            says_no = any(
                word in each.rule
                for word in (
                    "not ready",
                    "but its hint",
                    "no more",
                    "others",
                    "is not known",
                    "policy Local, and",
                )
            )
            assert each.serves != says_no, each
    assert len(seen) >= (1 if local and node is None else 3)
