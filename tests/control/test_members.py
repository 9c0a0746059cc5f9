"""Changing a few of many pods: whatever way the compiler takes, the tables are those of a fresh start."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kuproxy.codes import Protocol, VipType
from kuproxy.control.compile import Compiler, members
from kuproxy.control.compile.members import difference
from kuproxy.control.store import Store
from kuproxy.engine.local import LocalEngine
from kuproxy.model.vip import Pod, Vip, VipKey, parse_prefix

KEY = VipKey(parse_prefix("90.0.0.1/32"), Protocol.TCP, 80)


def pod(number: int, **more: int) -> Pod:
    return Pod(IPv4Address("10.0.0.0") + number, **more)


def vip(pods: list[Pod], **more: object) -> Vip:
    return Vip(KEY, VipType.IP4_NAT44, target_port=8080, pods=tuple(pods), **{"new_len": 256} | more)  # type: ignore[arg-type]


class World:
    """A compiler, and its tables by pod instead of by index."""

    def __init__(self) -> None:
        self.engine = LocalEngine(4)
        self.compiler = Compiler(self.engine.tables, decrement_ttl=True, any_node_address=True)
        self.store = Store()

    def hold(self, wanted: list[Vip], references: int = 0) -> None:
        self.compiler.apply(self.store.replace("test", wanted))
        self.engine.acknowledge()
        for _ in range(2):
            self.compiler.collect(self.engine.acknowledged(), lambda index: references)
            self.engine.acknowledge()

    def owners(self) -> list[tuple[Pod | None, int]]:
        """Of each slot, the pod and its flags."""
        record = self.compiler.record(KEY)
        assert record is not None
        pods = {index: pod for pod, index in record.pods.items()}
        flags = self.engine.tables.pods["flags"]
        return [(pods.get(owner), int(flags[owner])) for owner in self.compiler.owners_of(record).tolist()]

    def present(self) -> dict[Pod, tuple[int, int, bool]]:
        """Of each pod, its row: flags, port, and whether it is the VIP's."""
        record = self.compiler.record(KEY)
        assert record is not None
        rows = {pod: self.engine.tables.pods[index] for pod, index in record.pods.items()}
        return {pod: (int(row["flags"]), int(row["port"]), row["vip"] == record.index) for pod, row in rows.items()}


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_changes_ends_in_the_tables_of_a_fresh_start(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "FROM", 4)
    draw = random.Random(seed)
    world = World()
    numbers = set(range(1, 30))
    quick = 0
    for _ in range(60):
        for _ in range(draw.choice((0, 1, 1, 1, 2, 5))):
            numbers ^= {draw.randrange(1, 60)}
        pods = [pod(n) for n in sorted(numbers)]
        more: dict[str, object] = {}
        match draw.randrange(12):
            case 0:
                pods[0] = pod(min(numbers), weight=3)
            case 1:
                pods[-1] = pod(max(numbers), port=9090)
            case 2:
                more["outside_pods"] = tuple(pods[::2])
            case 3:
                more["new_len"] = 128
            case 4:
                pods = pods[:2]
            case 5:
                pods = []
        wanted = vip(pods, **more)
        record = world.compiler.record(KEY)
        quick += record is not None and record.members is not None
        world.hold([wanted], references=draw.randrange(2))
        fresh = World()
        fresh.hold([wanted])
        assert world.owners() == fresh.owners()
        assert world.present() == fresh.present()
    assert quick > 10
    world.hold([])
    empty = World()
    empty.hold([])
    assert world.compiler.in_use() == empty.compiler.in_use()


def test_a_pod_that_comes_back_while_it_drains_keeps_its_index() -> None:
    world = World()
    everybody = [pod(n) for n in range(1, members.FROM + 10)]
    world.hold([vip(everybody)])
    record = world.compiler.record(KEY)
    assert record is not None and record.members is not None
    named = replace(everybody[7], port=8080)
    index = record.pods[named]
    world.hold([vip([each for each in everybody if each != everybody[7]])], references=1)
    assert named not in record.pods and record.draining[named] == index
    assert int(world.engine.tables.pods[index]["flags"]) == 0
    world.hold([vip(everybody)], references=1)
    assert record.pods[named] == index and not record.draining
    fresh = World()
    fresh.hold([vip(everybody)])
    assert world.owners() == fresh.owners()


@pytest.mark.parametrize(
    ("before", "after", "gone", "come"),
    [
        ("", "", "", ""),
        ("", "abc", "", "abc"),
        ("abc", "", "abc", ""),
        ("abc", "abc", "", ""),
        ("abc", "ac", "b", ""),
        ("aaa", "aaa", "", ""),
        ("abcd", "abxd", "c", "x"),
        ("abc", "abcd", "", "d"),
        ("bcd", "abcd", "", "a"),
        ("acef", "abdf", "ce", "bd"),
        ("ab", "cd", "ab", "cd"),
    ],
)
def test_difference(before: str, after: str, gone: str, come: str) -> None:
    def pods(text: str) -> list[Pod]:
        return [pod(ord(letter)) for letter in text]

    assert difference(pods(before), pods(after)) == (pods(gone), pods(come))
