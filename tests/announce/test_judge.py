"""What a speaker may say while the daemon answers, is silent, or has gone."""

from __future__ import annotations

from ipaddress import ip_network

from kuproxy.announce.judge import Judge

SOME = frozenset({ip_network("90.0.0.1/32")})
PATIENCE_S = 30.0


def test_nothing_before_the_first_answer() -> None:
    judge = Judge(PATIENCE_S)
    judge.silent(1000.0)
    assert (judge.wanted, judge.tag) == (frozenset(), "") and judge.why


def test_silence_is_borne_for_the_patience_and_no_longer() -> None:
    judge = Judge(PATIENCE_S)
    judge.answered(SOME, "a", 100.0)
    assert (judge.wanted, judge.why) == (SOME, "")
    judge.silent(129.9)
    assert judge.wanted == SOME
    judge.answered(None, "a", 129.9)  # the same as before: the patience begins anew
    judge.silent(159.8)
    assert judge.wanted == SOME
    judge.silent(159.9)
    assert (judge.wanted, judge.tag) == (frozenset(), "")
    assert "30 s" in judge.why


def test_absence_ends_everything_at_once() -> None:
    judge = Judge(PATIENCE_S)
    judge.answered(SOME, "a", 100.0)
    judge.absent()
    assert (judge.wanted, judge.tag) == (frozenset(), "")
    judge.silent(100.1)  # a daemon that starts is silent first: nothing may come back
    assert judge.wanted == frozenset()
    judge.answered(SOME, "a", 101.0)
    assert judge.wanted == SOME


def test_an_empty_answer_is_an_answer() -> None:
    judge = Judge(PATIENCE_S)
    judge.answered(SOME, "a", 100.0)
    judge.answered(frozenset(), "b", 101.0)
    assert (judge.wanted, judge.tag, judge.why) == (frozenset(), "b", "")
