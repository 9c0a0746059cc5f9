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


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]

schema = schemathesis.openapi.from_asgi(
    "/openapi.json", _as_root(make_app(controller(), Access(owner=0), _thread))
)


@schema.exclude(path="/v1/upgrade", method="POST").parametrize()
def test_every_answer_is_as_described(case: schemathesis.Case) -> None:
    _validate(case)


@schema.include(path="/v1/upgrade", method="POST").parametrize()
def test_an_upgrade_is_described_too(case: schemathesis.Case) -> None:
    """Without a keeper nobody can take over: 503, and everything else as for the other resources."""
    answer = case.call()
    if answer.status_code == 503:
        assert "there is no keeper" in answer.text
        case.validate_response(answer, checks=[each for each in CHECKS if each is not not_a_server_error])
    else:
        case.validate_response(answer, checks=CHECKS)


@pytest.mark.parametrize("body", [{}, {"check": False}, {"check": False, "accept_loss": True}])
def test_without_a_keeper_nobody_takes_over(body: dict[str, bool]) -> None:
    answer = schema["/v1/upgrade"]["POST"].Case(body=body).call()
    assert answer.status_code == 503
    assert "there is no keeper" in answer.text


def _validate(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)
