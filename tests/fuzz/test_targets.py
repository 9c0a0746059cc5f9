"""Each target for a moment, and every case that ever broke a promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import corpus
from fuzz.run import run
from fuzz.target import Target
from fuzz.targets import TARGETS, make, promise_of
from kuproxy.dataplane._jit import COMPILED

SEED = 20261128  # a red build is red for everybody
CASES = {
    "packets": 60_000,
    "language": 300,
    "settings": 150,
    "manifests": 100,
    "api": 40,
    "watch": 200,
    "captures": 200,
    "handover": 8,
    "datagrams": 120,
}
OURS = "packets of every kind are compiled ones"


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    if not COMPILED:
        pytest.skip(OURS)
    made = make(request.param)
    yield made
    made.close()


@pytest.mark.timeout(600)  # kernels may have to be compiled
def test_the_promise_is_kept(target: Target) -> None:
    done = run(target, SEED, cases=CASES[target.name], keep_in=None)
    assert done.finding is None, f"seed {done.first_seed + done.seeds - 1}: {done.finding}"
    assert done.cases >= CASES[target.name]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_promise_is_kept_for_longer(target: Target) -> None:
    done = run(target, SEED + 1000, seconds=60, keep_in=None)
    assert done.finding is None, f"seed {done.first_seed + done.seeds - 1}: {done.finding}"


@pytest.mark.parametrize("name", [name for name in TARGETS if (corpus.ROOT / name).is_dir()])
def test_the_corpus(name: str) -> None:
    """What was mended stays so."""
    made = make(name)
    try:
        for path, parts in corpus.load(name):
            finding = made.judge(parts)
            assert finding is None, f"{path.name}: {finding.what if finding else ''}"
    finally:
        made.close()


def test_each_target_says_what_it_promises() -> None:
    for name in TARGETS:
        promise = promise_of(name)
        assert promise.endswith("."), name
        assert len(promise) > 40
    folders = {path.name for path in corpus.ROOT.iterdir()}
    assert folders <= set(TARGETS), "a corpus of no target"


def test_a_case_is_kept_as_it_is(tmp_path: Path) -> None:
    parts = (b"plain", b"\xff\0", "snow \N{SNOWMAN}".encode(), b"")
    path = corpus.write("any", parts, "why", tmp_path)
    assert corpus.read(path) == parts
    assert corpus.write("any", parts, "another reason", tmp_path) == path, "one case, one file"
