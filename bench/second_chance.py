"""What second chances cost (docs/adr/036): `python -m bench.second_chance`.

Results in bench/results/nodes/second-chance.csv.

In memory, one core, in turn with and without: segments that begin flows, all of them on trial; the pods' refusals, each
of which moves a flow; and the publication of a change of one pod among a thousand.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import loops, traffic
from bench.world import POD_INTERFACE, World, make_vip
from kuproxy.codes import Node, Protocol, Reason
from kuproxy.model.vip import Vip
from kuproxy.wire.l4 import TCP_ACK, TCP_RST

FLOWS = 100_000
LOG2 = 17
SLOTS = 65536
ROUNDS = 9
RESULTS = Path(__file__).parent / "results/nodes/second-chance.csv"
_L4, _TCP = 34, 6


def segments(rows: np.ndarray, flags: int) -> np.ndarray:
    """UDP over IPv4 as TCP with these flags: uint8[n, ROW]; nobody looks at the checksum of TCP."""
    made = rows.copy()
    made[:, 23] = _TCP
    made[:, 24:26] = 0
    words = made[:, 14:34].reshape(len(made), 10, 2).astype(np.int64)
    total = (words[:, :, 0] << 8 | words[:, :, 1]).sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    total = ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF
    made[:, 24], made[:, 25] = total >> 8, total & 0xFF
    made[:, _L4 + 4 :] = 0
    made[:, _L4 + 12], made[:, _L4 + 13] = 5 << 4, flags
    return made


def vip(first: int, pods: int = 64) -> Vip:
    made = make_vip(4, 1, range(first, first + pods), SLOTS)
    return replace(made, key=replace(made.key, protocol=Protocol.TCP))


class Bench:
    """A node after a change of all pods of its VIP, with or without second chances."""

    def __init__(self, seconds: int, flows: int) -> None:
        self.world = World(LOG2, [])
        self.world.compiler.set_second_chance(seconds)
        self.world.publish([vip(1)])
        self.world.publish([vip(101)])
        self.first = segments(traffic.udp_rows(4, flows), TCP_ACK)
        self.refusals = segments(traffic.replies(self.world.forwarded(self.first)), TCP_RST)

    def _timed(self, rows: np.ndarray, interface: int) -> float:
        begin = time.thread_time()
        self.world.drive(rows, len(rows), interface=interface)
        return (time.thread_time() - begin) / len(rows) * 1e9

    def sample(self) -> tuple[float, float]:
        """ns a segment that begins a flow, ns a refusal, the generator included."""
        self.world.flush()
        return self._timed(self.first, 0), self._timed(self.refusals, POD_INTERFACE)

    def moved(self) -> int:
        return int(self.world.engine.state.counters[Node.NAT4_IN2OUT, Reason.SECOND_CHANCE])


class Change:
    """A VIP of a thousand pods, one of which goes and comes."""

    def __init__(self, seconds: int) -> None:
        self.world = World(4, [])
        self.world.compiler.set_second_chance(seconds)
        self._vips = [vip(1, 1000), vip(2, 999)]
        self.world.publish(self._vips[:1])
        self._turn = 0

    def sample(self) -> float:
        """ms to publish."""
        self._turn ^= 1
        changes = self.world.store.replace("bench", [self._vips[self._turn]])
        begin = time.thread_time()
        self.world.compiler.apply(changes)
        took = time.thread_time() - begin
        self.world.collect()
        return took * 1e3


def rows(flows: int, rounds: int) -> list[dict[str, object]]:
    """Interleaved: every round has each of them once."""
    benches = {seconds: Bench(seconds, flows) for seconds in (0, 60)}
    changes = {seconds: Change(seconds) for seconds in (0, 60)}
    samples: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for seconds, bench in benches.items():
            first, refusal = bench.sample()
            took = changes[seconds].sample()
            if number:  # the first one is to warm up
                for what, value in (("first segment, ns", first), ("refusal, ns", refusal), ("change, ms", took)):
                    samples.setdefault((what, seconds), []).append(value)
    remembered = int((benches[60].world.engine.state.entries["pod"] != 0).sum())  # half-open ones have given way
    assert benches[0].moved() == 0 and benches[60].moved() >= remembered * rounds > flows * rounds * 0.9
    return [
        {
            "what": what, "second_chance_s": seconds, "minimum": round(min(values), 3),
            "median": round(statistics.median(values), 3), "rounds": len(values),
        }
        for (what, seconds), values in samples.items()
    ]  # fmt: skip


def generator(flows: int, rounds: int) -> float:
    """ns a row for handing it over, the least of some rounds."""
    world = World(LOG2, [vip(1)])
    made = segments(traffic.udp_rows(4, flows), TCP_ACK)
    least = float("inf")
    world.drive(made, 1, stage=loops.GENERATOR)  # which may have to be compiled
    for _ in range(rounds):
        begin = time.thread_time()
        world.drive(made, len(made), stage=loops.GENERATOR)
        least = min(least, (time.thread_time() - begin) / len(made) * 1e9)
    return least


def main(words: list[str] | None = None) -> int:
    """Print the rows, and keep them.  Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.second_chance", description=__doc__)
    parser.add_argument("--flows", type=int, default=FLOWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    load = os.getloadavg()[0]
    off = generator(args.flows, args.rounds)
    found = rows(args.flows, args.rounds)
    for row in found:
        if str(row["what"]).endswith("ns"):
            row |= {each: round(float(row[each]) - off, 1) for each in ("minimum", "median")}  # type: ignore[arg-type]
    head = f"# python -m bench.second_chance --flows {args.flows} --rounds {args.rounds}"
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("w", newline="") as file:
        file.write(f"{head}; load {load:.1f}; without the generator\n")
        writer = csv.DictWriter(file, found[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    sys.stdout.write(args.results.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
