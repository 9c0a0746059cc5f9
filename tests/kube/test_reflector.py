"""The list/watch state machine, answer by answer."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest

from kube.script import Script, service, watching
from kuproxy.kube.pace import Backoff, Pace
from kuproxy.kube.resources import SERVICE_CIDRS, own_node

# ------------------------------------------------------------------------------------------------ listing


def test_it_begins_with_a_list_from_the_servers_cache() -> None:
    script = Script()
    assert script.request.path == "/api/v1/services"
    assert not script.request.watch
    assert script.params == {
        "labelSelector": "!service.kubernetes.io/service-proxy-name",
        "limit": "500",
        "resourceVersion": "0",
        "resourceVersionMatch": "NotOlderThan",
    }


def test_the_own_node_is_chosen_by_its_name() -> None:
    script = Script(own_node("node-a1"))
    assert script.params["fieldSelector"] == "metadata.name=node-a1"


def test_pages_make_one_list_and_nothing_is_told_before_the_last() -> None:
    script = Script()
    script.list(service("a", 50), continue_="token 1")
    assert script.params["continue"] == "token 1"
    assert "resourceVersion" not in script.params
    assert (script.reflector.synced, script.changes()) == (False, [])
    script.list(service("b", 60), continue_="token 2")
    assert script.params["continue"] == "token 2"
    script.list(service("c", 70))
    assert script.reflector.synced
    assert script.changes() == [("added", "a"), ("added", "b"), ("added", "c")]


def test_the_watch_goes_on_from_the_lists_version() -> None:
    script = watching(version=4711)
    assert script.params["resourceVersion"] == "4711"
    assert script.params["allowWatchBookmarks"] == "true"
    assert 300 <= int(script.params["timeoutSeconds"]) <= 600
    assert script.params["labelSelector"] == "!service.kubernetes.io/service-proxy-name"


def test_an_empty_list_is_a_list() -> None:
    script = Script()
    script.answer({"metadata": {"resourceVersion": "5"}, "items": None})
    assert script.reflector.synced
    assert script.request.watch


def test_an_expired_continue_token_starts_over_with_the_newest_state() -> None:
    script = Script()
    script.list(service("a", 50), continue_="token 1")
    script.refuse(410, "Expired")
    script.pause()
    assert "continue" not in script.params
    assert "resourceVersion" not in script.params
    script.list(service("b", 60), version=120)
    assert script.names == ["b"]  # and not what the first page had


def test_pages_that_expire_again_and_again_are_given_up_for_the_whole_list() -> None:
    script = Script()
    for _ in range(3):
        assert script.params["limit"] == "500"
        script.list(service("a", 50), continue_="token")
        script.refuse(410, "Expired")
        script.pause()
    assert "limit" not in script.params
    script.list(service("a", 50))
    assert script.reflector.synced


def test_pages_of_different_versions_are_no_list() -> None:
    script = Script()
    script.list(service("a", 50), version=100, continue_="token")
    script.list(service("b", 60), version=101)
    assert not script.reflector.synced
    script.pause()
    assert "continue" not in script.params


def test_a_page_that_fails_is_asked_for_again() -> None:
    script = Script()
    script.list(service("a", 50), continue_="token")
    script.refuse(500)
    script.pause()
    assert script.params["continue"] == "token"
    script.fail()
    script.pause()
    assert script.params["continue"] == "token"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"metadata":{"resourceVersion":"x"},"items":[]}']
)
def test_a_list_that_is_none_is_asked_for_again(body: bytes) -> None:
    script = Script()
    script.answer(body)
    assert not script.reflector.synced
    assert "not understood" in script.reflector.problem
    script.pause()
    script.list(service("a", 50))
    assert script.names == ["a"]
    assert not script.reflector.problem


def test_one_bad_object_spoils_no_other() -> None:
    script = Script()
    bad = service("bad", 51)
    bad["spec"]["ports"] = [{"port": "eighty"}]
    script.list(service("a", 50), bad, service("b", 52))
    assert script.names == ["a", "b"]
    assert list(script.reflector.rejected) == [("shop", "bad")]
    script.open()
    script.event("MODIFIED", service("bad", 101))
    assert script.names == ["a", "b", "bad"]
    assert not script.reflector.rejected


# ----------------------------------------------------------------------------------------------- watching


def test_events_change_the_objects() -> None:
    script = watching(service("a", 50), service("b", 60))
    script.event("ADDED", service("c", 101))
    script.event("MODIFIED", service("a", 102, port=81))
    script.event("DELETED", service("b", 103))
    assert script.names == ["a", "c"]
    assert script.changes() == [("added", "c"), ("changed", "a"), ("deleted", "b")]
    assert script.changes() == []


def test_changes_that_cancel_each_other_are_none() -> None:
    script = watching(service("a", 50))
    script.event("ADDED", service("b", 101))
    script.event("DELETED", service("b", 102))
    script.event("DELETED", service("a", 103))
    script.event("ADDED", service("a", 104))
    assert script.changes() == []
    assert script.names == ["a"]


def test_what_nobody_looks_at_is_no_change() -> None:
    script = watching(service("a", 50))
    script.event("MODIFIED", service("a", 101, annotations={"note": "new"}, managedFields=[{"manager": "m"}]))
    assert not script.reflector.changed  # nobody is woken for it
    script.end()  # but the version has been seen
    assert script.params["resourceVersion"] == "101"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_may_be_cut_anywhere(size: int) -> None:
    script = watching()
    lines = b"".join(
        json.dumps({"type": "ADDED", "object": service(f"dürüm-{n}", 101 + n)}, ensure_ascii=False).encode()
        + b"\n"
        for n in range(5)
    )
    for start in range(0, len(lines), size):
        script.bytes(lines[start : start + size])
    assert len(script.names) == 5


def test_duplicates_and_late_events_change_nothing() -> None:
    script = watching(service("a", 50))
    script.event("MODIFIED", service("a", 105, port=5))
    script.event("MODIFIED", service("a", 105, port=5))
    script.event("MODIFIED", service("a", 103, port=3))
    script.event("DELETED", service("a", 104))
    assert script.reflector.objects["shop", "a"].spec.ports[0].port == 5
    assert script.reflector.stale_events == 3


def test_a_deletion_is_not_undone_by_what_came_before_it() -> None:
    script = watching()
    script.event("DELETED", service("a", 105))
    script.event("ADDED", service("a", 104))
    assert script.names == []
    script.event("ADDED", service("a", 106))
    assert script.names == ["a"]


def test_the_watch_goes_on_from_the_newest_version_even_if_it_came_first() -> None:
    script = watching()
    script.event("ADDED", service("a", 105))
    script.event("ADDED", service("b", 104))
    assert script.names == ["a", "b"]
    script.end()
    assert script.params["resourceVersion"] == "105"


def test_nothing_older_than_list_or_bookmark_is_news() -> None:
    script = watching(version=100)
    script.event("ADDED", service("a", 100))
    assert script.names == []
    script.event("ADDED", service("b", 103))
    script.event("DELETED", service("b", 104))
    script.bookmark(110)
    script.event("ADDED", service("b", 103))
    assert script.names == []


def test_an_unbumped_deletion_counts() -> None:
    """A store without a watch cache may send the last state under its own version."""
    script = watching(service("a", 50))
    script.event("DELETED", service("a", 50))
    assert script.names == []


def test_a_bookmark_moves_the_place_to_go_on_from() -> None:
    script = watching()
    script.bookmark(150)
    script.pass_time(60)
    script.end()
    assert script.params["resourceVersion"] == "150"


def test_a_watch_that_ends_in_order_goes_on_at_once() -> None:
    script = watching()
    script.pass_time(100)
    script.end()
    assert script.request.watch
    assert script.params["resourceVersion"] == "100"


def test_a_watch_that_ends_at_once_is_not_hammered() -> None:
    script = watching()
    waits = []
    for _ in range(8):
        script.end()
        waits.append(script.pause())
        script.open()
    assert waits[0] >= 0.8
    assert waits[-1] >= 30


def test_half_a_line_is_forgotten_when_the_stream_breaks() -> None:
    script = watching()
    script.event("ADDED", service("a", 101))
    script.bytes(b'{"type":"DELETED","obj')
    script.fail()
    script.pause()
    assert script.params["resourceVersion"] == "101"
    script.open()
    script.event("ADDED", service("b", 102))
    assert script.names == ["a", "b"]


def test_an_event_of_an_unknown_type_is_passed_over() -> None:
    script = watching(service("a", 50))
    script.event("RENAMED", service("b", 101))
    assert (script.names, script.request.watch) == (["a"], True)


def test_an_object_that_turns_bad_is_as_if_it_were_not_there() -> None:
    script = watching(service("a", 50))
    bad = service("a", 101)
    bad["spec"]["ports"] = 80
    script.event("MODIFIED", bad)
    assert script.names == []
    assert ("shop", "a") in script.reflector.rejected
    script.event("DELETED", service("a", 102))
    assert not script.reflector.rejected


# ----------------------------------------------------------------------------------------------- too late


def gone_as_event(script: Script) -> None:
    script.event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})


def gone_as_status(script: Script) -> None:
    script.refuse(410, "Expired")


def no_json(script: Script) -> None:
    script.bytes(b"<html>\n")


def no_version(script: Script) -> None:
    obj = service("b", 1)
    obj["metadata"]["resourceVersion"] = "one"
    script.event("ADDED", obj)


def silence(script: Script) -> None:
    script.pass_time(130)


@pytest.mark.parametrize("how", [gone_as_event, gone_as_status, no_json, no_version, silence])
def test_a_lost_watch_is_made_good_by_a_list_and_its_difference(how: object) -> None:
    script = watching(service("a", 50), service("b", 60), service("c", 70))
    script.event("MODIFIED", service("c", 110, port=81))
    script.reflector.take()
    how(script)  # type: ignore[operator]
    assert script.reflector.synced
    assert script.names == ["a", "b", "c"]  # old knowledge is better than none
    script.pause()
    assert not script.request.watch
    assert script.params["resourceVersion"] == "110"
    assert script.params["resourceVersionMatch"] == "NotOlderThan"
    script.list(service("a", 50), service("c", 190, port=82), service("d", 180), version=200)
    assert sorted(script.changes()) == [("added", "d"), ("changed", "c"), ("deleted", "b")]
    assert script.params["resourceVersion"] == "200"


def test_events_behind_an_error_are_not_read() -> None:
    script = watching()
    lines = [
        {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}},
        {"type": "ADDED", "object": service("ghost", 101)},
    ]
    script.bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert script.names == []


@pytest.mark.parametrize("code", [410, 504])
def test_a_version_that_the_server_cannot_have_is_given_up_for_the_newest(code: int) -> None:
    """After a restore from a backup versions begin again lower."""
    script = watching(service("a", 50), service("b", 900), version=1000)
    script.pass_time(130)
    script.pause()
    script.refuse(code, "Timeout" if code == 504 else "Expired", retry_after="1")
    script.pause()
    assert "resourceVersion" not in script.params
    script.list(service("a", 50), service("b", 55, port=81), version=60)
    assert script.changes() == [("changed", "b")]
    script.open()
    script.event("DELETED", service("a", 61))
    assert script.names == ["b"]


def test_a_bookmark_from_the_past_is_the_sign_of_a_restore() -> None:
    script = watching(version=1000)
    script.bookmark(999)
    script.pause()
    assert not script.request.watch
    assert "resourceVersion" not in script.params


def test_a_list_older_than_asked_for_is_not_taken() -> None:
    script = watching(service("a", 50), version=1000)
    gone_as_event(script)
    script.pause()
    script.list(version=900)
    assert script.names == ["a"]
    script.pause()
    assert "resourceVersion" not in script.params


# ------------------------------------------------------------------------------------ refusals and silence


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503])
@pytest.mark.parametrize("watch", [False, True])
def test_a_refusal_is_told_and_the_same_is_asked_again(status: int, watch: bool) -> None:
    script = watching() if watch else Script()
    before = script.params
    script.refuse(status, "Reason", "in words")
    assert script.reflector.problem == f"{status} Reason: in words"
    script.pause()
    assert script.request.watch == watch
    assert script.params.get("resourceVersion") == before["resourceVersion"]


def test_retry_after_is_a_lower_limit() -> None:
    script = Script()
    script.refuse(429, retry_after="17")
    assert 17 <= script.pause() < 17 + 1
    script.refuse(429, retry_after="86400")
    assert script.pause() < 310
    for odd in ("", "-1", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 400, "٣"):
        script.refuse(503, retry_after=odd)
        assert script.pause() <= 60


def test_back_off_grows_to_its_limit_and_ends_with_success() -> None:
    script = Script()
    waits = []
    for _ in range(10):
        script.fail("connection refused")
        waits.append(script.pause())
    assert 0.8 <= waits[0] < 1.6
    assert all(30 <= wait < 60 for wait in waits[6:])
    script.list()
    script.open()
    script.bookmark(101)
    script.fail()
    assert script.pause() < 1.6


def test_lists_that_no_watch_follows_become_rare() -> None:
    script = Script()
    waits = []
    for version in range(100, 110):
        script.list(version=version)
        gone_as_status(script)
        waits.append(script.pause())
    assert all(wait >= 30 for wait in waits[6:])


def test_nodes_do_not_come_back_all_at_once() -> None:
    waits = {round(Backoff(Pace(), Random(seed)).next_s(), 3) for seed in range(50)}
    assert len(waits) > 40


def test_a_refusal_that_is_no_status_is_told_as_it_is() -> None:
    script = Script()
    script.answer(b"404 page not found\n", 404)
    assert script.reflector.problem == "404 404 page not found"
    script.pause()
    assert not script.reflector.synced


def test_a_resource_that_the_server_lacks_is_empty_if_it_is_optional() -> None:
    script = Script(SERVICE_CIDRS)
    script.refuse(404, "NotFound")
    assert (script.reflector.synced, script.names, script.reflector.problem) == (True, [], "")
    assert script.pause() == 300
    script.list({"metadata": {"name": "late", "resourceVersion": "9"}})
    assert script.names == ["late"]


def test_a_list_that_does_not_come_is_given_up() -> None:
    script = Script()
    script.pass_time(74)
    assert script.reflector.wanted is not None
    script.pass_time(1)
    script.pause()
    assert not script.reflector.synced


def test_a_list_that_trickles_is_given_up_too() -> None:
    script = Script()
    script.reflector.head(script.request.serial, script.now, 200)
    serial = script.request.serial
    for _ in range(5):
        script.pass_time(60)
        script.reflector.body(serial, script.now, b" ")
    assert script.reflector.wanted is None


def test_late_answers_to_what_was_given_up_are_ignored() -> None:
    script = Script()
    serial = script.request.serial
    script.fail()
    script.pause()
    script.reflector.head(serial, script.now, 200)
    script.reflector.body(serial, script.now, b'{"metadata":{"resourceVersion":"1"},"items":[]}')
    script.reflector.end(serial, script.now)
    assert not script.reflector.synced


# -------------------------------------------------------------------------------------------------- bounds


def test_answers_have_a_limit() -> None:
    pace = replace(Pace(), max_body=1000, max_line=1000, max_refusal=100)
    script = Script(pace=pace)
    script.answer(b" " * 1001, end=False)
    assert "1000 bytes" in script.reflector.problem
    script.pause()
    script.answer(b" " * 101, status=500, end=False)
    assert "100 bytes" in script.reflector.problem
    script.pause()
    script.list()
    script.open()
    script.bytes(b" " * 600)
    script.bytes(b" " * 600)
    assert "1000 bytes" in script.reflector.problem


def test_deletions_are_remembered_up_to_a_limit() -> None:
    script = watching()
    for number in range(10_000):
        script.event("DELETED", service(f"s-{number}", 101 + number))
    assert len(script.reflector._collection._tombstones) == 4096
    script.bookmark(20_000)
    assert not script.reflector._collection._tombstones


def test_changes_are_kept_per_object_not_per_event() -> None:
    script = watching(service("a", 50))
    for version in range(101, 1101):
        script.event("MODIFIED", service("a", version, port=version))
    assert script.changes() == [("changed", "a")]
