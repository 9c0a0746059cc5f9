"""`python -m fuzz`: all targets in turn, or some, for a time or a number of cases; 1 if a promise was broken."""

from __future__ import annotations

import argparse
import random
import sys

from fuzz.run import replay, run
from fuzz.targets import TARGETS, make, promise_of


def _arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="one of them; may be repeated"
    )
    parser.add_argument(
        "--minutes", type=float, help="for all targets together (5, unless --cases says when to end)"
    )
    parser.add_argument("--cases", type=int, help="so many for each target; of packets, so many packets")
    parser.add_argument("--seed", type=int, help="the first; another one every time, if it is left out")
    parser.add_argument("--list", action="store_true", help="the targets and their promises")
    chosen = parser.parse_args(words)
    if any(limit is not None and limit <= 0 for limit in (chosen.minutes, chosen.cases)):
        parser.error("there must be time, or cases")
    if chosen.seed is not None and not 0 <= chosen.seed < 1 << 31:
        parser.error("a seed is 0 to 2147483647")
    return chosen


def main(words: list[str] | None = None) -> int:
    """Entry point."""
    chosen = _arguments(words)
    names = chosen.target or list(TARGETS)
    if chosen.list:
        for name in names:
            print(f"{name:12} {promise_of(name)}")
        return 0
    seed = random.SystemRandom().randrange(1 << 30) if chosen.seed is None else chosen.seed
    minutes = chosen.minutes or (None if chosen.cases else 5.0)
    seconds = None if minutes is None else minutes * 60 / len(names)
    broken = 0
    for name in names:
        target = make(name)
        print(f"{name}: from seed {seed}: {target.promise}", flush=True)
        for path, finding in replay(target):
            print(f"{name}: {path.name} of the corpus breaks the promise again: {finding.what[:300]}")
            broken += 1
        done = run(
            target, seed, seconds=seconds, cases=chosen.cases, say=lambda text: print(text, flush=True)
        )
        broken += done.finding is not None
        print(f"{done}: {'a promise was broken' if done.finding else 'the promise was kept'}")
        for line in target.summary():
            print(f"  {line}")
        target.close()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
