"""HTTP around the store: what kubectl and a watcher ask of an API server, and faults on order.

Runs in a thread of its own, on loopback; `with FakeApi() as api` gives its URL and a kubeconfig.  Whoever wants to
touch the store from outside uses `api.do(function)`, which runs in the server's thread.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from . import discovery
from .errors import ApiError
from .events import to_core
from .kinds import KINDS, Kind
from .patch import patched
from .selectors import selector
from .store import Store, Watch

T = TypeVar("T")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next `times` requests for a resource (`""`: any)."""

    plural: str = ""
    watch: bool | None = None  # None: lists and watches alike
    times: int = 1
    status: int = 0  # answer with this
    retry_after_s: int = 0
    delay_s: float = 0.0  # answer late
    break_after: int | None = None  # cut the connection after so many bytes of the body
    silent: bool = False  # accept, and say nothing


@dataclass(slots=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str


class Broken(Exception):
    """Raised in the middle of a body: the server closes the connection without finishing it."""


@dataclass
class FakeApi:
    store: Store = field(default_factory=Store)
    bookmark_s: float = 60.0
    tokens: set[str] | None = None  # None: everybody may do everything
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    address: str = "127.0.0.1"
    # Makes the socket to serve at: one that is made in another network namespace stays there.
    make_socket: Callable[[], socket.socket] = socket.socket

    def __post_init__(self) -> None:
        self.port = 0
        self._changed = asyncio.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        for name in ("default", "kube-system"):
            self.store.create("namespaces", {"metadata": {"name": name}})

    # ------------------------------------------------------------------------------------ life

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def kubeconfig(self, token: str = "") -> str:
        user = {"token": token} if token else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "users": [{"name": "fake", "user": user}],
        }
        return json.dumps(config)

    def __enter__(self) -> FakeApi:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve; after a stop on the same port, with the same store and an empty watch cache."""
        sock = self.make_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # As Go's servers do; asyncio does it by itself only for sockets that it makes.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((self.address, self.port))
        sock.listen()  # so that whoever comes before the loop accepts has to wait, and is not refused
        self.port = sock.getsockname()[1]
        routes = [Route("/{path:path}", self._serve, methods=METHODS)]
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._stopping = False
        ready = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._changed = asyncio.Condition()
            self.store.changed = lambda: self._loop.call_soon(lambda: self._loop.create_task(self._wake()))
            ready.set()
            await self._server.serve(sockets=[sock])
            for connection in list(self._server.server_state.connections):  # have not gone in the time they got
                connection.transport.abort()
            await asyncio.sleep(0)

        self._thread = threading.Thread(
            target=lambda: asyncio.run(serve()), name="fake API server", daemon=True
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """End every stream as a server does that is told to stop: without an error."""
        if self._thread is None:
            return

        def end() -> None:
            self._stopping = True
            self._server.should_exit = True
            self._loop.create_task(self._wake())

        self._loop.call_soon_threadsafe(end)
        self._thread.join()
        self._thread = None
        self.store.changed = lambda: None
        self.store.restart()

    def do(self, act: Callable[[], T]) -> T:
        """Run in the server's thread, and wait."""

        async def run() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -------------------------------------------------------------------------------- requests

    async def _serve(self, request: Request) -> Response:
        self.seen.append(
            Seen(
                request.method,
                request.url.path,
                dict(request.query_params),
                request.headers.get("Authorization", ""),
            )
        )
        try:
            return await self._answer(request)
        except ApiError as error:
            return _refusal(error)

    async def _answer(self, request: Request) -> Response:
        if self.tokens is not None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme != "Bearer" or token not in self.tokens:
                raise ApiError(401, "Unauthorized", "Unauthorized")
        path = request.url.path.rstrip("/")
        match path.split("/")[1:]:
            case ["version"]:
                return _json(discovery.VERSION)
            case ["healthz" | "livez" | "readyz"]:
                return PlainTextResponse("ok")
            case ["api"]:
                return _json(discovery.API_VERSIONS)
            case ["apis"]:
                return _json(discovery.group_list())
            case ["apis", name]:
                return _found(discovery.group(name))
            case ["openapi", "v3"]:
                return _json(discovery.openapi_index())
            case ["openapi", "v3", "api", version]:
                return _json(discovery.openapi("", version))
            case ["openapi", "v3", "apis", group, version]:
                return _json(discovery.openapi(group, version))
            case ["api", version]:
                return _found(discovery.resource_list("", version))
            case ["apis", group, version]:
                return _found(discovery.resource_list(group, version))
            case ["api", version, *rest]:
                return await self._resource(request, "", version, rest)
            case ["apis", group, version, *rest]:
                return await self._resource(request, group, version, rest)
        return _found(None)

    async def _resource(self, request: Request, group: str, version: str, path: list[str]) -> Response:
        namespace = ""
        if path[0] == "namespaces" and len(path) > 2:
            namespace, path = path[1], path[2:]
        if (group, version, path, request.method) == ("events.k8s.io", "v1", ["events"], "POST"):
            event = await request.json()
            self.store.create("events", to_core(event))
            return _json(event, 201)
        kind = KINDS.get(path[0])
        if kind is None or (kind.group, kind.version) != (group, version):
            if discovery.resource_list(group, version) is None:
                return _found(None)
            raise ApiError(404, "NotFound", "the server could not find the requested resource", {})
        if len(path) == 1:
            if request.method == "GET":
                return await self._collection(request, kind, namespace)
            obj = await request.json()
            if namespace:
                obj.setdefault("metadata", {})["namespace"] = namespace
            return _json(self.store.create(kind.plural, obj), 201)
        subresource = path[2] if len(path) > 2 else ""
        return await self._object(request, kind, namespace, path[1], subresource)

    async def _object(
        self, request: Request, kind: Kind, namespace: str, name: str, subresource: str
    ) -> Response:
        store = self.store
        match request.method:
            case "GET":
                return _json(store.get(kind.plural, namespace, name))
            case "DELETE":
                gone = store.delete(kind.plural, namespace, name)
                details = {"name": name, "kind": kind.plural, "uid": gone["metadata"]["uid"]}
                if kind.group:
                    details["group"] = kind.group
                return _json(
                    {
                        "kind": "Status",
                        "apiVersion": "v1",
                        "metadata": {},
                        "status": "Success",
                        "details": details,
                    }
                )
            case "PUT":
                return _json(store.update(kind.plural, await request.json(), subresource))
            case "PATCH":
                content_type = request.headers.get("Content-Type", "")
                try:
                    old = store.get(kind.plural, namespace, name)
                except ApiError:
                    if not content_type.startswith("application/apply-patch"):
                        raise
                    meta = {"name": name, "namespace": namespace}
                    new = patched(kind.kind, {"metadata": meta}, content_type, await request.body())
                    return _json(store.create(kind.plural, new), 201)
                new = patched(kind.kind, old, content_type, await request.body())
                return _json(store.update(kind.plural, new, subresource))
        raise ApiError(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
        )

    # ------------------------------------------------------------------------- lists and watches

    async def _collection(self, request: Request, kind: Kind, namespace: str) -> Response:
        query = request.query_params
        matches = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""), namespace)
        watching = query.get("watch", "") in ("true", "1")
        fault = self._fault(kind.plural, watching)
        if fault is not None:
            await asyncio.sleep(fault.delay_s)
            if fault.status:
                raise ApiError(fault.status, "Ordered", "a fault on order", retry_after_s=fault.retry_after_s)
            if fault.silent:
                return StreamingResponse(self._silence(), media_type="application/json")
        version = query.get("resourceVersion", "")
        cut = fault.break_after if fault is not None else None
        if watching:
            initial = query.get("sendInitialEvents", "") == "true"
            if initial and query.get("resourceVersionMatch") != "NotOlderThan":
                message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
                raise ApiError(422, "Invalid", message)
            watch = self.store.watch
            try:
                opened = watch(kind.plural, matches, "" if version == "0" else version, initial)
            except ApiError as error:
                if error.code != 410:
                    raise
                return StreamingResponse(
                    _once(_line({"type": "ERROR", "object": error.status})), headers=_TYPE
                )
            bookmarks = query.get("allowWatchBookmarks", "") in ("true", "1")
            lines = self._watch(opened, float(query.get("timeoutSeconds") or 300), bookmarks)
            return StreamingResponse(_cut(lines, cut), headers=_TYPE)
        listed = self.store.list(
            kind.plural,
            matches,
            int(query.get("limit") or 0),
            query.get("continue", ""),
            version,
            query.get("resourceVersionMatch", ""),
        )
        return StreamingResponse(_cut(_once(json.dumps(listed).encode()), cut), headers=_TYPE)

    def _fault(self, plural: str, watching: bool) -> Fault | None:
        for fault in self.faults:
            if fault.plural in ("", plural) and fault.watch in (None, watching) and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    async def _silence(self) -> AsyncIterator[bytes]:
        while not self._stopping:
            await asyncio.sleep(0.05)
        yield b""

    async def _watch(self, watch: Watch, timeout_s: float, bookmarks: bool) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        next_bookmark = loop.time() + self.bookmark_s
        while not self._stopping:
            try:
                for event in watch.poll():
                    yield _line(event)
            except ApiError as error:
                yield _line({"type": "ERROR", "object": error.status})
                return
            now = loop.time()
            if bookmarks and (now >= next_bookmark or now >= end):
                next_bookmark = now + self.bookmark_s
                if watch.current:
                    yield _line(watch.bookmark())
            if now >= end:
                return
            async with self._changed:
                # What has changed since the poll has been announced before we wait.
                if watch.position >= self.store.revision:
                    try:
                        async with asyncio.timeout_at(min(end, next_bookmark) if bookmarks else end):
                            await self._changed.wait()
                    except TimeoutError:
                        pass


_TYPE = {"Content-Type": "application/json", "Cache-Control": "no-cache, private"}


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, {"Content-Type": "application/json"})


def _found(value: object | None) -> Response:
    return PlainTextResponse("404 page not found\n", 404) if value is None else _json(value)


def _refusal(error: ApiError) -> Response:
    headers = dict(_TYPE)
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    return Response(json.dumps(error.status, separators=(",", ":")) + "\n", error.code, headers)


def _line(event: object) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _cut(parts: AsyncIterator[bytes], after: int | None) -> AsyncIterator[bytes]:
    """The parts, or so many bytes of them and then no end."""
    left = after
    async for part in parts:
        if left is None:
            yield part
            continue
        yield part[:left]
        left -= len(part)
        if left <= 0:
            await asyncio.sleep(0.01)
            raise Broken
