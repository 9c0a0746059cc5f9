"""`ku check`: what is wrong with configuration files, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from kuproxy.check.finding import Finding, Paths, Severity
from kuproxy.check.run import check_files
from kuproxy.main import run

FOUND = 1


def _json(finding: Finding) -> dict[str, str | int]:
    return {
        "rule": finding.rule,
        "severity": finding.severity.word,
        "subject": finding.subject,
        "message": finding.message,
        "hint": finding.hint,
        "file": finding.file,
        "line": finding.line,
    }


@click.command(name="check")
@click.option(
    "--mtu",
    default=1500,
    show_default=True,
    type=click.IntRange(576, 65535),
    help="Of the way from the clients.",
)
@click.option(
    "--pod-mtu",
    default=1500,
    show_default=True,
    type=click.IntRange(576, 65535),
    help="Of the way to the pods.",
)
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
@click.option("--quiet", is_flag=True, help="No notes.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def check(mtu: int, pod_mtu: int, as_json: bool, quiet: bool, files: tuple[Path, ...]) -> int:
    """Look for what is accepted and still goes wrong, in `ku` scripts (*.ku) and Kubernetes manifests (*.yaml,
    *.json), which together are one configuration: tables too small for their pods, VIPs that overlap, pods that share
    a port, packets that become too long, services without endpoints, and what would be refused.

    The exit status is 0 without findings, or with notes alone, and 1 with warnings or errors.

    \b
    ku check services.ku
    ku check --pod-mtu 9000 services.yaml node.yaml
    """
    found = [each for each in check_files(files, Paths(mtu, pod_mtu)) if each.severity or not quiet]
    if as_json:
        print(json.dumps([_json(each) for each in found], indent=2))
    else:
        for each in found:
            print(each)
        counts = Counter(each.severity for each in found)
        parts = [f"{counts[kind]} {kind.word}{'s' * (counts[kind] != 1)}" for kind in reversed(Severity)]
        print(", ".join(parts))
    return FOUND if any(each.severity for each in found) else 0


if __name__ == "__main__":
    run(check, name="ku check")
