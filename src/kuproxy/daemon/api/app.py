"""The ASGI application: decoding, rights, limits and refusals, the same for every route."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp

from kuproxy.daemon.api.auth import Access, Peer
from kuproxy.daemon.api.openapi import SVG, describe
from kuproxy.daemon.api.routes import ROUTES, Lines, Route, writes
from kuproxy.daemon.api.views import Error, Fault, Picture, error_of
from kuproxy.daemon.api.web import HEADERS, Guarded, page_routes
from kuproxy.daemon.control import Controller
from kuproxy.daemon.metrics import exposition
from kuproxy.daemon.persist import StateFileError
from kuproxy.daemon.thread import ControlThread
from kuproxy.daemon.upgrade import UpgradeError
from kuproxy.errors import ConflictError, DriverError, KuError, SteeringError, TableFullError

__all__ = ["BODY_LIMIT", "make_app", "make_metrics_app", "make_web_app"]

BODY_LIMIT = 32 << 20  # a state of 100,000 VIPs with three pods each takes 29 MB
BODY_TIMEOUT_S = 10.0
TEXTS = {
    "/healthz": "200 while the process and its workers run",
    "/readyz": "200 when all workers run, and have adopted what was published",
    "/metrics": "Prometheus' exposition format",
}


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str, *faults: Fault) -> None:
        super().__init__(text)
        self.status, self.error = status, Error(error=text, problems=list(faults))


def _json(record: Any, status: int = 200) -> Response:
    if isinstance(record, Picture):
        return Response(record.svg, media_type=SVG, headers=HEADERS)
    return Response(msgspec.json.encode(record), status, media_type="application/json")


def _refusal(error: Exception) -> Response:
    if isinstance(error, Refused):
        response = _json(error.error, error.status)
        if error.status in (408, 413):
            response.headers["connection"] = "close"
        if error.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response
    assert isinstance(error, KuError)
    status = 503 if isinstance(error, StateFileError | DriverError | SteeringError) else 422
    if isinstance(error, ConflictError | TableFullError | UpgradeError):
        status = 409
    return _json(error_of(error), status)


async def _body(request: Request) -> bytes:
    """Raises Refused long before a large body is in memory, and when it comes too slowly."""
    declared = request.headers.get("content-length", "0")
    too_large = Refused(413, f"the body is larger than {BODY_LIMIT >> 20} MiB")
    if declared.isdecimal() and int(declared) > BODY_LIMIT:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > BODY_LIMIT:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from None
    return bytes(data)


def _invalid(error: msgspec.ValidationError, where: str) -> Refused:
    """msgspec's `Expected ... - at `$.port`` as a line that names the field."""
    message, _, path = str(error).partition(" - at `")
    field = path.rstrip("`").removeprefix("$").lstrip(".") or where
    return Refused(422, f"{field}: {message}", Fault(message=message, field=field))


def _query(request: Request, kind: type[msgspec.Struct]) -> Any:
    pairs = request.query_params.multi_items()
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, _ in pairs if len(request.query_params.getlist(name)) > 1)
        raise Refused(422, f"{twice}: given twice", Fault(message="given twice", field=twice))
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error, "query") from None


async def _decoded(request: Request, kind: type[msgspec.Struct] | None) -> Any:
    if kind is None:
        return None
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Refused(415, "the body must be application/json")
    data = await _body(request)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


def _endpoint(
    route: Route, controller: Controller, access: Access, thread: ControlThread
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            peer: Peer = getattr(request.state, "peer", Peer())
            authorization = request.headers.get("authorization", "")
            if not access.may_read(peer, authorization):
                raise Refused(401, access.refusal(peer))
            may_write = access.may_write(peer, authorization)
            changes = route.write or (access.read_only and route.method != "GET")
            if changes and not may_write:
                raise Refused(403, access.refusal(peer))
            query = _query(request, route.query)
            body = await _decoded(request, route.body)
            if isinstance(body, Lines) and not may_write and writes(body.lines):
                raise Refused(403, access.refusal(peer))
            return _json(await thread(route.handle, controller, query, body))
        except (Refused, KuError) as error:
            return _refusal(error)
        except ClientDisconnect:
            return Response(status_code=400)

    return endpoint


def _by_method(
    path: str, controller: Controller, access: Access, thread: ControlThread
) -> Callable[[Request], Awaitable[Response]]:
    """All methods of one path; another one is answered with 405 and what is possible."""
    endpoints = {
        route.method: _endpoint(route, controller, access, thread) for route in ROUTES if route.path == path
    }

    async def endpoint(request: Request) -> Response:
        chosen = endpoints.get(request.method)
        if chosen is None:
            allowed = ", ".join(sorted(endpoints))
            refused = _refusal(Refused(405, f"{request.method} is not possible here, only {allowed}"))
            refused.headers["allow"] = allowed
            return refused
        return await chosen(request)

    return endpoint


def _text_routes(controller: Controller, thread: ControlThread) -> list[StarletteRoute]:
    async def healthz(_request: Request) -> Response:
        try:
            await thread(controller.forwarder.check)
        except KuError as error:
            return Response(f"{error}\n", 503, media_type="text/plain")
        return Response("ok\n", media_type="text/plain")

    async def readyz(_request: Request) -> Response:
        why_not = controller.not_ready
        return Response(f"{why_not or 'ready'}\n", 503 if why_not else 200, media_type="text/plain")

    async def metrics(_request: Request) -> Response:
        content, media = await thread(exposition, controller)
        return Response(content, headers={"content-type": media})

    handlers = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return [StarletteRoute(path, handlers[path], methods=["GET"]) for path in TEXTS]


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json(Error(error=error.detail.lower()), error.status_code)
    response.headers.update(error.headers or {})
    return response


def make_metrics_app(controller: Controller, thread: ControlThread) -> Starlette:
    """Health and metrics alone, for a listener of their own."""
    return Starlette(routes=_text_routes(controller, thread), exception_handlers={HTTPException: _http_error})


def make_app(controller: Controller, access: Access, thread: ControlThread) -> Starlette:
    """Everything: the API, health and metrics, the page."""
    description = msgspec.json.encode(describe(ROUTES, TEXTS))

    async def openapi(_request: Request) -> Response:
        return Response(description, media_type="application/json")

    methods = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"]
    routes = [
        StarletteRoute(path, _by_method(path, controller, access, thread), methods=methods)
        for path in dict.fromkeys(route.path for route in ROUTES)
    ]
    routes += [*_text_routes(controller, thread), StarletteRoute("/openapi.json", openapi, methods=["GET"])]
    routes += page_routes()
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


def make_web_app(controller: Controller, thread: ControlThread, names: Collection[str] = ()) -> ASGIApp:
    """The page and what it reads, for everybody who can reach it; `names`: under which, beside addresses."""
    return Guarded(make_app(controller, Access(read_only=True), thread), names)
