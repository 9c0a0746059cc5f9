"""Settings that change under live traffic: the flow table's size and timeout, without losing a connection."""

import signal
from collections.abc import Iterator

import pytest

from netns.world import WEB, Kept, World, world

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with world() as made:
        made.start()
        yield made
        status, _ = made.plane.stop()
        assert status == 0, made.plane.log


def configure(running: World, text: str, event: str = "applied") -> None:
    """Replace the script that holds the settings, and have it read."""
    before = running.plane.count(event)
    (running.directory / "settings.ku").write_text(text)
    running.plane.process.send_signal(signal.SIGHUP)
    running.plane.wait_for(event, before + 1)


def pods_of(connections: list[Kept]) -> list[str]:
    return [connection.get()[0] for connection in connections]


def test_the_flow_table_is_resized_under_open_connections(running: World) -> None:
    """Grown, shrunk, and with other pods by then: every connection stays where it is."""
    connections = [Kept(running.client, WEB[number % 2], 80) for number in range(60)]
    try:
        before = pods_of(connections)
        assert len(set(before)) > 1
        for buckets in (65536, 4096, 1024):
            configure(running, f"ku conf buckets {buckets} timeout {buckets // 10}\n")
            running.serve(["pod3"] if buckets == 4096 else ["pod1", "pod2", "pod3"])
            assert pods_of(connections) == before
            [worker] = running.plane.report()["workers"]
            assert worker["capacity"] == 4 * buckets
            assert worker["flows"] >= 60
    finally:
        for connection in connections:
            connection.close()


def test_a_table_too_small_for_its_flows_is_refused_and_the_old_one_stays(running: World) -> None:
    configure(running, "ku conf buckets 1024\n")
    connections = [Kept(running.client, WEB[0], 80) for _ in range(30)]
    try:
        before = pods_of(connections)
        configure(running, "ku conf buckets 1\n", "config refused, the former one stays")
        assert "would find no place in 1 buckets" in running.plane.log
        assert pods_of(connections) == before
        report = running.plane.report()
        assert report["settings"]["buckets"] == 1024
        assert report["workers"][0]["capacity"] == 4096
    finally:
        for connection in connections:
            connection.close()


def test_flush_forgets_flows_and_open_connections_go_by_the_ring(running: World) -> None:
    connection = Kept(running.client, WEB[0], 80)
    try:
        before = connection.get()
        configure(running, "ku conf buckets 1024\ntest kube-proxy flowtable flush\n", "flushed")
        assert connection.get() == before, "the same pods, so the same slot"
    finally:
        connection.close()
