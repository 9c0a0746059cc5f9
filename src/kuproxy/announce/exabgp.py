"""ExaBGP's two languages, without any I/O: its configuration, and the commands and answers of its API.

ExaBGP starts our process and reads commands from its standard output, a line each; on standard input it answers each
with `done` or `error`, in order, and tells in JSON when a session comes up or goes down
(ExaBGP wiki, "Controlling ExaBGP: API").
"""

from __future__ import annotations

import json
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from kuproxy.announce.settings import Bgp, Neighbor
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import Prefix

__all__ = ["ENVIRONMENT", "Dialogue", "configuration"]

PROCESS = "kuproxy"
# Prefixes in one command, and commands that have no answer yet, at most.  Both sides of the pipes would wait for each
# other if answers filled a pipe's 64 KiB while we still write; twenty answers take 120 bytes.
BATCH = 100
WINDOW = 20

# ExaBGP goes on announcing what a process that has died had asked for, whatever `api.terminate` says (5.0: it looks at
# that only where a session has something to tell).  So it is to start another one, which ends it: `bgp.main`.
ENVIRONMENT: Mapping[str, str] = {
    "exabgp_api_respawn": "true",
    "exabgp_api_ack": "true",
    "exabgp_api_cli": "false",  # no named pipes, by which others could announce
    "exabgp_daemon_drop": "false",  # there is nothing left to drop
    "exabgp_daemon_daemonize": "false",
    "exabgp_tcp_bind": "",  # it connects, and listens nowhere
    "exabgp_log_destination": "stderr",
    "exabgp_log_level": "WARNING",
}


def _password(neighbor: Neighbor) -> str:
    if not neighbor.password_file:
        return ""
    try:
        password = Path(neighbor.password_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not ASCII"
        raise ConfigError(Problem(f"{neighbor.password_file}: {reason}", field="announce.bgp.neighbors")) from None
    # RFC 2385 section 4.5 leaves the key to the user; the kernel takes 80 bytes (TCP_MD5SIG_MAXKEYLEN).
    if not 0 < len(password) <= 80 or not set(password).isdisjoint('"\\;{}\n'):
        message = f"{neighbor.password_file}: a password has 1 to 80 characters, without quotes, ; and braces"
        raise ConfigError(Problem(message, field="announce.bgp.neighbors"))
    return password


def configuration(bgp: Bgp, command: Sequence[str]) -> str:
    """The file for ExaBGP, which starts `command` as its API's process.  Raises ConfigError for a password's file."""
    lines = [f"process {PROCESS} {{", f"    run {shlex.join(command)};", "    encoder json;", "}", ""]
    for neighbor in bgp.neighbors:
        peer = ip_address(neighbor.address)
        lines += [
            f"neighbor {peer} {{",
            f"    router-id {bgp.router_id};",
            f"    local-address {bgp.source(neighbor)};",
            f"    local-as {bgp.asn};",
            f"    peer-as {neighbor.asn};",
            f"    hold-time {bgp.hold_s};",
            f"    connect {neighbor.port};",
        ]
        if neighbor.multihop:
            lines.append(f"    outgoing-ttl {neighbor.multihop};")
        password = _password(neighbor)
        if password:
            lines.append(f'    md5-password "{password}";')
        # Without graceful restart (RFC 4724): it would keep routes of a node that serves no more.
        lines.append("    capability { graceful-restart disable; route-refresh enable; }")
        families = [text for text, hop in (("ipv4 unicast", bgp.next_hop4), ("ipv6 unicast", bgp.next_hop6)) if hop]
        lines += ["    family {", *(f"        {each};" for each in families), "    }"]
        lines += [f"    api {{ processes [ {PROCESS} ]; neighbor-changes; }}", "}", ""]
    return "\n".join(lines)


class Dialogue:
    """What ExaBGP has been told, and has said; brings it to what is wanted, withdrawals first."""

    def __init__(self, bgp: Bgp) -> None:
        self._bgp = bgp
        self._wanted: frozenset[Prefix] = frozenset()
        self._told: set[Prefix] = set()  # announced, as far as it was told
        self._refused: set[Prefix] = set()  # by ExaBGP, until they are no longer wanted
        self._suspect: set[Prefix] = set()  # were refused together: asked for one by one
        self._waiting: deque[tuple[str, tuple[Prefix, ...]]] = deque()  # for an answer
        self._rest = b""
        self.announced: set[Prefix] = set()  # acknowledged
        self.sessions: dict[str, str] = {str(ip_address(each.address)): "down" for each in bgp.neighbors}

    def want(self, prefixes: Iterable[Prefix]) -> None:
        """From now on these, and no others; a family without a next hop is left out."""
        self._wanted = frozenset(prefix for prefix in prefixes if self._bgp.next_hop(prefix))
        self._refused &= self._wanted
        self._suspect &= self._wanted

    @property
    def settled(self) -> bool:
        """Whether ExaBGP has acknowledged all that is wanted, but for what it refuses."""
        return not self._waiting and self.announced == self._wanted - self._refused

    @property
    def problem(self) -> str:
        """What is wrong, in a line; empty if nothing is."""
        if self._refused:
            return f"ExaBGP refuses {', '.join(map(str, sorted(self._refused, key=str)[:5]))}"
        down = [peer for peer, state in self.sessions.items() if state != "up"]
        return f"no session with {', '.join(down)}" if down else ""

    def commands(self) -> bytes:
        """What is to be written now: lines, as many as the window allows."""
        out: list[str] = []
        for verb, prefixes in self._batches():
            if len(self._waiting) >= WINDOW:
                break
            out.append(self._line(verb, prefixes))
            self._waiting.append((verb, prefixes))
            (self._told.difference_update if verb == "withdraw" else self._told.update)(prefixes)
        return "".join(out).encode("ascii")

    def _batches(self) -> Iterator[tuple[str, tuple[Prefix, ...]]]:
        """Prefixes of one family each, withdrawals first."""
        for verb, prefixes in (
            ("withdraw", self._told - self._wanted),
            ("announce", self._wanted - self._told - self._refused),
        ):
            for version in (4, 6):
                family = sorted((each for each in prefixes if each.version == version), key=str)
                together = [each for each in family if each not in self._suspect]
                for first in range(0, len(together), BATCH):
                    yield verb, tuple(together[first : first + BATCH])
                yield from ((verb, (each,)) for each in family if each in self._suspect)

    def _line(self, verb: str, prefixes: tuple[Prefix, ...]) -> str:
        words = [verb, "attributes", "next-hop", self._bgp.next_hop(prefixes[0])]
        if self._bgp.med is not None:
            words += ["med", str(self._bgp.med)]
        if self._bgp.communities:
            words += ["community", "[", *self._bgp.communities, "]"]
        return " ".join([*words, "nlri", *map(str, prefixes)]) + "\n"

    def receive(self, data: bytes) -> None:
        """What ExaBGP has written, in whatever pieces."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text in ("done", "error"):
                self._answered(text == "done")
            elif text.startswith("{"):
                self._event(text)

    def _answered(self, done: bool) -> None:
        if not self._waiting:
            return
        verb, prefixes = self._waiting.popleft()
        if verb == "withdraw":  # an error says that there was none
            self.announced.difference_update(prefixes)
        elif done:
            self.announced.update(prefixes)
        else:  # of all of them, as ExaBGP reads the whole line before it does anything
            self._told.difference_update(prefixes)
            (self._suspect if len(prefixes) > 1 else self._refused).update(self._wanted.intersection(prefixes))

    def _event(self, text: str) -> None:
        try:
            event = json.loads(text)
            peer, state = event["neighbor"]["address"]["peer"], event["neighbor"]["state"]
        except (ValueError, KeyError, TypeError):
            return
        if peer in self.sessions and state in ("up", "down"):
            self.sessions[peer] = state
