"""Reading JSON objects field by field, with the path of every fault.

The objects come from files and from the API server alike, so that nothing here knows lines: a finding carries the
path (`("spec", "ports", 0, "port")`), and whoever has the text looks the line up, which costs nothing while all is
well (`kube.manifest`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from kuproxy.model.vip import Address, Prefix, parse_address, parse_prefix

__all__ = ["Finding", "Path", "Reader", "path_text"]

Path = tuple[str | int, ...]
E = TypeVar("E", bound=enum.Enum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an object, at a path from its document's root."""

    subject: str  # `Service shop/web`
    path: Path
    message: str
    hint: str = ""
    depth: int = 0  # how much of the path leads to the object itself, and is not told

    @property
    def field(self) -> str:
        return ": ".join(part for part in (self.subject, path_text(self.path[self.depth :])) if part)


def path_text(path: Path) -> str:
    """`spec.ports[0].port`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class Reader:
    """A view of one JSON object.  A field that is wrong is reported, and read as if it were absent."""

    __slots__ = ("depth", "findings", "path", "raw", "subject")

    def __init__(
        self, raw: object, path: Path, findings: list[Finding], subject: str = "", depth: int = 0
    ) -> None:
        self.path = path
        self.findings = findings
        self.subject = subject
        self.depth = depth
        self.raw: Mapping[object, object] = {}
        if isinstance(raw, Mapping):
            self.raw = raw
        elif raw is not None:
            self.fault((), f"{_shown(raw)} is not an object")

    def fault(self, key: str | Path, message: str, hint: str = "") -> None:
        """Report a problem with a field of this object."""
        tail = (key,) if isinstance(key, str) else key
        self.findings.append(Finding(self.subject, self.path + tail, message, hint, self.depth))

    def child(self, key: str) -> Reader:
        return Reader(self.raw.get(key), (*self.path, key), self.findings, self.subject, self.depth)

    def _items(self, key: str) -> list[object]:
        value = self.raw.get(key)
        if value is None:
            return []
        if not isinstance(value, list | tuple):  # what was decoded into structs has tuples
            self.fault(key, f"{_shown(value)} is not a list")
            return []
        return list(value)

    def children(self, key: str) -> list[Reader]:
        return [
            Reader(item, (*self.path, key, index), self.findings, self.subject, self.depth)
            for index, item in enumerate(self._items(key))
        ]

    def text(self, key: str, default: str = "") -> str:
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fault(key, f"{_shown(value)} is not a string", "put it in quotes")
            return default
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(key, f"{_shown(value)} is not a boolean", "it is true or false")
            return default
        return value

    def number(self, key: str, default: int, low: int, high: int, what: str) -> int:
        """An integer in low..high; `what` is its name in messages, `port`."""
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(key, f"{_shown(value)} is not a {what}", f"a {what} is {low} to {high}")
            return default
        return value

    def choice(self, key: str, default: E) -> E:
        """A member of the default's enumeration, by its value."""
        value = self.raw.get(key)
        if value is None or value == "":
            return default
        try:
            return type(default)(value)
        except ValueError:
            pass
        known = ", ".join(str(member.value) for member in type(default))
        self.fault(key, f"{_shown(value)} is not known", f"it is one of {known}")
        return default

    def _parsed(self, key: str, index: int | None, value: object, parse: Callable[[str], T]) -> T | None:
        place: Path = (key,) if index is None else (key, index)
        if not isinstance(value, str):
            self.fault(place, f"{_shown(value)} is not a string", "put it in quotes")
            return None
        try:
            return parse(value.strip())
        except ValueError as error:
            message, _, hint = str(error).partition("; ")
            self.fault(place, message, hint)
            return None

    def address(self, key: str) -> Address | None:
        value = self.raw.get(key)
        return None if value in (None, "") else self._parsed(key, None, value, parse_address)

    def _all(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        values = (self._parsed(key, index, item, parse) for index, item in enumerate(self._items(key)))
        return tuple(value for value in values if value is not None)

    def addresses(self, key: str) -> tuple[Address, ...]:
        return self._all(key, parse_address)

    def prefixes(self, key: str) -> tuple[Prefix, ...]:
        return self._all(key, parse_prefix)

    def texts(self, key: str) -> tuple[str, ...]:
        return self._all(key, str)


def _shown(value: object) -> str:
    text = (
        {None: "null", True: "true", False: "false"}.get(value, "") if isinstance(value, bool | None) else ""
    )
    text = text or (repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}")
    return text if len(text) <= 60 else text[:57] + "..."
