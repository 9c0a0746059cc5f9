"""`ku replay`: a capture file through the data plane, with the packets' timestamps as the clock."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kuproxy.codes import InterfaceFlag, Outcome
from kuproxy.drivers.capture.driver import CaptureDriver
from kuproxy.engine.contract import MAX_INTERFACES, TICK_MASK, TICKS_PER_SECOND
from kuproxy.engine.local import LocalEngine
from kuproxy.errors import ConfigError, Problem
from kuproxy.load import load_config
from kuproxy.main import config_option, run
from kuproxy.model.config import Config, InterfaceMark, Show, ShowKind
from kuproxy.plane import Plane
from kuproxy.vppcli.show import render, to_json

GARBAGE_INTERVAL = 60 * TICKS_PER_SECOND  # VPP looks for pods without flows at most once a minute
SWEEP_BUCKETS = 64  # looked at after each vector


def mark_flags(mark: InterfaceMark) -> int:
    """InterfaceFlag bits of a `set interface` line."""
    flags = InterfaceFlag.NAT4_IN if mark.nat4_in else 0
    return int(flags | (InterfaceFlag.NAT6_IN if mark.nat6_in else 0))


def local_plane(config: Config, interfaces: Sequence[str]) -> tuple[LocalEngine, Plane, list[Problem]]:
    """A plane in this process that holds what `config` asks for, and what is worth knowing about it.

    `interfaces` are the names of what packets come in by, in the order of their numbers.  Raises KuError.
    """
    if len(interfaces) > MAX_INTERFACES:
        raise ConfigError(f"the capture has {len(interfaces)} interfaces; {MAX_INTERFACES} at most")
    engine = LocalEngine(
        config.settings.buckets.bit_length() - 1, flow_hash=config.settings.flow_hash.wish
    )
    plane = Plane(engine, decrement_ttl=True, any_node_address=True)
    notes = list(config.notes)
    for mark in config.interfaces:
        if mark.name not in interfaces:
            notes.append(
                Problem(f"interface {mark.name} is not in the capture", hint=f"it has {', '.join(interfaces)}")
            )
        for index in [index for index, name in enumerate(interfaces) if name == mark.name]:
            plane.compiler.set_interface(index, mark_flags(mark))
    plane.follow_node(config.node_addresses, (), config.node_addresses)
    plane.apply(config)
    engine.trace(config.trace)
    return engine, plane, notes


class Replay:
    """One run of a capture through a local engine."""

    def __init__(self, config: Config, driver: CaptureDriver):
        self.engine, self.plane, self.notes = local_plane(config, driver.interfaces)
        self.driver = driver
        self.packets = 0
        self._collected: int | None = None

    def run(self) -> None:
        """All packets, then everything that has expired by the last one's time."""
        self.forward()
        self.finish()

    def forward(self) -> None:
        """All packets, and nothing after the last."""
        while self.step():
            pass

    def step(self) -> int:
        """The next vector; returns how many packets were in it, 0 at the end of the capture."""
        frame = self.driver.frame
        received = self.driver.receive(frame)
        if not received:
            return 0
        now = self.driver.tick & TICK_MASK
        self.packets += received
        self.arrived(received)
        self.engine.process(frame, now)
        self.processed(received)
        self.driver.transmit(frame)
        self.engine.maintain(now, SWEEP_BUCKETS)
        if self._collected is None or (now - self._collected) & TICK_MASK >= GARBAGE_INTERVAL:
            self.plane.collect()
            self._collected = now
        return received

    def finish(self) -> None:
        """Let go what has expired by the last packet's time."""
        self.engine.maintain(self.driver.tick & TICK_MASK)
        self.plane.collect()

    def arrived(self, received: int) -> None:
        """For those who watch: the packets in the driver's frame, as they came."""

    def processed(self, received: int) -> None:
        """For those who watch: what the graph made of them; behind `received` stand fragments that it released."""

    def summary(self) -> dict[str, Any]:
        """Counters as JSON takes them."""
        totals = self.plane.totals()
        outcomes = {outcome.name.lower(): totals.outcomes[outcome] for outcome in Outcome if outcome}
        return {"received": totals.received, "outcomes": outcomes, **to_json(self.plane.report())}


@click.command(name="replay")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print counters and VIPs as one JSON object.")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
def replay(configs: tuple[Path, ...], as_json: bool, source: Path, target: Path) -> None:
    """Run the capture IN (pcap or pcapng) through the data plane and write what it sends to OUT.

    The packets' timestamps are the clock. Interfaces have the names that a pcapng file gives them; a pcap file is
    one interface, pcap0. Packets that are not for a VIP pass untouched. Then the counters are printed, or what the
    script's `show` lines ask for.

    \b
    ku replay --config services.ku in.pcapng out.pcapng
    """
    config = load_config(configs)
    if source.exists() and target.exists() and source.samefile(target):
        raise ConfigError(f"OUT: {target} is the input file")
    driver = CaptureDriver(source, target)
    try:
        work = Replay(config, driver)
        work.run()
    finally:
        driver.close()
    for note in work.notes:
        print(f"note: {note}", file=sys.stderr)
    report = work.plane.report()
    if as_json:
        shows = [render(work.plane.told(report, show), show) for show in config.shows]
        print(json.dumps(work.summary() | {"shows": shows}))
    else:
        for show in config.shows or (Show(ShowKind.VIPS, verbose=True), Show(ShowKind.NODES)):
            print(render(work.plane.told(report, show), show), end="")
    if driver.capture.error:
        raise ConfigError(str(driver.capture.error))


if __name__ == "__main__":
    run(replay, name="ku replay")
