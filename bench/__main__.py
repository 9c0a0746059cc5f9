"""The command line: `python -m bench [SUITE ...] [--quick] [--only PATTERN] [--list]`."""

import argparse
import sys
from pathlib import Path

from bench import machine, plots, results
from bench.harness import FULL, QUICK, TINY, Scale, chosen, measure
from bench.suites import SUITES

_SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}


def run_suite(name: str, scale: Scale, pattern: str, directory: Path, command: str) -> int:
    """Measure a suite and write `<directory>/<name>.csv`; returns how many figures there are."""
    cases = chosen(SUITES[name](scale), pattern)
    if not cases:
        return 0
    description = machine.describe()
    figures = measure(cases, scale)
    description["load after"] = machine.describe()["load"]
    results.write_csv(directory / f"{name}.csv", description, command, figures)
    plots.write_plots(directory, name, figures)
    print(f"## {name}\n\n{results.table(figures)}\n", flush=True)
    return len(figures)


def main(words: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a few minutes: fewer flows, VIPs and cases")
    parser.add_argument("--scale", choices=_SCALES, help="full (the default), quick, or tiny (for tests)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name contains or matches it")
    parser.add_argument("--list", action="store_true", help="name the cases and measure nothing")
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="where the result files go")
    args = parser.parse_args(words)
    unknown = [name for name in args.suites if name not in SUITES]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    scale = _SCALES[args.scale or ("quick" if args.quick else "full")]
    names = args.suites or list(SUITES)
    if args.list:
        for name in names:
            for case in chosen(SUITES[name](scale), args.only):
                print(f"{name:<12} {case.name}")
        return 0
    command = " ".join(["python -m bench", *(words if words is not None else sys.argv[1:])])
    directory = args.results or results.RESULTS
    if args.results is None and (args.only or scale is not FULL):
        directory /= "part" if args.only else scale.name  # never in the place of a whole run's results
    found = sum(run_suite(name, scale, args.only, directory, command) for name in names)
    if not found:
        print(f"no case matches {args.only!r}; --list names them", file=sys.stderr)
        return 1
    print(f"{found} figures; {results.write_summary(directory)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
