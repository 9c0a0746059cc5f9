"""Whether a series of samples is flat or grows: a robust slope of its floor and a test for a trend.

An allocator's heap swings for minutes, so neighbouring samples say the same twice and a test that takes them for
independent sees trends.  What leaks raises the floor: the least sample of each twentieth of the run is what is judged.

The slope is Theil and Sen's (the median of the slopes between all pairs of samples), which a few outliers do not move.
Growth is significant if Mann and Kendall's statistic says so, *and* matters if the slope over the whole time exceeds
what allocators and caches wobble by.  The first part of a run is left out: caches fill, tables are touched.
"""

import math
from dataclasses import dataclass

import numpy as np

WARM_UP_SHARE = 1 / 3
STRETCHES = 20  # as many floors
SIGNIFICANT_Z = 3.0  # one in 700 flat series without any correlation would be called growing
MATTERS_SHARE = 0.01
# What growth of less is not worth a word, by metric; over the judged part of the run.
MATTERS = {"descriptors": 2.0, "threads": 1.0}
MATTERS_KIB = 512.0
# Told, and not judged: a process's proportional share rises when another process that maps the same libraries ends,
# and falls when one begins.  What a process holds itself cannot grow without its RSS.
NOT_JUDGED = {"pss_kib"}


@dataclass(frozen=True)
class Verdict:
    """About one series."""

    first: float  # the floor in the first tenth after the warm-up
    last: float  # and in the last tenth
    per_hour: float
    grows: bool

    @property
    def word(self) -> str:
        return "GROWS" if self.grows else "FLAT"


def judge(metric: str, times_s: list[float], values: list[float]) -> Verdict:
    """Samples in the order of their times; at least one."""
    skip = int(len(values) * WARM_UP_SHARE)
    t, v = _floors(np.asarray(times_s[skip:], float), np.asarray(values[skip:], float))
    tenth = max(1, len(v) // 10)
    first, last = float(np.median(v[:tenth])), float(np.median(v[-tenth:]))
    slope = z = 0.0
    if len(v) > 2:
        early, late = np.triu_indices(len(v), 1)
        rises = v[late] - v[early]
        slope = float(np.median(rises / (t[late] - t[early])))
        z = _mann_kendall(v, float(np.sign(rises).sum()))
    growth = slope * float(t[-1] - t[0])
    matters = MATTERS.get(metric, max(MATTERS_KIB, MATTERS_SHARE * float(np.median(v))))
    # A staircase of few steps has a median slope of zero: the ends tell.
    risen = max(growth, last - first)
    grows = metric not in NOT_JUDGED and z > SIGNIFICANT_Z and risen >= matters
    return Verdict(first, last, slope * 3600, grows)


def _floors(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least value of each stretch, at the middle of it."""
    stretches = np.array_split(np.arange(len(values)), min(STRETCHES, len(values)))
    middles = np.array([times[each].mean() for each in stretches])
    return middles, np.array([values[each].min() for each in stretches])


def _mann_kendall(v: np.ndarray, s: float) -> float:
    """Standard normal if there is no trend (Kendall 1975; with the correction for ties)."""
    n = len(v)
    _, ties = np.unique(v, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return 0.0 if variance <= 0 or s == 0 else (s - math.copysign(1, s)) / math.sqrt(variance)
