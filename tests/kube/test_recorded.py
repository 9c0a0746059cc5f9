"""What a real kube-apiserver 1.36.3 said, byte for byte, told to the reflectors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kube.script import Script, service, watching
from kuproxy.kube.client import Watcher, load_access
from kuproxy.kube.cluster import Cluster
from kuproxy.kube.convert import convert_document
from kuproxy.kube.objects import document
from kuproxy.kube.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, Resource, own_node
from kuproxy.model.service import EndpointSlice

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"
NODES = own_node("node-a1")


def recorded(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def events(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in recorded(name).splitlines()]


def test_pages_are_the_whole_list() -> None:
    whole, paged = Script(), Script()
    whole.answer(recorded("lists/services.json"))
    for number in (1, 2, 3):
        page = recorded(f"lists/services.page{number}.json")
        paged.answer(page)
        token = json.loads(page)["metadata"].get("continue")
        assert paged.params.get("continue") == token
    assert len(whole.reflector.objects) == 52
    assert paged.reflector.objects == whole.reflector.objects
    assert paged.params["resourceVersion"] == "714"


STREAMS = [
    (SERVICES, "lists/services.json", "watches/services.label-selector.jsonl"),
    (ENDPOINT_SLICES, "lists/endpointslices.json", "watches/endpointslices.label-selector.jsonl"),
    (NODES, "lists/nodes.field-selector.json", "watches/nodes.field-selector.jsonl"),
]


@pytest.mark.parametrize(("resource", "first", "stream"), STREAMS, ids=["services", "slices", "node"])
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_recorded_watch(resource: Resource[Any], first: str, stream: str, size: int) -> None:
    script = Script(resource)
    script.answer(recorded(first))
    script.open()
    data = recorded(stream)
    for start in range(0, len(data), size):
        script.bytes(data[start : start + size])
    script.pass_time(76)
    script.end()

    # As simple as it can be: the last event about an object decides.
    present = {item["metadata"]["name"] for item in json.loads(recorded(first))["items"]}
    for event in events(stream):
        name = event["object"]["metadata"].get("name", "")
        if event["type"] in ("ADDED", "MODIFIED"):
            present.add(name)
        elif event["type"] == "DELETED":
            present.remove(name)
    assert set(script.names) == present
    assert script.reflector.stale_events == 0
    assert script.reflector.events == sum(event["type"] != "BOOKMARK" for event in events(stream))
    assert script.params["resourceVersion"] == str(
        max(int(event["object"]["metadata"]["resourceVersion"]) for event in events(stream))
    )


def test_a_stream_without_events() -> None:
    script = watching(version=714, resource=SERVICE_CIDRS)
    script.bytes(recorded("watches/servicecidrs.idle-timeout.jsonl") or b"")
    script.pass_time(3)
    script.end()
    assert script.params["resourceVersion"] == "714"


def test_an_expired_watch() -> None:
    script = watching(version=714)
    script.bytes(recorded("watches/services.expired.jsonl"))
    assert script.reflector.problem == "410 Expired: too old resource version: 714 (917)"
    script.pause()
    assert not script.request.watch


@pytest.mark.parametrize(
    ("file", "status", "retries_newest"),
    [
        ("401-no-token.json", 401, False),
        ("403-list.json", 403, False),
        ("404-resource.json", 404, False),
        ("404-group.txt", 404, False),
        ("410-list-exact.json", 410, True),
        ("500-bad-resource-version.json", 500, False),
        ("504-list-rv-too-large.json", 504, True),
    ],
)
def test_recorded_refusals_of_a_list(file: str, status: int, retries_newest: bool) -> None:
    script = Script()
    body = recorded(f"errors/{file}")
    script.answer(body, status)
    message = json.loads(body)["message"] if file.endswith(".json") else "404 page not found"
    assert message in script.reflector.problem
    script.pause()
    assert ("resourceVersion" not in script.params) == retries_newest


def test_the_recorded_inconsistent_continue_token_is_not_used() -> None:
    script = Script()
    script.answer(recorded("lists/services.page1.json"))
    script.answer(recorded("errors/410-expired-continue.json"), 410)
    script.pause()
    assert "continue" not in script.params
    script.answer(recorded("lists/services.json"))
    assert len(script.names) == 52


def test_a_page_of_another_version_does_not_complete_a_list() -> None:
    script = Script()
    script.answer(recorded("lists/services.page1.json"))
    script.answer(recorded("lists/services.inconsistent-continue.json"))
    assert not script.reflector.synced
    assert script.reflector.wanted is None


@pytest.mark.parametrize(("resource", "file"), [(SERVICES, "services"), (ENDPOINT_SLICES, "endpointslices")])
def test_decoding_leaves_out_nothing_that_conversion_reads(resource: Resource[Any], file: str) -> None:
    body = recorded(f"lists/{file}.json")
    direct = convert_document(json.loads(body))
    _meta, items, faults = resource.decoder.page(body)
    assert not faults
    decoded = convert_document({"kind": "List", "items": [document(item) for item in items]})
    assert [each for each, _path in decoded.services] == [each for each, _path in direct.services]
    assert [each for each, _path in decoded.slices] == [_without_targets(each) for each, _path in direct.slices]
    assert (len(decoded.problems), len(decoded.notes)) == (len(direct.problems), len(direct.notes))
    assert len(direct.services) + len(direct.slices) > 50


def _without_targets(slice_: EndpointSlice) -> EndpointSlice:
    """Which pod an endpoint is, is of use in manifests' messages alone: the watch leaves it out, for memory's sake."""
    return replace(slice_, endpoints=tuple(msgspec.structs.replace(each, target="") for each in slice_.endpoints))


def test_the_bytes_of_a_real_connection(tmp_path: Path) -> None:
    """Status line, headers and chunks as the server wrote them, through our HTTP client."""
    pytest.importorskip("lightkube", reason="the extra `kubernetes` is not installed")
    raw = recorded("watches/nodes.raw-http.txt")
    body = json.dumps({"metadata": {"resourceVersion": "714"}, "items": []}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client closes what it keeps open
            while request := await reader.readuntil(b"\r\n\r\n"):
                if b"watch=true" in request:
                    writer.write(raw)
                    await writer.drain()
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()
        await writer.wait_closed()

    async def play() -> list[str]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        config = {
            "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {}}],
        }
        (tmp_path / "config").write_text(json.dumps(config))
        cluster = Cluster("node-c1", random.Random(1), asyncio.get_running_loop().time())
        node = cluster.reflectors[2]
        cluster.reflectors = (node,)
        watcher = Watcher(cluster, lambda: load_access(str(tmp_path / "config")))
        task = asyncio.create_task(watcher.run())
        try:
            async with asyncio.timeout(10):
                while node.events < 3:
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            server.close()
            await server.wait_closed()
        return [address.address for address in node.objects["", "node-c1"].status.addresses]

    expected = [json.loads(line) for line in raw.split(b"\r\n") if line.startswith(b'{"type"')]
    assert len(expected) == 3
    addresses = expected[-1]["object"]["status"]["addresses"]
    assert asyncio.run(play()) == [each["address"] for each in addresses]


def test_a_service_that_leaves_the_selector_is_deleted_and_comes_back() -> None:
    script = watching(service("other", 700), version=714)
    seen = []
    for line in recorded("watches/services.label-selector.jsonl").splitlines(keepends=True):
        script.bytes(line)
        seen += [what for what in script.changes() if what[1] == "w-life"]
    kinds = [kind for kind, _name in seen]
    assert (kinds[0], kinds[-1]) == ("added", "deleted")
    assert kinds.count("deleted") == 2
    assert kinds.count("added") == 2
