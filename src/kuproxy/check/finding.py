"""What a rule finds."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from kuproxy.errors import Problem
from kuproxy.model.config import Config
from kuproxy.model.vip import Vip

__all__ = ["Finding", "Paths", "Severity", "Subject"]


class Severity(enum.IntEnum):
    """Of what is found, the worst last."""

    NOTE = 0  # worth knowing
    WARNING = 1  # traffic suffers, or will
    ERROR = 2  # some of it does not arrive at all

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, where it stands, and what to do about it."""

    rule: str  # `new-len-too-small`
    severity: Severity
    subject: str  # the VIP, Service or slice
    message: str
    hint: str
    file: str = ""
    line: int = 0  # from 1; 0: not known

    def __str__(self) -> str:
        """`FILE:LINE: warning: subject: message; hint [rule]`"""
        where = f"{self.file}:{self.line}" if self.line else self.file
        text = ": ".join(part for part in (where, self.severity.word, self.subject, self.message) if part)
        return f"{text}; {self.hint} [{self.rule}]" if self.hint else f"{text} [{self.rule}]"


@dataclass(frozen=True, slots=True)
class Paths:
    """How long packets may be, in bytes of IP, on the way here and from here to the pods."""

    mtu: int = 1500
    pod_mtu: int = 1500


def _nowhere(_vip: Vip) -> Problem:
    return Problem("")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at: a configuration, and the network that it is for."""

    config: Config
    paths: Paths = field(default_factory=Paths)
    place: Callable[[Vip], Problem] = _nowhere  # whose `file` and `line` say where a VIP was written

    def find(self, rule: str, severity: Severity, vip: Vip, message: str, hint: str) -> Finding:
        """About a VIP."""
        place = self.place(vip)
        owner = f" ({vip.owner})" if vip.owner != "ku" else ""
        return Finding(rule, severity, f"VIP {vip.key}{owner}", message, hint, place.file, place.line)
