"""What several nodes behind one router come to: `python -m bench.nodes`; results in bench/results/nodes/shares.csv.

Counted, not timed: flows with random hashes, a router that spreads them over nodes, the Maglev table that all nodes
share, and a change of nodes together with a change of pods.  A flow breaks if its packets move to another node and the
table there names another pod than the first node remembers; flows of the pods that go are not counted, unless they are
drained (then they could have gone on).  With a second chance (docs/adr/036) it breaks only if the owner before the last
change is another one, too.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from kuproxy.model.vip import Pod
from kuproxy.sim.algorithms import Algorithm, choose, mixed

FLOWS = 2_000_000
SEED = 20260101
WAYS = 4  # flows in a bucket: docs/forwarding.md
BYTES_PER_FLOW = 96  # docs/performance.md, "Memory"
RESULTS = Path(__file__).parent / "results/nodes/shares.csv"
ROUTERS = ("modulo", "threshold", "resilient")


def spread(kind: str, hashes: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """int64[flows]: the node of each flow (hashes uint64[flows]), of the nodes that are there (int64[n]).

    modulo: the hash modulo the number of nodes.  threshold: equal regions of the hash's range, as in RFC 2992 and in
    Linux (net/ipv4/fib_semantics.c, fib_rebalance).  resilient: the highest random weight, so that only flows of a
    node that has gone move, as with the next-hop groups of Linux and of switches once they have settled.
    """
    if kind == "modulo":
        return nodes[(hashes % np.uint64(len(nodes))).astype(np.int64)]
    if kind == "threshold":
        return nodes[((hashes >> np.uint64(33)).astype(np.int64) * len(nodes)) >> 31]
    best = np.zeros(len(hashes), np.int64)
    weight = np.zeros(len(hashes), np.uint64)
    for node in nodes:
        each = mixed(hashes ^ mixed(np.full(1, node + 1, np.uint64)))
        better = each > weight
        weight[better] = each[better]
        best[better] = node
    return best


def pods(count: int) -> list[Pod]:
    return [Pod(ip_address(f"10.{1 + (n >> 16)}.{n >> 8 & 255}.{n & 255}")) for n in range(count)]


def node_rows(flows: int) -> Iterator[dict[str, object]]:
    """Nodes lost or added, with and without a pod that is drained or added meanwhile."""
    random = np.random.default_rng(SEED)
    outer = random.integers(0, (1 << 64) - 1, flows, dtype=np.uint64, endpoint=True)  # the router's hash
    inner = random.integers(0, 1 << 32, flows, dtype=np.uint64).astype(np.uint32)  # ours, of the same flow
    for slots in (1024, 65536):
        every = pods(101)
        before = choose(Algorithm.MAGLEV, every[:100], slots, inner)
        without_nine, without_ten = (
            choose(Algorithm.MAGLEV, every[gone:100], slots, inner) + gone for gone in (9, 10)
        )
        # Owners after it, and directly before its last step.
        changes = {
            "none": (before, before),
            "one of 100 pods drained": (choose(Algorithm.MAGLEV, every[1:100], slots, inner) + 1, before),
            "one pod added to 100": (choose(Algorithm.MAGLEV, every, slots, inner), before),
            "ten of 100 pods drained": (without_ten, before),
            "ten of 100 pods drained one by one": (without_ten, without_nine),
        }
        for count in (3, 10, 100, 300):
            for kind in ROUTERS:
                if kind == "resilient" and count == 300:
                    continue  # 300 passes over all flows, for a share that 100 show as well
                here = spread(kind, outer, np.arange(count))
                events = {
                    "first node lost": np.arange(1, count),
                    "middle node lost": np.delete(np.arange(count), count // 2),
                    "node added": np.arange(count + 1),
                }
                for event, after in events.items():
                    moved = spread(kind, outer, after) != here
                    for change, (owners, former) in changes.items():
                        other = owners != before
                        lost = moved & other & (former != before)
                        yield {
                            "table": "nodes", "nodes": count, "router": kind, "event": event, "slots": slots,
                            "pods": change, "moved_percent": round(100 * moved.mean(), 4),
                            "changed_percent": round(100 * other.mean(), 4),
                            "broken_percent": round(100 * (moved & other).mean(), 4),
                            "broken_with_second_chance_percent": round(100 * lost.mean(), 4),
                        }  # fmt: skip


def untracked(load: float) -> float:
    """Share of flows that find their bucket full, at so many flows per bucket: hashes are Poisson's."""
    probability = math.exp(-load)
    over = 0.0
    for count in range(1, int(load + 20 * math.sqrt(load) + 40)):
        probability *= load / count
        over += max(0, count - WAYS) * probability
    return over / load


def counted(load: float, log2_buckets: int) -> float:
    """The same, counted."""
    random = np.random.default_rng(SEED)
    flows = round(load * (1 << log2_buckets))
    fill = np.bincount(random.integers(0, 1 << log2_buckets, flows), minlength=1 << log2_buckets)
    return float(np.maximum(fill - WAYS, 0).sum() / flows)


def table_rows() -> Iterator[dict[str, object]]:
    """Buckets for a number of flows of one worker."""
    for load in (0.25, 0.5, 1.0, 1.907, 2.0, 3.815):
        yield {
            "table": "buckets", "flows_per_bucket": load, "bytes_per_flow": round(WAYS * BYTES_PER_FLOW / load),
            "untracked_percent": round(100 * untracked(load), 4), "counted_percent": round(100 * counted(load, 18), 4),
        }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Print the rows, and keep them.  Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.nodes", description=__doc__)
    parser.add_argument("--flows", type=int, default=FLOWS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    rows = [*node_rows(args.flows), *table_rows()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("w", newline="") as file:
        file.write(f"# python -m bench.nodes --flows {args.flows}; seed {SEED}\n")
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
