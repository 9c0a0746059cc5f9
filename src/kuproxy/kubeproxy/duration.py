"""Durations as Go writes them: `15m0s`, `250ms`, `1h0m0s`.

Source: the documentation of Go's time.ParseDuration and Duration.String; metav1.Duration is such a string.
"""

from __future__ import annotations

import re
from typing import Self

__all__ = ["Duration", "FlushFrequency"]

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # U+00B5, micro sign
    "μs": 10**3,  # U+03BC, Greek letter mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
# Each text has but one reading, or a long run of digits would be read in every possible way.
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = 256  # characters: 292 years, to the nanosecond and far below
_MAX_NS = (1 << 63) - 1


class Duration(int):
    """Nanoseconds."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Raises ValueError with what would be right."""
        hint = "a duration is a string as 30s, 1h15m or 250ms"
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is not a duration; {hint}")
        sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        if rest == "0":
            return cls(0)
        parts = _PART.findall(rest) if len(rest) <= _LONGEST else []
        if not parts or "".join(number + unit for number, unit in parts) != rest:
            raise ValueError(f"{text!r} is not a duration; {hint}")
        total = 0
        for number, unit in parts:
            whole, _, fraction = number.partition(".")
            total += int(whole or "0") * _UNITS_NS[unit]
            total += int(fraction or "0") * _UNITS_NS[unit] // 10 ** len(fraction)
        if total > _MAX_NS:
            raise ValueError(f"{text!r} is longer than 292 years; {hint}")
        return cls(sign * total)

    @classmethod
    def of(cls, seconds: float) -> Self:
        return cls(round(seconds * 10**9))

    @property
    def seconds(self) -> float:
        return int(self) / 10**9

    def __str__(self) -> str:
        """As Go prints it; from one second on with hours and minutes, however many are zero below the first."""
        sign, total = ("-", -self) if self < 0 else ("", +self)
        if total == 0:
            return "0s"
        if total < 10**9:
            unit, size = next(each for each in (("ms", 10**6), ("µs", 10**3), ("ns", 1)) if total >= each[1])
            return f"{sign}{_decimal(total, size)}{unit}"
        hours, rest = divmod(total, _UNITS_NS["h"])
        minutes, rest = divmod(rest, _UNITS_NS["m"])
        text = f"{_decimal(rest, 10**9)}s"
        if hours or minutes:
            text = f"{minutes}m{text}"
        return f"{sign}{hours}h{text}" if hours else f"{sign}{text}"


class FlushFrequency(Duration):
    """The one duration that older files have as a number of nanoseconds (component-base's TimeOrMetaDuration)."""

    @classmethod
    def parse(cls, text: object) -> Self:
        return cls(text) if isinstance(text, int) and not isinstance(text, bool) else super().parse(text)


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    digits = str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}"
