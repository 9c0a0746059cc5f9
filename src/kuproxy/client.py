"""The client's half of `ku`: lines of the command language to a running daemon, over its Unix socket.

It starts in well under 0.2 s, so it imports the standard library alone; the daemon knows the grammar.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from typing import Any

__all__ = ["DEFAULT_SOCKET", "Absent", "Client", "Refusal", "main", "take_options"]

DEFAULT_SOCKET = "/run/kuproxy/ku.sock"
TIMEOUT_S = 60.0
FAILED = 2


class Refusal(Exception):
    """One line for the user: the daemon refuses, or is not there."""


class Absent(Refusal):
    """Nobody listens at the socket: neither a daemon nor the keeper that holds the socket for its successor."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """A daemon, by the path of its socket."""

    def __init__(self, path: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.path = path or os.environ.get("KU_SOCKET", DEFAULT_SOCKET)

    def request(self, method: str, target: str, body: object = None) -> Any:
        """The decoded answer.  Raises Refusal; Absent if there is nobody."""
        connection = _UnixConnection(self.path, self.timeout_s)
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            content = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError):
            raise Absent(
                f"no daemon listens at {self.path}; start one with `ku daemon`, or say --socket PATH"
            ) from None
        except PermissionError:
            raise Refusal(
                f"no permission to use {self.path}: that needs root, or membership of the socket's group"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Refusal(f"the daemon at {self.path} does not answer: {reason}") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise Refusal(_reason(content))
        return content

    def run(self, lines: str) -> dict[str, Any]:
        """Carry out lines of the command language, all or none."""
        answer: dict[str, Any] = self.request("POST", "/v1/ku", {"lines": lines})
        return answer


def _reason(content: dict[str, Any]) -> str:
    """The faults, a line each, without the line number of a command of one line."""
    lines = []
    for problem in content.get("problems") or ():
        where = f"{problem['file']}:{problem['line']}" if problem["file"] else ""
        text = ": ".join(part for part in (where, problem["field"], problem["message"]) if part)
        lines.append(f"{text}; {problem['hint']}" if problem["hint"] else text)
    return "\n".join(lines) or str(content.get("error", "refused without a reason"))


def take_options(words: list[str]) -> tuple[list[str], bool, str]:
    """The words without `--json` and `--socket PATH`, which may stand anywhere.  Raises Refusal."""
    rest: list[str] = []
    as_json, path = False, ""
    left = iter(words)
    for word in left:
        if word == "--json":
            as_json = True
        elif word == "--socket":
            path = next(left, "")
            if not path:
                raise Refusal("--socket: the path is missing")
        elif word.startswith("--socket="):
            path = word.removeprefix("--socket=")
        elif word.startswith("-"):
            raise Refusal(f"no option {word}; there are --json and --socket PATH")
        else:
            rest.append(word)
    return rest, as_json, path


def output(answer: dict[str, Any], as_json: bool) -> str:
    """What the user sees of an answer to command lines."""
    if not as_json:
        return str(answer["output"])
    shown: Any = answer["changed"]
    if answer["shows"]:
        shown = answer["shows"][0] if len(answer["shows"]) == 1 else answer["shows"]
    return json.dumps(shown, indent=2) + "\n"


def _carry_out(words: list[str]) -> str:
    rest, as_json, path = take_options(words)
    client = Client(path)
    if rest == ["reload"]:
        changed = client.request("POST", "/v1/reload")
        if as_json:
            return json.dumps(changed, indent=2) + "\n"
        counts = (f"{changed[name]} {name}" for name in ("added", "changed", "removed"))
        return f"{', '.join(counts)}\n"
    if rest[0] == "reload":
        raise Refusal(f"{rest[1]!r} is too much: `ku reload` takes nothing")
    if any("\n" in word for word in rest):
        raise Refusal("a command is one line")
    return output(client.run("kube-proxy " + " ".join(rest)), as_json)


def main(words: list[str]) -> int:
    """Carry out one command; returns the exit status."""
    try:
        sys.stdout.write(_carry_out(words))
        sys.stdout.flush()
    except Refusal as refusal:
        for line in str(refusal).splitlines():
            print(f"ku: {line}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
