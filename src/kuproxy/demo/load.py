"""The load as the story sees it: one client process or several, ordered about and added up."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from kuproxy.demo.client import Plan, Tally
from kuproxy.demo.topology import Host
from kuproxy.errors import KuError

_ADDED = ("new", "new_failed", "kept_requests", "kept_failed", "kept_open", "broken", "on_drained")


class Clients:
    """Processes of `kuproxy.demo.client`, each in its host, as one."""

    def __init__(self, plans: list[tuple[Host, Plan]]) -> None:
        self._processes = [
            host.start(
                sys.executable,
                *("-m", "kuproxy.demo.client", plan.to_json()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for host, plan in plans
        ]
        self._partial = {process: b"" for process in self._processes}
        self._tallies = {process: Tally() for process in self._processes}

    def order(self, **order: Any) -> None:
        """The same to each."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()

    def listen(self, deadline: float) -> None:
        """Take in what the next of them tells. Raises TimeoutError after the deadline, on the monotonic clock."""
        pipes = {
            process.stdout: process
            for process in self._processes
            if process.stdout is not None and not self._tallies[process].final
        }
        ready, _, _ = select.select(list(pipes), [], [], max(0.0, deadline - time.monotonic()))
        if not ready or time.monotonic() > deadline:
            raise TimeoutError
        for pipe in ready:
            process = pipes[pipe]
            data = os.read(pipe.fileno(), 1 << 16)
            if not data:
                raise KuError(f"a client ended with status {process.wait()}")
            *lines, self._partial[process] = (self._partial[process] + data).split(b"\n")
            if lines:
                self._tallies[process] = Tally(**json.loads(lines[-1]))

    @property
    def finished(self) -> bool:
        return all(tally.final for tally in self._tallies.values())

    @property
    def tally(self) -> Tally:
        """Everything added up."""
        total = Tally(final=self.finished)
        for each in self._tallies.values():
            for name in _ADDED:
                setattr(total, name, getattr(total, name) + getattr(each, name))
            for phase, pods in each.per_phase.items():
                _add(total.per_phase.setdefault(phase, {}), pods)
            _add(total.per_target, each.per_target)
            _add(total.kept_per_pod, each.kept_per_pod)
            total.examples += each.examples
        return total


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for key, number in more.items():
        total[key] = total.get(key, 0) + number
