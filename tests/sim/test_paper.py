"""The figures of the Maglev paper, section 5.3."""

from __future__ import annotations

import numpy as np
import pytest

from kuproxy.sim.paper import (
    DEFAULT_SEED,
    PUBLISHED,
    SIZES,
    efficiency,
    karger_table,
    maglev_table,
    overprovision,
    rendezvous_table,
    resilience,
)


@pytest.mark.parametrize(("method", "size"), list(PUBLISHED))
def test_the_published_figures_come_out_within_a_tenth(method, size):
    [here] = efficiency(method, size, [DEFAULT_SEED]).draws
    assert abs(here / PUBLISHED[method, size] - 1) < 0.1


def test_no_other_seed_is_far_from_them_on_average():
    """The seed is no trick: twenty draws of the small table scatter around the figures, and hold them."""
    for method, wanted in (("karger", 29.7), ("rendezvous", 49.5)):
        draws = np.array(efficiency(method, 65537, range(20)).draws)
        assert abs(draws.mean() / wanted - 1) < 0.2
        assert draws.min() < wanted < draws.max() * 1.05


@pytest.mark.parametrize("size", SIZES)
def test_maglev_is_even_at_any_size(size):
    owners = maglev_table(range(1000), size, 1)
    counts = np.bincount(owners, minlength=1000)
    assert counts.max() - counts.min() <= 1


def test_tables_against_their_definitions():
    """Small ones, computed again in plain Python."""
    from kuproxy.sim.paper import VIEWS, _words

    def mix(word: int) -> int:
        full = (1 << 64) - 1
        word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & full
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & full
        return word ^ word >> 31

    backends, size = range(5), 20011
    words = _words(backends, 3).tolist()
    claimed: dict[int, int] = {}
    for view in range(1, VIEWS + 1):
        for backend, word in enumerate(words):
            claimed.setdefault(mix(word ^ mix(view)) % size, backend)
    wanted = []
    for entry in range(size):
        following = next(place for place in range(entry, entry + size) if place % size in claimed)
        wanted.append(claimed[following % size])
    assert karger_table(backends, size, 3).tolist() == wanted
    highest = [max(range(5), key=lambda b: mix(mix(entry + 1) ^ words[b])) for entry in range(500)]
    assert rendezvous_table(backends, 500, 3).tolist() == highest


def test_overprovision_is_of_the_average():
    assert overprovision(np.array([0, 0, 0, 1, 1, 1, 1, 2]), 4) == pytest.approx(100.0)


def test_few_entries_move_that_need_not():
    assert resilience(65537, 0.0, 1) == 0
    assert 1 < resilience(65537, 0.01, 1) < 4
    assert resilience(655373, 0.01, 1) < 1
