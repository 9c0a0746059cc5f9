"""Who gets what several services claim, step by step as all at once."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kuproxy.codes import Protocol
from kuproxy.control.book import Claimant, ServiceBook, Wanted
from kuproxy.control.policy import ServiceVips, settle
from kuproxy.model.vip import Pod, Vip, VipKey, host_prefix, parse_address, vip_type

PREFIXES = [host_prefix(parse_address(f"192.0.2.{n}")) for n in range(4)]
PODS = [Pod(parse_address(f"10.0.0.{n}"), 8000) for n in range(3)]


def vip(owner: str, prefix: int = 0, node_port: int = 0, pods: tuple[Pod, ...] = (), **more: object) -> Vip:
    key = VipKey(PREFIXES[prefix], Protocol.UDP, 53)
    made = Vip(key, vip_type(key.prefix), node_port=node_port, pods=pods, owner=f"ns/{owner}:dns")
    return replace(made, **more) if more else made


def wanted(
    name: str, *vips: Vip, created: str = "2026-01-01T00:00:00Z", serving: tuple[Pod, ...] = ()
) -> Wanted:
    alive = tuple((each.key, frozenset(serving)) for each in vips)
    return Wanted((created, "ns", name), ServiceVips(vips, alive))


class Store:
    """Follows the differences, and accepts no contradiction."""

    def __init__(self) -> None:
        self.vips: dict[VipKey, Vip] = {}

    def follow(self, add: list[Vip], remove: list[VipKey]) -> None:
        for key in remove:
            del self.vips[key]  # what is not there cannot go
        for each in add:
            assert self.vips.get(each.key) != each, "told again"
            self.vips[each.key] = each
        ports = [each.node_port for each in self.vips.values() if each.node_port]
        assert len(set(ports)) == len(ports)


def test_the_older_service_has_what_both_claim_and_leaves_it_to_the_other() -> None:
    book, store = ServiceBook(), Store()
    young = wanted("young", vip("young"), vip("young", 1), created="2026-02-01T00:00:00Z")
    old = wanted("old", vip("old"))
    difference = book.update({("ns", "young"): young})
    store.follow(difference.add, difference.remove)
    assert {each.owner for each in store.vips.values()} == {"ns/young:dns"}

    difference = book.update({("ns", "old"): old})
    store.follow(difference.add, difference.remove)
    assert store.vips[vip("old").key].owner == "ns/old:dns"
    ((claimant, problems),) = difference.problems.items()
    assert claimant == ("ns", "young")
    assert "belongs to ns/old:dns; ns/young:dns does not get it" in str(problems[0])
    assert book.problems(("ns", "young")) == problems

    difference = book.update({("ns", "old"): None})
    store.follow(difference.add, difference.remove)
    assert store.vips[vip("old").key].owner == "ns/young:dns"
    assert difference.problems == {("ns", "young"): ()}


def test_a_vip_that_changes_hands_ends_the_udp_flows_of_its_former_pods() -> None:
    book = ServiceBook()
    a, b, c = PODS
    book.update({("ns", "young"): wanted("young", vip("young", pods=(a, b)), created="3", serving=(a, b))})
    difference = book.update(
        {("ns", "old"): wanted("old", vip("old", pods=(b, c)), created="2", serving=(b, c))}
    )
    assert difference.flushed == [(vip("old").key, a)]
    # What an unlucky claimant's endpoints do is no business of the VIP.
    difference = book.update({("ns", "young"): wanted("young", vip("young"), created="3")})
    assert difference.flushed == []


def test_a_service_that_falls_to_zero_ends_its_udp_flows_and_one_that_goes_needs_not() -> None:
    book = ServiceBook()
    book.update({("ns", "dns"): wanted("dns", vip("dns", pods=(PODS[0],)), serving=(PODS[0],))})
    difference = book.update({("ns", "dns"): wanted("dns", vip("dns"))})
    assert difference.flushed == [(vip("dns").key, PODS[0])]
    assert book.update({("ns", "dns"): None}).flushed == []
    assert len(book) == 0
    assert not vars(book)["_claims"]


NAMES = "abcd"
CLAIMS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from((0, 0, 30001, 30002)), st.sets(st.sampled_from(PODS))),
    max_size=3,
)
SERVICES = st.none() | st.tuples(st.sampled_from(("1", "2", "3")), CLAIMS)
STEPS = st.lists(st.dictionaries(st.sampled_from(NAMES), SERVICES, min_size=1), max_size=12)


def made(name: str, created: str, claims: list[tuple[int, int, set[Pod]]]) -> Wanted:
    vips = [vip(name, prefix, port, tuple(pods)) for prefix, port, pods in claims]
    return Wanted((created, "ns", name), ServiceVips(tuple(vips)))


@given(STEPS)
def test_step_by_step_as_all_at_once(steps: list[dict[str, tuple[str, list] | None]]) -> None:
    """INVARIANT: after any changes everybody has what `settle` gives when all come at once, by rank."""
    book, store = ServiceBook(), Store()
    now: dict[Claimant, Wanted] = {}
    for step in steps:
        changes = {("ns", name): None if each is None else made(name, *each) for name, each in step.items()}
        for claimant, each in changes.items():
            if each is None:
                now.pop(claimant, None)
            else:
                now[claimant] = each
        difference = book.update(changes)
        store.follow(difference.add, difference.remove)
        by_rank = sorted(now.values(), key=lambda each: each.rank)
        expected, problems = settle([each for one in by_rank for each in one.vips.vips])
        assert store.vips == {each.key: each for each in expected}
        told = [problem for claimant in now for problem in book.problems(claimant)]
        assert sorted(map(str, told)) == sorted(map(str, problems))
    book.update(dict.fromkeys(now))
    assert not vars(book)["_claims"]
