"""Events reach the API server in a form that it takes, and kubectl shows them where people look."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kube_api.server import FakeApi
from kuproxy.kube.client import create, load_access
from kuproxy.kubeproxy.events import Event, Recorder, about_node, about_service

STARTING = Event(about_node("n1"), "Normal", "Starting", "StartKubeProxy")
COLUMNS = "custom-columns=:metadata.namespace,:type,:reason,:involvedObject.kind,:involvedObject.name"
TAKEN = Event(
    about_service("shop", "web"),
    "Warning",
    "FailedToStartServiceHealthcheck",
    "Listen",
    "port 30000: " + "x" * 2000,
)


def send(path: Path, *events: Event, node_name: str = "n1") -> list[str]:
    """Returns what the log would hear."""
    told: list[str] = []

    async def post(target: str, body: dict[str, Any]) -> None:
        await create(load_access(str(path)), target, body)

    async def run() -> None:
        recorder = Recorder(node_name, post, lambda event, why: told.append(f"{event.reason}: {why}"))
        for event in events:
            recorder.record(event)
        await recorder.drain()

    asyncio.run(run())
    return told


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


def test_the_server_takes_them_and_kubectl_shows_them(kubeconfig: Path) -> None:
    with FakeApi() as api:
        api.do(lambda: api.store.create("namespaces", {"metadata": {"name": "shop"}}))
        kubeconfig.write_text(api.kubeconfig())
        assert send(kubeconfig, STARTING, TAKEN, node_name="n" * 200) == []
        listed = api.do(lambda: api.store.list("events", lambda _: True, 0, "", "", ""))["items"]
        by_reason = {each["reason"]: each for each in listed}
        starting = by_reason["Starting"]
        assert starting["metadata"]["namespace"] == "default"
        assert starting["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}
        assert (starting["type"], starting["reportingComponent"]) == ("Normal", "kube-proxy")
        taken = by_reason["FailedToStartServiceHealthcheck"]
        assert taken["metadata"]["namespace"] == "shop"
        assert taken["involvedObject"]["uid"] == "shop/web"
        assert len(taken["message"]) == 1024
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl is not installed: what it shows is not looked at")
        command = [
            "kubectl",
            "--kubeconfig",
            str(kubeconfig),
            "get",
            "events",
            "-A",
            "--no-headers",
            "-o",
            COLUMNS,
        ]
        environment = {"HOME": str(kubeconfig.parent), "PATH": "/usr/bin:/bin:/usr/local/bin"}
        shown = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert {tuple(line.split()) for line in shown.stdout.splitlines()} == {
            ("default", "Normal", "Starting", "Node", "n1"),
            ("shop", "Warning", "FailedToStartServiceHealthcheck", "Service", "web"),
        }


def test_a_refusal_is_a_line_and_no_more(kubeconfig: Path) -> None:
    with FakeApi(tokens={"right"}) as api:
        kubeconfig.write_text(api.kubeconfig("wrong"))
        assert send(kubeconfig, STARTING) == ["Starting: ValueError: 401 Unauthorized"]
    [line] = send(kubeconfig, STARTING)
    assert line.startswith("Starting: ConnectError")


def test_a_flood_waits_for_nobody() -> None:
    told: list[str] = []

    async def post(_path: str, _body: dict[str, Any]) -> None:
        raise AssertionError

    async def run() -> None:
        recorder = Recorder("n1", post, lambda _event, why: told.append(why))
        for _ in range(150):
            recorder.record(STARTING)

    asyncio.run(run())
    assert told == ["too many events wait"] * 50
