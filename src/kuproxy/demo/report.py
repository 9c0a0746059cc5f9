"""What the demo prints at its end: a table, the data plane's own words, or one line of JSON."""

from __future__ import annotations

import json
from typing import Any

from kuproxy.demo.story import KEPT, Outcome


def per_pod(outcome: Outcome) -> dict[str, int]:
    """All requests that a pod answered."""
    pods = next(iter(outcome.shares.values()))
    total = {pod: outcome.tally.kept_per_pod.get(pod, 0) for pod in pods}
    for counted in outcome.tally.per_phase.values():
        for pod, number in counted.items():
            total[pod] = total.get(pod, 0) + number
    return total


def as_json(outcome: Outcome) -> str:
    """One line."""
    tally = outcome.tally
    content: dict[str, Any] = {
        "requests": tally.new + tally.kept_requests,
        "failed": tally.new_failed + tally.kept_failed,
        "broken_connections": tally.broken,
        "per_pod": per_pod(outcome),
        "new_connections": tally.new,
        "kept_connections": KEPT,
        "kept_on_drained_pod": tally.on_drained,
        "phases": [
            {
                "phase": phase,
                "share": {pod: round(share, 4) for pod, share in shares.items()},
                "new_connections": tally.per_phase.get(phase, {}),
            }
            for phase, shares in outcome.shares.items()
        ],
        "per_target": tally.per_target,
        "seconds": round(outcome.seconds, 1),
        "outcomes": outcome.report["outcomes"],
        "faults": outcome.faults,
        "examples": tally.examples,
    }
    return json.dumps(content)


def as_text(outcome: Outcome) -> str:
    """Several tables."""
    tally = outcome.tally
    lines = [
        "",
        "New connections per pod, and the share of the Maglev ring (cluster IPs, node ports, TCP, UDP):",
        "",
    ]
    lines += _shares(outcome)
    lines += ["", "Answered, by the way they came:", ""]
    width = max(map(len, tally.per_target), default=0)
    lines += [f"  {label:<{width}}  {number:>6}" for label, number in sorted(tally.per_target.items())]
    failed = tally.new_failed + tally.kept_failed
    lines += [
        "",
        f"requests            {tally.new + tally.kept_requests:>7}   "
        f"{tally.new} over connections of their own, {tally.kept_requests} over {KEPT} kept ones",
        f"failed              {failed:>7}",
        f"connections broken  {tally.broken:>7}   {tally.on_drained} of the kept ones went on at the drained pod",
    ]
    for title, text in zip(
        ("show ku vip verbose", "show node counters"), outcome.report["shows"], strict=True
    ):
        lines += ["", f"ku# {title}", text.rstrip()]
    lines += ["", *(f"  {example}" for example in tally.examples)] if tally.examples else []
    lines.append("")
    lines += [f"FAULT: {fault}" for fault in outcome.faults]
    verdict = "not as it should be" if outcome.faults else "nothing failed, nothing broke"
    lines.append(f"{verdict}; {outcome.seconds:.0f} s")
    return "\n".join(lines)


def _shares(outcome: Outcome) -> list[str]:
    pods = list(next(iter(outcome.shares.values())))
    lines = [
        f"  {'':<6}" + "".join(f"{phase:^26}" for phase in outcome.shares),
        f"  {'':<6}" + f"{'number':>9}{'got':>8}{'ring':>7}  " * len(outcome.shares),
    ]
    for pod in pods:
        cells = ""
        for phase, shares in outcome.shares.items():
            counted = outcome.tally.per_phase.get(phase, {})
            number, total = counted.get(pod, 0), sum(counted.values()) or 1
            cells += f"{number:>9}{number / total:>8.1%}{shares[pod]:>7.1%}  "
        lines.append(f"  {pod:<6}{cells}".rstrip())
    return lines
