"""The command line: `python -m bench.soak [--minutes N] [--rate N] [--every SECONDS] [--results DIRECTORY]`."""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

from bench import machine, results
from bench.soak import account, verdict
from bench.soak.churn import Churn
from bench.soak.daemon import METRICS, Daemon, processes, usage
from kuproxy.client import Refusal
from kuproxy.demo.client import Plan, Tally
from kuproxy.demo.load import Clients
from kuproxy.demo.manifest import demo_service, write_manifest
from kuproxy.demo.story import start_pods, targets
from kuproxy.demo.topology import Network, remove_stale
from kuproxy.errors import KuError

PREFIX = "kusoak"
PODS = 4
KEPT = 60  # connections that last for the whole run, a fifth of them UDP
KEPT_INTERVAL_S = 0.2  # between two requests of each
BUCKETS = 16384
PATIENCE_S = 60.0  # for the last requests
LISTEN_AT_LEAST_S = 0.05
LEAST_SHARE = 0.3  # of the kept connections' requests that would come without any delay

# One row of the CSV: seconds since the start, a process (or "all" for what the data plane counts), a metric, a value.
Row = tuple[float, str, str, float]


class Soak:
    """One run."""

    def __init__(self, minutes: float, rate_per_s: float, every_s: float) -> None:
        self._seconds, self._rate, self._every_s = minutes * 60, rate_per_s, every_s
        self.rows: list[Row] = []
        self.tally = Tally()
        self.faults: list[str] = []
        self.acts: dict[str, int] = {}
        self.balanced = False  # every packet and every flow accounted for at the end

    def run(self) -> None:
        """Whatever happens, no process and no namespace is left.  Raises KuError when it cannot even begin."""
        remove_stale(PREFIX)
        files = tempfile.TemporaryDirectory(prefix=f"{PREFIX}-")
        with files as directory, Network(PREFIX, PODS) as network:
            endpoints = start_pods(network)
            manifest = Path(directory, "services.yaml")
            write_manifest(manifest, demo_service(endpoints))
            daemon = Daemon(network.node, Path(directory), [manifest])
            daemon.lines(f"ku conf buckets {BUCKETS}")
            plan = Plan(targets(), round(self._rate * self._seconds), self._seconds, KEPT, KEPT_INTERVAL_S)
            clients = Clients([(network.client, plan)])
            churn = Churn(daemon, network.client, endpoints, manifest, BUCKETS)
            try:
                self._go_on(daemon, clients, churn)
                clients.order(finish=True)
                self._listen(clients, time.monotonic() + PATIENCE_S, to_the_end=True)
                self.faults += account.balance(daemon)
                self.balanced = not self.faults
                self.faults += account.emptied(daemon)
            except (KuError, OSError, Refusal) as error:
                self.faults.append(f"{error}\n{daemon.log}")
            self.tally, self.acts = clients.tally, dict(churn.done)
            self.faults += churn.failed
            status = daemon.stop()
            if status:
                self.faults.append(f"the daemon ended with status {status}:\n{daemon.log}")
        self._judge_load()

    def _go_on(self, daemon: Daemon, clients: Clients, churn: Churn) -> None:
        started = time.monotonic()
        sampled = started
        while (now := time.monotonic()) < started + self._seconds:
            if now >= sampled:
                self._sample(daemon, now - started)
                sampled = max(sampled + self._every_s, now)
            due = churn.turn()
            self._listen(clients, min(due, sampled))

    @staticmethod
    def _listen(clients: Clients, until: float, to_the_end: bool = False) -> None:
        """Take in what the clients tell, however late it is: with a full pipe they would stand still."""
        until = max(until, time.monotonic() + LISTEN_AT_LEAST_S)
        while not (to_the_end and clients.finished):
            try:
                clients.listen(until)
            except TimeoutError:
                if to_the_end:
                    raise KuError("the clients do not come to an end") from None
                return

    def _sample(self, daemon: Daemon, at_s: float) -> None:
        for name, process_id in processes(daemon).items():
            taken = usage(process_id)
            self.rows += [(at_s, name, metric, getattr(taken, metric)) for metric in METRICS]
        health = daemon.request("GET", "/v1/health")
        services = daemon.request("GET", "/v1/services")["services"]
        self.rows += [
            (at_s, "all", "vips", health["vips"]),
            (at_s, "all", "flows", sum(each["flows"] for each in services)),
        ]

    def _judge_load(self) -> None:
        tally = self.tally
        for number, what in (
            (tally.new_failed, "new connections or datagrams failed"),
            (tally.kept_failed, "requests over kept connections failed"),
            (tally.broken, "kept connections broke"),
        ):
            if number:
                self.faults.append(f"{number} {what}: {'; '.join(tally.examples)}")
        wanted = LEAST_SHARE * KEPT * self._seconds / KEPT_INTERVAL_S
        if not tally.new or tally.kept_requests < wanted:
            self.faults.append(
                f"the load has stood still: {tally.kept_requests} of at least {wanted:.0f} requests"
            )

    # --- telling ---------------------------------------------------------------------------------------------

    def verdicts(self) -> dict[tuple[str, str], verdict.Verdict]:
        """By process and metric."""
        series: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        for at_s, name, metric, value in self.rows:
            times, values = series.setdefault((name, metric), ([], []))
            times.append(at_s)
            values.append(value)
        return {key: verdict.judge(key[1], *each) for key, each in series.items() if key[0] != "all"}

    def write(self, path: Path, command: str) -> None:
        """The samples, with the machine in comment lines."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            for name, value in {"command": command, **machine.describe()}.items():
                file.write(f"# {name}: {value}\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("seconds", "process", "metric", "value"))
            writer.writerows((round(at_s, 1), name, metric, value) for at_s, name, metric, value in self.rows)


def table(verdicts: dict[tuple[str, str], verdict.Verdict]) -> str:
    """Markdown."""
    lines = ["| process | metric | first | last | per hour | |", "|---|---|--:|--:|--:|---|"]
    for (name, metric), each in verdicts.items():
        values = f"{each.first:.0f} | {each.last:.0f} | {each.per_hour:+.0f}"
        word = "" if metric in verdict.NOT_JUDGED else each.word
        lines.append(f"| {name} | {metric} | {values} | {word} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Exit status 0: everything is flat, and nothing broke."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=60.0, help="new connections and datagrams a second")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two samples")
    parser.add_argument("--results", type=Path, default=results.RESULTS / "soak", metavar="DIRECTORY")
    args = parser.parse_args(words)
    if args.minutes <= 0 or args.rate <= 0 or args.every <= 0:
        parser.error("--minutes, --rate and --every must be positive")
    soak = Soak(args.minutes, args.rate, args.every)
    try:
        soak.run()
    except (KuError, Refusal) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    command = " ".join(["python -m bench.soak", *(words if words is not None else sys.argv[1:])])
    soak.write(args.results / "soak.csv", command)
    verdicts = soak.verdicts()
    print(table(verdicts))
    tally = soak.tally
    print(
        f"\n{tally.new} new connections and datagrams, {tally.new_failed} failed; {tally.kept_requests} requests over "
        f"{tally.kept_open} kept connections, {tally.broken} broken"
    )
    print("acts: " + ", ".join(f"{number} {name}" for name, number in sorted(soak.acts.items())))
    if soak.balanced:
        accounted = soak.acts.get("accounted vip", 0) * account.FLOWS * account.DATAGRAMS
        print(f"accounts: every packet has one outcome, sums of flows agree; {accounted} datagrams counted one by one")
    for fault in soak.faults:
        print(f"BROKE: {fault}", file=sys.stderr)
    grows = [key for key, each in verdicts.items() if each.grows]
    print("FLAT" if not grows else "GROWS: " + ", ".join(" ".join(key) for key in grows))
    return 1 if soak.faults or grows else 0


if __name__ == "__main__":
    sys.exit(main())
