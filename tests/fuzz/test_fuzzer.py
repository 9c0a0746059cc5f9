"""The fuzzer itself: it sees planted mistakes, makes findings small, and survives what kills a case."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random

import pytest

from fuzz import corpus, target
from fuzz.__main__ import main
from fuzz.minimise import minimise
from fuzz.run import replay, run
from fuzz.target import Finding, Parts, Target, in_child


class Planted(Target):
    """Breaks where a part holds `x` and a later one `yy`."""

    name = "planted"
    promise = "None."

    def draw(self, rng: Random) -> Parts:
        return tuple(
            bytes(rng.choice(b"abcdxyz") for _ in range(rng.randrange(12))) for _ in range(rng.randrange(9))
        )

    def check(self, parts: Parts) -> None:
        seen = False
        for part in parts:
            if seen and b"yy" in part:
                raise ZeroDivisionError(f"after {len(parts)} parts")
            seen = seen or b"x" in part


class Deadly(Planted):
    isolated = True
    per_child = 5

    def check(self, parts: Parts) -> None:
        if any(b"zz" in part for part in parts):
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_finding_is_made_small_and_kept(tmp_path: Path) -> None:
    done = run(Planted(), 1, cases=5000, keep_in=tmp_path)
    assert done.finding is not None
    assert done.kept is not None
    assert corpus.read(done.kept) == (b"x", b"yy")
    [(path, again)] = replay(Planted(), tmp_path)
    assert path == done.kept
    assert "ZeroDivisionError" in again.where


def test_the_same_seed_finds_the_same() -> None:
    one, two = (run(Planted(), 77, cases=5000, keep_in=None) for _ in range(2))
    assert one.finding == two.finding
    assert one.seeds == two.seeds


def test_a_case_that_kills_its_process_is_found_among_others(tmp_path: Path) -> None:
    done = run(Deadly(), 1, cases=2000, keep_in=tmp_path)
    assert done.finding is not None
    assert done.finding.where == "SIGKILL"
    assert done.kept is not None
    assert corpus.read(done.kept) == (b"zz",)


def test_another_failure_is_no_smaller_form_of_this_one() -> None:
    class Two(Planted):
        def check(self, parts: Parts) -> None:
            if len(parts) > 2:
                raise KeyError("many")
            if parts:
                raise ValueError("few")

    small = minimise(Two(), Finding((b"a", b"b", b"c", b"d"), *target.described(KeyError("many"))))
    assert len(small.parts) == 4, "an error that was not raised there is found nowhere"
    found = Two().judge((b"a", b"b", b"c", b"d"))
    assert found is not None
    assert len(minimise(Two(), found).parts) == 3


def test_what_hangs_is_ended() -> None:
    class Slow(Planted):
        def check(self, parts: Parts) -> None:
            while True:
                try:
                    time.sleep(0.01)
                except Exception:
                    continue

    former, target.PATIENCE_S = target.PATIENCE_S, 0.2
    try:
        found = Slow().judge(())
    finally:
        target.PATIENCE_S = former
    assert found is not None
    assert "Hang" in found.where
    assert in_child(lambda: time.sleep(60), patience_s=0.2) == ("no end after 0.2 s", "hang")


def test_packets_that_went_wrong_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that is one off, a byte behind the room, and a reference that answers otherwise."""
    from fuzz.packets import run as packets_run
    from fuzz.packets import world
    from fuzz.packets.run import SharedLog
    from kuproxy.codes import Outcome
    from kuproxy.dataplane.layout import W_OUTCOMES
    from kuproxy.engine.local import LocalEngine

    log = SharedLog(1 << 20)
    process = LocalEngine.process

    def miscounting(self: LocalEngine, frame, now, worker=0) -> None:
        process(self, frame, now, worker)
        self.states[worker].header[W_OUTCOMES + Outcome.DROP] += 1

    def overrunning(self: LocalEngine, frame, now, worker=0) -> None:
        process(self, frame, now, worker)
        record = frame.packets[0]
        frame.data[int(record["start"]) + int(record["room"])] = 1

    for wrong, words in ((miscounting, "do not add up"), (overrunning, "room were written")):
        monkeypatch.setattr(LocalEngine, "process", wrong)
        log.clear()
        with pytest.raises(AssertionError, match=words):
            packets_run.run(5, 2000, log.log)
    monkeypatch.setattr(LocalEngine, "process", process)
    log.clear()
    packets_run.run(5, 600, log.log)
    parts = log.parts(5)
    assert packets_run.replay(parts) > 500
    monkeypatch.setattr(world.World, "pass_time", lambda self, ticks: None)
    receive = world.Workers.receive

    def forgetful(self, packets, now, workers=None):
        return [each._replace(data=each.data[:-1]) for each in receive(self, packets, now, workers)]

    monkeypatch.setattr(world.Workers, "receive", forgetful)
    with pytest.raises(AssertionError, match="instead of"):
        packets_run.replay(parts)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "language", "--cases", "20", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "20 cases of seeds 5 to 24" in out
    assert "the promise was kept" in out
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


@pytest.mark.parametrize(
    "words", [["--minutes", "0"], ["--target", "nothing"], ["--seed", "-1"], ["--cases", "x"]]
)
def test_a_wrong_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
