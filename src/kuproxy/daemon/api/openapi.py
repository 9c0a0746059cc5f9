"""The description of the API, made from the same table and records that serve it."""

from __future__ import annotations

from typing import Any

import msgspec

from kuproxy import __version__
from kuproxy.daemon.api.routes import Nothing, Route
from kuproxy.daemon.api.views import Error, Picture

__all__ = ["REFUSALS", "SVG", "describe"]

SVG = "image/svg+xml"

REFUSALS = {
    400: "the request cannot be read",
    401: "no token, no certificate",
    403: "the caller may not do this",
    408: "the request came too slowly",
    409: "it contradicts what another source holds",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "a value is not what it should be; the line names the field",
    503: "the daemon cannot do it at this moment",
}


def _parameters(route: Route, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is Nothing:
        return []
    schema = schemas[route.query.__name__]
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(value)}
        for name, value in schema["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out where a body would say null."""
    kept = {name: value for name, value in schema.items() if not (name == "default" and value is None)}
    if "anyOf" in kept:
        options = [each for each in kept.pop("anyOf") if each != {"type": "null"}]
        kept = kept | options[0] if len(options) == 1 else kept | {"anyOf": options}
    if None in kept.get("enum", ()):
        kept["enum"] = [each for each in kept["enum"] if each is not None]
    return kept


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def describe(routes: tuple[Route, ...], texts: dict[str, str]) -> dict[str, Any]:
    """OpenAPI 3.1. `texts`: paths that answer in plain text, with a summary."""
    types: list[Any] = [Error]
    for route in routes:
        types += [route.reply, route.query, *([route.body] if route.body else ())]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in routes:
        content: dict[str, Any] = _content(route.reply.__name__)
        if route.reply is Picture:
            content = {SVG: {"schema": {"type": "string"}}}
        answers: dict[str, Any] = {"200": {"description": "done", "content": content}}
        for status, text in REFUSALS.items():
            answers[str(status)] = {"description": text, "content": _content("Error")}
        place = route.path.removeprefix("/v1/").replace("/", "_").replace(".", "_")
        operation: dict[str, Any] = {
            "summary": route.summary,
            "operationId": f"{route.method.lower()}_{place}",
            "parameters": _parameters(route, schemas),
            "responses": answers,
        }
        if route.body is not None:
            operation["requestBody"] = {"required": True, "content": _content(route.body.__name__)}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    for path, summary in texts.items():
        answer = {"content": {"text/plain": {"schema": {"type": "string"}}}}
        paths[path] = {
            "get": {
                "summary": summary,
                "operationId": path.strip("/"),
                "responses": {
                    "200": {"description": "yes"} | answer,
                    "503": {"description": "no"} | answer,
                },
            }
        }
    used = {name: schema for name, schema in schemas.items() if name not in ("Nothing", "Picture")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "kuproxy", "version": __version__, "summary": "services to pods, by Maglev"},
        "paths": paths,
        "components": {
            "schemas": used,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "on the TCP listener only"}
            },
        },
    }
