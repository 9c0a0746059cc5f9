"""Objects, their versions and their history, with the semantics of a real API server and no I/O.

One revision counts all changes of all kinds, as in etcd.  Every change is kept until it is compacted; what an older
list (a continue token pins its revision) looked like is found by undoing the changes since.  The watch cache begins
at `window`: a restart empties it, and a watch from before is refused although etcd would still know.
"""

from __future__ import annotations

import base64
import bisect
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .defaults import apply_defaults
from .errors import ApiError, expired_continue, expired_list, expired_watch, too_large
from .kinds import KINDS, Kind
from .selectors import Predicate

Object = dict[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One change: what there was and what there is; None for nothing."""

    revision: int
    plural: str
    key: Key
    old: Object | None
    new: Object | None


class Store:
    def __init__(self) -> None:
        self.revision = 100
        self.compacted = 100  # states at or above this one can still be listed
        self.window = 100  # watches from this version on can be served
        self.cache_lag = 0  # by how many revisions the cache that answers resourceVersion=0 is behind
        self.now = "2026-11-22T04:00:00Z"
        self.changed: Callable[[], None] = lambda: None  # called after every change
        self._uids = 0
        self._objects: dict[str, dict[Key, Object]] = {plural: {} for plural in KINDS}
        self._log: list[Record] = []
        self._revisions: list[int] = []

    # ------------------------------------------------------------------------------------------ writing

    def create(self, plural: str, obj: Object) -> Object:
        kind = KINDS[plural]
        obj = copy.deepcopy(obj)
        key = self._key(kind, obj)
        if key in self._objects[plural]:
            raise ApiError(
                409,
                "AlreadyExists",
                f'{kind.resource} "{key[1]}" already exists',
                {"name": key[1], "kind": kind.plural},
            )
        meta = obj["metadata"]
        self._uids += 1
        meta["uid"] = f"00000000-0000-4000-8000-{self._uids:012d}"
        meta["creationTimestamp"] = self.now
        obj["kind"], obj["apiVersion"] = kind.kind, kind.api_version
        apply_defaults(kind, obj, self._objects["services"].values(), self._uids)
        return self._commit(plural, key, None, obj)

    def update(self, plural: str, obj: Object, subresource: str = "") -> Object:
        """PUT.  A resourceVersion in the object must be the present one."""
        kind = KINDS[plural]
        obj = copy.deepcopy(obj)
        key = self._key(kind, obj)
        old = self.get(plural, *key)
        version = obj["metadata"].get("resourceVersion", "")
        if version and version != old["metadata"]["resourceVersion"]:
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {kind.resource} "{key[1]}": the object has been modified; '
                "please apply your changes to the latest version and try again",
                {"name": key[1], "kind": kind.plural},
            )
        new = copy.deepcopy(old)
        if subresource == "status":
            new["status"] = obj.get("status", {})
        else:
            status = new.get("status")
            new = obj
            if kind.status and status is not None:
                new["status"] = status  # the main resource does not write it
            for field in ("uid", "creationTimestamp"):
                new["metadata"][field] = old["metadata"][field]
            new["kind"], new["apiVersion"] = kind.kind, kind.api_version
            apply_defaults(kind, new, self._objects["services"].values(), self._uids)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if new == old:
            return old  # nothing is written, and the version stays
        return self._commit(plural, key, old, new)

    def delete(self, plural: str, namespace: str, name: str) -> Object:
        old = self.get(plural, namespace, name)
        self._commit(plural, (namespace, name), old, None)
        return old

    def _key(self, kind: Kind, obj: Object) -> Key:
        meta = obj.setdefault("metadata", {})
        if not meta.get("name"):
            raise ApiError(422, "Invalid", f"{kind.kind} is invalid: metadata.name: Required value")
        if not kind.namespaced:
            meta.pop("namespace", None)
            return ("", meta["name"])
        return (meta.setdefault("namespace", "default"), meta["name"])

    def _commit(self, plural: str, key: Key, old: Object | None, new: Object | None) -> Object:
        self.revision += 1
        if new is None:
            assert old is not None
            del self._objects[plural][key]
            # What a watch shows of a deletion: the last state, with the version of the deletion.
            gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.revision)}}
            self._append(Record(self.revision, plural, key, old, None))
            return gone
        new["metadata"]["resourceVersion"] = str(self.revision)
        self._objects[plural][key] = new
        self._append(Record(self.revision, plural, key, old, new))
        return new

    def _append(self, record: Record) -> None:
        self._log.append(record)
        self._revisions.append(record.revision)
        self.changed()

    # ---------------------------------------------------------------------------------------- its memory

    def compact(self) -> None:
        """Forget every state before the present one; watches that lag behind and continue tokens expire."""
        self.compacted = self.window = self.revision
        self._log, self._revisions = [], []
        self.changed()

    def restart(self) -> None:
        """A new process: the watch cache begins now."""
        self.window = self.revision

    def backup(self) -> tuple[int, dict[str, dict[Key, Object]]]:
        return self.revision, {plural: dict(objects) for plural, objects in self._objects.items()}

    def restore(self, backup: tuple[int, dict[str, dict[Key, Object]]]) -> None:
        """Back in time, revisions included, as after restoring etcd without --bump-revision."""
        revision, objects = backup
        self.revision = revision
        self._objects = {plural: dict(of_kind) for plural, of_kind in objects.items()}
        self.compact()

    # ------------------------------------------------------------------------------------------ reading

    def get(self, plural: str, namespace: str, name: str) -> Object:
        kind = KINDS[plural]
        found = self._objects[plural].get((namespace if kind.namespaced else "", name))
        if found is None:
            details = {"name": name, "kind": kind.plural}
            raise ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', details)
        return found

    def objects(self, plural: str, matches: Predicate) -> dict[Key, Object]:
        """The present objects that match."""
        return {key: obj for key, obj in self._objects[plural].items() if matches(obj)}

    def _at(self, plural: str, revision: int) -> dict[Key, Object]:
        objects = dict(self._objects[plural])
        for record in reversed(self._log):
            if record.revision <= revision:
                break
            if record.plural != plural:
                continue
            if record.old is None:
                objects.pop(record.key, None)
            else:
                objects[record.key] = record.old
        return objects

    def list(
        self,
        plural: str,
        matches: Predicate,
        limit: int = 0,
        continue_: str = "",
        version: str = "",
        match: str = "",
    ) -> Object:
        start = ""
        if continue_:
            revision, start = self._token(continue_)
        elif version in ("", "0"):
            if version == "0":
                limit = 0  # the cache has no pages
            behind = self.cache_lag if version == "0" else 0
            revision = max(self.revision - behind, self.compacted)
        else:
            asked = _number(version)
            if match == "Exact" and asked < self.compacted:
                raise expired_list()
            if asked > self.revision:
                raise too_large(asked, self.revision)
            revision = asked if match == "Exact" or (limit and not match) else self.revision
            if match == "NotOlderThan":
                limit = 0
        kind = KINDS[plural]
        items = []
        meta: Object = {"resourceVersion": str(revision)}
        chosen = sorted(
            (path, obj) for key, obj in self._at(plural, revision).items()
            if (path := "/" + "/".join(part for part in key if part)) >= start and matches(obj)
        )  # fmt: skip
        if limit and len(chosen) > limit:
            meta["continue"] = _make_token(revision, chosen[limit - 1][0] + "\0")
            meta["remainingItemCount"] = len(chosen) - limit
            chosen = chosen[:limit]
        for _path, obj in chosen:
            items.append({key: value for key, value in obj.items() if key not in ("kind", "apiVersion")})
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": items}

    def _token(self, token: str) -> tuple[int, str]:
        try:
            decoded = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            revision, start = int(decoded["rv"]), "/" + str(decoded["start"]).lstrip("/")
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(
                400, "BadRequest", f"invalid continue token: continue key is not valid: {error}"
            ) from None
        if revision == -1:
            return self.revision, start
        if revision < self.compacted:
            raise expired_continue(_make_token(-1, start.lstrip("/")))
        return revision, start

    def watch(self, plural: str, matches: Predicate, version: str = "", initial: bool = False) -> Watch:
        """From after a version; from now on, with everything as ADDED first, without a version."""
        position = _number(version) if version else 0
        if position and position < self.window and not initial:
            raise expired_watch(position, self.window)
        return Watch(self, KINDS[plural], matches, 0 if initial else position, bookmark=initial)

    def records_after(self, revision: int) -> Iterator[Record]:
        first = bisect.bisect_right(self._revisions, revision)
        yield from self._log[first:]


class Watch:
    """One open watch: `poll` gives the events since the last call."""

    def __init__(self, store: Store, kind: Kind, matches: Predicate, position: int, bookmark: bool) -> None:
        self._store = store
        self._kind = kind
        self._matches = matches
        self._initial_bookmark = bookmark
        self._synthetic = position == 0
        self.position = position

    def poll(self) -> list[Object]:
        """Raises ApiError (410, to be sent as an event) if the history that it needs is gone."""
        store = self._store
        events: list[Object] = []
        if self._synthetic:
            self._synthetic = False
            for obj in store.objects(self._kind.plural, self._matches).values():
                events.append({"type": "ADDED", "object": obj})
            self.position = store.revision
            if self._initial_bookmark:
                events.append(self.bookmark({"k8s.io/initial-events-end": "true"}))
            return events
        if self.position > store.revision:
            return []  # of a future that has yet to come: silence
        if self.position < store.compacted:
            raise expired_watch(self.position, store.compacted)
        for record in store.records_after(self.position):
            if record.plural == self._kind.plural:
                events += self._event(record)
        self.position = store.revision
        return events

    def _event(self, record: Record) -> list[Object]:
        """A change as the selector shows it: an object that no longer matches is deleted, with its last match."""
        was = record.old is not None and self._matches(record.old)
        is_ = record.new is not None and self._matches(record.new)
        if is_:
            return [{"type": "MODIFIED" if was else "ADDED", "object": record.new}]
        if was:
            assert record.old is not None
            meta = {**record.old["metadata"], "resourceVersion": str(record.revision)}
            return [{"type": "DELETED", "object": {**record.old, "metadata": meta}}]
        return []

    @property
    def current(self) -> bool:
        """Whether a bookmark would be true: nothing is left to tell."""
        return not self._synthetic and self.position == self._store.revision

    def bookmark(self, annotations: dict[str, str] | None = None) -> Object:
        meta: Object = {"resourceVersion": str(self.position)}
        if annotations:
            meta["annotations"] = annotations
        kind = self._kind
        return {
            "type": "BOOKMARK",
            "object": {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta},
        }


def _number(version: str) -> int:
    if not version.isdigit():
        message = f'resourceVersion: Invalid value: "{version}": strconv.ParseUint: parsing "{version}": invalid syntax'
        raise ApiError(500, "", message)
    return int(version)


def _make_token(revision: int, start: str) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": start}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
