"""`ku run` in a host: its configuration, its log and its reports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kuproxy.cli import SUBCOMMANDS
from kuproxy.demo.manifest import write_manifest
from kuproxy.demo.topology import Host
from kuproxy.errors import KuError

START_LIMIT_S = 30.0
CHANGE_LIMIT_S = 5.0

# A flow is remembered for 40 s after its last packet, so all that the demo makes are live at once; of four ways
# each, a quarter of the buckets would do if hashes were evenly spread.
SETTINGS = "ku conf buckets 16384\n"

Documents = Sequence[dict[str, Any]]


class DataPlane:
    """One run, configured by Kubernetes objects that `change` replaces."""

    def __init__(
        self, node: Host, directory: Path, documents: Documents, options: Sequence[str] = ()
    ) -> None:
        """Start it; `wait_for("forwarding")` waits until it is at work. `options` are more of `ku run`'s."""
        self.config, settings = directory / "services.yaml", directory / "settings.ku"
        self._report, self._log = directory / "report.json", directory / "ku-run.log"
        write_manifest(self.config, documents)
        settings.write_text(SETTINGS)
        files = ("--config", str(self.config), "--config", str(settings), "--report", str(self._report))
        with self._log.open("wb") as log:
            self.process = node.start(
                *(sys.executable, "-m", SUBCOMMANDS["run"].module, *files, *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """Everything it has said so far."""
        return self._log.read_text(errors="replace")

    def count(self, event: str) -> int:
        """How often the log tells of an event."""
        quoted = f'event="{event}"' if " " in event else f"event={event}"
        return sum(quoted in line for line in self.log.splitlines())

    def wait_for(self, event: str, number: int = 1, limit_s: float = START_LIMIT_S) -> None:
        """Wait until the log tells of an event for the nth time. Raises KuError with the log."""
        deadline = time.monotonic() + limit_s
        while self.count(event) < number:
            if self.process.poll() is not None:
                raise KuError(f"ku run ended with status {self.process.returncode}:\n{self.log.rstrip()}")
            if time.monotonic() > deadline:
                raise KuError(f"ku run did not say {event!r} within {limit_s:g} s:\n{self.log.rstrip()}")
            time.sleep(0.02)

    def change(self, documents: Documents) -> None:
        """Write the configuration anew and have it applied."""
        before = self.count("applied")
        write_manifest(self.config, documents)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("applied", before + 1, CHANGE_LIMIT_S)

    def report(self) -> dict[str, Any]:
        """Counters and VIPs as of now."""
        self._report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        return self._read_report()

    def _read_report(self) -> dict[str, Any]:
        deadline = time.monotonic() + CHANGE_LIMIT_S
        while not self._report.exists():
            if time.monotonic() > deadline:
                raise KuError(f"ku run wrote no report within {CHANGE_LIMIT_S:g} s:\n{self.log.rstrip()}")
            time.sleep(0.02)
        content: dict[str, Any] = json.loads(self._report.read_text())
        return content

    def stop(self) -> tuple[int, dict[str, Any]]:
        """SIGTERM; returns the exit status and the last report."""
        self._report.unlink(missing_ok=True)
        self.process.terminate()
        try:
            status = self.process.wait(CHANGE_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise KuError(f"ku run did not end within {CHANGE_LIMIT_S:g} s of SIGTERM") from None
        return status, self._read_report()
