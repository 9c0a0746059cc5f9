"""The figures of the Maglev paper's section 5.3 (Eisenbud et al., NSDI 2016): even shares, and few that move.

Efficiency: each method fills one table for 1,000 backends, and its entries are counted for each backend.  By how
much must backends be overprovisioned?  The four published figures fit whole numbers of entries as (most - mean) / mean:
85 and 98 of 65.537 on average make 29.7 % and 49.5 %, 723 and 736 of 655.373 make 10.3 % and 12.3 %.  So that is what
is computed here.

How Karger's circle is made into a table the paper tells by one sentence, that there are 1,000 views.  Here every
backend has 1,000 places on the circle of entries; they are claimed view by view, and an entry belongs to whoever
claimed it first, as with Maglev; what nobody claimed belongs to the next claimed entry.  It gives the paper's figures,
where a circle of a million points that each entry looks up would give those of rendezvous: shares of entries that are
drawn independently.

Resilience: the share of entries of one table that change their backend though it stays, when some backends go.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np

from kuproxy.control.compile.rings import fill
from kuproxy.control.compile.words import word_columns
from kuproxy.model.vip import Pod
from kuproxy.sim.algorithms import mixed
from kuproxy.sim.kernels import claim_views, fill_prime, highest_scores

__all__ = [
    "BACKENDS", "PUBLISHED", "SIZES", "Efficiency", "efficiency", "efficiency_text", "karger_table",
    "maglev_table", "overprovision", "rendezvous_table", "resilience",
]  # fmt: skip

BACKENDS = 1000
VIEWS = 1000
SIZES = (65537, 655373)
# (method, entries of the table): percent, as printed.
PUBLISHED = {
    ("karger", 65537): 29.7, ("rendezvous", 65537): 49.5, ("karger", 655373): 10.3, ("rendezvous", 655373): 12.3,
}  # fmt: skip


def _words(backends: Sequence[int], seed: int) -> np.ndarray:
    """uint64: what stands for the backends in all hashes; another seed is another draw."""
    numbers = np.array(backends, np.uint64) + (np.uint64(seed) << np.uint64(32))
    return mixed(mixed(numbers))


def karger_table(backends: Sequence[int], size: int, seed: int) -> np.ndarray:
    """int64[size] of positions in `backends`."""
    owners = np.full(size, -1, np.int64)
    claim_views(_words(backends, seed), VIEWS, owners)
    return owners


def rendezvous_table(backends: Sequence[int], size: int, seed: int) -> np.ndarray:
    """int64[size] of positions in `backends`."""
    owners = np.full(size, -1, np.int64)
    highest_scores(_words(backends, seed), owners)
    return owners


def maglev_table(backends: Sequence[int], size: int, seed: int) -> np.ndarray:
    """int64[size] of positions in `backends`: ours when size is a power of two, else the paper's with a prime."""
    base = 0x0A000000 + (seed % 200 << 16)
    pods = [Pod(IPv4Address(base + number)) for number in backends]
    if size & (size - 1) == 0:
        ring = np.empty(size, np.uint32)
        fill(pods, np.arange(1, len(pods) + 1, dtype=np.uint32), ring)
        return ring.astype(np.int64) - 1
    hi, lo = word_columns(pods)
    table = np.full(size, -1, np.int64)
    fill_prime(hi, lo, np.ones(len(pods), np.int64), np.empty((2, len(pods)), np.int64), table)
    return table


TABLES = {"maglev": maglev_table, "karger": karger_table, "rendezvous": rendezvous_table}


def overprovision(owners: np.ndarray, backends: int) -> float:
    """Percent by which the backend with most entries has more than the average."""
    counts = np.bincount(owners, minlength=backends)
    return 100 * (float(counts.max()) * backends / len(owners) - 1)


class Efficiency(NamedTuple):
    """Over several draws, in percent of the average."""

    method: str
    size: int
    published: float | None
    draws: tuple[float, ...]  # overprovision by seed, from the first seed on


def efficiency(method: str, size: int, seeds: Sequence[int], backends: int = BACKENDS) -> Efficiency:
    """One method's tables of one size, one for each seed."""
    draws = tuple(overprovision(TABLES[method](range(backends), size, seed), backends) for seed in seeds)
    return Efficiency(method, size, PUBLISHED.get((method, size)), draws)


def resilience(size: int, gone: float, trials: int, backends: int = BACKENDS) -> float:
    """Percent of entries that go from one backend that stays to another one, when a part `gone` of all fail; mean."""
    moved = []
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        away = draw.choice(backends, round(gone * backends), replace=False)
        rest = np.setdiff1d(np.arange(backends), away)
        before = maglev_table(range(backends), size, trial)
        after = rest[maglev_table(rest.tolist(), size, trial)]
        stays = ~np.isin(before, away)
        moved.append(100 * float(np.mean(stays & (before != after))))
    return float(np.mean(moved))


def efficiency_text(found: Sequence[Efficiency]) -> str:
    """A table to read: the median of the draws beside the published figure, and the range of nine in ten."""
    text = f"{'table':>7}  {'method':<10}  {'published':>9}  {'median':>7}  {'relative':>8}"
    text += f"  {'5 to 95 %':>15}  {'draws':>5}\n"
    for each in found:
        low, median, high = np.percentile(each.draws, [5, 50, 95]).tolist()
        published = "-" if each.published is None else f"{each.published:.1f} %"
        relative = "-" if each.published is None else f"{100 * (median / each.published - 1):+.1f} %"
        spread = f"{low:.1f} to {high:.1f} %"
        text += (
            f"{each.size:>7}  {each.method:<10}  {published:>9}  {median:>5.1f} %  {relative:>8}  {spread:>15}  "
            f"{len(each.draws):>5}\n"
        )
    return text
