"""Running a target: seeds one after the other until the time or the number of cases is used up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz import corpus
from fuzz.minimise import minimise
from fuzz.target import Finding, Target

__all__ = ["Campaign", "replay", "run"]


@dataclass
class Campaign:
    """What has been tried."""

    target: str
    first_seed: int
    seeds: int = 0
    cases: int = 0
    seconds: float = 0.0
    finding: Finding | None = None  # as found; the first ends the campaign
    kept: Path | None = None  # the corpus' file of the smallest form

    def __str__(self) -> str:
        seeds = f"seeds {self.first_seed} to {self.first_seed + self.seeds - 1}"
        rate = self.cases / max(self.seconds, 1e-9)
        return (
            f"{self.target}: {self.cases:,} cases of {seeds} in {self.seconds:.0f} s ({rate:,.0f} a second)"
        )


def run(
    target: Target,
    seed: int,
    *,
    seconds: float | None = None,
    cases: int | None = None,
    keep_in: Path | None = corpus.ROOT,
    say: Callable[[str], None] = lambda text: None,
) -> Campaign:
    """Try seeds from `seed` on until time or cases are used up, or a promise is broken.

    The finding is made smaller and written below `keep_in` (None: neither).
    """
    done = Campaign(target.name, seed)
    began = time.monotonic()
    while (seconds is None or time.monotonic() - began < seconds) and (cases is None or done.cases < cases):
        number = seed + done.seeds
        batch = target.batch(number)
        done.seeds += 1
        done.cases += batch.cases
        if batch.finding is not None:
            done.finding = batch.finding
            say(f"{target.name}: seed {number} breaks the promise: {_short(batch.finding.what)}")
            if keep_in is not None:
                small = minimise(target, batch.finding)
                done.kept = corpus.write(
                    target.name, small.parts, f"seed {number}: {_short(small.what)}", keep_in
                )
                say(f"{target.name}: {len(batch.finding.parts)} parts made {len(small.parts)}: {done.kept}")
            break
    done.seconds = time.monotonic() - began
    return done


def replay(target: Target, root: Path = corpus.ROOT) -> list[tuple[Path, Finding]]:
    """Every case of the corpus that breaks the promise again."""
    judged = ((path, target.judge(parts)) for path, parts in corpus.load(target.name, root))
    return [(path, finding) for path, finding in judged if finding is not None]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."
