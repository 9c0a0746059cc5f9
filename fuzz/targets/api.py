"""Every request gets one well-formed answer and no server's error; what is refused has changed nothing.

Parts are requests: JSON of method, path, query, headers and body. They go to the application itself, as the
server would hand them over; what may be no HTTP at all is a part that begins with `raw`, and goes through a
real socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

from daemon.rig import controller, listening
from fuzz.mutate import NUMBERS, STRINGS, damage, damage_tree
from fuzz.target import Parts, Target
from kuproxy.announce.settings import Announce
from kuproxy.daemon.api.app import make_app
from kuproxy.daemon.api.auth import Access, Peer
from kuproxy.daemon.api.routes import ROUTES
from kuproxy.daemon.api.server import bind_unix
from kuproxy.daemon.thread import ControlThread
from packets import SAMPLES

VIP = {
    "prefix": "90.0.0.1/32",
    "protocol": "tcp",
    "port": 80,
    "target_port": 8080,
    "node_port": 30080,
    "new_len": 16,
    "masquerade_from": ["pod"],
    "affinity": 10.0,
    "source_ranges": ["40.0.0.0/24"],
    "hash": "flow",
    "pods": [{"address": "10.0.0.1", "port": 9090, "weight": 3}, {"address": "10.0.0.2"}],
    "outside_pods": None,
}
CONF = {
    "buckets": 1024,
    "timeout": 30.0,
    "timeouts": {"udp": 60.0},
    "masquerade": ["192.0.2.1"],
    "pod_ranges": ["10.0.0.0/8"],
    "nat46_prefix": "64:ff9b:1::/96",
    "nat64_pool": "192.0.0.0/29",
    "nat64_ports": [1024, 65535],
    "translation_mtu": 1500,
    "reply_path": "any",
}
MARKS = {"interfaces": [{"name": "eth0", "nat4_in": True}]}
STATE = {"version": 1, "conf": CONF, "vips": [VIP], "interfaces": MARKS["interfaces"]}
BODIES: dict[tuple[str, str], Any] = {
    ("PUT", "/v1/vips"): VIP,
    ("PUT", "/v1/pods"): {"prefix": "90.0.0.1/32", "protocol": "tcp", "port": 80, "pods": VIP["pods"]},
    ("PUT", "/v1/settings"): CONF,
    ("PUT", "/v1/interfaces"): MARKS,
    ("PUT", "/v1/state"): STATE,
    ("POST", "/v1/trace"): {"packets": 10},
    ("POST", "/v1/ku"): {"lines": "ku vip 90.0.0.0/8 new_len 16\nshow ku vips"},
    ("POST", "/v1/explain"): {"frame": "", "interface": 0, "without_pods": ["10.0.0.1"], "new_len": 16},
    ("POST", "/v1/announce"): {"speaker": "layer2", "tag": "0", "settled": True, "announced": 1},
    ("PUT", "/v1/announce/drain"): {"on": True},
}
QUERIES = {
    "prefix": "90.0.0.1/32", "protocol": "tcp", "port": "80", "address": "10.0.0.1", "pod_port": "0", "flush": "true",
    "limit": "10", "after": "0", "vip": "90.0.0.1/32", "state": "udp", "client": "40.0.0.1", "slots": "4",
}  # fmt: skip
FRAMES = list(SAMPLES.values())
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW")
PATHS = tuple(dict.fromkeys(route.path for route in ROUTES if route.path != "/v1/upgrade"))
# An upgrade would start the installed version; a reload reads files, of which there are none.
GOOD = [(route.method, route.path) for route in ROUTES if route.path != "/v1/upgrade"]
# Values that are allowed, and would cost seconds and gigabytes: other tests' affair.
DEAR = {"new_len": 4096, "buckets": 1 << 16}
RAW = (
    b"GET /v1/vips HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/ku HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n"
    b'{"lines": "show ku vips"}',
    b"PUT /v1/state HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
)
RAW_TOKENS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b":",
    b" ",
    b"\xff",
    b"Content-Length: 5\r\n",
    b"Host: y\r\n",
    b"Expect: 100-continue\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/9.9",
    b"ffffffffffffffff\r\n",
    b"-1\r\n",
    b"%00",
    b"A" * 5000,
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
)
PATIENCE_S = 10.0


def _cheap(value: Any) -> Any:
    """The same without what is dear."""
    if isinstance(value, dict):
        return {
            key: DEAR[key]
            if key in DEAR and isinstance(each, int) and DEAR[key] < each <= 1 << 30
            else _cheap(each)
            for key, each in value.items()
        }
    return [_cheap(each) for each in value] if isinstance(value, list) else value


class _Complaints(logging.Handler):
    """What the server's own code says of itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else ""
        self.lines.append(f"{record.getMessage()} {error}")


class Api(Target):
    def __init__(self) -> None:
        self._complaints = _Complaints()
        self._stack = ExitStack()
        self._thread = ControlThread()
        self._stack.callback(self._thread.close)
        self._made = controller()
        self._made.announcing.settings = Announce(ranges=["90.0.0.0/8", "9000::/16"])
        self._app = make_app(self._made, Access(owner=0), self._thread)
        self._loop = asyncio.new_event_loop()
        self._stack.callback(self._loop.close)
        for name in ("uvicorn.error", "asyncio"):
            logger = logging.getLogger(name)
            logger.addHandler(self._complaints)
            self._stack.callback(logger.removeHandler, self._complaints)
        self._socket: Path | None = None
        self.answers: dict[int, int] = {}

    def close(self) -> None:
        self._stack.close()

    # -------------------------------------------------------------------------------------------------- cases

    def draw(self, rng: Random) -> Parts:
        if rng.randrange(6) == 0:
            return (b"raw" + damage(rng, rng.choice(RAW), rng.choice((1, 2, 5)), RAW_TOKENS),)
        return tuple(self._request(rng) for _ in range(rng.randrange(1, 6)))

    @staticmethod
    def _request(rng: Random) -> bytes:
        method, path = rng.choice(GOOD)
        if rng.randrange(8) == 0:
            method = rng.choice(METHODS)
        if rng.randrange(12) == 0:
            path = rng.choice(
                (
                    *PATHS,
                    "/",
                    "/v1",
                    "/v1/vips/",
                    "/../etc/passwd",
                    "/v1//vips",
                    "/%00",
                    "/metrics",
                    "/readyz",
                )
            )
        query: dict[str, str] = {}
        if rng.randrange(2):
            for name in rng.sample(sorted(QUERIES), rng.randrange(4)):
                query[name] = QUERIES[name] if rng.randrange(2) else str(rng.choice((*NUMBERS, *STRINGS)))
        tree = BODIES.get(
            (method, path), rng.choice(list(BODIES.values())) if rng.randrange(6) == 0 else None
        )
        body = ""
        if path == "/v1/explain" and tree is not None:
            frame = rng.choice(FRAMES)
            frame = damage(rng, frame, rng.choice((1, 3)))[:2000] if rng.randrange(2) else frame
            tree = {**tree, "frame": frame.hex()}
        if tree is not None:
            tree = damage_tree(rng, tree, rng.choice((0, 1, 1, 2, 5)))
            body = json.dumps(_cheap(tree))
            if rng.randrange(8) == 0:
                body = damage(rng, body.encode(), rng.choice((1, 3))).decode("latin-1")
        headers = {
            "content-type": rng.choice(
                ("application/json",) * 6 + ("text/plain", "", "application/json; charset=x")
            )
        }
        if rng.randrange(10) == 0:
            headers[rng.choice(("content-length", "authorization", "accept", "cookie"))] = rng.choice(
                ("-1", "9" * 30, "x", "Bearer \xff")
            )
        asked = {"method": method, "path": path, "query": query, "headers": headers, "body": body}
        return json.dumps(asked).encode()

    # ------------------------------------------------------------------------------------------------ promise

    def check(self, parts: Parts) -> None:
        status, _ = self._ask({"method": "PUT", "path": "/v1/state", "body": "{}"})
        assert status == 200, "the empty state is refused"
        for part in parts:
            if part.startswith(b"raw"):
                self._send_raw(part[3:])
                continue
            try:
                asked = json.loads(part)
                method, path = str(asked["method"]), str(asked["path"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a part that minimising has broken
            before = self._state()
            status, body = self._ask(asked)
            self.answers[status] = self.answers.get(status, 0) + 1
            assert 200 <= status < 500, f"{method} {path}: {status} {body[:300]!r}"
            if status >= 400:
                if method != "HEAD":
                    told = json.loads(body)["error"]
                    assert told and len(told.splitlines()) == 1, f"{method} {path}: {told!r}"
                assert self._state() == before, f"{method} {path} was refused, and has changed something"
            elif method == "GET":
                assert self._state() == before, f"GET {path} has changed something"
        self._lasting()

    def _state(self) -> bytes:
        status, body = self._ask({"method": "GET", "path": "/v1/state"})
        assert status == 200
        return body

    def _lasting(self) -> None:
        """What was set can be read, and set again as it was read; the tables are what it says."""
        state = self._state()
        status, body = self._ask({"method": "PUT", "path": "/v1/state", "body": state})
        assert status == 200, f"its own state is refused: {body[:300]!r}"
        assert self._state() == state, "the state changes by being set as it was read"
        held = {vip.key for vip in self._made.plane.store}
        served = {record.vip.key for record in self._made.plane.compiler.records() if not record.removed}
        assert served == held

    def _ask(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        return self._loop.run_until_complete(asyncio.wait_for(self._call(asked), PATIENCE_S))

    async def _call(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        body = _bytes(asked.get("body", b""))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **(asked.get("headers") or {}),
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": str(asked["method"]),
            "path": str(asked["path"]),
            "raw_path": str(asked["path"]).encode(),
            "query_string": urlencode(asked.get("query") or {}).encode(),
            "headers": [
                (str(key).encode(), str(value).encode("latin-1", "replace")) for key, value in headers.items()
            ],
            "scheme": "http",
            "server": ("x", 80),
            "client": None,
            "root_path": "",
            "state": {"peer": Peer(uid=0)},
        }
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        starts = [each for each in sent if each["type"] == "http.response.start"]
        assert len(starts) == 1, f"{len(starts)} answers"
        assert not sent[-1].get("more_body"), "an answer without an end"
        return int(starts[0]["status"]), b"".join(each.get("body", b"") for each in sent[1:])

    # --------------------------------------------------------------------------------------------- the socket

    def _send_raw(self, data: bytes) -> None:
        """Bytes that may not be HTTP: answered or hung up on, without a traceback, and the next client is served."""
        self._complaints.lines.clear()
        if self._socket is None:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kufuzz-")))
            self._socket = directory / "ku.sock"
            self._stack.enter_context(
                listening(self._made, bind_unix(self._socket, 0o600, None), Access(owner=0))
            )
        with self._connected() as opened:
            with contextlib.suppress(OSError):  # hung up on
                opened.sendall(data)
                opened.shutdown(socket.SHUT_WR)
            answer = _until_end(opened)
        assert not answer.startswith(b"HTTP/1.1 5"), f"a server's error: {answer[:200]!r}"
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), f"no HTTP: {answer[:100]!r}"
        with self._connected() as opened:
            opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = _until_end(opened)
            assert answer.startswith(b"HTTP/1.1 200"), f"the next client gets {answer[:100]!r}"
        assert not self._complaints.lines, f"the server has failed: {self._complaints.lines}"

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.settimeout(PATIENCE_S)
            opened.connect(str(self._socket))
            yield opened

    def summary(self) -> list[str]:
        return [
            "answers: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(self.answers.items()))
        ]


def _bytes(body: object) -> bytes:
    """As they are, or of a part: text whose characters are bytes, if they can be."""
    if isinstance(body, bytes):
        return body
    try:
        return str(body).encode("latin-1")
    except UnicodeEncodeError:
        return str(body).encode("utf-8", "surrogatepass")


def _until_end(opened: socket.socket) -> bytes:
    """Everything until the server closes."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while chunk := opened.recv(1 << 16):
            answer += chunk
    return answer
