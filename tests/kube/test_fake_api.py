"""The fake API server is held against what a real one said: a fake that is kinder than reality proves nothing."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from kube_api.errors import ApiError
from kube_api.selectors import selector
from kube_api.server import FakeApi
from kube_api.store import Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kubernetes-1.36"
EVERYTHING = selector()
FOREIGN = "service.kubernetes.io/service-proxy-name"


def recorded(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text())


def make(store: Store, *names: str) -> None:
    for name in names:
        store.create(
            "services", {"metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}}
        )


def refused(act: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        act()
    return caught.value.status


def token(text: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return decoded


def test_pages_have_the_form_of_the_real_ones() -> None:
    store = Store()
    make(store, "a", "b", "c")
    page, real = store.list("services", EVERYTHING, limit=2), recorded("lists/services.page1.json")
    assert list(page) == list(real)
    assert list(page["metadata"]) == list(real["metadata"])
    assert page["kind"] == real["kind"]
    assert page["metadata"]["remainingItemCount"] == 1
    assert "kind" not in page["items"][0]
    ours, theirs = token(page["metadata"]["continue"]), token(real["metadata"]["continue"])
    assert list(ours) == list(theirs)
    assert (ours["v"], ours["start"]) == (theirs["v"], "/shop/b\0")
    assert theirs["start"].count("/") == ours["start"].count("/")
    assert theirs["start"].endswith("\0")


def test_an_empty_list_is_like_the_real_one() -> None:
    listed, real = Store().list("services", EVERYTHING), recorded("lists/services.empty.json")
    assert {**listed, "metadata": 0} == {**real, "metadata": 0}


def test_a_continue_token_pins_the_state_of_its_first_page_until_compaction() -> None:
    store = Store()
    make(store, "a", "b", "c")
    first = store.list("services", EVERYTHING, limit=1)
    store.delete("services", "shop", "b")
    make(store, "bb")
    go_on = first["metadata"]["continue"]
    rest = store.list("services", EVERYTHING, continue_=go_on)
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b", "c"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    store.compact()
    status, real = (
        refused(lambda: store.list("services", EVERYTHING, continue_=go_on)),
        recorded("errors/410-expired-continue.json"),
    )
    inconsistent = status["metadata"].pop("continue")
    assert token(inconsistent)["rv"] == token(real["metadata"].pop("continue"))["rv"] == -1
    assert status == real
    rest = store.list("services", EVERYTHING, continue_=inconsistent)
    assert [item["metadata"]["name"] for item in rest["items"]] == ["bb", "c"]


def test_refusals_are_the_real_ones() -> None:
    store = Store()
    make(store, "a")
    store.compact()
    exact = refused(lambda: store.list("services", EVERYTHING, version="50", match="Exact"))
    assert exact == recorded("errors/410-list-exact.json")
    future = refused(lambda: store.list("services", EVERYTHING, version="99999999"))
    real = recorded("errors/504-list-rv-too-large.json")
    assert future == {**real, "message": real["message"].replace("726", str(store.revision))}
    assert refused(lambda: store.get("nodes", "", "no-such-node")) == recorded("errors/404-object.json")
    bad = refused(lambda: store.watch("services", EVERYTHING, "abc"))
    assert bad == recorded("errors/500-bad-resource-version.json")
    expired = refused(lambda: store.watch("services", EVERYTHING, "99"))
    real_event = recorded("watches/services.expired.jsonl")["object"]
    assert expired == {**real_event, "message": f"too old resource version: 99 ({store.window})"}


def test_a_watch_shows_an_object_that_leaves_the_selector_as_deleted() -> None:
    """As `watches/services.label-selector.jsonl`: the last matching state, under the newer version."""
    store = Store()
    watch = store.watch("services", selector(f"!{FOREIGN}"), str(store.revision))
    make(store, "a")
    service = store.get("services", "shop", "a")
    meta = {**service["metadata"], "labels": {FOREIGN: "other"}}
    store.update("services", {**service, "metadata": meta})
    foreign = store.get("services", "shop", "a")
    store.update("services", {**foreign, "metadata": {**foreign["metadata"], "labels": {}}})
    events = watch.poll()
    assert [event["type"] for event in events] == ["ADDED", "DELETED", "ADDED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    assert "labels" not in events[1]["object"]["metadata"]


def test_a_watch_of_the_future_is_silent_until_it_comes() -> None:
    store = Store()
    watch = store.watch("services", EVERYTHING, str(store.revision + 2))
    make(store, "a", "b")
    assert watch.poll() == []
    make(store, "c")
    assert [event["object"]["metadata"]["name"] for event in watch.poll()] == ["c"]


def test_a_restart_forgets_what_can_be_watched_and_compaction_cuts_off_the_slow() -> None:
    store = Store()
    make(store, "a", "b")
    slow = store.watch("services", EVERYTHING, str(store.revision))
    store.restart()
    refused(lambda: store.watch("services", EVERYTHING, str(store.revision - 1)))
    store.watch("services", EVERYTHING, str(store.revision))
    make(store, "c")
    store.compact()
    assert refused(slow.poll)["code"] == 410


def test_initial_events_end_with_their_bookmark() -> None:
    store = Store()
    make(store, "a", "b")
    events = store.watch("services", EVERYTHING, "", initial=True).poll()
    assert [event["type"] for event in events] == ["ADDED", "ADDED", "BOOKMARK"]
    assert events[-1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_writing_with_an_old_version_is_a_conflict_and_writing_nothing_new_no_change() -> None:
    store = Store()
    make(store, "a")
    old = store.get("services", "shop", "a")
    store.update("services", {**old, "spec": {**old["spec"], "type": "NodePort"}})
    assert refused(lambda: store.update("services", old))["reason"] == "Conflict"
    revision = store.revision
    store.update("services", store.get("services", "shop", "a"))
    assert store.revision == revision
    assert refused(lambda: make(store, "a"))["reason"] == "AlreadyExists"


def test_status_and_the_rest_are_written_apart() -> None:
    store = Store()
    make(store, "a")
    service = store.get("services", "shop", "a")
    ingress = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    store.update("services", {**service, "status": ingress, "spec": {}}, "status")
    service = store.get("services", "shop", "a")
    assert (service["status"], service["spec"]["ports"][0]["port"]) == (ingress, 80)
    store.update("services", {**service, "status": {}})
    assert store.get("services", "shop", "a")["status"] == ingress


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("a", True), ("!a", False), ("a=1", True), ("a==1", True), ("a!=1", False), ("b!=1", True), ("!b", True),
        ("a in (1, 2)", True), ("a notin (1,2)", False), ("b notin (1)", True), ("a,!b", True), ("a,b", False),
        ("", True),
    ],
)  # fmt: skip
def test_label_selectors(text: str, matches: bool) -> None:
    assert selector(text)({"metadata": {"labels": {"a": "1"}}}) == matches


def test_a_server_that_stops_leaves_nobody_behind_who_does_not_read() -> None:
    api = FakeApi()
    for number in range(100):
        notes = {"text": "." * 50_000}
        api.store.create("namespaces", {"metadata": {"name": f"n{number}", "annotations": notes}})
    api.start()
    with socket.create_connection((api.address, api.port)) as silent:
        silent.sendall(b"GET /api/v1/namespaces HTTP/1.1\r\nHost: api\r\n\r\n")
        assert silent.recv(1)
        api.stop()
        silent.settimeout(5)
        got = sum(iter(lambda: len(silent.recv(1 << 20)), 0))
    assert got < 100 * 50_000, "the whole answer came, so that nothing was left to stop"
