"""The regression corpus: cases that once broke a promise, or that show what is hard to reach; one JSON file each.

{"says": "why it is here", "parts": ["text", {"hex": "00ff"}]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from fuzz.target import Parts

__all__ = ["ROOT", "load", "read", "write"]

ROOT = Path(__file__).parent / "corpus"


def read(path: Path) -> Parts:
    """The case of a file."""
    parts = json.loads(path.read_text())["parts"]
    return tuple(part.encode() if isinstance(part, str) else bytes.fromhex(part["hex"]) for part in parts)


def load(target: str, root: Path = ROOT) -> Iterator[tuple[Path, Parts]]:
    """Every case of a target."""
    for path in sorted((root / target).glob("*.json")):
        yield path, read(path)


def _told(part: bytes) -> str | dict[str, str]:
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return {"hex": part.hex()}
    return (
        text
        if text.isprintable() or all(each.isprintable() or each in "\n\t" for each in text)
        else {"hex": part.hex()}
    )


def write(target: str, parts: Parts, says: str, root: Path = ROOT) -> Path:
    """Keep a case, under a name that follows from what it holds."""
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=6).hexdigest()
    path = root / target / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"says": says, "parts": [_told(part) for part in parts]}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n")
    return path
