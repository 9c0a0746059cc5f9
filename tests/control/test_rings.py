"""What a change did to a ring: kept within bounds, compared by pod, not by index."""

from __future__ import annotations

import numpy as np

from kuproxy.control.compile import ring_owners
from kuproxy.control.rings import FormerRing, RingHistory, compare_rings
from kuproxy.engine.local import LocalEngine
from kuproxy.model.vip import Pod, VipKey, parse_address, parse_prefix
from kuproxy.plane import Plane
from kuproxy.vppcli.apply import Desired

PODS = [Pod(parse_address(f"10.0.0.{number}"), 80) for number in range(1, 6)]


def key(number: int) -> VipKey:
    return VipKey(parse_prefix(f"90.0.0.{number}/32"))


def test_the_oldest_are_forgotten_when_there_is_no_room() -> None:
    history = RingHistory(most_slots=100)
    for number in range(5):
        history.note(key(number), np.full(40, number, np.uint32), {PODS[0]: number})
    assert len(history) == 2
    assert history.former(key(2)) is None
    kept = history.former(key(4))
    assert kept is not None and kept.owners.tolist() == [4] * 40
    history.note(key(4), None, {})
    assert history.former(key(4)) is None, "its first ring has none before it"
    history.note(key(3), np.zeros(101, np.uint32), {})
    assert len(history) == 0, "a ring larger than everything together is not kept"


def test_slots_that_moved_are_counted_by_pod() -> None:
    owners = np.array([1, 1, 2, 0, 9], np.uint32)
    former = FormerRing(np.array([5, 2, 2, 2, 9], np.uint32), {PODS[0]: 5, PODS[1]: 2, PODS[2]: 9})
    report = compare_rings(owners, {1: PODS[0], 2: PODS[1], 9: PODS[3]}, former)
    assert report.moved == 3, "the second, the fourth, and the last, whose index another pod has now"
    assert report.before is not None
    rows = [(share.slots, share.slots_before, share.gained, share.lost) for share in report.shares]
    assert rows == [(2, 1, 1, 0), (1, 3, 0, 2), (0, 1, 0, 1), (1, 0, 1, 0)]
    assert report.owners.tolist() == [0, 0, 1, -1, 3]
    assert report.before.tolist() == [0, 1, 1, 1, 2]


def test_rings_of_two_sizes_are_not_compared() -> None:
    former = FormerRing(np.ones(4, np.uint32), {PODS[0]: 1})
    report = compare_rings(np.ones(8, np.uint32), {1: PODS[0]}, former)
    assert (report.before, report.moved) == (None, 0)
    assert [share.slots_before for share in report.shares] == [8]


def test_the_compiler_keeps_what_every_change_replaced() -> None:
    engine = LocalEngine(4)
    plane = Plane(engine, decrement_ttl=True, any_node_address=True)
    desired = Desired()
    vip = VipKey(parse_prefix("90.0.0.0/8"))

    def change(line: str) -> None:
        desired.run(line)
        plane.apply(desired.config())

    def report() -> tuple[list[int], list[int] | None, int]:
        record = plane.compiler.record(vip)
        assert record is not None
        pods = {index: pod for pod, index in record.pods.items()}
        made = compare_rings(plane.compiler.owners_of(record), pods, plane.compiler.former_rings.former(vip))
        before = None if made.before is None else made.before.tolist()
        return made.owners.tolist(), before, made.moved

    change("ku vip 90.0.0.0/8 new_len 64")
    assert report() == ([-1] * 64, None, 0)
    change("ku pod 90.0.0.0/8 10.0.0.1 10.0.0.2 10.0.0.3")
    assert report()[1] is None
    three = report()[0]
    names = [Pod(parse_address(f"10.0.0.{number}")) for number in (1, 2, 3)]
    assert [names[owner] for owner in three] == ring_owners(names, 64)
    change("ku pod 90.0.0.0/8 10.0.0.2 del")
    owners, before, moved = report()
    assert before == three
    assert moved == sum(old != new for old, new in zip(three, owners, strict=True)) > 0
    assert 1 not in owners
    change("ku conf timeout 9")
    assert report() == (owners, before, moved), "no change of this VIP"
    change("ku vip 90.0.0.0/8 del")
    assert len(plane.compiler.former_rings) == 0


def test_a_report_draws_itself_for_notebooks() -> None:
    ring = np.array([1, 2, 2, 1], np.uint32)
    report = compare_rings(
        ring, {1: PODS[0], 2: PODS[1]}, FormerRing(np.array([1, 1, 2, 1]), {PODS[0]: 1, PODS[1]: 2})
    )
    picture = report._repr_svg_()
    assert picture.startswith("<svg") and "1 moved by the last change" in picture
    assert str(PODS[0]) in picture
