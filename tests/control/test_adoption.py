"""Tables that a control process left, or died over at any moment, and what its successor makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.codes import PROTOCOLS_WITH_PORTS, Encap, Origin, Protocol, VipType
from kuproxy.control.compile import Compiler, entries, pods, ring_rows, vips
from kuproxy.control.compile.recover import pod_at
from kuproxy.control.store import Store
from kuproxy.dataplane.layout import (
    MAX_PODS,
    PREFIX_LENGTHS,
    RING_INSIDE,
    RING_OUTSIDE,
    T_N_NODEPORTS,
    T_PREFIXES,
)
from kuproxy.dataplane.writer import Arena, IndexPool, MatchWriter
from kuproxy.engine.local import LocalEngine
from kuproxy.errors import ConflictError, KuError
from kuproxy.model.vip import Pod, Vip, VipKey, parse_prefix

PREFIXES = ("90.0.0.1/32", "90.0.0.0/24", "0.0.0.0/0", "0.0.0.0/32", "2003::1/128", "2003::/16", "::/128")
PODS = {4: [f"10.0.0.{n}" for n in range(1, 7)], 6: [f"2001::{n}" for n in range(1, 7)]}


class Killed(BaseException):
    """The process dies here."""


def some_vip(rng: Random) -> Vip | None:
    prefix = parse_prefix(rng.choice(PREFIXES))
    protocol = rng.choice((Protocol.ANY, *PROTOCOLS_WITH_PORTS))
    port = rng.choice((0, 80, 443))
    family = rng.choice((4, 6))
    kinds = {
        (4, 4): VipType.IP4_NAT44,
        (6, 6): VipType.IP6_NAT66,
        (4, 6): VipType.IP4_NAT46,
        (6, 4): VipType.IP6_NAT64,
    }
    chosen = rng.sample(PODS[family], rng.randrange(5))
    try:
        return Vip(
            VipKey(prefix, protocol, port),
            kinds[prefix.version, family],
            target_port=rng.choice((0, 0, 8080)) if port else 0,
            node_port=rng.choice((0, 0, 30080, 30081)),
            new_len=rng.choice((8, 16)),
            pods=tuple(
                Pod(ip_address(each), rng.choice((0, 0, 9000)) if port else 0, rng.choice((1, 1, 2, 0)))
                for each in chosen
            ),
            reject=rng.random() < 0.3,
            masquerade_from=rng.choice((Origin(0), Origin.ANYWHERE, Origin.NODE | Origin.OUTSIDE)),
            outside_pods=rng.choice((None, None, (), tuple(Pod(ip_address(each)) for each in chosen[:2]))),
            affinity_s=rng.choice((0.0, 10.0)),
            source_ranges=rng.choice(
                (
                    (),
                    tuple(
                        parse_prefix(each)
                        for each in (("40.0.0.0/8", "41.1.0.0/16") if prefix.version == 4 else ("4000::/16",))
                    ),
                )
            ),
            session_cap=rng.choice((0, 5)),
            encap=rng.choice((Encap.NAT, Encap.NAT, Encap.NAT, Encap.GRE)),
        )
    except KuError:
        return None


def some_vips(rng: Random) -> list[Vip]:
    """Without contradictions among them."""
    store = Store()
    for _ in range(rng.randrange(8)):
        vip = some_vip(rng)
        if vip is not None:
            try:
                store.update("a", [vip])
            except ConflictError:
                continue
    return list(store)


def compiler_over(engine: LocalEngine) -> Compiler:
    return Compiler(engine.tables, decrement_ttl=True, any_node_address=True)


def meaning(compiler: Compiler) -> dict[str, Any]:
    """What workers find in the tables, in terms that do not depend on indices."""
    tables = compiler.tables
    vip_of = {index: str(compiler.record_at(index).vip.key) for index in compiler._by_index}

    def value(key: int, index: int) -> object:
        kind = key >> 56
        if kind in (1, 2):
            return vip_of[index]
        if kind == 4:
            chain = []
            while index:
                row = tables.pods[index]
                chain.append((str(pod_at(tables, index)), vip_of[int(row["vip"])], int(row["flags"])))
                index = int(row["next"])
            return sorted(chain)
        return index

    rows = {}
    for record in compiler.records():
        if record.removed:
            continue
        row = tables.vips[record.index]
        names = (
            "flags",
            "port",
            "target_port",
            "node_port",
            "protocol",
            "type",
            "family",
            "plen",
            "encap",
            "affinity",
            "session_cap",
            "way",
        )
        assert int(row["ring"]) == (record.ring.word if record.ring else 0)
        rings = [
            [str(pod_at(tables, int(each))) for each in compiler._ring_view(record.ring, which)]
            for which in (RING_INSIDE, RING_OUTSIDE)
            if record.ring is not None and (not record.ring.kind or record.ring.kind & which)
        ]
        count = int(tables.ranges[row["ranges"]]["hi"]) if row["ranges"] else 0
        rows[str(record.vip.key)] = (
            [int(row[name]) for name in names],
            rings,
            tables.ranges[row["ranges"] + 1 : row["ranges"] + 1 + count].tobytes() if count else b"",
        )
    return {
        "vips": {place: value(place[2], index) for place, index in compiler._vip_match.items().items()},
        "others": {place: value(place[2], index) for place, index in compiler._match.items().items()},
        "rows": rows,
        "classes": tables.classes[: 2 * PREFIX_LENGTHS].tolist(),
        "lengths": tables.header[T_PREFIXES : T_PREFIXES + 6].tolist(),
        "node ports": int(tables.header[T_N_NODEPORTS]),
    }


def fresh(wanted: list[Vip]) -> dict[str, Any]:
    engine = LocalEngine(0)
    compiler = compiler_over(engine)
    compiler.apply(Store().replace("a", wanted))
    return meaning(compiler)


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    """The step-th write, of those that the compiler makes by calling something, is the last but not done."""
    left = [step]
    patch = pytest.MonkeyPatch()

    def dying(function: Any) -> Any:
        def called(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **more)

        return called

    for owner, name in (
        (MatchWriter, "put"), (MatchWriter, "delete"), (Arena, "allocate"), (IndexPool, "allocate"),
        (ring_rows, "fill"), (ring_rows.RingRows, "_note_former"),
        (vips.VipRows, "_set_way"), (entries.MatchEntries, "_count_length"),
        (pods.PodRows, "_drain"), (pods.PodRows, "_join_chain"), (MatchWriter, "put_many"), (vips.VipRows, "_set_pods"),
    ):  # fmt: skip
        patch.setattr(owner, name, dying(getattr(owner, name)))
    try:
        yield
    finally:
        patch.undo()


@given(st.integers(0, 2**32 - 1))
def test_whatever_a_control_process_died_over_its_successor_gets_right(seed: int) -> None:
    """Equal to tables that nobody died over; and in the end nothing is left of anything."""
    rng = Random(seed)
    engine = LocalEngine(0)
    compiler, store = compiler_over(engine), Store()
    compiler.apply(store.replace("a", []))
    references = engine.state.pod_refs
    seconds = rng.choice((0, 10))
    compiler.set_second_chance(seconds)
    for _ in range(rng.randrange(1, 6)):
        wanted = some_vips(rng)
        with dying_at(rng.randrange(80)), suppress(Killed):
            compiler.apply(store.replace("a", wanted))
        for record in compiler.records():  # flows, which keep removed pods
            for index in (*record.pods.values(), *record.draining.values()):
                references[index] = rng.choice((0, 0, 3))
        # The successor.  It hears of other VIPs than the one before, in two steps.
        compiler, store = compiler_over(engine), Store()
        compiler.adopt(references)
        compiler.set_second_chance(seconds)
        wanted = some_vips(rng)
        first = {vip.key: vip for vip in wanted if rng.random() < 0.7}
        compiler.apply(store.update("a", first.values()))
        compiler.apply(store.update("a", [vip for vip in wanted if vip.key not in first]))
        compiler.finish_adoption()
        references[:] = 0
        for now in (0, 101):
            compiler.end_second_chances(now)
            compiler.collect(compiler.generation, lambda index: 0)
        compiler.collect(compiler.generation, lambda index: 0)
        for name, expected in fresh(wanted).items():
            found = meaning(compiler)[name]
            if isinstance(expected, dict):
                assert {k: v for k, v in found.items() if expected.get(k) != v} == {}, name
            assert found == expected, name
    compiler.apply(store.replace("a", []))
    for _ in range(3):
        compiler.collect(compiler.generation, lambda index: 0)
    assert not any(compiler.in_use().values())


@given(st.integers(0, 2**32 - 1))
def test_what_is_asked_for_again_stays_as_it_is(seed: int) -> None:
    """Same indices, same generations, so every flow keeps its VIP and its pod."""
    rng = Random(seed)
    engine = LocalEngine(0)
    compiler, store = compiler_over(engine), Store()
    wanted = some_vips(rng)
    compiler.apply(store.replace("a", wanted))
    places = {str(r.vip.key): (r.index, {str(p): i for p, i in r.pods.items()}) for r in compiler.records()}
    rows, pod_rows = engine.tables.vips["generation"].copy(), engine.tables.pods["generation"].copy()
    before = meaning(compiler)
    for record in compiler.records():
        engine.state.pod_refs[list(record.pods.values())] = (
            1  # pods of weight 0 are found by their flows alone
        )
    successor, store = compiler_over(engine), Store()
    assert successor.adopt(engine.state.pod_refs) == len(wanted)
    successor.apply(store.replace("a", wanted))
    assert successor.finish_adoption() == 0
    after = {str(r.vip.key): (r.index, {str(p): i for p, i in r.pods.items()}) for r in successor.records()}
    assert after == places
    assert (engine.tables.vips["generation"] == rows).all()
    changed = np.flatnonzero(engine.tables.pods["generation"][:100] != pod_rows[:100])
    assert not len(changed)
    assert meaning(successor) == before


def test_until_all_sources_have_spoken_the_old_vips_serve() -> None:
    engine = LocalEngine(0)
    one, other = (
        Vip(
            VipKey(parse_prefix(p), Protocol.TCP, 80),
            VipType.IP4_NAT44,
            pods=(Pod(ip_address("10.0.0.1")),),
            node_port=port,
        )
        for p, port in (("90.0.0.1/32", 30080), ("90.0.0.2/32", 30081))
    )
    compiler_over(engine).apply(Store().replace("a", [one, other]))
    successor, store = compiler_over(engine), Store()
    successor.adopt(np.zeros(MAX_PODS, np.int32))
    successor.apply(store.replace("a", [one]))
    assert successor.orphans == 1
    assert meaning(successor) == fresh([one, other])
    # Somebody else wants the orphan's node port: it loses that alone.
    third = Vip(VipKey(parse_prefix("90.0.0.3/32"), Protocol.TCP, 80), VipType.IP4_NAT44, node_port=30081)
    successor.apply(store.update("a", [third]))
    assert set(meaning(successor)["rows"]) == {str(each.key) for each in (one, other, third)}
    assert successor.finish_adoption() == 1
    successor.collect(successor.generation, lambda index: 0)
    assert meaning(successor) == fresh([one, third])


def test_what_was_asked_for_in_vain_is_an_orphan_again() -> None:
    """A change that the kernel refuses is taken back; the flows that a predecessor left outlive that."""
    engine = LocalEngine(0)
    pods_before = (Pod(ip_address("10.0.0.1")), Pod(ip_address("10.0.0.2")))
    vip = Vip(VipKey(parse_prefix("90.0.0.1/32"), Protocol.TCP, 80), VipType.IP4_NAT44, pods=pods_before)
    compiler_over(engine).apply(Store().replace("a", [vip]))
    successor, store = compiler_over(engine), Store()
    successor.adopt(np.ones(MAX_PODS, np.int32))
    record = successor.record(vip.key)
    assert record is not None
    index, served = record.index, dict(record.pods)
    generation = int(engine.tables.vips[index]["generation"])
    for _ in range(2):
        successor.apply(store.update("a", [vip]))
        assert successor.orphans == 0
        successor.apply(store.update("a", [], [vip.key]))
        assert successor.orphans == 1 and not record.removed
    assert successor.record(vip.key) is record and dict(record.pods) == served
    assert int(engine.tables.vips[index]["generation"]) == generation
    # Nobody asks again: it goes with the others.
    assert successor.finish_adoption() == 1 and record.removed
