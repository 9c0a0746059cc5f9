"""The page's own listener: everybody may read, nobody may change anything, and no foreign name leads to it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from daemon.rig import controller, listening, served
from kuproxy.client import Client
from kuproxy.daemon.api import server
from kuproxy.daemon.api.auth import Access
from kuproxy.daemon.api.routes import ROUTES
from kuproxy.daemon.api.server import bind_tcp
from kuproxy.daemon.api.web import FILES
from kuproxy.daemon.control import Controller


@pytest.fixture
def made() -> Controller:
    made = controller()
    made.run("ku vip 90.0.0.1/32 port 80\nku pod 90.0.0.1/32 10.0.0.1")
    return made


@pytest.fixture
def port(made: Controller) -> Iterator[int]:
    opened = bind_tcp("127.0.0.1", 0, "web")
    with listening(made, opened, web=True):
        yield opened.getsockname()[1]


def ask(
    port: int, method: str, target: str, host: str = "localhost", body: object = None
) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    data = None if body is None else json.dumps(body)
    connection.request(method, target, data, {"Host": host, "Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def test_the_page_and_its_files_come_with_a_strict_policy(port: int) -> None:
    for target, media in (("/", "text/html"), *((f"/web/{path.name}", "") for path in FILES.iterdir())):
        status, headers, content = ask(port, "GET", target)
        assert status == 200 and content and headers["content-type"].startswith(media), target
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    for target in ("/web/../settings.py", "/web/%2e%2e/settings.py", "/web/none.js"):
        assert ask(port, "GET", target)[0] == 404


def test_the_files_need_nothing_from_elsewhere() -> None:
    for path in FILES.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, f"{path.name} names another place"
        assert "innerHTML" not in text and "eval(" not in text
    html = (FILES / "index.html").read_text()
    assert "<style" not in html and " style=" not in html and "<script>" not in html


def test_everything_can_be_read_without_credentials(port: int) -> None:
    vip = "prefix=90.0.0.1/32&port=80"
    needed = {"/v1/ring": vip, "/v1/ring.svg": vip, "/v1/rates/pods": vip}
    for route in ROUTES:
        if route.method == "GET":
            status, _, content = ask(port, "GET", f"{route.path}?{needed.get(route.path, '')}")
            assert status == 200, (route.path, content)


def test_nothing_can_be_changed_and_the_refusal_says_where_it_can(port: int, made: Controller) -> None:
    state = made.commands.state()
    for route in ROUTES:
        if route.method != "GET":
            status, _, content = ask(port, route.method, route.path, body={"lines": "show ku vips"})
            assert status == 403, route
            assert json.loads(content)["error"].startswith(
                "nothing can be changed here: that needs the daemon's Unix"
            )
    assert made.commands.state() == state


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:9154", 200),
        ("127.0.0.1:9154", 200),
        ("192.0.2.1", 200),
        ("[::1]:9154", 200),
        ("KuProxy.Example", 200),  # as the rig has it in `names`
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("", 421),
    ],
)
def test_it_answers_under_names_of_ours_only(port: int, host: str, status: int) -> None:
    got, headers, content = ask(port, "GET", "/v1/vips", host)
    assert got == status
    assert "access-control-allow-origin" not in headers
    if status == 421:
        assert "is no name of this page" in json.loads(content)["error"]


def test_over_tcp_with_a_token_the_page_is_there_and_its_data_is_not_without(made: Controller) -> None:
    opened = bind_tcp("127.0.0.1", 0, "tcp")
    with listening(made, opened, Access(tokens=frozenset({b"0123456789abcdef"}))):
        port = opened.getsockname()[1]
        assert ask(port, "GET", "/")[0] == 200
        assert ask(port, "GET", "/v1/overview")[0] == 401


def test_whoever_asks_twice_and_reads_nothing_is_cut_off(
    made: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer waits for the first to be read, and everything of it is kept until then."""
    monkeypatch.setattr(server, "ANSWER_WITHIN_S", 1.5)
    made.run("\n".join(f"ku vip 10.{n // 250}.{n % 250}.1/32 new_len 16" for n in range(1500)))
    with served(made) as client, socket.socket(socket.AF_UNIX) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(client.path)
        opened.settimeout(20)
        opened.sendall(b"GET /v1/vips?limit=1500 HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        began = time.monotonic()
        while time.monotonic() - began < 15:
            time.sleep(0.2)
            try:
                opened.send(b"G")  # more of a request does not buy more time
            except OSError:
                break
        else:
            raise AssertionError("still connected")
        Client(client.path).request("GET", "/v1/overview")


def test_many_who_look_do_not_keep_a_change_waiting(made: Controller, port: int) -> None:
    """300 pages open, each asking again and again: a change goes through, and samples are not taken more often."""
    taken = []
    original = made.sampler.span

    def counted() -> object:
        before = made.sampler._now
        span = original()
        taken.append(made.sampler._now is not before)
        return span

    made.sampler.span = counted  # type: ignore[method-assign,assignment]
    lookers = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(300)]
    began = time.monotonic()
    try:
        for _ in range(2):
            for each in lookers:
                each.sendall(b"GET /v1/overview HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with served(made) as client:
            client.run("ku vip 93.0.0.1/32")
        for each in lookers:
            assert each.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for each in lookers:
            each.close()
    assert sum(taken) <= (time.monotonic() - began) / 0.9 + 2
    assert len(taken) > 300


def test_settings_of_the_listener_are_read(tmp_path: Path) -> None:
    from kuproxy.daemon.settings import load_settings
    from kuproxy.errors import ConfigError

    path = tmp_path / "kuproxy.toml"
    path.write_text('[web]\naddress = "::1"\nnames = ["lb.example"]\n')
    web = load_settings(path).web
    assert web is not None and (web.address, web.port, web.names) == ("::1", 9154, ["lb.example"])
    path.write_text("[web]\nport = 0\nhost = 1\n")
    with pytest.raises(ConfigError, match=r"web\.host: is not known here; possible: address, port, names"):
        load_settings(path)
