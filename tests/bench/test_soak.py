"""The soak's verdicts on series whose answer is known; and, as a long test, a minute of the real thing."""

from __future__ import annotations

import random

import pytest

from bench.soak import verdict
from bench.soak.__main__ import Soak, main

TIMES = [5.0 * each for each in range(360)]  # half an hour


def judged(metric: str, values: list[float]) -> str:
    return verdict.judge(metric, TIMES[: len(values)], values).word


def test_what_is_flat_is_called_flat() -> None:
    chance = random.Random(1)
    noisy = [100_000 + chance.gauss(0, 500) for _ in TIMES]
    assert judged("rss_kib", noisy) == "FLAT"
    assert judged("rss_kib", [100_000.0] * len(TIMES)) == "FLAT"
    # Filling caches at the start, one outlier of a gigabyte, a slow wobble.
    warm = [value - 60_000 * 0.9**index for index, value in enumerate(noisy)]
    assert judged("rss_kib", warm) == "FLAT"
    assert judged("rss_kib", [*noisy[:200], 1e6, *noisy[201:]]) == "FLAT"
    assert judged("descriptors", [44.0 + (index % 7 == 0) for index in range(360)]) == "FLAT"
    # So little that no allocator is that exact.
    assert judged("rss_kib", [100_000 + index / 10 for index in range(360)]) == "FLAT"


def _heap(chance: random.Random, leak: float) -> list[float]:
    """Garbage that is collected every few minutes, whenever enough of it has come together."""
    values, garbage = [], 0.0
    for index, _ in enumerate(TIMES):
        garbage = 0.0 if garbage > 5_000 else garbage + chance.expovariate(1 / 120)
        values.append(146_000 + garbage + leak * index)
    return values


def test_a_heap_that_swings_is_flat_and_one_that_leaks_besides_is_not() -> None:
    for seed in range(200):
        assert judged("anonymous_kib", _heap(random.Random(seed), 0.0)) == "FLAT", seed
        assert judged("anonymous_kib", _heap(random.Random(seed), 30.0)) == "GROWS", seed  # 21 MiB an hour


def test_what_grows_is_called_growing() -> None:
    chance = random.Random(2)
    leak = [100_000 + 10 * index + chance.gauss(0, 500) for index in range(360)]  # 7 MiB an hour
    assert judged("rss_kib", leak) == "GROWS"
    steps = [100_000.0 + 2_000 * (index // 60) for index in range(360)]
    assert judged("anonymous_kib", steps) == "GROWS"
    assert judged("descriptors", [44.0 + index // 60 for index in range(360)]) == "GROWS"
    assert judged("threads", [2.0] * 180 + [3.0] * 180) == "GROWS"
    shrinking = [200_000 - 100 * index for index in range(360)]
    assert judged("rss_kib", shrinking) == "FLAT"
    per_hour = verdict.judge("rss_kib", TIMES, leak).per_hour
    assert 6_100 < per_hour < 8_300  # 7,200, less or more what the floors of so few samples wobble by


def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--minutes", "0"])
    assert ended.value.code == 2
    assert "must be positive" in capsys.readouterr().err


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_minute_of_everything() -> None:
    """Nothing fails, nothing breaks, and what belongs to a process alone does not grow.

    Shared tables are touched page by page, which takes longer than a minute: their pages do not count here.
    """
    soak = Soak(minutes=1, rate_per_s=30, every_s=1)
    soak.run()
    assert not soak.faults
    assert soak.tally.kept_open == 60
    assert min(soak.acts.values()) > 0
    grown = {key for key, each in soak.verdicts().items() if each.grows}
    assert not {key for key in grown if key[1] in ("anonymous_kib", "descriptors", "threads")}, grown
    assert {key[0] for key in soak.verdicts()} >= {"control", "worker 0"}
