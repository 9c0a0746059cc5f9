"""The web page: files as they are, with headers that let nothing in from elsewhere, and who may see it.

The page is made of the API's GET resources alone.  On its own listener (`[web]`) it needs no credentials, and nothing
can be changed there.  Such a listener must not answer under names that others control: a page of theirs could then read
it through the visitor's browser (DNS rebinding).  So it answers to addresses, `localhost`, and the names it is told.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kuproxy.daemon.api.views import Error

__all__ = ["HEADERS", "Guarded", "page_routes"]

FILES = Path(__file__).parent.parent / "web"
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """`/` and the files that it names. They hold no data, so they need no credentials anywhere."""

    def route(path: str, file: Path) -> Route:
        content, media = file.read_bytes(), _MEDIA[file.suffix]

        async def answer(_request: Request) -> Response:
            return Response(content, media_type=media, headers=HEADERS)

        return Route(path, answer, methods=["GET"])

    files = sorted(path for path in FILES.iterdir() if path.suffix in _MEDIA)
    return [route("/", FILES / "index.html"), *(route(f"/web/{file.name}", file) for file in files)]


def _is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names an address, this machine, or one of `names`; ports do not matter."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    name = name.lower().rstrip(".")
    if name == "localhost" or name in {each.lower() for each in names}:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class Guarded:
    """An ASGI application that answers under names of ours only."""

    def __init__(self, app: Any, names: Collection[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if scope["type"] == "http":
            host = Request(scope).headers.get("host", "")
            if not _is_ours(host, self._names):
                text = f"{host!r} is no name of this page: use an address, or add the name to web.names"
                app = Response(msgspec.json.encode(Error(error=text)), 421, media_type="application/json")
        await app(scope, receive, send)
