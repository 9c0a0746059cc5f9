"""Rates: one pair of samples for everybody who looks, taken when somebody looks.

Nothing runs while nobody asks.  The first question after a pause takes a first sample and gets no rates yet; from then
on a sample is taken at most once in INTERVAL_S, however many ask, and answers made from it are kept until the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from kuproxy.engine.sampling import Sample, take_sample
from kuproxy.plane import Plane

__all__ = ["INTERVAL_S", "Sampler", "Span"]

INTERVAL_S = 0.9  # below the second in which clients come back
STALE_S = 10.0  # an older sample would make an average of long ago
MOST_ANSWERS = 128

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """The newest sample and the one before, if there was one of late."""

    now: Sample
    before: Sample | None

    @property
    def seconds(self) -> float | None:
        """Between the two; None: no rates yet."""
        return None if self.before is None else self.now.time_s - self.before.time_s

    def rates(self, what: Callable[[Sample], np.ndarray]) -> np.ndarray | None:
        """What an array of the sample has gained per second, as float64; None: no rates yet.

        Indices that came since start at 0.
        """
        if self.before is None or not self.seconds:
            return None
        now, before = what(self.now), what(self.before)
        grown: np.ndarray = now.astype(np.float64)
        shared = min(len(now), len(before))
        grown[:shared] -= before[:shared]
        return np.maximum(grown, 0.0) / self.seconds


class Sampler:
    """Of one plane.  Used by the control thread alone."""

    def __init__(self, plane: Plane, clock: Callable[[], float] = time.monotonic) -> None:
        self._plane, self._clock = plane, clock
        self._now: Sample | None = None
        self._before: Sample | None = None
        self._answers: dict[Hashable, Any] = {}

    def span(self) -> Span:
        """The present pair of samples."""
        time_s = self._clock()
        last = self._now
        if last is None or time_s - last.time_s >= INTERVAL_S:
            self._before = last if last is not None and time_s - last.time_s <= STALE_S else None
            vips, pods = self._plane.compiler.bounds()
            self._plane.refresh()
            states, beside = self._plane.engine.states, self._plane.beside()
            self._now = last = take_sample(states, vips, pods, time_s, beside)
            self._answers.clear()
        return Span(last, self._before)

    def answer(self, question: Hashable, make: Callable[[Span], T]) -> T:
        """What `make` gives, made once for each pair of samples and generation of the tables."""
        span = self.span()
        key = (question, self._plane.compiler.generation)
        found: T | None = self._answers.get(key)
        if found is None:
            found = make(span)
            if len(self._answers) < MOST_ANSWERS:
                self._answers[key] = found
        return found
