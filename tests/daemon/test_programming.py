"""Differences in, VIP by VIP: what is refused holds up nothing else, and steering follows what was taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.rig import LocalNode, controller
from kuproxy.codes import Protocol
from kuproxy.control.book import Difference
from kuproxy.control.store import Store
from kuproxy.daemon.programming import Programmer
from kuproxy.daemon.targets import TargetBook, steering_targets
from kuproxy.engine.local import LocalEngine
from kuproxy.errors import SteeringError
from kuproxy.model.config import InterfaceMark
from kuproxy.model.vip import Pod, Vip, VipKey, host_prefix, parse_address, vip_type
from kuproxy.plane import Plane
from kuproxy.steering.targets import Asked


def vip(number: int, *pods: int, node_port: int = 0, owner: str = "ns/web:http") -> Vip:
    key = VipKey(host_prefix(parse_address(f"192.0.2.{number}")), Protocol.TCP, 80)
    members = tuple(Pod(parse_address(f"10.0.0.{pod}"), 8080) for pod in pods)
    return Vip(key, vip_type(key.prefix), node_port=node_port, pods=members, owner=owner)


class Full(LocalNode):
    """A node whose maps have room for so many VIPs."""

    room = 3

    def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
        if len(plane.store) > self.room:
            raise SteeringError("no room")


def test_what_does_not_fit_is_left_out_and_tried_again() -> None:
    made = controller()
    node = made.forwarder = Full()
    made.plane = Plane(node.engine, decrement_ttl=False, any_node_address=False)
    programmer = Programmer(made, "kubernetes")
    every = [vip(number, number) for number in range(1, 6)]
    result = programmer.program(Difference(add=every))
    assert result.added == 3
    assert set(result.refused) == {each.key for each in every} - {each.key for each in made.plane.store}
    assert set(result.refused.values()) == {"no room"}
    # Another change does not wait for what is refused, and a removal makes room.
    changed = replace(next(iter(made.plane.store)), pods=())
    assert programmer.program(Difference(add=[changed])).changed == 1
    assert made.plane.store.get(changed.key) == changed
    result = programmer.program(Difference(remove=[changed.key]))
    assert (result.removed, len(result.refused)) == (1, 1)
    node.room = 10
    assert not programmer.program(Difference()).refused
    assert {each.key for each in made.plane.store} == {each.key for each in every} - {changed.key}
    left = [each.key for each in made.plane.store]
    programmer.program(Difference(remove=left))
    for _ in range(3):
        made.tend()
    assert {name for name, count in made.plane.compiler.in_use().items() if count} == set()


def test_without_room_for_more_a_vip_goes_on_with_what_it_has() -> None:
    """The pods that stay keep their connections, and those that left get no new ones, until there is room."""

    class Refusing(LocalNode):
        """A kernel that takes nothing new: the pod 10.0.0.9."""

        refuses = True

        def steer(self, plane: Plane, marks: tuple[InterfaceMark, ...]) -> None:
            if self.refuses and any(pod == vip(9, 9).pods[0] for each in plane.store for pod in each.pods):
                raise SteeringError("Cannot allocate memory")

    made = controller()
    node = made.forwarder = Refusing()
    made.plane = Plane(node.engine, decrement_ttl=False, any_node_address=False)
    programmer = Programmer(made, "kubernetes")
    programmer.program(Difference(add=[vip(1, 1, 2), vip(2, 1)]))
    record = made.plane.compiler.record(vip(1).key)
    assert record is not None
    index = record.pods[vip(1, 2).pods[0]]
    result = programmer.program(Difference(add=[vip(1, 2, 9), vip(3, 9)]))
    assert set(result.refused) == {vip(1).key, vip(3).key} and result.is_lacking
    assert made.plane.store.get(vip(1).key) == vip(1, 2) and made.plane.store.get(vip(3).key) is None
    assert made.plane.compiler.record(vip(1).key) is record and record.pods[vip(1, 2).pods[0]] == index
    # Nothing that it may keep: no pods, and no removal either.
    programmer.program(Difference(add=[vip(1, 9)]))
    assert made.plane.store.get(vip(1).key) == vip(1) and not record.removed
    node.refuses = False
    assert not programmer.program(Difference()).refused
    assert made.plane.store.get(vip(1).key) == vip(1, 9) and made.plane.store.get(vip(3).key) == vip(3, 9)


def test_a_node_port_that_somebody_has_costs_the_node_port_alone() -> None:
    store = Store()
    store.update("files", [vip(1, node_port=30080, owner="ku")])
    accepted, problems = store.yielding("kubernetes", [vip(2, 2, node_port=30080), vip(3, node_port=30081)])
    assert accepted == [vip(2, 2), vip(3, node_port=30081)]
    assert str(problems[vip(2).key]).startswith("node port 30080 belongs to VIP 192.0.2.1/32")
    store.update("kubernetes", accepted)
    # One that nobody else has may pass to another VIP; one that another source shares may not.
    assert store.yielding("kubernetes", [vip(4, node_port=30081)])[1] == {}
    store.update("cli", [vip(3, node_port=30081)])
    assert store.yielding("kubernetes", [vip(4, node_port=30081)])[1]


STATES = st.dictionaries(
    st.integers(1, 3),
    st.tuples(st.sets(st.integers(1, 4), max_size=3), st.integers(0, 1)),
    max_size=3,
)


@settings(deadline=None)
@given(st.lists(st.tuples(STATES, st.booleans()), max_size=8))
def test_differences_add_up_to_the_whole(steps: list[tuple[dict[int, tuple[set[int], int]], bool]]) -> None:
    """INVARIANT: what is asked for, change by change, is what all VIPs ask for; a step that failed is told again."""
    plane = Plane(LocalEngine(0), decrement_ttl=False, any_node_address=False)
    book = TargetBook()
    asked: Counter[tuple[str, object]] = Counter()
    for state, fails in steps:
        wanted = [
            vip(number, *sorted(pods), node_port=(30000 + number) * port)
            for number, (pods, port) in state.items()
        ]
        held = plane.store.source("kubernetes")
        keys = {each.key for each in wanted}
        plane.update("kubernetes", wanted, [each.key for each in held if each.key not in keys])
        plane.collect()
        before, now, _tunnels, done = book.change(plane.compiler, plane.settings)
        if fails:
            continue
        done()
        asked.subtract(_items(before))
        asked.update(_items(now))
        assert min(asked.values(), default=0) >= 0
        whole = steering_targets(plane.compiler, (), plane.settings)
        present = {item for item, count in asked.items() if count}
        assert present == set(_items(Asked(whole.vips, whole.node_ports, whole.pods, whole.translated)))


def _items(asked: Asked) -> list[tuple[str, object]]:
    return [(kind, each) for kind, part in zip(Asked._fields, asked, strict=True) for each in part]
