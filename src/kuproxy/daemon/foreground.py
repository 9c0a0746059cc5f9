"""`ku run`: forward live traffic of this network namespace, in the foreground, until interrupted.

The control process: it reads the configuration, keeps tables and steering equal to it, and waits for signals, the
node's events and its timer. Packets pass only through the worker process.
"""

import json
import os
import select
import signal
import socket
import time
from pathlib import Path

import click

from kuproxy.codes import Outcome
from kuproxy.confine import privilege
from kuproxy.daemon.cache_choice import (
    OFF,
    SHORTCUTS,
    SWITCH,
    CacheChoice,
    Shortcuts,
    Switch,
)
from kuproxy.daemon.control import Controller
from kuproxy.daemon.driver import DEFAULT_DRIVER, KINDS, MODES, DriverChoice, Kind, Mode
from kuproxy.daemon.flow_cache import TURN_S
from kuproxy.daemon.log import make_log
from kuproxy.daemon.node import LiveNode
from kuproxy.errors import KuError
from kuproxy.load import load_config
from kuproxy.main import config_option, run
from kuproxy.model.config import Show, ShowKind
from kuproxy.steering.cache_layout import MAX_ENTRIES
from kuproxy.vppcli.show import render, to_json

COLLECT_INTERVAL_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Foreground:
    """One run, from start to stop."""

    def __init__(
        self,
        paths: tuple[Path, ...],
        interfaces: tuple[str, ...],
        report: Path | None,
        driver: DriverChoice,
        cache: CacheChoice = OFF,
    ):
        self._report_path = report
        self._log = make_log()
        self._config = load_config(paths)
        log2_buckets = self._config.settings.buckets.bit_length() - 1
        self._node = LiveNode(log2_buckets, interfaces, driver=driver, cache=cache)
        self._node.engine.on_replaced = lambda line: self._log.warning("worker", text=line)
        self._controller = Controller(self._node, paths, self._log)
        self._plane = self._controller.plane
        self._signals: socket.socket | None = None

    def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM, stop. Nothing is left behind, whatever happens."""
        self._listen()
        try:
            for note in self._config.notes:
                self._log.info("config", text=str(note))
            self._controller.start(self._config)
            privilege.keep_only(*self._node.capabilities)
            self._node.engine.watch()
            for line in self._node.notes:
                self._log.info("start", text=line)
            for line in self._node.steering.warnings:
                self._log.warning("node", text=line)
            self._log.info(
                "forwarding",
                interfaces=",".join(self._node.steering.attached),
                driver=self._node.driver,
                vips=len(self._plane.store),
                worker=self._node.engine.workers[0].process_id,
            )
            self._serve()
        finally:
            self._controller.stop()
        self._write_report()
        report = self._plane.report()
        for show in self._controller.file_config.shows:
            print(render(self._plane.told(report, show), show), end="")
        self._log.info("stopped")

    def _listen(self) -> None:
        """Signals become bytes on a socket, so that one select waits for everything."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        self._signals = ours
        self._wakeup = theirs  # kept open

    def _serve(self) -> None:
        assert self._signals is not None
        due, turn = time.monotonic() + COLLECT_INTERVAL_S, time.monotonic()
        while True:
            next_due = due if self._node.cache is None else min(due, turn)
            wait = max(0.0, next_due - time.monotonic())
            events = self._node.filenos()
            ready, _, _ = select.select([self._signals.fileno(), *events], [], [], wait)
            if self._signals.fileno() in ready:
                for number in self._signals.recv(64):
                    if number in (signal.SIGINT, signal.SIGTERM):
                        return
                    if number == signal.SIGHUP:
                        self._reload()
                    elif number == signal.SIGUSR1:
                        self._write_report()
            if not set(events).isdisjoint(ready):
                for line in self._node.follow(self._plane):
                    self._log.info("steering", text=line)
            if time.monotonic() >= due:
                due = time.monotonic() + COLLECT_INTERVAL_S
                self._controller.tend()
            if time.monotonic() >= turn:
                turn = time.monotonic() + TURN_S
                for line in self._node.turn():
                    self._log.warning("flow cache", text=line)

    def _reload(self) -> None:
        """Read the files again; with a fault in them, everything stays as it is."""
        try:
            self._controller.reload()
        except KuError as error:
            for line in str(error).splitlines():
                self._log.error("config refused, the former one stays", text=line)

    def _write_report(self) -> None:
        if self._report_path is None:
            return
        totals = self._plane.totals()
        report = self._plane.report()
        shows = (Show(ShowKind.VIPS, verbose=True), Show(ShowKind.NODES))
        content = {
            "received": totals.received,
            "outcomes": {outcome.name.lower(): totals.outcomes[outcome] for outcome in Outcome if outcome},
            **to_json(report),
            "shows": [render(report, show) for show in shows],
        }
        temporary = self._report_path.with_name(f"{self._report_path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(content))
            temporary.replace(self._report_path)
        except OSError as error:
            self._log.error("report not written", file=str(self._report_path), text=str(error.strerror))


@click.command(name="run")
@config_option
@click.option(
    "--interface", "interfaces", multiple=True, metavar="NAME", help="Attach only here. May be repeated."
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write counters and VIPs there as JSON, at SIGUSR1 and at the end.",
)
@click.option(
    "--driver",
    type=click.Choice(KINDS),
    default=DEFAULT_DRIVER.kind,
    show_default=True,
    help="How packets come to the worker.",
)
@click.option(
    "--xdp-mode",
    type=click.Choice(MODES),
    default=DEFAULT_DRIVER.mode,
    show_default=True,
    help="Where the program of the driver af_xdp runs.",
)
@click.option(
    "--flow-cache",
    type=click.Choice(SWITCH),
    default=OFF.flow_cache,
    show_default=True,
    help="Whether the kernel rewrites packets of established flows.",
)
@click.option(
    "--flow-cache-entries",
    type=click.IntRange(2, MAX_ENTRIES),
    default=OFF.flow_cache_entries,
    show_default=True,
    help="Room there, two for each flow.",
)
@click.option(
    "--flow-cache-shortcuts",
    type=click.Choice(SHORTCUTS),
    default=OFF.flow_cache_shortcuts,
    show_default=True,
    help="Whether such packets may leave the node by shorter ways.",
)
def foreground(
    configs: tuple[Path, ...],
    interfaces: tuple[str, ...],
    report: Path | None,
    driver: Kind,
    xdp_mode: Mode,
    flow_cache: Switch,
    flow_cache_entries: int,
    flow_cache_shortcuts: Shortcuts,
) -> None:
    """Forward live traffic in this network namespace until interrupted.

    Traffic for the configured VIPs and node ports, and the replies of their pods, is steered to kuproxy on every
    Ethernet-like interface (or those that --interface names); everything else passes untouched. Processes on this node
    reach the VIPs too. SIGHUP reads the files again and applies the difference. When kuproxy ends, however it
    ends, the node is as it was before. Needs root and Linux 6.6.

    \b
    ku run --config services.yaml
    ku run --config services.ku --interface eth0 --interface eth1
    """
    cache = CacheChoice(
        flow_cache=flow_cache,
        flow_cache_entries=flow_cache_entries,
        flow_cache_shortcuts=flow_cache_shortcuts,
    )
    Foreground(configs, interfaces, report, DriverChoice(kind=driver, mode=xdp_mode), cache).run()


if __name__ == "__main__":
    run(foreground, name="ku run")
