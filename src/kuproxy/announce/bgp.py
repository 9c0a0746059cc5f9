"""The process that ExaBGP starts, and talks with over its pipes; see `exabgp` for the languages.

It lives as long as ExaBGP, and ExaBGP as long as it: whichever of the two dies, the session ends, and routers forget
what they were told.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

from kuproxy.announce.exabgp import Dialogue
from kuproxy.announce.link import Link
from kuproxy.announce.settings import load_announce
from kuproxy.confine import privilege
from kuproxy.confine.lifetime import end_with_parent
from kuproxy.errors import KuError

__all__ = ["converse", "main"]

_CHUNK = 1 << 16


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]


def converse(path: Path) -> None:
    """Until ExaBGP closes the pipe.  Raises KuError."""
    settings, socket = load_announce(path)
    assert settings.bgp is not None
    link, dialogue = Link(settings, socket, "bgp"), Dialogue(settings.bgp)
    said: str | None = None
    due = 0.0
    while True:
        now = time.monotonic()
        if now >= due:
            wanted = link.ask(
                settled=dialogue.settled, announced=len(dialogue.announced), problem=dialogue.problem
            )
            dialogue.want(wanted)
            due = time.monotonic() + settings.interval_s
            state = link.trouble or dialogue.problem
            if state != said:
                said = state
                print(f"ku announce: {state or 'in order'}", file=sys.stderr, flush=True)
        _write(dialogue.commands())
        ready, _, _ = select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))
        if ready:
            data = os.read(sys.stdin.fileno(), _CHUNK)
            if not data:
                return
            dialogue.receive(data)


def main() -> int:
    """Entry point; the arguments are kuproxy.toml, and the file that ExaBGP has read and that goes now.

    If it has gone already, a former process has died with routes that nobody judges any more: then ExaBGP ends, which
    closes its sessions, and whoever supervises it begins anew.
    """
    end_with_parent()
    try:
        os.unlink(sys.argv[2])
    except FileNotFoundError:
        print("ku announce: the process that judges has died; ending ExaBGP, and its routes", file=sys.stderr)
        os.kill(os.getppid(), signal.SIGTERM)
        return 1
    privilege.keep_none()
    try:
        converse(Path(sys.argv[1]))
    except KuError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        pass  # ExaBGP has ended
    return 0


if __name__ == "__main__":
    sys.exit(main())
