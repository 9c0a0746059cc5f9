"""`ku top` over a real API and a real engine, driven by keys; textual's pilot is the terminal."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

import packets
from daemon.rig import controller, served
from daemon.test_api import send
from kuproxy.client import Client
from kuproxy.daemon import sampler
from kuproxy.daemon.control import Controller
from kuproxy.top.app import Rows, Top

WEB, DNS = "90.0.0.1", "91.0.0.1"
SCRIPT = f"""\
ku vip {WEB}/32 protocol tcp port 80
ku pod {WEB}/32 10.0.0.1 10.0.0.2
ku vip {DNS}/32 protocol udp port 53
ku pod {DNS}/32 10.0.0.3
ku vip 92.0.0.1/32
"""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(sampler, "INTERVAL_S", 0.1)
    made = controller()
    made.run(SCRIPT)
    return made


@pytest.fixture
def client(made: Controller) -> Iterator[Client]:
    with served(made) as client:
        yield client


def traffic(made: Controller, web: int = 40, dns: int = 10) -> None:
    frames = [packets.frame(packets.tcp("40.0.0.1", WEB, 1000 + number, 80)) for number in range(web)]
    frames += [packets.frame(packets.udp("40.0.0.2", DNS, 1000 + number, 53)) for number in range(dns)]
    frames += [packets.frame(packets.udp("40.0.0.2", "92.0.0.1", 7, 7))]
    send(made, *frames)


def play(client: Client, scene: Callable[[Top, Pilot[int]], Awaitable[None]]) -> None:
    async def whole() -> None:
        app = Top(client, interval_s=0.2)
        async with app.run_test(size=(120, 40)) as pilot:
            await scene(app, pilot)

    asyncio.run(whole())


async def until(pilot: Pilot[int], seen: Callable[[], bool], what: str) -> None:
    for _ in range(200):
        if seen():
            return
        await pilot.pause(0.05)
    raise AssertionError(what)


def column(app: Top, table: str, number: int = 0) -> list[str]:
    return [row.cells[number] for row in app.query_one(f"#{table}-table", Rows).rows_shown]


def text(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).content)


def test_services_are_sorted_by_what_happens_and_open_to_their_pods(made: Controller, client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[int]) -> None:
        await until(pilot, lambda: len(column(app, "services")) == 3, "all VIPs")

        def busiest() -> bool:
            traffic(made)
            return column(app, "services", 1)[0] not in ("–", "0")

        await until(pilot, busiest, "rates")
        assert column(app, "services")[0] == f"{WEB}/32 protocol tcp port 80"
        assert "received" in text(app, "headline") and "VIPs 3" in text(app, "headline")
        await pilot.press("a")
        await until(pilot, lambda: column(app, "services") == sorted(column(app, "services")), "by name")
        await pilot.press("enter")
        await until(pilot, lambda: column(app, "pods") == ["10.0.0.1:80", "10.0.0.2:80"], "pods")
        assert text(app, "pods-title") == f"Pods of {WEB}/32 protocol tcp port 80"
        made.run(f"ku pod {WEB}/32 10.0.0.1 del")
        await until(pilot, lambda: "draining" in column(app, "pods", 7), "the one that drains")
        await pilot.press("escape")
        await until(
            pilot, lambda: column(app, "pods") == [] and bool(app.query_one("#services-view").display), "back"
        )

    play(client, scene)


def test_the_cursor_stays_with_its_service(made: Controller, client: Client) -> None:
    async def scene(app: Top, pilot: Pilot[int]) -> None:
        table = app.query_one("#services-table", Rows)
        await pilot.press("a")
        await until(
            pilot, lambda: column(app, "services")[:1] == [f"{WEB}/32 protocol tcp port 80"], "by name"
        )
        await pilot.press("down")
        assert table.chosen is not None and table.chosen.cells[0].startswith(DNS)
        traffic(made, web=1, dns=90)
        await pilot.press("f")
        await until(pilot, lambda: column(app, "services")[0].startswith(DNS), "by flows")
        assert table.chosen is not None and table.chosen.cells[0].startswith(DNS)

    play(client, scene)


def test_services_and_flows_are_found(made: Controller, client: Client) -> None:
    traffic(made)

    async def scene(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("slash", *"91.0")
        await until(pilot, lambda: [each[:4] for each in column(app, "services")] == ["91.0"], "found")
        await pilot.press("enter", "escape")
        await until(pilot, lambda: len(column(app, "services")) == 3, "all again")
        await pilot.press("2")
        await until(pilot, lambda: len(column(app, "flows")) == 50, "all flows")
        await pilot.press("slash")
        app.query_one("#flows-find", Input).value = "client 40.0.0.2 state udp"
        await pilot.press("enter")
        await until(pilot, lambda: len(column(app, "flows")) == 10, "of one client")
        assert set(column(app, "flows", 3)) == {"10.0.0.3:53"}
        await pilot.press("slash")
        app.query_one("#flows-find", Input).value = "client nobody"
        await pilot.press("enter")
        await until(pilot, lambda: "'nobody' is not an IP address" in text(app, "note"), "the refusal")

    play(client, scene)


def test_drops_and_workers(made: Controller, client: Client) -> None:
    traffic(made)

    async def scene(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("3")
        await until(pilot, lambda: column(app, "drops", 3) == ["no server configured"], "the drop")
        assert column(app, "drops", 1) == ["1"]
        await pilot.press("4")
        await until(pilot, lambda: column(app, "workers", 4) == ["50"], "the worker's flows")

    play(client, scene)


def test_a_daemon_that_goes_away_is_told_and_waited_for(made: Controller) -> None:
    with served(made) as client:
        path = client.path

        async def scene(app: Top, pilot: Pilot[int]) -> None:
            await until(pilot, lambda: len(column(app, "services")) == 3, "all VIPs")
            client.path = f"{path}.gone"
            await until(pilot, lambda: "no daemon listens at" in text(app, "note"), "told")
            client.path = path
            await until(pilot, lambda: text(app, "note") == "by packets", "back")

        play(client, scene)


def run_top(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "kuproxy", "top"]
    return subprocess.run(
        [sys.executable, *start, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, client: Client) -> None:
    done = run_top("--socket", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ku: no daemon listens at {tmp_path}/none;")
    done = run_top("--socket", client.path)
    assert (
        done.stderr == "ku: `ku top` draws on a terminal, and this is none; `ku show vips verbose` prints\n"
    )
    assert run_top("now").stderr.startswith("ku: 'now' is too much")
    assert "services" in run_top("--help").stdout
    without = (
        "import sys; sys.modules['textual'] = None\n"
        "sys.stdin.isatty = sys.stdout.isatty = lambda: True\n"
        "from kuproxy.top.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = run_top("--socket", client.path, code=without)
    assert (done.returncode, done.stderr) == (2, "ku: `ku top` needs textual: pip install 'kuproxy[tui]'\n")
