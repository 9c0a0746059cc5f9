"""Every exception that kuproxy raises on purpose.

Whoever catches `KuError` has caught all of them: the command turns one into exit status 2, the daemon into an
answer with status 400.  Anything else that escapes is a defect and keeps its traceback.

Configuration is refused as a whole, with all its faults: a `ConfigError` carries a list of problems, because
who has to fix six lines wants to hear of six, not of one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = [
    "ConfigError",
    "ConflictError",
    "DriverError",
    "KuError",
    "PrivilegeError",
    "Problem",
    "SteeringError",
    "TableFullError",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (or, in a list of notes, worth knowing), where it stands, and what would be right."""

    message: str
    file: str = ""
    line: int = 0  # counted from 1; 0: no line is known
    field: str = ""
    hint: str = ""

    def __str__(self) -> str:
        """One line: `FILE:LINE: field: what is wrong; what would be right`.

        What is quoted from the input may hold line breaks and control characters: they are shown escaped.
        """
        where = self.file
        if self.line:
            where = f"{where}:{self.line}" if where else f"line {self.line}"
        text = ": ".join(part for part in (where, self.field, self.message) if part)
        return _printable(f"{text}; {self.hint}" if self.hint else text)

    def at(self, file: str, line: int) -> Problem:
        """The same problem, placed; a place that is already known stays."""
        return replace(self, file=self.file or file, line=self.line or line)


def _printable(text: str) -> str:
    """The text as it is, or, with the characters escaped that would break the line or steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


class KuError(Exception):
    """Something that a user can put right."""


class ConfigError(KuError):
    """Configuration that is refused, with everything that is wrong in it."""

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class ConflictError(ConfigError):
    """Two owners claim the same VIP or node port; each problem names both."""


class HandoverError(KuError):
    """What a former control process has left, or the start has provided, cannot be used: all must begin anew."""


class PrivilegeError(KuError):
    """The kernel refuses what needs a privilege; the message says which."""


class DriverError(KuError):
    """An interface or a file that packets should come from or go to cannot be used."""


class SteeringError(KuError):
    """The kernel does not send us the traffic that it should."""


class TableFullError(KuError):
    """A table of fixed size has no room left; the message names the table, its size and the setting."""
