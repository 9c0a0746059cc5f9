"""A capture through the data plane, and a plan of changes over it: what `ku replay` and `ku simulate run` take.

Whole commands, too, with Python's start, the reading of configuration and kernels, and the report: elapsed and
processor time of the process and what it starts.
"""

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Case, Sample, Scale
from bench.suites.graph import count_name
from kuproxy.drivers.capture.driver import CaptureDriver
from kuproxy.drivers.capture.reader import Capture
from kuproxy.load import load_config
from kuproxy.replay import Replay
from kuproxy.sim.algorithms import Algorithm
from kuproxy.sim.churn import read_plan
from kuproxy.sim.generators import Kind, Traffic, write_trace
from kuproxy.sim.measures import Cell, judge
from kuproxy.sim.run import modelled, watch

_DURATION_S = 60.0
_BUCKETS, _TIMEOUT_S, _NEW_LEN = 1 << 17, 600.0, 4096
_PODS = [f"10.0.0.{number}" for number in range(1, 33)]
_SCRIPT = f"""\
ku conf buckets {_BUCKETS} timeout {_TIMEOUT_S:.0f}
ku vip 90.0.0.1/32 protocol udp port 53 target_port 5353 nat4 new_len {_NEW_LEN}
ku pod 90.0.0.1/32 protocol udp port 53 {" ".join(_PODS)}
"""
_PLAN = """\
nodes:
  worker-1: [10.0.0.6, 10.0.0.7]
events:
  - {at: 10, remove: [10.0.0.3]}
  - {at: 20, add: [10.0.0.40], weight: 2}
  - {at: 30, reweigh: [10.0.0.1], weight: 3}
  - {at: 40, lose: [worker-1]}
rolling:
  - {at: 45, every: 2, replace: [10.0.0.4, 10.0.0.5], with: [10.0.0.50, 10.0.0.51]}
"""


@contextmanager
def _took(values: Sample, name: str) -> Iterator[None]:
    """Elapsed and processor seconds of the block, children that it waited for included."""

    def used() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(each.ru_utime + each.ru_stime for each in both)

    begin, cpu = time.perf_counter(), used()
    yield
    values[f"{name}, elapsed"] = time.perf_counter() - begin
    values[f"{name}, processor"] = used() - cpu


class _OfTrace(Case):
    """A directory with a trace, a configuration and a plan."""

    unit = "s"

    def __init__(self, name: str, packets: int, note: str):
        super().__init__(f"{name}-{count_name(packets)}packet", note)
        self._packets = packets

    def prepare(self) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="kubench-")
        self._in = Path(self._files.name)
        for name, text in (("services.ku", _SCRIPT), ("plan.yaml", _PLAN)):
            (self._in / name).write_text(text)
        self._config = load_config([self._in / "services.ku"])
        traffic = Traffic(Kind.ZIPF, self._packets, clients=max(8, self._packets // 50), duration_s=_DURATION_S)
        write_trace(self._in / "trace.pcap", self._config.vips[0], traffic)
        self.sample()  # compiled and read once: what follows is warm

    def finish(self) -> None:
        self._files.cleanup()

    def _ku(self, values: Sample, *words: str) -> None:
        with _took(values, "command"):
            subprocess.run(
                [sys.executable, "-m", "kuproxy", *words],
                cwd=self._in, check=True, stdout=subprocess.DEVNULL, env=os.environ,
            )  # fmt: skip


class ReplayCase(_OfTrace):
    """Opening the file, every packet through the graph, and out into another file."""

    def __init__(self, packets: int):
        super().__init__("replay-ip4udp-nat44-1vip-32pod", packets, "accepted: a million in 2 s, warm")

    def sample(self) -> Sample:
        values: Sample = {}
        with _took(values, "replay"):
            driver = CaptureDriver(self._in / "trace.pcap", self._in / "out.pcap")
            work = Replay(self._config, driver)
            work.run()
            driver.close()
        assert work.packets == self._packets
        self._ku(values, "replay", "--config", "services.ku", "trace.pcap", "out.pcap")
        return values


class SimulateCase(_OfTrace):
    """One plan over the trace: the data plane with its record of every packet, the judging of it, and one model."""

    def __init__(self, packets: int):
        super().__init__("simulate-ip4udp-nat44-1vip-32pod-1plan", packets, "accepted: a million in 5 s")

    def sample(self) -> Sample:
        values: Sample = {}
        with _took(values, "data plane"):
            plan = read_plan(self._in / "plan.yaml")
            seen, epochs, _run = watch(self._config, Capture(self._in / "trace.pcap"), plan)
        with _took(values, "judging"):
            outcome = judge(seen, epochs, Cell("table", _NEW_LEN, _BUCKETS, math.nan))
        assert outcome.packets == self._packets
        with _took(values, "model and judging"):
            other = modelled(
                seen, epochs, Algorithm.RENDEZVOUS, {key: _NEW_LEN for key in seen.keys}, _BUCKETS, _TIMEOUT_S
            )
            judge(other, epochs, Cell("rendezvous", _NEW_LEN, _BUCKETS, _TIMEOUT_S))
        self._ku(values, "simulate", "run", "--config", "services.ku", "--plan", "plan.yaml", "trace.pcap")
        return values


def cases(scale: Scale) -> list[Case]:
    """A million packets at full scale."""
    return [ReplayCase(2 * scale.packets), SimulateCase(2 * scale.packets)]
