"""All rules over files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kuproxy.check.finding import Finding, Paths, Severity, Subject
from kuproxy.check.pairs import overlaps, shared_pods
from kuproxy.check.services import services
from kuproxy.check.vips import lengths, pods, settings, sizes
from kuproxy.errors import ConfigError, Problem
from kuproxy.load import load_with_places

__all__ = ["RULES", "check_files", "check_subject"]

RULES: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    sizes,
    pods,
    settings,
    lengths,
    overlaps,
    shared_pods,
    services,
)


def _told(problems: Iterable[Problem], rule: str, severity: Severity) -> list[Finding]:
    return [
        Finding(rule, severity, each.field, each.message, each.hint, each.file, each.line)
        for each in problems
    ]


def check_subject(subject: Subject) -> list[Finding]:
    """What the rules find, the worst first."""
    found = [finding for rule in RULES for finding in rule(subject)]
    return sorted(found, key=lambda each: (-each.severity, each.file, each.line))


def check_files(paths: Sequence[Path], network: Paths) -> list[Finding]:
    """Whatever is refused is an error; only what can be read is looked at further."""
    try:
        config, place = load_with_places(paths)
    except ConfigError as error:
        return _told(error.problems, "refused", Severity.ERROR)
    notes = _told(config.notes, "left-out", Severity.NOTE)
    return check_subject(Subject(config, network, place)) + notes
