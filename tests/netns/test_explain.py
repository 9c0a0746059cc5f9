"""A running daemon is asked about connections before they are made, and while they live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kuproxy.client import Client
from kuproxy.explain.packet import five_tuple, frame_of
from netns.test_daemon import Daemon, serving_daemon
from netns.world import CLIENT, HTTP, WEB, Kept

pytestmark = pytest.mark.netns


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with serving_daemon() as running:
        yield running


def ask(daemon: Daemon, port: int, flags: str, **more: Any) -> Any:
    words = five_tuple("tcp", f"{CLIENT[0]}:{port}", f"{WEB[0]}:{HTTP.port}", flags)
    return Client(str(daemon.socket)).request("POST", "/v1/explain", {"frame": frame_of(words).hex(), **more})


def test_connections_go_where_it_was_said_and_known_ones_are_known(daemon: Daemon) -> None:
    pods = set()
    for port in range(41000, 41012):
        said = ask(daemon, port, "syn")
        assert (said["outcome"], said["event"], said["flow"]["known"]) == ("transmit", "FIRST_PACKET", False)
        kept = Kept(daemon.made.client, WEB[0], HTTP.port, port)
        try:
            assert kept.get()[1]
            now = ask(daemon, port, "ack", without_pods=[said["pod"]])
        finally:
            kept.close()
        assert (now["event"], now["flow"]["known"], now["pod"]) == ("EXISTING_SESSION", True, said["pod"])
        assert now["flow"]["state"] == "tcp-established" and now["flow"]["pod"] == said["pod"]
        assert now["what_if"]["pod"] == said["pod"], "an established flow drains"
        pods.add(said["pod"])
    assert len(pods) > 1
