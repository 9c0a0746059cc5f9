"""`ku demo`: build a small cluster of namespaces, show the data plane at work in it, and take it away again."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from kuproxy.errors import PrivilegeError
from kuproxy.main import run

# include/uapi/linux/capability.h
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_LINE_EVERY_S = 1.5


def check_privilege() -> None:
    """Raises PrivilegeError, which names what is missing."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (effective,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    missing = [name for name, bit in _NEEDED.items() if not effective >> bit & 1]
    if missing:
        raise PrivilegeError(
            f"ku demo makes network namespaces and needs {', '.join(missing)}: run it as root"
        )


class Progress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._stage, self._next = "", 0.0
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        if self._quiet:
            return
        stage = text.partition(":")[0]
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[K[{now - self._started:4.1f} s] {text}", end="", file=sys.stderr, flush=True)
        elif stage != self._stage or now >= self._next:
            print(f"[{now - self._started:4.1f} s] {text}", file=sys.stderr, flush=True)
            self._next = now + _LINE_EVERY_S
        self._stage = stage

    def close(self) -> None:
        if self._terminal and not self._quiet:
            print(file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds, and with that cleans up; further ones do not disturb it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@click.command(name="demo")
@click.option("--json", "json_output", is_flag=True, help="Print one line of JSON instead of tables.")
@click.option(
    "--requests",
    default=4000,
    show_default=True,
    type=click.IntRange(100, 20000),
    help="New connections to make, beside those that are kept.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
def demo(json_output: bool, requests: int, quiet: bool) -> int:
    """Show kuproxy on real connections, in network namespaces of its own making.

    A client, a node and pods with real HTTP and UDP servers; `ku run` on the node. While thousands of connections are
    made and 60 are kept open, a pod joins and another is drained. Then: who got what against the Maglev ring, what
    broke (nothing should), and the data plane's counters. Ends by itself, leaves nothing behind, and exits
    with 0 only if nothing failed. Needs root and Linux 6.6.
    """
    check_privilege()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _interrupt)
    from kuproxy.demo import report, story

    progress = Progress(quiet)
    try:
        story.remove_leftovers()
        outcome = story.tell(requests, progress)
    finally:
        progress.close()
    print(report.as_json(outcome) if json_output else report.as_text(outcome))
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    run(demo, name="ku demo")
