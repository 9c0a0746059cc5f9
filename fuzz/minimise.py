"""Making a failing case small: first fewer parts, then fewer bytes, then plainer bytes.

Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002), with a limit in
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fuzz.target import Finding, Parts, Target

__all__ = ["minimise"]

S = TypeVar("S", bytes, tuple[bytes, ...])
BUDGET_S = 60.0


def minimise(target: Target, finding: Finding, budget_s: float = BUDGET_S) -> Finding:
    """The smallest case found that fails at the same place as this one."""
    deadline = time.monotonic() + budget_s
    best = finding

    def fails(parts: Parts) -> bool:
        nonlocal best
        if time.monotonic() > deadline:
            return False
        found = target.judge(parts)
        if found is None or found.where != finding.where:
            return False
        best = found
        return True

    head = finding.parts[: target.keeps]
    tail = _fewer(finding.parts[target.keeps :], lambda rest: fails(head + rest))
    for number in range(len(tail)):
        before, after = (*head, *tail[:number]), tail[number + 1 :]

        def with_part(part: bytes, before: Parts = before, after: Parts = after) -> bool:
            return fails((*before, part, *after))

        part = _plainer(_fewer(tail[number], with_part), with_part)
        tail = (*tail[:number], part, *after)
    return best


def _fewer(whole: S, fails: Callable[[S], bool]) -> S:
    """Leave out ever smaller pieces, as long as it still fails."""
    size = max(1, len(whole) // 2)
    while len(whole):
        at, shrunk = 0, False
        while at < len(whole):
            shorter = whole[:at] + whole[at + size :]
            if fails(shorter):
                whole, shrunk = shorter, True
            else:
                at += size
        if size == 1 and not shrunk:
            break
        size = max(1, size // 2)
    return whole


def _plainer(part: bytes, fails: Callable[[bytes], bool], plain: Sequence[int] = (0, 0x30)) -> bytes:
    """Bytes that do not matter become zeros, whole stretches at a time."""
    size = max(1, len(part) // 2)
    while len(part):
        for at in range(0, len(part), size):
            for value in plain:
                stretch = part[at : at + size]
                same = bytes([value]) * len(stretch)
                if stretch == same:
                    break
                if fails(part[:at] + same + part[at + size :]):
                    part = part[:at] + same + part[at + size :]
                    break
        if size == 1:
            break
        size //= 2
    return part
