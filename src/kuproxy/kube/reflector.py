"""List and watch of one resource, as a state machine without I/O: answers, bytes and the time go in, a request and
changed objects come out.

At any time a reflector wants one request, or none while it waits.  Whoever has the network makes it so: sends
`wanted`, hands over what comes with the request's serial, calls `tick` at `deadline`, and drops a connection whose
request is wanted no longer.  What arrives for an earlier serial is ignored, so that a late answer does no harm.

    state   | what happens                            | next
    --------+-----------------------------------------+---------------------------------------------------------
    list    | a page with a continue token            | list, the next page
            | the last page                           | watch from the list's version; the difference is told
            | 410, 504 "too large", 400, 422          | list from the start, the newest state instead of "not
            |                                         | older than what we know"; without pages the third time
            | 404, and the resource is optional       | there are none: empty, and asked again after five minutes
            | anything else, silence, a broken answer | the same page again
    watch   | an event, a bookmark                    | watch
            | closed by the server                    | watch from the last version that was seen
            | broken, 429, 5xx, 401, 403              | the same, after a pause
            | 410 (status or event), silence,         | list; what was deleted meanwhile is found by the difference
            | no JSON, a bookmark from the past       |
    (pause) | back-off with jitter; Retry-After is a lower limit

A list asks for what is "not older than" the last version seen (at first: any, from the server's cache), as client-go
does; a server that then gives pages or the whole at once is understood either way.

Sources: Kubernetes API concepts (efficient detection of changes, resource versions, retrieving large results in
chunks); client-go tools/cache/reflector.go for the order of resorts.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

import msgspec

from kuproxy.kube.collection import Change, Collection
from kuproxy.kube.objects import Item, Key, Status, anonymous, decode_event, decode_status, version_of
from kuproxy.kube.pace import Backoff, Pace
from kuproxy.kube.resources import Resource

__all__ = ["Reflector", "Request", "State"]

T = TypeVar("T", bound=Item)

_GONE_REASONS = ("Expired", "Gone")
_MAX_REJECTED = 100  # objects that are not understood, of which the reason is kept


class State(enum.Enum):
    LIST = "list"
    WATCH = "watch"


@dataclass(frozen=True, slots=True)
class Request:
    """A GET that is to be sent; `serial` comes back with everything that is said about it."""

    serial: int
    path: str
    params: tuple[tuple[str, str], ...]
    watch: bool  # the answer comes line by line, for minutes


class Reflector(Generic[T]):
    """One resource, kept equal to what the API server has.  No method raises for anything that a server may send."""

    def __init__(self, resource: Resource[T], random: Random, now: float, pace: Pace | None = None) -> None:
        self.resource = resource
        self.synced = False  # once true it stays so: old knowledge is better than none
        self.state = State.LIST
        self.problem = ""  # why nothing is coming, in one line; empty while all is well
        self.rejected: dict[Key, str] = {}  # objects that are not as the API has them, and are left out
        self.lists = 0  # completed
        self.events = 0  # received, without bookmarks
        self.last_heard = now
        self._pace = pace or Pace()
        self._random = random
        self._backoff = Backoff(self._pace, random)
        self._collection: Collection[T] = Collection(self._pace.max_tombstones)
        self._serial = 0
        self._request: Request | None = None
        self._due = now  # while there is no request: when the next one is made
        self._started = now
        self._status = 0  # of the answer that is coming in; 0 before it
        self._retry_after_s = 0.0
        self._body = bytearray()
        self._heard_events = False
        self._watch_s = 0.0
        # Where the watch goes on from; None: nothing is known yet.
        self._position: int | None = None
        # The list that is under way.
        self._incoming: dict[Key, T] = {}
        self._incoming_faults: dict[Key, str] = {}
        self._incoming_version = ""
        self._continue = ""
        self._newest = False  # ask for the newest state rather than for one not older than ours
        self._restarts = 0

    # ------------------------------------------------------------------------------------ what it offers

    @property
    def objects(self) -> dict[Key, T]:
        """What is known; to be read only.  Complete as soon as `synced`."""
        return self._collection.objects

    @property
    def stale_events(self) -> int:
        return self._collection.stale

    @property
    def changed(self) -> bool:
        return self._collection.changed

    @property
    def waiting(self) -> int:
        """How many objects have changed since the last `take`, or look so."""
        return self._collection.waiting

    def take(self) -> list[Change[T]]:
        """The changes since the last call, at most one for each object."""
        return self._collection.take()

    @property
    def wanted(self) -> Request | None:
        """The request that should be under way."""
        return self._request

    @property
    def deadline(self) -> float:
        """When `tick` has something to do, if nothing else happens before."""
        if self._request is None:
            return self._due
        idle_s, total_s = self._limits()
        return min(self.last_heard + idle_s, self._started + total_s)

    # ------------------------------------------------------------------------------------ what it is told

    def tick(self, now: float) -> None:
        """Time has passed: a pause may be over, or an answer overdue."""
        if now < self.deadline:
            return
        if self._request is None:
            self._send(now)
            return
        if self.state is State.WATCH:
            # Either the connection is dead, or the server waits for a version that it has yet to reach, as after
            # a restore from a backup: then it says nothing at all.  A list tells in both cases.
            why = f"the last news of the watch is {now - self.last_heard:.0f} s old"
            self._relist(now, f"{why}, its beginning {now - self._started:.0f} s")
        else:
            self._pause(now, f"no complete answer within {now - self._started:.0f} s")

    def head(self, serial: int, now: float, status: int, retry_after: str = "") -> None:
        """The answer begins; `retry_after` is its Retry-After header (seconds; a date is ignored)."""
        if self._current(serial, now):
            self._status = status
            valid = retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10
            self._retry_after_s = float(retry_after) if valid else 0.0
            if status == 200 and self.state is State.WATCH:
                self.problem = ""  # in touch again, although quiet

    def body(self, serial: int, now: float, chunk: bytes) -> None:
        """Some bytes of the answer, cut anywhere."""
        if not self._current(serial, now):
            return
        if self._status == 200 and self.state is State.WATCH:
            self._lines(now, chunk)
            return
        self._body += chunk
        limit = self._pace.max_body if self._status == 200 else self._pace.max_refusal
        if len(self._body) > limit:
            self._pause(now, f"an answer of more than {limit} bytes")

    def end(self, serial: int, now: float) -> None:
        """The answer is complete."""
        if not self._current(serial, now):
            return
        if self._status != 200:
            self._refused(now, self._status, decode_status(self._body))
        elif self.state is State.LIST:
            self._page(now)
        elif not self._heard_events and now - self._started < self._pace.short_watch_s:
            self._pause(now, "the watch ended at once, without an event")
        else:
            self._send(now)

    def fail(self, serial: int, now: float, why: str) -> None:
        """No connection, or it broke before the answer was complete."""
        if self._current(serial, now):
            self._pause(now, why)

    # ------------------------------------------------------------------------------------------ requests

    def _current(self, serial: int, now: float) -> bool:
        if self._request is None or self._request.serial != serial:
            return False
        self.last_heard = now
        return True

    def _limits(self) -> tuple[float, float]:
        pace = self._pace
        if self.state is State.LIST:
            return pace.list_idle_s, pace.list_total_s
        return pace.watch_idle_s, self._watch_s + pace.watch_idle_s

    def _send(self, now: float) -> None:
        params: list[tuple[str, str]] = []
        if self.resource.label_selector:
            params.append(("labelSelector", self.resource.label_selector))
        if self.resource.field_selector:
            params.append(("fieldSelector", self.resource.field_selector))
        if self.state is State.WATCH:
            self._watch_s = float(int(self._random.uniform(self._pace.watch_min_s, self._pace.watch_max_s)))
            params += [
                ("watch", "true"),
                ("allowWatchBookmarks", "true"),
                ("resourceVersion", str(self._position)),
                ("timeoutSeconds", str(int(self._watch_s))),
            ]
        else:
            if self._restarts < 3:
                params.append(("limit", str(self._pace.page_items)))
            if self._continue:
                params.append(("continue", self._continue))
            elif not self._newest:
                params.append(("resourceVersion", str(self._position or 0)))
                params.append(("resourceVersionMatch", "NotOlderThan"))
        self._serial += 1
        self._request = Request(
            self._serial, self.resource.path, tuple(params), watch=self.state is State.WATCH
        )
        self._status = 0
        self._retry_after_s = 0.0
        self._body = bytearray()
        self._heard_events = False
        self._started = self.last_heard = now

    def _pause(self, now: float, why: str, at_least_s: float = 0.0) -> None:
        """No request for a while; the state says what comes after."""
        self.problem = why
        self._body = bytearray()
        self._request = None
        self._due = now + self._backoff.next_s(at_least_s)

    def _relist(self, now: float, why: str) -> None:
        self._restart_list()
        self._restarts = 0
        self.state = State.LIST
        self._pause(now, why)

    def _restart_list(self) -> None:
        self._incoming = {}
        self._incoming_faults = {}
        self._incoming_version = ""
        self._continue = ""

    def _refused(self, now: float, code: int, status: Status) -> None:
        """An HTTP status other than 200, or an ERROR event with the same meaning."""
        reason = f"{code} {status.reason or status.message}".strip()
        if status.reason and status.message:
            reason += f": {status.message}"
        gone = code == 410 or status.reason in _GONE_REASONS
        if self.state is State.WATCH:
            if gone or code in (400, 404, 422):
                self._relist(now, reason)
            else:
                self._pause(now, reason, self._retry_after_s)
        elif code == 404 and self.resource.optional:
            self._restart_list()
            self._position = None
            self._collection.replace({}, 0)
            self._complete()
            self._request = None
            self._due = now + self._pace.absent_s
        else:
            if gone or code in (400, 422, 504):
                if self._continue:
                    self._restarts += 1  # the pages were too slow for the server's memory
                # 504: the server has not reached our version yet; after a restore it never will.
                self._newest = True
                self._restart_list()
            self._pause(now, reason, self._retry_after_s)

    # ---------------------------------------------------------------------------------------------- list

    def _page(self, now: float) -> None:
        try:
            meta, items, faults = self.resource.decoder.page(self._body)
            version = version_of(meta.resource_version)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            self._restart_list()
            self._pause(now, f"the list is not understood: {error}")
            return
        if not self._newest and not self._continue and version < (self._position or 0):
            self._newest = True  # older than what was asked for
            self._pause(now, f"the list has version {version}, which is older than {self._position}")
            return
        if self._incoming_version not in ("", meta.resource_version):
            self._restarts += 1
            self._restart_list()
            self._pause(now, "the pages of the list have different versions")
            return
        self._incoming_version = meta.resource_version
        self._incoming.update((item.key, item) for item in items)
        self._incoming_faults.update(faults)
        if meta.continue_:
            self._continue = meta.continue_
            self._send(now)
            return
        incoming = self._incoming
        self.rejected = dict(list(self._incoming_faults.items())[:_MAX_REJECTED])
        self._restart_list()
        try:
            self._collection.replace(incoming, version)
        except ValueError as error:
            self._pause(now, f"the list is not understood: {error}")
            return
        self._position = version
        self._complete()
        self.state = State.WATCH
        self._send(now)

    def _complete(self) -> None:
        self.synced = True
        self.lists += 1
        self.problem = ""
        self._newest = False
        self._restarts = 0

    # --------------------------------------------------------------------------------------------- watch

    def _lines(self, now: float, chunk: bytes) -> None:
        serial = self._serial
        # The kept part has no newline: only the new one is searched.
        end = chunk.rfind(b"\n")
        if end >= 0:
            lines = (bytes(self._body) + chunk[:end]).split(b"\n")
            self._body = bytearray(chunk[end + 1 :])
            for line in lines:
                if line.strip():
                    self._line(now, line)
                if self._request is None or self._request.serial != serial:
                    return  # it was an error: what follows is of no use
        else:
            self._body += chunk
        if len(self._body) > self._pace.max_line:
            self._relist(now, f"an event of more than {self._pace.max_line} bytes")

    def _line(self, now: float, line: bytes) -> None:
        try:
            event = decode_event(line)
            if event.type == "ERROR":
                status = decode_status(event.object)
                self._refused(now, status.code or 500, status)
                return
            key, text = anonymous(event.object) if event.type in ("DELETED", "BOOKMARK") else (("", ""), "")
            if event.type == "BOOKMARK":
                self._bookmark(now, version_of(text))
                return
            if event.type == "DELETED":
                version = version_of(text)
                self._collection.delete(key, version)
                self.rejected.pop(key, None)
            elif event.type in ("ADDED", "MODIFIED"):
                version = self._put(event.object)
            else:
                return  # a type of the future: the API promises that clients may skip it
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            self._relist(now, f"the watch is not understood: {error}")
            return
        self.events += 1
        self._position = max(self._position or 0, version)
        self._healthy()

    def _put(self, raw: msgspec.Raw) -> int:
        try:
            item = self.resource.decoder.item(raw)
        except msgspec.ValidationError as error:
            # Not as the API has it: as if it were not there.  A list would leave it out too.
            key, text = anonymous(raw)
            version = version_of(text)
            self._collection.delete(key, version)
            if len(self.rejected) < _MAX_REJECTED:
                self.rejected[key] = str(error)
            return version
        version = version_of(item.meta.resource_version)
        self.rejected.pop(item.key, None)
        self._collection.put(item)
        return version

    def _bookmark(self, now: float, version: int) -> None:
        if version < (self._position or 0):
            self._newest = True
            self._relist(now, f"the watch is at {version}, before {self._position}: the server's past")
            return
        self._position = version
        self._collection.cover(version)
        self._healthy()

    def _healthy(self) -> None:
        """News from a watch.  A list alone does not end the back-off: lists that no watch follows are dear."""
        self._heard_events = True
        self.problem = ""
        self._backoff.reset()
