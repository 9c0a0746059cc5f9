"""Which endpoints serve, case by case with the rule that says so; then against a model of the rules.

Rules: KEP-1669 (proxy terminating endpoints), "Proposal"; KEP-2433 (topology aware hints), "Kube-Proxy"; KEP-3015
(PreferSameZone and PreferSameNode), "kube-proxy"; KEP-2086 (service internal traffic policy), "Proposal";
kubernetes.io/docs/reference/networking/virtual-ips, "Traffic policies" and "Traffic to terminating endpoints".
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.policy.cluster import HERE, WEB, a_slice, an_endpoint, candidates, numbers
from kuproxy.control.policy import candidates_for, categorize
from kuproxy.model.service import Endpoint

# rule, endpoints as (state, node), Cluster, Local, has_any
TRAFFIC_POLICY = [
    ("KEP-1669: ready endpoints only, if there are any",
     [("ready", "here"), ("serving", "here"), ("unready", "here"), ("ready", "there")], [1, 4], [1], True),
    ("KEP-1669: no ready one anywhere: those that serve while terminating",
     [("serving", "here"), ("terminating", "here"), ("unready", "here"), ("serving", "there")], [1, 4], [1], True),
    ("KEP-1669: Local falls back although Cluster need not",
     [("serving", "here"), ("ready", "there")], [2], [1], True),
    ("KEP-1669: Cluster falls back to all nodes, Local to this one",
     [("serving", "there"), ("serving", "there")], [1, 2], [], True),
    ("KEP-1669: terminating without serving never serves",
     [("terminating", "here"), ("terminating", "there")], [], [], False),
    ("unready without terminating never serves", [("unready", "here")], [], [], False),
    ("virtual-ips, Traffic policies: Local without local endpoints has none, though others exist",
     [("ready", "there")], [1], [], True),
    ("no endpoints at all", [], [], [], False),
    ("EndpointSlice without nodeName is nowhere", [("ready", "")], [1], [], True),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "given_", "cluster", "local", "has_any"), TRAFFIC_POLICY)
def test_traffic_policies(rule, given_, cluster, local, has_any) -> None:
    endpoints = [an_endpoint(n, state, node) for n, (state, node) in enumerate(given_, 1)]
    found = categorize(candidates(*endpoints), HERE)
    assert (numbers(found.cluster), numbers(found.local), found.has_any) == (cluster, local, has_any), rule


A, B = {"zones": ("zone-a",)}, {"zones": ("zone-b",)}
MINE, OTHER = {"nodes": ("here",)}, {"nodes": ("there",)}
HINTS = [
    ("KEP-2433: endpoints hinted for this node's zone", [A, B, {"zones": ("zone-b", "zone-a")}], [1, 3]),
    ("KEP-2433: one ready endpoint without hint, so none counts", [A, B, {}], [1, 2, 3]),
    ("KEP-2433: none for this zone, so all", [B, B], [1, 2]),
    ("KEP-3015: endpoints hinted for this node", [MINE | A, OTHER | A], [1]),
    ("KEP-3015: none for this node: the zone decides", [OTHER | A, OTHER | B], [1]),
    ("KEP-3015: one without node hint: the zone decides", [MINE | A, A, B | OTHER], [1, 2]),
    ("KEP-3015: node hints alone", [MINE, OTHER, MINE], [1, 3]),
    ("KEP-3015: neither is complete", [MINE, A], [1, 2]),
]


@pytest.mark.parametrize(("rule", "hints", "cluster"), HINTS)
def test_topology(rule, hints, cluster) -> None:
    endpoints = [an_endpoint(n, **each) for n, each in enumerate(hints, 1)]
    assert numbers(categorize(candidates(*endpoints), HERE).cluster) == cluster, rule
    # "If any *ready* endpoint lacks hints": others do not matter, and are not chosen.
    unready = an_endpoint(99, "serving")
    assert numbers(categorize(candidates(unready, *endpoints), HERE).cluster) == cluster


def test_hints_do_not_concern_the_policy_local() -> None:
    endpoints = candidates(an_endpoint(1, node="here", **B), an_endpoint(2, **A))
    found = categorize(endpoints, HERE)
    assert (numbers(found.cluster), numbers(found.local)) == ([2], [1])


def test_a_node_without_zone_has_no_zone_hints() -> None:
    endpoints = candidates(an_endpoint(1, **A), an_endpoint(2, **B))
    assert numbers(categorize(endpoints, replace(HERE, zone="")).cluster) == [1, 2]
    assert numbers(categorize(endpoints, None).cluster) == [1, 2]


def test_a_later_slice_says_where_an_endpoint_is() -> None:
    first, second = a_slice(an_endpoint(1, node="there")), a_slice(an_endpoint(1, node="here"), name="web-2")
    for order in ([first, second], [second, first]):
        found = candidates_for(WEB, WEB.ports[0], first.family, order)
        assert numbers(categorize(found, HERE).local) == [1]


# -------------------------------------------------------------------------------------- against a model

STATES = st.sampled_from(["ready", "unready", "serving", "terminating"])
ENDPOINTS = st.lists(
    st.builds(
        lambda state, node, zones, nodes: (state, node, zones, nodes),
        STATES,
        st.sampled_from(["here", "there", ""]),
        st.lists(st.sampled_from(["zone-a", "zone-b"]), max_size=2, unique=True).map(tuple),
        st.lists(st.sampled_from(["here", "there"]), max_size=2, unique=True).map(tuple),
    ),
    max_size=6,
)


def cluster_by_the_book(endpoints: dict[int, Endpoint]) -> set[int]:
    """virtual-ips: "Topology aware routing", "Traffic distribution control" and "Traffic to terminating endpoints"."""
    ready = {n: e for n, e in endpoints.items() if e.ready}
    if not ready:
        return {n for n, e in endpoints.items() if e.serving and e.terminating}
    for hints, own in (("hint_nodes", HERE.name), ("hint_zones", HERE.zone)):
        told = {n: getattr(e, hints) for n, e in ready.items()}
        mine = {n for n, each in told.items() if own in each}
        if mine and all(told.values()):
            return mine
    return set(ready)


def local_by_the_book(endpoints: dict[int, Endpoint]) -> set[int]:
    here = {n: e for n, e in endpoints.items() if e.node_name == HERE.name}
    ready = {n for n, e in here.items() if e.ready}
    return ready if ready else {n for n, e in here.items() if e.serving and e.terminating}


@given(ENDPOINTS)
def test_categories_against_the_model(drawn) -> None:
    endpoints = {
        n: an_endpoint(n, state, node, zones=zones, nodes=nodes)
        for n, (state, node, zones, nodes) in enumerate(drawn, 1)
    }
    found = categorize(candidates(*endpoints.values()), HERE)
    assert set(numbers(found.cluster)) == cluster_by_the_book(endpoints)
    assert set(numbers(found.local)) == local_by_the_book(endpoints)
    usable = [e for e in endpoints.values() if e.ready or (e.serving and e.terminating)]
    assert found.has_any == bool(usable)


@given(ENDPOINTS)
def test_a_service_with_endpoints_is_always_reached(drawn) -> None:
    """Topology and fallback narrow the choice; they never empty it."""
    endpoints = [an_endpoint(n, s, node, zones=z, nodes=h) for n, (s, node, z, h) in enumerate(drawn, 1)]
    found = categorize(candidates(*endpoints), HERE)
    assert bool(found.cluster) == found.has_any
    assert found.has_any or not found.local
