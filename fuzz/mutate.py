"""Damage to bytes, text and JSON-like values: what the text targets share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

__all__ = ["damage", "damage_tree", "odd_value", "reword"]

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30)
STRINGS = (
    "", " ", "0", "-1", "1e309", "nan", "true", "null", "10.0.0.1", "10.0.0.0/8", "::1", "::/0", "2001::2/128",
    "::ffff:1.2.3.4", "fe80::1%eth0", "1.2.3.4.5", "01.2.3.4", "10.0.0.1/33", "TCP", "tcp", "\N{SNOWMAN}",
    "a" * 300, "../../etc/passwd", "\r\n", "\0", "%s", "{}", "0x10", "1_000", "٣", "\ud7ff",
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"\n", b"\r", b"\t", b"\0", b"#", b"\\", b"&a", b"*a", b"<<", b"!!",
    b"---", b"- ", b"|", b">", b"=", b"[[", b"]]", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"1" * 5000,
    b"[" * 3000, b'{"a":' * 2000, b"99999999999999999999", b"-0", b"1e999", b"NaN", b"0x1p3", b"\\u0000", b"\\ud800",
)  # fmt: skip


def damage(rng: Random, data: bytes, times: int = 1, tokens: Sequence[bytes] = TOKENS) -> bytes:
    """Flip, overwrite, insert, remove, repeat or cut, so many times."""
    whole = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(whole) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(whole):
            whole[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(whole):
            whole[at] = rng.randrange(256)
        elif kind in (2, 3):
            whole[at:at] = rng.choice(tokens)
        elif kind == 4:
            del whole[at : at + rng.choice((1, 1, 4, 30))]
        elif kind == 5:
            piece = whole[at : at + rng.choice((1, 8, 60))]
            whole[at:at] = piece * rng.choice((1, 1, 2, 40))
        elif kind == 6:
            other = rng.randrange(len(whole) + 1)
            piece = whole[other : other + rng.randrange(1, 40)]
            whole[at : at + len(piece)] = piece
        elif kind == 7 and rng.randrange(3) == 0:
            del whole[at:]
    return bytes(whole)


def reword(rng: Random, line: str, words: Sequence[str]) -> str:
    """The same line with words exchanged, left out, repeated, cut short or moved."""
    parts = line.split()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts) + 1)
        kind = rng.randrange(7)
        if kind <= 1:
            parts[at : at + 1] = [rng.choice(words)]
        elif kind == 2:
            parts.insert(at, rng.choice(words))
        elif kind == 3:
            del parts[at : at + 1]
        elif kind == 4 and at < len(parts):
            parts[at] = parts[at][: rng.randrange(len(parts[at]) + 1)]
        elif kind == 5 and at < len(parts):
            parts.insert(rng.randrange(len(parts)), parts[at])
        elif at < len(parts):
            parts[at] = str(rng.choice(NUMBERS)) if rng.randrange(2) else rng.choice(STRINGS)
    return " ".join(parts)


def odd_value(rng: Random) -> Any:
    """Of any type."""
    kind = rng.randrange(8)
    if kind <= 1:
        return rng.choice(NUMBERS)
    if kind <= 4:
        return rng.choice(STRINGS)
    return rng.choice((None, True, False, 0.5, -1e308, [], {}, [[]], {"": {}}, [None], ["x"] * 5))


def damage_tree(rng: Random, value: Any, times: int = 1, odd: Callable[[Random], Any] = odd_value) -> Any:
    """A copy of lists and dicts in which some nodes are replaced, removed, repeated, renamed or exchanged."""
    whole = [copy.deepcopy(value)]
    for _ in range(times):
        places = _places(whole)
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 2:
            parent[key] = odd(rng)
        elif kind == 3 and parent is not whole:
            del parent[key]
        elif kind == 4 and isinstance(parent, list) and parent is not whole:
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 5 and isinstance(parent, dict):
            parent[rng.choice((*map(str, parent), "unknown", ""))] = parent.pop(key)
        elif kind == 6:
            other, its = rng.choice(places)
            parent[key] = copy.deepcopy(other[its])
        elif kind == 7:
            parent[key] = [parent[key]] if rng.randrange(2) else {"unknown": parent[key]}
    return whole[0]


def _places(whole: list[Any]) -> list[tuple[Any, Any]]:
    """(container, key) of every value within."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [whole]
    while waiting:
        container = waiting.pop()
        keys = range(len(container)) if isinstance(container, list) else list(container)
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], list | dict):
                waiting.append(container[key])
    return found
