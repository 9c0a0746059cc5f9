"""From text to words, and from an abbreviation to the keyword that it stands for.

VPP's command line takes any unambiguous beginning of a keyword, and so do we; a word that fits several is refused
with the candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Word", "WordError", "match_keyword", "split_commands"]


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command and the line that it stands on: a continued command has several."""

    text: str
    line: int


class WordError(ValueError):
    """A word that does not belong where it stands; `hint` says what would."""

    def __init__(self, message: str, hint: str, line: int = 0) -> None:
        super().__init__(message)
        self.hint = hint
        self.line = line


def split_commands(text: str) -> Iterator[list[Word]]:
    """The commands of a script, blank ones left out.

    A `#` that begins a word starts a comment; a command continues on the next line if its last character before
    any comment is a backslash that stands apart or ends a word.
    """
    words: list[Word] = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts: list[str] = []
        for part in line.split():
            if part.startswith("#"):
                break
            parts.append(part)
        continued = bool(parts) and parts[-1].endswith("\\")
        if continued:
            parts[-1] = parts[-1][:-1]
        words.extend(Word(part, number) for part in parts if part)
        if not continued and words:
            yield words
            words = []
    if words:
        yield words


def match_keyword(word: str, keywords: Iterable[str]) -> str:
    """The keyword that `word` is or unambiguously begins.  Raises WordError, naming what is possible."""
    known = sorted(set(keywords))
    if word in known:
        return word
    candidates = [keyword for keyword in known if word and keyword.startswith(word)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise WordError(f"{word!r} is ambiguous", f"it may mean {_listed(candidates)}")
    if not known:
        raise WordError(f"{word!r} is too much", "the command ends before it")
    raise WordError(f"{word!r} is not known here", f"possible: {_listed(known)}")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
