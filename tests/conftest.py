"""What every test may rely on: a fixed Hypothesis profile, and `netns` tests that are skipped aloud.

Numba is not imported here: a run that needs no kernel should not wait for it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("differential.machine")

# No deadline: the first call of a kernel may compile it. Derandomized: a red build is red for everybody.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# `make test-long` looks further, and elsewhere at every run.
settings.register_profile("long", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@functools.cache
def _no_netns_because() -> str | None:
    """Why network namespaces cannot be made here, or None when they can."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"no program `{program}`"
    # Inside the new namespace, bring up its loopback: a container may grant the one and refuse the other.
    trial = subprocess.run(
        ["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False
    )
    if trial.returncode != 0:
        return f"namespaces cannot be created: {trial.stderr.strip() or trial.returncode}"
    return None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `netns` tests with the reason where they cannot run; else run all of them in one process.

    One process, because they load the machine's two cores, and may use the same names and addresses.
    """
    for item in items:
        if item.get_closest_marker("netns") is None:
            continue
        reason = _no_netns_because()
        if reason is None:
            item.add_marker(pytest.mark.xdist_group("netns"))
        else:
            item.add_marker(pytest.mark.skip(reason=f"netns: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end how many `netns` tests did not run: a green run without them proves less."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "netns: " in report.longrepr[2]
    ]
    if skipped:
        reason = skipped[0].longrepr[2].partition("netns: ")[2]
        terminalreporter.section("NOT RUN: tests against the real kernel", sep="=", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} netns tests were skipped: {reason}", red=True)
