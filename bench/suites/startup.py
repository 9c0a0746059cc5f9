"""How long a daemon takes from its start to the first packet that it forwards, and what its processes take then.

Memory is the proportional set size: what processes share, as tables and the interpreter's code, is divided among them.
Cold means that no kernel has been compiled before.
"""

import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.harness import Case, Sample, Scale
from bench.live.services import ku_lines, others
from bench.soak.daemon import Daemon, processes, usage
from bench.suites.graph import count_name
from kuproxy.demo.manifest import CLUSTER4, ECHO, demo_service, write_manifest
from kuproxy.demo.story import start_pods
from kuproxy.demo.topology import Network, remove_stale
from kuproxy.errors import KuError

PREFIX = "kubenchstart"
_PAUSE_S = 0.002
_MOST_S = 400.0


def _first_answer(stop: threading.Event) -> float | None:
    """Ask over and over from where the caller's thread is; the time of the first answer, by the monotonic clock."""
    while not stop.is_set():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.settimeout(0.05)
            try:
                opened.connect((CLUSTER4, ECHO.port))
                opened.send(b"?")
                opened.recv(2048)
            except OSError:  # no way there yet, or no answer
                time.sleep(_PAUSE_S)
                continue
        return time.monotonic()
    return None


class StartCase(Case):
    """A whole daemon, keeper, control and worker, for a moment."""

    unit = "s"

    def __init__(self, services: int, rounds: int, cold: bool):
        super().__init__(f"startup-{count_name(services)}service-{'cold' if cold else 'warm'}-cache")
        self._services, self._rounds, self._cold = services, rounds, cold

    def rounds(self, scale: Scale) -> int:
        return min(self._rounds, scale.rounds)

    def prepare(self) -> None:
        remove_stale(PREFIX)

    def sample(self) -> Sample:
        with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-") as name, Network(PREFIX, 1) as network:
            directory = Path(name)
            manifest, rest = directory / "services.yaml", directory / "others.ku"
            write_manifest(manifest, demo_service(start_pods(network)))
            rest.write_text("".join(map(ku_lines, others(self._services - 1))))
            environment = {**os.environ, "KUPROXY_CACHE": str(directory / "cache")} if self._cold else None
            stop, answered = threading.Event(), []
            asking = threading.Thread(
                target=lambda: answered.append(network.client.call(_first_answer, stop)), daemon=True
            )
            started = time.monotonic()
            asking.start()
            try:
                daemon = Daemon(network.node, directory, [manifest, rest], environment)
                asking.join(_MOST_S)
            finally:
                stop.set()
                asking.join()
            if not answered or answered[0] is None:
                raise KuError("the daemon forwards nothing")
            values = {"first packet": answered[0] - started}
            for role, pid in processes(daemon).items():
                taken = usage(pid)
                values |= {f"PSS of {role}": taken.pss_kib / 1024, f"own of {role}": taken.anonymous_kib / 1024}
            daemon.stop()
            self.units = self.units | {metric: "MiB" for metric in values if " of " in metric}  # type: ignore[misc]
            return values


def cases(scale: Scale) -> list[Case]:
    """Warm with one service and with many; cold only in a whole run, for it takes minutes."""
    if os.geteuid() != 0:
        print("suite startup is left out: it needs root", file=sys.stderr)
        return []
    found: list[Case] = [StartCase(1, 5, cold=False)]
    if scale.most_vips >= 10_000:
        found.append(StartCase(10_000, 3, cold=False))
    if scale.name == "full":
        found.append(StartCase(1, 1, cold=True))
    return found
