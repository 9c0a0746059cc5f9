"""The API does what its own description says: schemathesis drives every operation of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.rig import controller
from kuproxy.daemon.api.app import make_app
from kuproxy.daemon.api.auth import Access, Peer
from kuproxy.daemon.thread import ControlThread

_thread = ControlThread()


def _as_root(app: ASGIApp) -> ASGIApp:
    """What the server does for connections of root."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"peer": Peer(uid=0)}
        await app(scope, receive, send)

    return call


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    _thread.close()


schema = schemathesis.openapi.from_asgi(
    "/openapi.json", _as_root(make_app(controller(), Access(owner=0), _thread))
)


@schema.exclude(path="/v1/upgrade", method="POST").parametrize()
def test_every_answer_is_as_described(case: schemathesis.Case) -> None:
    _validate(case)


@schema.include(path="/v1/upgrade", method="POST").parametrize()
def test_an_upgrade_is_described_too(case: schemathesis.Case) -> None:
    """Without a keeper nobody can take over: 503, and everything else as for the other resources."""
    try:
        _validate(case)
    except schemathesis.core.failures.FailureGroup as found:
        assert case.method == "POST"
        assert "there is no keeper" in str(found)
        for failure in found.exceptions:
            assert isinstance(failure, schemathesis.core.failures.ServerError), failure


def _validate(case: schemathesis.Case) -> None:
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            unsupported_method,
        ]
    )
