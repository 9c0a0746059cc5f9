"""A reflector raises for no answer, reads it alike however it is cut, and in the end knows what there is.

Parts are what happens: bytes of the answer under way, its beginning with a status, its end, a broken
connection, time. At the end the server answers as it should.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from fuzz.mutate import damage, damage_tree
from fuzz.target import Parts, Target
from fuzz.targets.manifests import CIDR, NODE, SERVICE, SLICE
from kuproxy.kube.reflector import Reflector
from kuproxy.kube.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, Resource, own_node

RESOURCES: tuple[tuple[Resource[Any], dict[str, Any]], ...] = (
    (SERVICES, SERVICE),
    (ENDPOINT_SLICES, SLICE),
    (own_node("a"), NODE),
    (SERVICE_CIDRS, CIDR),
)
STATUSES = (200, 200, 200, 200, 200, 204, 301, 400, 401, 403, 404, 410, 422, 429, 500, 504)
TOKENS = (
    b"\n",
    b"{",
    b"}",
    b'"',
    b"\0",
    b"\xff",
    b"[" * 2000,
    b"null",
    b"18446744073709551616",
    b"-1",
    b"\r\n",
    b"\xe2\x80\xa8",
)
MOST_REQUESTS = 12  # that proper answers may take


def some_object(rng: Random, kind: dict[str, Any]) -> dict[str, Any]:
    """One as a server has it, of few names and versions."""
    made: dict[str, Any] = json.loads(json.dumps(kind))
    made["metadata"]["name"] = rng.choice(("web", "api", "db"))
    made["metadata"]["resourceVersion"] = str(rng.choice((1, 7, 99, 100, 101, 102, 500, 10**15, 2**64 - 1)))
    return made


def some_list(rng: Random, kind: dict[str, Any]) -> dict[str, Any]:
    """A page."""
    return {
        "kind": "List",
        "metadata": {
            "resourceVersion": str(rng.choice((100, 100, 50, 300, 2**60))),
            "continue": rng.choice(("", "", "next")),
        },
        "items": [some_object(rng, kind) for _ in range(rng.randrange(4))],
    }


def some_event(rng: Random, kind: dict[str, Any]) -> dict[str, Any]:
    """A line of a watch."""
    word = rng.choice(("ADDED", "ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "NEWS"))
    if word == "ERROR":
        code = rng.choice((410, 500, 429, 404))
        return {
            "type": word,
            "object": {"kind": "Status", "code": code, "reason": "Expired", "message": "old"},
        }
    return {"type": word, "object": some_object(rng, kind)}


class Driver:
    """The reflector's other side: takes the parts, one after the other."""

    def __init__(self, number: int, whole: bool) -> None:
        self.resource, self.kind = RESOURCES[number % len(RESOURCES)]
        self.now = 1000.0
        self.whole = whole  # bytes in one piece, or in single ones
        self.reflector: Reflector[Any] = Reflector(self.resource, Random(7), self.now)
        self.reflector.tick(self.now)

    def take(self, part: bytes) -> None:
        """One part: its first byte says what happens."""
        what, rest = part[:1], part[1:]
        request = self.reflector.wanted
        serial = request.serial if request is not None else 0
        if what == b"H":
            status = int(rest[:3]) if rest[:3].isdigit() else 200
            self.reflector.head(serial, self.now, status, rest[3:].decode("latin-1"))
        elif what == b"B":
            pieces = [rest] if self.whole else [rest[at : at + 1] for at in range(len(rest))]
            for piece in pieces:
                self.reflector.body(serial, self.now, piece)
        elif what == b"E":
            self.reflector.end(serial, self.now)
        elif what == b"F":
            self.reflector.fail(serial, self.now, "broken")
        elif what == b"T":
            self.now += int(rest[:4]) if rest[:4].isdigit() else 1
            self.reflector.tick(self.now)
        else:  # whatever time it takes until something is asked for
            self.now = max(self.now, self.reflector.deadline)
            self.reflector.tick(self.now)

    def settle(self, items: list[dict[str, Any]], version: int) -> None:
        """Answer properly until it watches."""
        body = json.dumps({"metadata": {"resourceVersion": str(version)}, "items": items}).encode()
        for _ in range(MOST_REQUESTS):
            request = self.reflector.wanted
            if request is None:
                self.now = max(self.now, self.reflector.deadline)
                self.reflector.tick(self.now)
                continue
            if request.watch:
                if dict(request.params)["resourceVersion"] == str(version):
                    return
                # A watch from a version that this server does not know.
                self.reflector.head(request.serial, self.now, 410)
                self.reflector.end(request.serial, self.now)
                continue
            self.reflector.head(request.serial, self.now, 200)
            self.reflector.body(request.serial, self.now, body)
            self.reflector.end(request.serial, self.now)

    def known(self) -> tuple[object, ...]:
        """All that can be seen of it."""
        seen = self.reflector
        return (
            seen.objects,
            seen.state,
            seen.wanted,
            seen.synced,
            seen.events,
            seen.lists,
            seen.problem,
            seen.rejected,
        )


class Watch(Target):
    keeps = 1

    def draw(self, rng: Random) -> Parts:
        number = rng.randrange(len(RESOURCES))
        kind = RESOURCES[number][1]
        parts = [b"%d" % number]
        if rng.randrange(3):
            good = json.dumps(
                {"metadata": {"resourceVersion": "100"}, "items": [some_object(rng, kind)]}
            ).encode()
            parts += [b"H200", b"B" + good, b"E", b"H200"]
        for _ in range(rng.randrange(1, 9)):
            what = rng.randrange(8)
            if what <= 3:
                make = some_event if rng.randrange(3) else some_list
                lines = [make(rng, kind) for _ in range(rng.randrange(1, 4))]
                lines = [damage_tree(rng, line, rng.choice((0, 0, 1, 3))) for line in lines]
                data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
                parts.append(
                    b"B" + (damage(rng, data, rng.choice((1, 2)), TOKENS) if rng.randrange(3) == 0 else data)
                )
            elif what == 4:
                parts.append(
                    b"H%d%s"
                    % (rng.choice(STATUSES), rng.choice((b"", b"3", b"99999999999", b"\xb2", b"Tue")))
                )
            elif what == 5:
                parts.append(rng.choice((b"E", b"E", b"F")))
            elif what == 6:
                parts.append(b"T%04d" % rng.choice((0, 1, 60, 131, 900)))
            else:
                parts.append(b"W")
        return tuple(parts)

    def check(self, parts: Parts) -> None:
        number = int(parts[0]) if parts[0].isdigit() else 0
        whole, cut = Driver(number, True), Driver(number, False)
        for part in parts[1:]:
            whole.take(part)
            # Long runs byte by byte take minutes; they are cut as they come instead.
            cut.whole = len(part) > 6000
            cut.take(part)
        assert whole.known() == cut.known(), "it matters how the bytes were cut"
        items = [some_object(Random(number), whole.kind)]
        items[0]["metadata"]["resourceVersion"] = "4000"
        whole.settle(items, 5000)
        names = {(each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in items}
        assert set(whole.reflector.objects) == names, (
            f"knows {set(whole.reflector.objects)}: {whole.reflector.problem}"
        )
        changes = whole.reflector.take()
        assert len({change.key for change in changes}) == len(changes), "two changes of one object"
