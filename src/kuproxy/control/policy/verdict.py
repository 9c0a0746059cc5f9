"""Why an endpoint may serve, or may not, in a sentence: the rules of `endpoints`, told.

Who serves is never decided here: `categorize` says it, and this says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kuproxy.control.policy.endpoints import Candidate, categorize, preferred_by_topology
from kuproxy.model.node import NodeInfo

__all__ = ["Verdict", "verdicts"]


class Verdict(NamedTuple):
    """An endpoint, whether it gets new flows, and the rule."""

    candidate: Candidate
    serves: bool
    rule: str


def verdicts(candidates: Sequence[Candidate], node: NodeInfo | None, *, local: bool) -> list[Verdict]:
    """One for each endpoint, in their order; `local`: for the policy Local, else for the policy Cluster."""
    categories = categorize(candidates, node)
    serving = {candidate.pod.id for candidate in (categories.local if local else categories.cluster)}
    return [
        Verdict(each, each.pod.id in serving, _rule(each, candidates, node, local=local))
        for each in candidates
    ]


def _rule(
    candidate: Candidate, candidates: Sequence[Candidate], node: NodeInfo | None, *, local: bool
) -> str:
    endpoint = candidate.endpoint
    group = list(candidates)
    if local:
        if node is None:
            return "policy Local, and which node this is, is not known"
        if endpoint.node_name != node.name:
            where = f"on node {endpoint.node_name}" if endpoint.node_name else "on no node that it names"
            return f"policy Local, and it is {where}, not on {node.name}"
        group = [each for each in candidates if each.endpoint.node_name == node.name]
    some_ready = any(each.endpoint.ready for each in group)
    where = f" on {node.name}" if local and node is not None else ""
    if not endpoint.ready:
        return _unready(candidate, some_ready=some_ready, where=where)
    if not local:
        ready = [each for each in group if each.endpoint.ready]
        preferred = preferred_by_topology(ready, node)
        if preferred is not None and node is not None:
            return _hint(candidate, node, chosen=preferred(endpoint))
    return f"ready, policy {'Local' if local else 'Cluster'}{where and ', ' + where.strip()}"


def _unready(candidate: Candidate, *, some_ready: bool, where: str) -> str:
    endpoint = candidate.endpoint
    if not (endpoint.serving and endpoint.terminating):
        if endpoint.terminating:
            return "terminating, and it serves no more"
        return "not ready"
    if some_ready:
        return f"terminating, and others{where} are ready"
    return f"terminating, but it still serves, and none{where} is ready"


def _hint(candidate: Candidate, node: NodeInfo, *, chosen: bool) -> str:
    endpoint = candidate.endpoint
    if chosen:
        place = f"node {node.name}" if node.name in endpoint.hint_nodes else f"zone {node.zone}"
        return f"ready, and its hint names {place}"
    hinted = [f"node {name}" for name in endpoint.hint_nodes] or [
        f"zone {name}" for name in endpoint.hint_zones
    ]
    return f"ready, but its hint is for {', '.join(hinted)}, and others are for this node or zone"
