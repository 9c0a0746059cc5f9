"""`ku plot`: pictures as SVG files, by the same code as those of the web page."""

from __future__ import annotations

import csv
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from kuproxy.control.compile import ring_owners
from kuproxy.errors import ConfigError, DriverError
from kuproxy.main import run
from kuproxy.model.vip import MAX_NEW_LEN, Address, Pod, is_power_of_two, parse_address
from kuproxy.pictures.chart import bars_svg, lines_svg
from kuproxy.pictures.ring import MOST_CELLS, ring_svg

_PATH = click.Path(path_type=Path)
_CELL = ("algorithm", "new_len", "buckets", "timeout_s")  # what tells lines of a series apart

output_option = click.option("-o", "--output", type=_PATH, metavar="FILE", help="Instead of standard output.")
new_len_option = click.option("--new-len", default=1024, show_default=True, help="Slots, a power of two.")


def _pods(option: str, words: Sequence[str]) -> list[Pod]:
    """ADDRESS or ADDRESS=WEIGHT, each once, all of one family."""
    pods: dict[Address, Pod] = {}
    for word in words:
        address, _, weight = word.partition("=")
        try:
            pod = Pod(parse_address(address), 0, int(weight)) if weight else Pod(parse_address(address))
        except ValueError as error:
            raise ConfigError(f"{option}: {word!r}: {error}; write ADDRESS or ADDRESS=WEIGHT") from None
        pods[pod.address] = pod
    if len({address.version for address in pods}) > 1:
        raise ConfigError(f"{option}: the pods of a VIP are all IPv4 or all IPv6")
    return list(pods.values())


def _owners(option: str, words: Sequence[str], new_len: int) -> list[str]:
    if not (is_power_of_two(new_len) and new_len <= MAX_NEW_LEN):
        raise ConfigError(f"--new-len: {new_len} is not a power of two from 1 to {MAX_NEW_LEN}")
    owners = ring_owners(_pods(option, words), new_len)
    if not owners:
        raise ConfigError(f"{option}: no pod has a weight above 0")
    return [str(pod) for pod in owners]


def _write(picture: str, output: Path | None) -> None:
    if output is None:
        print(picture)
        return
    try:
        output.write_text(picture + "\n")
    except OSError as error:
        raise DriverError(f"{output}: {error.strerror}") from error


@click.group(name="plot")
def plot() -> None:
    """Draw pictures (SVG)."""


@plot.command(name="ring")
@new_len_option
@click.option("--before", metavar="ADDRESS,...", help="The pods before a change: what moved stands out.")
@output_option
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS[=WEIGHT]...")
def ring(new_len: int, before: str | None, output: Path | None, addresses: tuple[str, ...]) -> None:
    """The new-flow table of these pods, or its difference from the table of other ones.

    \b
    ku plot ring --new-len 256 -o ring.svg 10.0.0.1 10.0.0.2 10.0.0.3
    ku plot ring --new-len 256 --before 10.0.0.1,10.0.0.2,10.0.0.3 -o moved.svg 10.0.0.1 10.0.0.2
    """
    now = _owners("ADDRESS", addresses, new_len)
    then = None if before is None else _owners("--before", before.split(","), new_len)
    names = sorted({*now, *(then or ())})
    place = {name: number for number, name in enumerate(names)}
    every = max(1, new_len // MOST_CELLS)
    moved = 0 if then is None else sum(one != other for one, other in zip(now, then, strict=True))
    drawn = [place[name] for name in now[::every]]
    drawn_before = None if then is None else [place[name] for name in then[::every]]
    _write(ring_svg(drawn, names, drawn_before, total=new_len, moved=moved), output)


@plot.command(name="shares")
@new_len_option
@output_option
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS[=WEIGHT]...")
def shares(new_len: int, output: Path | None, addresses: tuple[str, ...]) -> None:
    """Each pod's part of the new-flow table.

    \b
    ku plot shares -o shares.svg 10.0.0.1 10.0.0.2 10.0.0.3=50
    """
    counts = Counter(_owners("ADDRESS", addresses, new_len))
    names = [str(pod) for pod in sorted(_pods("ADDRESS", addresses))]
    bars = [(name, float(counts[name])) for name in names]
    _write(bars_svg(bars, title=f"slots of {new_len}", unit="slots", even=new_len / len(names)), output)


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(f"{path}: parquet needs pyarrow: pip install 'kuproxy[sim]'") from None
        try:
            found = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigError(f"{path}: {error}") from None
        return [{name: str(value) for name, value in row.items()} for row in found]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(f"{path}: is not CSV") from None


@plot.command(name="series")
@click.option("--column", default="occupancy", show_default=True)
@output_option
@click.argument("source", metavar="FILE", type=_PATH)
def series(column: str, output: Path | None, source: Path) -> None:
    """A column of a series that `ku simulate run --out` has written, in time: occupancy, imbalance_packets ...

    \b
    ku plot series --column occupancy -o occupancy.svg results/series.csv
    """
    rows = _rows(source)
    known = [name for name in (rows[0] if rows else ()) if name not in (*_CELL, "time_s")]
    if column not in known:
        raise ConfigError(f"--column: {source} has no {column!r}; it has {', '.join(known) or 'no rows'}")
    telling = [name for name in _CELL if len({row.get(name) for row in rows}) > 1]
    lines: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows, start=2):
        name = ", ".join(str(row.get(part)) for part in telling) or column
        try:
            lines.setdefault(name, []).append((float(row["time_s"]), float(row[column])))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{source}:{number}: time_s or {column} is not a number") from None
    if all(math.isnan(y) for line in lines.values() for _, y in line):
        raise ConfigError(f"--column: {column} has no values in {source}")
    _write(lines_svg(lines, title=column, x_label="seconds", y_label=column), output)
    if output is not None:
        print(f"{len(lines)} lines", file=sys.stderr)


if __name__ == "__main__":
    run(plot, name="ku plot")
