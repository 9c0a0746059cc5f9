"""`ku run`: forward live traffic of this network namespace, in the foreground, until interrupted.

The control process: it reads the configuration, keeps tables and steering equal to it, and waits for signals, the
node's events and its timer. Packets pass only through the worker process.
"""

import json
import logging
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import click
import structlog

from kuproxy.codes import InterfaceFlag, Outcome
from kuproxy.daemon.targets import steering_targets
from kuproxy.engine.live import Attachment, LiveEngine
from kuproxy.errors import DriverError, KuError, TableFullError
from kuproxy.load import load_config
from kuproxy.main import config_option, run
from kuproxy.model.config import Config, Show, ShowKind
from kuproxy.plane import Plane
from kuproxy.steering.links import KU0_MAC, KU1, KU1_MAC
from kuproxy.steering.steering import Steering
from kuproxy.vppcli.show import render, to_json

COLLECT_INTERVAL_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STEERED = 0  # interface index of everything that steering brings up: it has chosen already


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def make_log() -> Any:
    """key=value lines on stderr, coloured on a terminal."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if sys.stderr.isatty()
            else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    return structlog.get_logger()


class Foreground:
    """One run, from start to stop."""

    def __init__(self, paths: tuple[Path, ...], interfaces: tuple[str, ...], report: Path | None):
        self._paths = paths
        self._report_path = report
        self._log = make_log()
        self._config = load_config(paths)
        self._engine = LiveEngine(self._config.settings.buckets.bit_length() - 1)
        self._plane = Plane(self._engine, decrement_ttl=False, any_node_address=False)
        self._plane.compiler.set_interface(STEERED, int(InterfaceFlag.NAT4_IN | InterfaceFlag.NAT6_IN))
        self._steering = Steering(workers=1, interfaces=interfaces or None)
        self._signals: socket.socket | None = None

    def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM, stop. Nothing is left behind, whatever happens."""
        self._listen()
        try:
            self._steering.start()
            self._engine.start(
                [Attachment(KU1, _mac(KU0_MAC), _mac(KU1_MAC), namespace_fd=self._steering.namespace.fd)]
            )
            self._apply(self._config)
            for line in self._steering.warnings:
                self._log.warning("node", text=line)
            self._log.info(
                "forwarding",
                interfaces=",".join(self._steering.attached),
                vips=len(self._plane.store),
                worker=self._engine.workers[0].process_id,
            )
            self._serve()
        finally:
            self._steering.close()
            self._engine.stop()
        self._write_report()
        report = self._plane.report()
        for show in self._config.shows:
            print(render(report, show), end="")
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
        due = time.monotonic() + COLLECT_INTERVAL_S
        while True:
            wait = max(0.0, due - time.monotonic())
            ready, _, _ = select.select([self._signals.fileno(), self._steering.fileno()], [], [], wait)
            if self._signals.fileno() in ready:
                for number in self._signals.recv(64):
                    if number in (signal.SIGINT, signal.SIGTERM):
                        return
                    if number == signal.SIGHUP:
                        self._reload()
                    elif number == signal.SIGUSR1:
                        self._write_report()
            if self._steering.fileno() in ready:
                for line in self._steering.poll_events():
                    self._log.info("steering", text=line)
                self._follow_addresses()
            if time.monotonic() >= due:
                due = time.monotonic() + COLLECT_INTERVAL_S
                self._tend()

    def _tend(self) -> None:
        """Once a second: free what has drained, see that the worker lives."""
        if self._plane.collect():
            self._steer()
        for worker in self._engine.workers:
            status = worker.ended()
            if status is not None:
                raise DriverError(f"worker {worker.number} ended with status {status}")

    def _steer(self) -> None:
        config = self._config
        self._steering.set_targets(
            steering_targets(self._plane.compiler, config.interfaces, config.settings)
        )
        self._follow_addresses()

    def _follow_addresses(self) -> None:
        self._plane.compiler.set_node_addresses(self._steering.node_addresses)
        self._plane.compiler.set_own_addresses(self._steering.own_addresses)

    def _apply(self, config: Config) -> None:
        """Publish a configuration: tables first, then the traffic that needs them."""
        for note in config.notes:
            self._log.info("config", text=str(note))
        changes = self._plane.apply(config)
        try:
            self._engine.resize(config.settings.buckets.bit_length() - 1)
        except TableFullError:
            self._plane.apply(self._config)
            raise
        self._config = config
        self._steer()
        if config.trace:
            self._engine.trace(config.trace)
        if config.flush_flows:
            self._log.info("flushed", flows=self._engine.flush())
        self._log.info(
            "applied",
            added=len(changes.added),
            changed=len(changes.changed),
            removed=len(changes.removed),
            generation=self._plane.compiler.generation,
        )

    def _reload(self) -> None:
        """Read the files again; with a fault in them, everything stays as it is."""
        try:
            self._apply(load_config(self._paths))
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
def foreground(configs: tuple[Path, ...], interfaces: tuple[str, ...], report: Path | None) -> None:
    """Forward live traffic in this network namespace until interrupted.

    Traffic for the configured VIPs and node ports, and the replies of their pods, is steered to kuproxy on every
    Ethernet-like interface (or those that --interface names); everything else passes untouched. Processes on this node
    reach the VIPs too. SIGHUP reads the files again and applies the difference. When kuproxy ends, however it
    ends, the node is as it was before. Needs root and Linux 6.6.

    \b
    ku run --config services.yaml
    ku run --config services.ku --interface eth0 --interface eth1
    """
    Foreground(configs, interfaces, report).run()


if __name__ == "__main__":
    run(foreground, name="ku run")
