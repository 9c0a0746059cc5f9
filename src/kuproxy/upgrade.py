"""`ku upgrade`: have the installed version take over from the running one, while forwarding goes on.

The standard library alone, like everything that only talks to the daemon.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from kuproxy.client import FAILED, Client, Refusal, take_options

__all__ = ["main"]

HELP = """\
Usage: ku upgrade [check] [accept-loss] [--json] [--socket PATH]

Have the version that is installed now take over from the running one. Flows, counters and connections stay; packets are
forwarded all the time, and API requests wait a second or two.

  check         only say what would happen
  accept-loss   go on although the installed version has no place for some of what is remembered

examples:
  ku upgrade check
  ku upgrade
"""
PATIENCE_S = 60.0
_PAUSE_S = 0.1


def _pid_of_control(client: Client) -> int:
    processes = client.request("GET", "/v1/health")["processes"]
    return next((each["pid"] for each in processes if each["role"] == "control"), 0)


def _wait_for_successor(client: Client, former: int) -> None:
    """Raises Refusal when none comes."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
        try:
            health = client.request("GET", "/v1/health")
        except Refusal:
            continue
        if health["ready"] and _pid_of_control(client) not in (0, former):
            return
    raise Refusal(f"no successor within {PATIENCE_S:g} s; forwarding goes on, the log says what is wrong")


def _text(answer: dict[str, Any], checked: bool) -> str:
    said = f"version {answer['version']} " + ("would take over" if checked else "has taken over")
    lines = [f"{said} from {answer['running']}"]
    if answer["losses"]:
        lines.append("what it has no place for:")
        lines += [f"  {each}" for each in answer["losses"]]
    elif not answer["same_layout"]:
        lines.append("memory has another layout there; all of it can be copied")
    return "\n".join(lines) + "\n"


def upgrade(words: list[str]) -> str:
    """What the user sees.  Raises Refusal."""
    rest, as_json, path = take_options(words)
    unknown = set(rest) - {"check", "accept-loss"}
    if unknown:
        raise Refusal(f"{sorted(unknown)[0]!r} is not known here; there are check and accept-loss")
    client = Client(path)
    former = _pid_of_control(client)
    checked = "check" in rest
    body = {"check": checked, "accept_loss": "accept-loss" in rest}
    answer = client.request("POST", "/v1/upgrade", body)
    if not checked:
        _wait_for_successor(client, former)
    return json.dumps(answer, indent=2) + "\n" if as_json else _text(answer, checked)


def main() -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    try:
        print(upgrade(words), end="")
    except Refusal as refusal:
        for line in str(refusal).splitlines():
            print(f"ku upgrade: {line}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
