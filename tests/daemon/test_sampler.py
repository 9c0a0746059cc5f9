"""Rates: one pair of samples for all who look, and none while nobody does."""

from __future__ import annotations

import numpy as np

from daemon.rig import controller
from daemon.test_api import send
from kuproxy.codes import VipCounter
from kuproxy.daemon.sampler import MOST_ANSWERS, Sampler
from packets import frame, udp


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_samples_are_taken_once_a_second_however_many_ask() -> None:
    made, clock = controller(), Clock()
    made.run("ku vip 90.0.0.1/32\nku pod 90.0.0.1/32 10.0.0.1")
    sampler = Sampler(made.plane, clock)
    asked = []

    def ask() -> object:
        return sampler.answer("x", lambda span: asked.append(span) or len(asked))

    assert ask() == ask() == 1
    assert asked[0].seconds is None and asked[0].rates(lambda sample: sample.vips) is None
    send(made, *[frame(udp("40.0.0.1", "90.0.0.1", port, 7)) for port in range(1, 11)])
    clock.now += 0.5
    assert ask() == 1, "the same answer, until the next sample"
    clock.now += 1.5
    assert ask() == 2
    rates = asked[1].rates(lambda sample: sample.vips)
    assert rates is not None and rates[1, VipCounter.FIRST_PACKET] == 10 / 2.0
    # A change of the tables is seen at once, in the same samples.
    made.run("ku vip 91.0.0.1/32")
    assert ask() == 3
    assert asked[2].now is asked[1].now
    # After a pause nobody knows what happened of late.
    clock.now += 60
    assert ask() == 4
    assert asked[3].seconds is None


def test_what_came_since_the_last_sample_starts_at_zero() -> None:
    made, clock = controller(), Clock()
    sampler = Sampler(made.plane, clock)
    sampler.span()
    made.run("ku vip 90.0.0.1/32\nku pod 90.0.0.1/32 10.0.0.1")
    send(made, frame(udp("40.0.0.1", "90.0.0.1", 1, 7)))
    clock.now += 1
    rates = sampler.span().rates(lambda sample: sample.vips)
    assert rates is not None and rates[1, VipCounter.FIRST_PACKET] == 1
    assert np.all(rates >= 0)


def test_answers_are_kept_within_bounds() -> None:
    sampler = Sampler(controller().plane, Clock())
    for number in range(3 * MOST_ANSWERS):
        assert sampler.answer(number, lambda _span, number=number: number + 1) == number + 1  # type: ignore[misc]
    assert len(sampler._answers) == MOST_ANSWERS
