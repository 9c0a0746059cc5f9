"""The daemon's end of announcing: orders, what speakers say, the drain and how it is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuproxy.announce.settings import Announce, Layer2
from kuproxy.codes import Protocol
from kuproxy.daemon.announcing import NOTHING, Announcing, Heard
from kuproxy.errors import ConfigError
from kuproxy.model.vip import Pod, Vip, VipKey, parse_address, parse_prefix, vip_type

SETTINGS = Announce(ranges=["90.0.0.0/24"], patience_s=30, layer2=Layer2(interface="eth0"))


def vip(prefix: str, *pods: str) -> Vip:
    made = parse_prefix(prefix)
    return Vip(VipKey(made, Protocol.TCP, 80), vip_type(made), pods=tuple(Pod(parse_address(each)) for each in pods))


ONE, TWO = vip("90.0.0.1", "10.0.0.1"), vip("90.0.0.2", "10.0.0.1")


def test_without_settings_there_is_nothing_to_announce() -> None:
    announcing = Announcing()
    assert announcing.order([ONE], 1) == ((), NOTHING)
    with pytest.raises(ConfigError, match=r"\[announce\]"):
        announcing.drain(True)


def test_a_tag_stands_for_prefixes_whoever_says_it() -> None:
    """So that a successor's first order moves nothing."""
    before, after = Announcing(SETTINGS), Announcing(SETTINGS)
    assert before.order([ONE, TWO], 7) == after.order([TWO, ONE], 3)
    assert before.order([ONE, TWO], 7)[1] != before.order([ONE], 8)[1]
    assert before.order([], 9) == ((), NOTHING)


def test_the_order_follows_generation_and_settings() -> None:
    announcing = Announcing(SETTINGS)
    assert list(map(str, announcing.order([ONE], 1)[0])) == ["90.0.0.1/32"]
    assert list(map(str, announcing.order([ONE, TWO], 2)[0])) == ["90.0.0.1/32", "90.0.0.2/32"]
    announcing.settings = Announce(ranges=["90.0.0.2/32"], layer2=Layer2(interface="eth0"))
    assert list(map(str, announcing.order([ONE, TWO], 2)[0])) == ["90.0.0.2/32"]


def test_a_drain_is_remembered_until_it_is_taken_back(tmp_path: Path) -> None:
    announcing = Announcing(SETTINGS, tmp_path)
    announcing.drain(True)
    assert announcing.order([ONE], 1) == ((), NOTHING)
    assert announcing.servable([ONE], 1)[0]
    again = Announcing(SETTINGS, tmp_path)
    assert again.drained and again.order([ONE], 1) == ((), NOTHING)
    again.drain(False)
    again.drain(False)
    assert again.order([ONE], 1)[0] and not Announcing(SETTINGS, tmp_path).drained


def test_a_stop_waits_for_speakers_that_may_attract_something() -> None:
    announcing = Announcing(SETTINGS)
    assert not announcing.may_attract(100.0)
    _, tag = announcing.order([ONE], 1)
    announcing.hear("bgp", Heard(100.0, tag, settled=True, announced=1, problem=""))
    assert announcing.may_attract(100.0)
    announcing.stopping = True
    _, tag = announcing.order([ONE], 1)
    announcing.hear("bgp", Heard(101.0, tag, settled=False, announced=1, problem=""))  # at work
    assert announcing.may_attract(101.0)
    announcing.hear("layer2", Heard(101.0, tag, settled=True, announced=0, problem=""))
    announcing.hear("bgp", Heard(102.0, tag, settled=True, announced=0, problem=""))
    assert not announcing.may_attract(102.0)


def test_a_speaker_that_has_died_is_not_waited_for() -> None:
    announcing = Announcing(SETTINGS)
    announcing.hear("bgp", Heard(100.0, "x", settled=True, announced=1, problem=""))
    assert announcing.may_attract(129.0)
    assert not announcing.may_attract(131.0)  # it withdraws by itself after its patience
    assert announcing.present(131.0) and not announcing.present(161.0)
