"""An upgrade in place: what is installed now takes over from what runs, without an end of forwarding.

What it would cost is asked of the installed version itself, in a process of its own, before anything is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from kuproxy import __version__
from kuproxy.engine import handover
from kuproxy.errors import KuError

__all__ = ["Installed", "UpgradeError", "ask_installed"]

_PATIENCE_S = 60


class UpgradeError(KuError):
    """The installed version cannot take over; the message says why."""


class Installed:
    """The version on disk, and what of the running one's memory it has no place for."""

    def __init__(self, answer: dict[str, Any], workers: int) -> None:
        self.version = str(answer["version"])
        ours, theirs = handover.describe(workers), answer["description"]
        self.same_layout = theirs == ours
        self.losses = handover.losses(ours, theirs)


def ask_installed(workers: int) -> Installed:
    """Raises UpgradeError if it does not run, or does not answer."""
    words = [sys.executable, "-m", "kuproxy.daemon.upgrade", str(workers)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        if done.returncode:
            raise UpgradeError(f"the installed version does not run: {done.stderr.strip().splitlines()[-1]}")
        return Installed(json.loads(done.stdout), workers)
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, IndexError) as error:
        raise UpgradeError(f"the installed version does not say what it is: {error}") from None


if __name__ == "__main__":
    print(json.dumps({"version": __version__, "description": handover.describe(int(sys.argv[1]))}))
