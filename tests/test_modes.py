"""The kernels in their other two lives: with every array access checked, and as plain Python.

A session has one mode, so these are sessions of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FUZZ = "fuzz/test_targets.py::test_the_promise_is_kept[packets]"
SUITE = ["differential/test_compiled.py", "dataplane/test_broken_input.py", "dataplane/test_golden.py"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_same_results(mode):
    run(mode, SUITE)


@pytest.mark.long  # the mutator has to be compiled once more
@pytest.mark.timeout(600)
def test_damaged_packets_with_every_access_checked():
    run("NUMBA_BOUNDSCHECK", [FUZZ])


def run(mode, suite):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(str(TESTS / each) for each in suite),
    ]
    done = subprocess.run(command, env=os.environ | {mode: "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
