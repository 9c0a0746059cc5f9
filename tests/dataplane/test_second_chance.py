"""A node that knows nothing of a connection, at a slot whose pod has changed: whoever knows it keeps it (ADR 036).

Everything is asked of the compiled graph and of the reference alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest

from dataplane.second_chances import INSIDE, KINDS, NOW, OUTSIDE, PODS, Bed, segment_back
from differential.machine import ReferencePlane
from differential.plane import SECOND_CHANCE_S, CompiledPlane
from kuproxy.codes import Encap, FlowFlag, FlowState, HashMode, Node, Outcome, Reason
from kuproxy.engine.cached import Book, Found
from kuproxy.model.vip import Pod
from packets import ACK, FIN, RST, SYN, frame, tcp, udp

Make = Callable[..., Bed]


@pytest.fixture(params=[CompiledPlane, ReferencePlane], ids=["compiled", "reference"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    beds: list[Bed] = []

    def made(*arguments: Any, **more: Any) -> Bed:
        beds.append(Bed(request.param, *arguments, **more))
        return beds[-1]

    yield made
    for bed in beds:
        bed.close()


# What a VIP or a node may be like besides.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "by source": {"hash_mode": HashMode.SOURCE},
    "affinity": {"affinity_s": 100.0, "hash_mode": HashMode.SOURCE},
    "masqueraded": {"hidden": True},  # all nodes by one address
    "capped": {"session_cap": 10_000},
    "keyed": {"flow_key": bytes(range(16))},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_connections_live_on_whose_pods_do(make: Make, kind: str, way: str) -> None:
    """A pod goes, another comes, and all the first node's connections move to the second: none ends whose pod lives."""
    bed = make(kind, clients=100, **WAYS[way])
    bed.serve(0, 1, 3, 4)  # without the third, which drains, and with the fifth
    moved = bed.moved()
    assert len(moved) > 40, "otherwise nothing is shown"
    heard = [bed.talk(bed.two, number) for number in range(bed.count)]
    # The refusal is all that is lost.
    silent = [number for number, what in enumerate(heard) if not what]
    assert "reset" not in heard
    if way == "affinity":  # the client's second connection goes to where its first one was found
        assert 0 < len(silent) < len(moved)
    else:
        assert silent == moved
    assert bed.counted(bed.two, Reason.SECOND_CHANCE) == len(silent)
    assert [bed.talk(bed.two, number) for number in range(bed.count)] == bed.where
    assert [bed.talk(bed.two, number) for number in range(bed.count)] == bed.where
    assert bed.counted(bed.two, Reason.SECOND_CHANCE) == len(silent)
    assert len(bed.two.live_flows(NOW)) == bed.count
    assert {flow.state for flow in bed.two.live_flows(NOW)} == {FlowState.TCP_ESTABLISHED}


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_option_they_end(make: Make, kind: str) -> None:
    bed = make(kind, second_chance=False)
    bed.serve(0, 1, 3, 4)
    moved = bed.moved()
    heard = [bed.talk(bed.two, number) for number in range(bed.count)]
    assert [number for number, what in enumerate(heard) if what == "reset"] == moved and len(moved) > 40
    assert not bed.at_balance(bed.two, Reason.TENTATIVE)


def test_node_ports_too(make: Make) -> None:
    bed = make(count=0, node_port=30080, node_addresses=(ip_address("40.0.0.254"),))
    address, bed.address = bed.address, "40.0.0.254"
    bed.segment = lambda number, flags=ACK: frame(  # type: ignore[method-assign]
        tcp(f"40.0.0.{number % 5 + 1}", "40.0.0.254", 20000 + number, 30080, flags=flags, acknowledgement=9)
    )
    bed.count = 200
    bed.where = [bed.talk(bed.one, number, SYN) for number in range(bed.count)]
    bed.serve(0, 1, 3, 4)
    assert address != bed.address
    first = [bed.talk(bed.two, number) for number in range(bed.count)]
    assert first.count("") > 40 and "reset" not in first
    assert [bed.talk(bed.two, number) for number in range(bed.count)] == bed.where


def test_a_client_that_is_the_former_pod_itself(make: Make) -> None:
    """Hairpin: what the pod sees depends on which pod it is; both nodes hide clients behind one address here."""
    bed = make(count=0)
    bed._clients = "10.0.0."
    bed.count = 200
    bed.where = [bed.talk(bed.one, number, SYN) for number in range(bed.count)]
    bed.serve(0, 1, 3, 4)
    heard = [bed.talk(bed.two, number) for number in range(bed.count)]
    assert heard.count("") > 40 and "reset" not in heard
    own = [n for n, what in enumerate(heard) if not what and bed.where[n] == f"10.0.0.{n % 5 + 1}"]
    assert own, "some of them are their own clients"
    assert [bed.talk(bed.two, number) for number in range(bed.count)] == bed.where


def test_by_the_rings_of_each_origin(make: Make) -> None:
    """Pods, and clients from outside, have rings and former rings of their own."""
    outside = tuple(Pod(ip_address(each)) for each in PODS[4][1:4])
    bed = make(count=0, outside_pods=outside, pod_ranges=(ip_network("40.0.0.0/30"),))
    bed.count = 200  # of which three fifths are pods
    bed.where = [bed.talk(bed.one, number, SYN) for number in range(bed.count)]
    bed.serve(0, 1, 3, 4, outside_pods=outside[1:])
    heard = [bed.talk(bed.two, number) for number in range(bed.count)]
    assert "reset" not in heard
    silent = [number for number, what in enumerate(heard) if not what]
    assert len([n for n in silent if n % 5 < 3]) > 20 and len([n for n in silent if n % 5 >= 3]) > 15
    assert [bed.talk(bed.two, number) for number in range(bed.count)] == bed.where


def one_moved(bed: Bed) -> int:
    """The third pod goes, the fifth comes; returns a connection of the third, whose slot the fifth has now."""
    bed.serve(0, 1, 3, 4)
    return next(n for n in bed.moved() if bed.where[n] == PODS[bed.family][2])


def test_the_former_pods_own_refusal_is_the_last_word(make: Make) -> None:
    bed = make()
    number = one_moved(bed)
    bed.pods.known.clear()
    assert [bed.talk(bed.two, number) for _ in range(2)] == ["", "reset"]


def test_a_pod_that_has_spoken_is_believed(make: Make) -> None:
    """The new pod knows the connection after all; what it says later is said to the client."""
    bed = make()
    number = one_moved(bed)
    sent = bed.to_pod(bed.two, number)
    assert bed.send(bed.two, segment_back(sent.data, ACK), INSIDE).outcome is Outcome.TRANSMIT
    assert bed.send(bed.two, segment_back(sent.data, RST), INSIDE).outcome is Outcome.TRANSMIT
    assert bed.to_pod(bed.two, number).pod == sent.pod


def test_an_abort_is_no_refusal(make: Make) -> None:
    """RFC 9293 section 3.10.5: who ends a connection that he knows acknowledges, as does who refuses a new one."""
    bed = make()
    number = one_moved(bed)
    sent = bed.to_pod(bed.two, number)
    assert bed.send(bed.two, segment_back(sent.data, RST | ACK), INSIDE).reason is Reason.IN2OUT
    assert bed.send(bed.two, segment_back(sent.data, RST), INSIDE).reason is Reason.IN2OUT


def test_nobody_else_can_refuse(make: Make) -> None:
    """A forged refusal from outside passes by; so does one that does not fit exactly."""
    bed = make()
    number = one_moved(bed)
    sent = bed.to_pod(bed.two, number)
    forged = segment_back(sent.data, RST)
    assert bed.send(bed.two, forged, OUTSIDE).outcome is Outcome.PASS
    other = frame(tcp("10.0.0.9", f"40.0.0.{number % 5 + 1}", 8080, 20000 + number, flags=RST))
    assert bed.send(bed.two, other, INSIDE).outcome is Outcome.PASS
    assert bed.to_pod(bed.two, number).pod == sent.pod
    assert not bed.counted(bed.two, Reason.SECOND_CHANCE)
    assert bed.send(bed.two, forged, INSIDE).reason is Reason.SECOND_CHANCE


@pytest.mark.parametrize("flags", [SYN, RST, RST | ACK, SYN | ACK, FIN, 0])
def test_only_segments_in_the_midst_of_a_connection_are_on_trial(make: Make, flags: int) -> None:
    bed = make()
    number = one_moved(bed)
    sent = bed.to_pod(bed.two, number, flags)
    assert not bed.at_balance(bed.two, Reason.TENTATIVE)
    assert bed.send(bed.two, segment_back(sent.data, RST), INSIDE).reason is Reason.IN2OUT


def test_the_end_of_a_connection_finds_its_pod(make: Make) -> None:
    bed = make()
    number = one_moved(bed)
    assert [bed.talk(bed.two, number, FIN | ACK) for _ in range(2)] == ["", bed.where[number]]


def test_the_same_pod_is_not_tried_twice(make: Make) -> None:
    """A connection of a pod that stays, at a slot that stays: nothing is different from without the option."""
    bed = make()
    bed.serve(0, 1, 3, 4)
    stays = next(n for n in range(bed.count) if n not in bed.moved())
    bed.pods.known.clear()
    assert bed.talk(bed.two, stays) == "reset"
    assert not bed.at_balance(bed.two, Reason.TENTATIVE)


def test_several_segments_under_way(make: Make) -> None:
    """The new pod refuses each: the first refusal counts, and none reaches the client as the VIP's."""
    bed = make()
    number = one_moved(bed)
    sent = [bed.to_pod(bed.two, number) for _ in range(3)]
    back = [bed.send(bed.two, bed.pods.answer(each.data), INSIDE) for each in sent]
    assert [each.reason for each in back] == [Reason.SECOND_CHANCE, Reason.NO_TRANSLATION, Reason.NO_TRANSLATION]
    assert bed.talk(bed.two, number) == bed.where[number]


def test_several_segments_under_way_where_flows_are_untracked(make: Make) -> None:
    """The ring tells that the pod could answer for an untracked flow; but this client has one that is known."""
    bed = make(buckets=1)
    number = one_moved(bed)
    for port in range(6):  # UDP does not give way
        bed.send(bed.two, frame(tcp("40.0.0.9", bed.address, 30000 + port, 80, flags=SYN)))
    full = [bed.to_pod(bed.two, n) for n in range(8)]
    assert full and bed.at_balance(bed.two, Reason.HALF_OPEN_EVICTED) > 0  # so untracked replies are looked for
    sent = [bed.to_pod(bed.two, number) for _ in range(2)]
    back = [bed.send(bed.two, bed.pods.answer(each.data), INSIDE) for each in sent]
    assert [each.reason for each in back] == [Reason.SECOND_CHANCE, Reason.NO_TRANSLATION]
    assert bed.talk(bed.two, number) == bed.where[number]


def test_an_untracked_flow_has_no_second_chance(make: Make) -> None:
    bed = make(buckets=1)
    anything = replace(bed.vip, key=replace(bed.vip.key, protocol=bed.vip.key.protocol.UDP, port=53))
    number = one_moved(bed)
    bed.two.set_vip(anything)
    for port in range(4):
        bed.send(bed.two, frame(udp("40.0.0.9", bed.address, 30000 + port, 53)))
    sent = bed.to_pod(bed.two, number)
    assert bed.at_balance(bed.two, Reason.UNTRACKED) == 1 and not bed.at_balance(bed.two, Reason.TENTATIVE)
    back = bed.send(bed.two, bed.pods.answer(sent.data), INSIDE)
    assert (back.outcome, back.reason) == (Outcome.TRANSMIT, Reason.IN2OUT)


def test_direct_return_has_none(make: Make) -> None:
    bed = make(count=0)
    bed.vip = replace(bed.vip, encap=Encap.L3DSR, target_port=0)
    bed.serve(0, 1, 2, 3)
    bed.serve(0, 1, 3, 4)
    for number in range(100):
        bed.to_pod(bed.two, number)
    assert not bed.at_balance(bed.two, Reason.TENTATIVE)


def test_the_time_ends(make: Make) -> None:
    """On trial while it was not over, refused after it: the client is told."""
    bed = make()
    number = one_moved(bed)
    sent = bed.to_pod(bed.two, number)
    bed.two.end_second_chances()
    assert bed.send(bed.two, bed.pods.answer(sent.data), INSIDE).reason is Reason.IN2OUT
    other = next(n for n in bed.moved() if n != number)
    assert bed.talk(bed.two, other) == "reset"


def test_a_flushed_pod_gets_none(make: Make) -> None:
    bed = make()
    number = one_moved(bed)
    bed.two.flush(bed.vip.key, ip_address(PODS[4][2]))
    assert bed.talk(bed.two, number) == "reset"


def test_a_flushed_pod_that_comes_back_gets_none(make: Make) -> None:
    """It is another one; the one before is not asked."""
    bed = make()
    number = one_moved(bed)
    bed.two.flush(bed.vip.key, ip_address(PODS[4][2]))
    bed.two.collect(NOW)
    assert bed.talk(bed.two, number) == "reset"
    bed.serve(0, 1, 2, 3)
    bed.two.collect(NOW)
    assert bed.talk(bed.two, number, SYN) == bed.where[number]


def test_a_further_change_has_its_own_former_ring(make: Make) -> None:
    """The one directly before it: connections of the ring before that one end."""
    bed = make()
    one_moved(bed)
    bed.serve(0, 1, 4)
    heard = {n: [bed.talk(bed.two, n) for _ in range(2)] for n in range(bed.count)}
    third, fourth = ([n for n in heard if bed.where[n] == PODS[4][place]] for place in (2, 3))
    live = [n for n in fourth if heard[n][1] == bed.where[n]]
    assert len(live) > 2 * len(fourth) / 3, "it has just gone"
    assert [n for n in third if "reset" in heard[n]] == third, "it had gone before"


def test_what_changes_no_owner_takes_nothing_away(make: Make) -> None:
    """Another weight of all pods alike, a pod that weighs nothing: the owners before stay those before."""
    bed = make()
    number = one_moved(bed)
    heavy = tuple(pod.weighing(3) for pod in bed.vip.pods)
    bed.two.set_vip(replace(bed.vip, pods=heavy))
    assert bed.talk(bed.two, number) == ""
    assert bed.talk(bed.two, number) == bed.where[number]


@pytest.mark.parametrize("change", [{"new_len": 512}, {"outside_pods": ()}])
def test_rings_that_cannot_be_compared_are_not(make: Make, change: dict[str, Any]) -> None:
    """Another size, or rings by origin where there was one: no second chance."""
    bed = make(pod_ranges=(ip_network("40.0.0.0/8"),))
    bed.serve(0, 1, 3, 4, **change)
    heard = [bed.talk(bed.two, number) for number in range(bed.count)]
    assert "" not in heard and heard.count("reset") > 40


def test_no_second_chance_where_the_reply_would_be_anothers(make: Make) -> None:
    """Through another VIP the same client has the former pod already, with the very ports."""
    bed = make()
    number = one_moved(bed)
    other = replace(bed.vip, key=replace(bed.vip.key, prefix=ip_network("90.0.0.2/32")))
    other = replace(other, pods=(Pod(ip_address(PODS[4][2])),))
    bed.two.set_vip(other)
    client = f"40.0.0.{number % 5 + 1}"
    taken = bed.send(bed.two, frame(tcp(client, "90.0.0.2", 20000 + number, 80, flags=SYN)))
    assert str(taken.pod) == PODS[4][2]
    assert bed.talk(bed.two, number) == "reset"


def test_affinity_follows_a_pod_that_serves(make: Make) -> None:
    """The client is at the former pod, which serves others still: its new connections go there as well."""
    bed = make(affinity_s=100.0, hash_mode=HashMode.SOURCE)
    bed.serve(0, 1, 2, 3, 4)
    moved = bed.moved()
    assert moved, "the fifth pod has got some client's slot"
    number = moved[0]
    assert [bed.talk(bed.two, number) for _ in range(2)] == ["", bed.where[number]]
    assert bed.talk(bed.two, number + 5, SYN) == bed.where[number], "the same client's"


def test_all_that_a_tentative_flow_held_goes_with_it() -> None:
    """References, lines of the reverse index, sums: the compiled table is empty when all has ended."""
    bed = Bed(CompiledPlane)
    bed.serve(0, 1, 3, 4)
    for _ in range(2):
        for number in range(bed.count):
            bed.talk(bed.two, number)
    state = bed.two.engine.state
    assert int(state.pod_refs.sum()) == bed.count == int((state.reverse["slot"] != 0).sum())
    bed.two.sweep(NOW + 1)
    bed.two.collect(NOW + 10_000)
    assert not state.pod_refs.any() and not state.reverse["slot"].any() and not state.entries["pod"].any()
    bed.two.end_second_chances()
    for _ in range(3):
        bed.two.collect(NOW + 10_000)
    [record] = bed.two.compiler.records()
    assert not record.draining and bed.two.compiler.in_use()["ring_slots"] == 256
    bed.close()


def test_removed_pods_stay_as_long_as_they_may_be_given_flows() -> None:
    """Nobody refers to the removed pod on the second node, and its index must not become another's meanwhile."""
    bed = Bed(CompiledPlane)
    [record] = bed.two.compiler.records()
    bed.serve(0, 1, 3, 4)
    for _ in range(3):
        bed.two.collect(NOW)
    [(pod, index)] = record.draining.items()
    assert str(pod.address) == PODS[4][2] and index in record.former_pods
    compiler = bed.two.compiler
    compiler.end_second_chances(NOW)
    compiler.end_second_chances(NOW + SECOND_CHANCE_S * 10 - 1)
    assert record.former_pods
    seen = bed.two.engine.acknowledged()
    assert compiler.end_second_chances(NOW + SECOND_CHANCE_S * 10) == 1
    assert compiler.end_second_chances(NOW + SECOND_CHANCE_S * 10) == 0
    compiler.collect(seen, lambda index: 0)
    assert record.draining, "a worker may just be giving it a flow"
    for _ in range(2):
        bed.two.collect(NOW)
    assert not record.draining and compiler.in_use()["ring_slots"] == 256 and not compiler.in_use()["retired"]
    bed.close()


def test_a_worker_that_reads_foreign_slots_gives_no_flow_to_another_vips_pod() -> None:
    """Whatever wrote the tables: an index that is not of this VIP counts as nobody."""
    bed = Bed(CompiledPlane)
    number = one_moved(bed)
    bed.two.set_vip(replace(bed.vip, key=replace(bed.vip.key, prefix=ip_network("90.0.0.2/32"))))
    first, second = bed.two.compiler.records()
    ring = first.ring
    assert ring is not None and ring.former
    bed.two.engine.tables.rings[ring.offset + 256 : ring.offset + 512] = next(iter(second.pods.values()))
    assert bed.talk(bed.two, number) == "reset"
    bed.close()


def test_the_flow_cache_carries_none_that_is_tentative() -> None:
    """And one that has moved is another flow to it: with a pod, ports and a reply of its own."""
    bed = Bed(CompiledPlane)
    number = one_moved(bed)
    state, tables = bed.two.engine.state, bed.two.engine.tables
    bed.to_pod(bed.two, number)
    [slot] = np.flatnonzero(state.entries["pod"])
    state.flows["state"][slot] = FlowState.TCP_ESTABLISHED  # which it is not before its pod has spoken

    def candidates() -> Found:
        return Book(4).candidates(0, tables, state, 0, np.zeros(len(state.entries), np.int32), NOW, 10, 0, 0)

    assert not len(candidates().slots)
    state.flows["flags"][slot] ^= int(FlowFlag.TENTATIVE)
    found = candidates()
    assert found.slots.tolist() == [slot]
    book, pairs = Book(4), np.array([1])
    book.note(pairs, found, np.zeros(1, bool), tables, 1)
    assert book.held(pairs, [state], NOW).all()
    state.flows["flags"][slot] ^= int(FlowFlag.TENTATIVE)
    assert not book.held(pairs, [state], NOW).any()
    state.flows["state"][slot] = FlowState.TCP_HALF_OPEN
    assert [bed.talk(bed.two, number) for _ in range(2)] == ["", bed.where[number]]
    assert state.flows["state"][slot] == FlowState.TCP_ESTABLISHED
    assert not book.held(pairs, [state], NOW).any()
    bed.close()


def test_where_it_is_counted(make: Make) -> None:
    bed = make()
    number = one_moved(bed)
    bed.talk(bed.two, number)
    counters = bed.two.counters()
    assert counters[Node.BALANCE, Reason.TENTATIVE] == 1
    assert counters[Node.NAT4_IN2OUT, Reason.SECOND_CHANCE] == 1
    vip_counts = bed.two.vip_counters()[bed.vip.key]
    assert {each.name: count for each, count in vip_counts.items() if count}["FIRST_PACKET"] == 1
    assert bed.two.outcomes()[Outcome.DROP] == 1
