"""How long routes take from the daemon's word to a router's table: `python -m bench.announce`, as root.

A stand-in for the daemon says what is wanted; `ku announce bgp` with ExaBGP, and bird, are real, in network namespaces
of their own.  Elapsed time, of one run each; results in bench/results/nodes/announce.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results/nodes/announce.csv"
COUNTS = (1, 100, 1000, 10_000)
PATIENCE_S = 120.0
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def wait(true: Any, began: float) -> float:
    """Seconds since `began` until it holds."""
    while not true():
        if time.monotonic() - began > PATIENCE_S:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic() - began


def measure(count: int, directory: Path, stack: ExitStack) -> dict[str, object]:
    """One session, so many prefixes: announced, withdrawn, and gone with the process."""
    from kuproxy.demo.topology import Host, Pair, stop
    from netns.routed import NODE_ASN, PREFIX, ROUTER_ASN, Router, ends
    from netns.test_layer2 import Daemon

    hosts = [Host(f"{PREFIX}-{os.getpid()}-bench{count}{name}") for name in ("router", "node")]
    for each in hosts:
        stack.callback(each.close)
        stack.callback(stop, each.processes)
    Pair(hosts[1], hosts[0], "if1", ends(1))
    router = Router(hosts[0], directory, 1)
    stack.callback(router.close)
    daemon = Daemon(directory / "ku.sock")
    stack.callback(daemon.close)
    settings = directory / "kuproxy.toml"
    settings.write_text(f"""
        [api]
        socket = "{directory}/ku.sock"
        [announce]
        ranges = ["90.0.0.0/8"]
        interval_s = 0.1
        [announce.bgp]
        asn = {NODE_ASN}
        router_id = "10.1.0.2"
        next_hop4 = "10.1.0.2"
        [[announce.bgp.neighbors]]
        address = "10.1.0.1"
        asn = {ROUTER_ASN}
    """)
    command = (sys.executable, "-m", "kuproxy", "announce", "bgp", "--settings", str(settings))
    with (directory / "log").open("wb") as log:
        process = hosts[1].start(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def routes() -> int:
        words = router.birdc("show route count").split()
        return int(words[words.index("of") - 1]) if "of" in words else 0

    wait(lambda: router.withdrawals(1) >= 0, time.monotonic())
    daemon.prefixes = [f"90.{n >> 16}.{n >> 8 & 255}.{n & 255}/32" for n in range(count)]
    announced = wait(lambda: routes() == count, time.monotonic())
    daemon.prefixes = []
    withdrawn = wait(lambda: routes() == 0, time.monotonic())
    daemon.prefixes = [f"90.{n >> 16}.{n >> 8 & 255}.{n & 255}/32" for n in range(count)]
    wait(lambda: routes() == count, time.monotonic())
    process.kill()
    gone = wait(lambda: routes() == 0, time.monotonic())
    return {
        "prefixes": count,
        "announced_s": round(announced, 2),
        "withdrawn_s": round(withdrawn, 2),
        "killed_gone_s": round(gone, 2),
    }


def main() -> int:
    """Returns the exit status."""
    argparse.ArgumentParser(prog="python -m bench.announce", description=__doc__).parse_args()
    rows = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            rows.append(measure(count, Path(directory), stack))
            print(rows[-1], flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        file.write("# python -m bench.announce; interval_s 0.1, elapsed seconds, one run each\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
