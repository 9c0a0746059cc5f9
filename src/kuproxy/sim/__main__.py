"""`ku simulate`: what a plan would do to the flows of a trace, and the figures of the Maglev paper."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from kuproxy.errors import ConfigError
from kuproxy.load import load_config
from kuproxy.main import config_option, run
from kuproxy.sim.algorithms import Algorithm
from kuproxy.sim.generators import Kind, Traffic, write_trace
from kuproxy.sim.paper import BACKENDS, SIZES, efficiency, efficiency_text, resilience
from kuproxy.sim.report import check_format, table_text, write_plots, write_results
from kuproxy.sim.run import MOST_BINS
from kuproxy.sim.sweep import LOCAL, TABLE, Source, grid, sweep

T = TypeVar("T")

_PATH = click.Path(path_type=Path)


def _numbers(option: str, text: str | None, parse: Callable[[str], T]) -> list[T | None]:
    """Of an option that takes several values with commas; None: it was not given."""
    if text is None:
        return [None]
    values: list[T | None] = []
    for word in text.split(","):
        try:
            value = parse(word)
        except ValueError:
            raise ConfigError(
                f"{option}: {word!r} is not a number; write one, or several with commas"
            ) from None
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ConfigError(f"{option}: {word} is below 0 or endless")
        if value not in values:
            values.append(value)
    return values


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal: rich's, or a line of our own without rich.  Elsewhere nothing."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda _done: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda done: print(
            f"\r{what}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@click.group(name="simulate")
def simulate() -> None:
    """What would happen: traces through the data plane while pods come and go, beside other algorithms."""


@simulate.command(name="run")
@config_option
@click.option("--plan", type=_PATH, metavar="FILE", help="What happens to the pods meanwhile (YAML).")
@click.option(
    "--algorithm",
    "algorithms",
    multiple=True,
    type=click.Choice([TABLE, *(each.value for each in Algorithm), "all"]),
    default=(TABLE,),
    show_default=True,
    help="The data plane itself (table), or a model of it (maglev) or of others. May be repeated.",
)
@click.option("--new-len", metavar="N,...", help="Slots of the new-flow table; else as configured.")
@click.option("--buckets", metavar="N,...", help="Buckets of four flows; else as configured.")
@click.option("--timeout", metavar="S,...", help="Of all flows; 0, of models: nothing is remembered.")
@click.option(
    "--bins", default=100, show_default=True, type=click.IntRange(1, MOST_BINS), help="Points in time."
)
@click.option("--jobs", default=None, type=click.IntRange(1), help="Processes.  [default: one a CPU]")
@click.option(
    "--dask", metavar="ADDRESS", help=f"Run on this Dask scheduler, or on a cluster of its own: {LOCAL}."
)
@click.option("--out", type=_PATH, metavar="DIR", help="Write summary and series there.")
@click.option("--format", "form", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True)
@click.option("--plots", type=_PATH, metavar="DIR", help="Write pictures (SVG) there.")
@click.option(
    "--write", type=_PATH, metavar="FILE", help="Write what the data plane sends, as `ku replay` does."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, a list of objects.")
@click.argument("trace", metavar="TRACE", type=_PATH)
def run_command(
    configs: tuple[Path, ...],
    plan: Path | None,
    algorithms: tuple[str, ...],
    new_len: str | None,
    buckets: str | None,
    timeout: str | None,
    bins: int,
    jobs: int | None,
    dask: str | None,
    out: Path | None,
    form: str,
    plots: Path | None,
    write: Path | None,
    as_json: bool,
    trace: Path,
) -> None:
    """Run the capture TRACE (pcap or pcapng) while PLAN happens, for every combination of the options' values.

    \b
    ku simulate run --config services.ku --plan plan.yaml trace.pcap
    ku simulate run --config services.ku --plan plan.yaml --algorithm all --new-len 256,1024 --timeout 4,40 \\
        --out results --plots results trace.pcap
    """
    check_format(form)
    if "all" in algorithms:
        algorithms = (TABLE, *(each.value for each in Algorithm))
    if write is not None and write.exists() and trace.exists() and write.samefile(trace):
        raise ConfigError(f"--write: {write} is the trace")
    source = Source(
        tuple(str(path.resolve()) for path in configs),
        str(trace.resolve()),
        None if plan is None else str(plan.resolve()),
        bins,
    )
    cells = grid(
        source,
        list(dict.fromkeys(algorithms)),
        _numbers("--new-len", new_len, int),
        _numbers("--buckets", buckets, int),
        _numbers("--timeout", timeout, float),
        None if write is None else str(write.resolve()),
    )
    with _progress(len(cells), "cells") as told:
        outcomes = sweep(cells, processes=jobs or len(os.sched_getaffinity(0)), dask=dask, told=told)
    if as_json:
        rows = [outcome.summary() for outcome in outcomes]
        print(json.dumps([{k: None if v != v else v for k, v in row.items()} for row in rows]))
    else:
        print(table_text(outcomes), end="")
    written = write_results(out, outcomes, form) if out is not None else []
    written += write_plots(plots, outcomes) if plots is not None else []
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


@simulate.command(name="generate")
@config_option
@click.option("--vip", metavar="PREFIX", help="Which VIP, if there are several.")
@click.option("--kind", type=click.Choice([each.value for each in Kind]), default="zipf", show_default=True)
@click.option("--packets", default=100_000, show_default=True)
@click.option("--clients", default=1000, show_default=True)
@click.option("--flow-packets", default=10.0, show_default=True, help="Packets of a flow, on average.")
@click.option("--duration", default=60.0, show_default=True, help="Seconds.")
@click.option("--exponent", default=1.1, show_default=True, help="Of the Zipf law.")
@click.option("--seed", default=1, show_default=True)
@click.argument("target", metavar="OUT", type=_PATH)
def generate(
    configs: tuple[Path, ...], vip: str | None, kind: str, duration: float, target: Path, **sizes: Any
) -> None:
    """Write a trace towards a VIP of the configuration into the capture OUT (pcap).

    \b
    zipf           a client's part of the flows falls with its rank
    heavy-hitters  one flow in a hundred has half of all packets
    long-tail      packets per flow follow a Pareto law with exponent 1.2
    syn-flood      half of the packets are SYNs that nothing follows, each of another client

    \b
    ku simulate generate --config services.ku --kind zipf --packets 200000 trace.pcap
    """
    traffic = Traffic(Kind(kind), duration_s=duration, **sizes)
    vips = [each for each in load_config(configs).vips if vip is None or str(each.key.prefix) == vip]
    if len(vips) != 1:
        hint = "name one with --vip PREFIX" if vips else "see the configuration"
        raise ConfigError(f"--vip: {len(vips)} VIPs are meant; {hint}")
    with _progress(traffic.packets, "packets") as told:
        drawn = write_trace(target, vips[0], traffic, told)
    print(f"{len(drawn.flow)} packets, {len(drawn.clients)} flows")


@simulate.command(name="paper")
@click.option("--draws", default=10, show_default=True, type=click.IntRange(1), help="Tables of each kind.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 1 << 20), help="Of the first draw.")
@click.option("--trials", default=3, show_default=True, type=click.IntRange(1), help="For resilience.")
@click.option("--json", "as_json", is_flag=True, help="One object: {efficiency: [...], resilience: [...]}.")
def paper(draws: int, seed: int, trials: int, as_json: bool) -> None:
    """Compute the figures of the Maglev paper's section 5.3: overprovision, and entries that move.

    \b
    ku simulate paper
    """
    methods = ("maglev", "karger", "rendezvous")
    steps = [(method, size) for size in SIZES for method in methods]
    parts = [(gone, size) for gone in (0.01, 0.02) for size in (*SIZES, 65536)]
    found, moved = [], []
    with _progress(len(steps) + len(parts), "tables") as told:
        for method, size in steps:
            found.append(efficiency(method, size, range(seed, seed + draws)))
            told(len(found))
        for gone, size in parts:
            moved.append((gone, size, resilience(size, gone, trials)))
            told(len(found) + len(moved))
    if as_json:
        rows = [each._asdict() for each in found]
        others = [{"gone": gone, "size": size, "moved_percent": percent} for gone, size, percent in moved]
        print(json.dumps({"efficiency": rows, "resilience": others}))
        return
    print(efficiency_text(found), end="")
    print(f"\nentries that change their backend though it stays, {BACKENDS} backends:")
    for gone, size, percent in moved:
        kind = "prime" if size % 2 else "power of two"
        print(f"  {gone:.0%} fail, table {size:>6} ({kind}): {percent:.3f} %")


if __name__ == "__main__":
    run(simulate, name="ku simulate")
