"""A capture file as traffic: time windows and ticks, interfaces, cut packets, what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.codes import Outcome
from kuproxy.dataplane.layout import BATCH, META_COUNT, TICKS_PER_SECOND
from kuproxy.drivers.capture import Capture, CaptureDriver, CaptureWriter

SECOND = 1_000_000_000
TICK = SECOND // TICKS_PER_SECOND
START = 1_700_000_000 * SECOND


def written(path: Path, times: list[int], **options: int) -> Path:
    with CaptureWriter(path, ["a", "b", "c"]) as writer:
        for i, time_ns in enumerate(times):
            writer.write(i.to_bytes(4, "big") * 15, time_ns, i % 3, **options)
    return path


@given(
    steps=st.lists(st.one_of(st.integers(-50_000_000, 50_000_000), st.integers(0, 2_000_000)), max_size=300),
    window_ns=st.sampled_from([1, 1_000_000, 10_000_000, SECOND]),
)
def test_a_vector_has_one_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], window_ns: int
) -> None:
    """No vector spans the window or two ticks; all packets come, in file order, with their own times."""
    times = [START + int(offset) for offset in np.cumsum(steps)]
    driver = CaptureDriver(written(tmp_path_factory.getbasetemp() / "w.pcapng", times), window_ns=window_ns)
    seen: list[int] = []
    before = 0
    while not driver.finished:
        assert driver.next_ns == times[len(seen)]
        n = driver.receive(driver.frame)
        assert 0 < n <= BATCH
        vector = driver.times_ns[:n].tolist()
        assert max(abs(t - vector[0]) for t in vector) < window_ns
        assert len({t // TICK for t in vector}) == 1
        assert driver.now_ns >= max(before, vector[0]) and driver.tick == driver.now_ns // TICK
        before = driver.now_ns
        starts = driver.frame.packets["start"][:n]
        assert [int.from_bytes(driver.frame.data[s : s + 4].tobytes(), "big") for s in starts] == list(
            range(len(seen), len(seen) + n)
        )
        seen += vector
        if len(seen) < len(times) and n < BATCH:  # it ended for a reason
            following = times[len(seen)]
            assert abs(following - vector[0]) >= window_ns or following // TICK != vector[0] // TICK
    assert seen == times
    assert driver.next_ns is None and driver.receive(driver.frame) == 0


def test_interfaces_keep_their_names(tmp_path: Path) -> None:
    """Numbers chosen by the caller inside, names of the input outside; held packets leave when released."""
    source = written(tmp_path / "in.pcapng", [START + i for i in range(6)])
    driver = CaptureDriver(source, tmp_path / "out.pcapng", dropped=tmp_path / "dropped.pcap")
    assert driver.interfaces == ("a", "b", "c")
    driver.interface_map[:] = [40, 7, 1]
    n = driver.receive(driver.frame)
    packets = driver.frame.packets
    assert packets["interface"][:n].tolist() == [40, 7, 1] * 2
    packets["outcome"][:n] = [1, 3, 2, 1, 4, 3]
    packets[n] = packets[2]
    driver.frame.meta[META_COUNT] = n + 1
    assert driver.transmit(driver.frame) == (4, 0)
    driver.close()
    out = Capture(tmp_path / "out.pcapng", strict=True)
    assert out.interfaces == ["a", "b", "c"]
    assert out.packets["interface"].tolist() == [0, 2, 0, 2]
    assert out.packets["time_ns"].tolist() == [START, START + 2, START + 3, START]
    dropped = Capture(tmp_path / "dropped.pcap", strict=True)
    assert dropped.packets["time_ns"].tolist() == [START + 1, START + 5]


def test_cut_packets_are_told(tmp_path: Path) -> None:
    source = written(tmp_path / "in.pcap", [START, START + 1], original=1514)
    driver = CaptureDriver(source, tmp_path / "out.pcapng")
    assert driver.capture.cut == 2
    assert driver.receive(driver.frame) == 2
    assert driver.missing[:3].tolist() == [1454, 1454, 0]
    driver.frame.packets["outcome"][:2] = Outcome.PASS
    driver.transmit(driver.frame)
    driver.close()
    assert Capture(tmp_path / "out.pcapng").packets["original"].tolist() == [1514, 1514]


def test_a_damaged_file_ends_at_the_damage(tmp_path: Path) -> None:
    source = written(tmp_path / "in.pcap", [START, START + 1])
    source.write_bytes(source.read_bytes()[:-1])
    driver = CaptureDriver(source)
    assert driver.receive(driver.frame) == 1 and driver.finished
    assert driver.capture.error is not None and "ends inside a packet" in str(driver.capture.error)


def test_an_empty_capture(tmp_path: Path) -> None:
    driver = CaptureDriver(written(tmp_path / "in.pcap", []), tmp_path / "out.pcapng")
    assert driver.finished and driver.receive(driver.frame) == 0
    assert driver.transmit(driver.frame) == (0, 0)
    driver.close()
    assert Capture(tmp_path / "out.pcapng", strict=True).interfaces == ["pcap0"]
