"""The lock files: what is pinned, by which hashes, for which platforms, and because of what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REQUIREMENTS", "LockError", "Pinned", "normal", "read_lock"]

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[a-z0-9,_-]+\])?==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$")
_HASH = re.compile(r"^    --hash=sha256:([0-9a-f]{64})(?: \\)?$")


class LockError(ValueError):
    """A line that a lock file should not have; the message says which."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """One package of a lock file."""

    name: str  # as PEP 503 has it
    version: str
    marker: str  # environments that it is for; empty: all
    hashes: tuple[str, ...]  # SHA-256 of each file of that version, hexadecimal
    needed_by: tuple[str, ...]  # packages, or `kuproxy`


def normal(name: str) -> str:
    """PEP 503: one spelling for each name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path) -> list[Pinned]:
    """Packages in the order of the file.  Raises LockError for whatever is no pinned version with hashes."""
    found: list[Pinned] = []
    current: tuple[str, str, str] | None = None
    hashes: list[str] = []
    needed: list[str] = []

    def finish() -> None:
        if current is not None:
            if not hashes:
                raise LockError(f"{path.name}: {current[0]} has no hash")
            found.append(Pinned(*current, tuple(hashes), tuple(needed)))

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := _PIN.match(line):
            finish()
            current, hashes, needed = (normal(match[1]), match[2], match[3] or ""), [], []
        elif match := _HASH.match(line):
            hashes.append(match[1])
        elif line.startswith("    # via "):
            words = [word.split()[0] for word in line.removeprefix("    # via ").split(", ")]
            needed += [normal(word) for word in words]
        elif line.strip() and not line.lstrip().startswith("#"):
            raise LockError(f"{path.name}:{number}: neither a pinned version nor a hash: {line.strip()!r}")
    finish()
    return found
