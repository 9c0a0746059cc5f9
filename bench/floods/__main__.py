"""The command line: `python -m bench.floods [--rounds N] [--seconds S] [--rate PPS] [--hash vpp|keyed] [--docs]`.

Floods a live service in network namespaces of its own, writes bench/results/floods-live.csv, and prints the table.
With --docs nothing is measured: the tables of docs/floods.md are written anew from the result files. Needs root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from bench import machine, results
from bench.floods import page
from bench.floods.live import Measured, run, unaccounted
from bench.floods.traffic import FLOODS
from bench.harness import Figure
from bench.live.bed import PREFIX, missing_programs
from kuproxy.demo.topology import remove_stale
from kuproxy.errors import KuError


def _figures(found: dict[str, Measured], hash_name: str) -> list[Figure]:
    figures = []
    for name, measured in found.items():
        rounds = len(measured.quiet_s)
        case = f"veth-keep-alive-{name}-{hash_name}"
        series = {
            ("plane, quiet", "us/packet"): [1e6 * each for each in measured.quiet_s],
            ("plane, flooded", "us/packet"): [1e6 * each for each in measured.mixed_s],
            ("requests, quiet", "1/s"): measured.quiet_rate,
            ("requests, flooded", "1/s"): measured.mixed_rate,
            ("rate at the same share", "%"): measured.share,
            ("rate", "%"): measured.rate,
            ("failures", "requests"): [measured.failures],
            ("sent", "packets"): [measured.sent],
            ("received", "packets"): [measured.received],
        }
        for (metric, unit), values in series.items():
            spread = min(values), statistics.median(values), max(values)
            figures.append(Figure(case, metric, unit, *spread, rounds, FLOODS[name][0]))
    return figures


def main(words: list[str] | None = None) -> int:
    """Exit status 1: a request failed, or a packet is unaccounted for."""
    parser = argparse.ArgumentParser(prog="python -m bench.floods", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each part of a round")
    parser.add_argument("--rate", type=int, default=20_000, help="packets of the flood a second")
    parser.add_argument("--hash", choices=("vpp", "keyed"), default="vpp", help="the flow hash")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/floods.md, measure nothing")
    args = parser.parse_args(words)
    if args.docs:
        page.write()
        return 0
    if min(args.rounds, args.seconds, args.rate) <= 0 or args.seconds > 60 or args.rate > 200_000:
        parser.error("--rounds, --seconds (60 at most) and --rate (200000 at most) must be positive")
    missing = ["root"] if os.geteuid() != 0 else missing_programs()
    if missing:
        print(f"floods: this needs {', '.join(missing)}", file=sys.stderr)
        return 2
    remove_stale(PREFIX)
    try:
        found, report = run(args.rounds, args.seconds, args.rate, args.hash)
    except KuError as error:
        print(f"floods: {error}", file=sys.stderr)
        return 1
    command = " ".join(["python -m bench.floods", *(words if words is not None else sys.argv[1:])])
    figures = _figures(found, args.hash)
    suffix = "" if args.hash == "vpp" else f"-{args.hash}"
    results.write_csv(results.RESULTS / f"floods-live{suffix}.csv", machine.describe(), command, figures)
    print(results.table(figures))
    lost, failures = unaccounted(report), sum(each.failures for each in found.values())
    print(f"\n{failures} requests failed; {lost} of {report['received']} packets have no outcome")
    for row in report["nodes"]:
        print(f"  {row['count']:>10} {row['node']:<18} {row['reason']}")
    return 1 if lost or failures else 0


if __name__ == "__main__":
    sys.exit(main())
