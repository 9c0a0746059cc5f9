"""What follows the words of a command: `keyword value` pairs, flags and addresses, in any order.

One reader per command collects every fault of the line instead of stopping at the first, and knows on which line
of a continued command each option stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from kuproxy.codes import Protocol
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import ENCAP_WORDS, Address, Pod, parse_address
from kuproxy.vppcli.words import Word, WordError, match_keyword

__all__ = [
    "OptionReader",
    "to_address",
    "to_encap",
    "to_int",
    "to_pod",
    "to_ports",
    "to_protocol",
    "to_seconds",
]

T = TypeVar("T")
R = TypeVar("R")

PROTOCOL_WORDS = {
    "any": Protocol.ANY,
    "tcp": Protocol.TCP,
    "udp": Protocol.UDP,
    "sctp": Protocol.SCTP,
}


def to_int(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise WordError(f"{text!r} is not a number", "write a decimal number")
    if len(text) > 10:  # nothing here exceeds 32 bits
        raise WordError(f"{text} is too large", "at most 4294967295")
    return int(text)


def to_seconds(text: str) -> float:
    try:
        if text[:1].isdecimal() and text.isascii():
            return float(text)
    except ValueError:
        pass
    raise WordError(f"{text!r} is not a number of seconds", "write for example 40 or 0.5")


def to_ports(text: str) -> tuple[int, int]:
    """`1024-65535`."""
    low, dash, high = text.partition("-")
    if not dash:
        raise WordError(f"{text!r} is not a range of ports", "write LOWEST-HIGHEST")
    return to_int(low), to_int(high)


def to_protocol(text: str) -> Protocol:
    return PROTOCOL_WORDS[match_keyword(text.lower(), PROTOCOL_WORDS)]


def to_encap(text: str) -> str:
    """A word of ENCAP_WORDS."""
    return match_keyword(text.lower(), ENCAP_WORDS)


def to_address(text: str) -> Address:
    return parse_address(text)


def to_pod(text: str) -> Pod:
    """`10.0.0.1`, `10.0.0.1:8080`, `2001::2` or `[2001::2]:8080`."""
    address, port = text, 0
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise WordError(f"{text!r} is not an address with a port", "write [ADDRESS]:PORT")
        port = to_int(rest[1:])
    elif text.count(":") == 1:
        address, _, digits = text.partition(":")
        port = to_int(digits)
    try:
        return Pod(parse_address(address), port)
    except ValueError as error:
        raise WordError(str(error), "") from None
    except ConfigError as error:
        raise WordError(error.problems[0].message, error.problems[0].hint) from None


class OptionReader:
    """Reads the words behind a command's name; afterwards `values` and `problems` say what was there."""

    def __init__(self, words: Sequence[Word], file: str, command_line: int) -> None:
        self._words = list(words)
        self._file = file
        self._end_line = words[-1].line if words else command_line
        self._lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.values: dict[str, object] = {}
        self.free: list[Word] = []  # words that are no keywords: addresses

    def problem(self, message: str, line: int, field: str = "", hint: str = "") -> None:
        self.problems.append(Problem(message, self._file, line, field, hint))

    def take(self, what: str, convert: Callable[[str], T]) -> T | None:
        """The next word, converted; None, with a problem, if it is missing or wrong."""
        if not self._words:
            self.problem("the value is missing", self._end_line, what)
            return None
        return self.convert(what, self._words.pop(0), convert)

    def convert(self, what: str, word: Word, convert: Callable[[str], T]) -> T | None:
        try:
            return convert(word.text)
        except WordError as error:
            self.problem(str(error), word.line, what, error.hint)
        except ValueError as error:
            message, _, hint = str(error).partition("; ")
            self.problem(message, word.line, what, hint)
        return None

    def take_named(
        self, keyword: str, keywords: Iterable[str], names: Iterable[str], convert: Callable[[str], T]
    ) -> dict[str, T]:
        """Take out every `keyword NAME VALUE`, and leave what is `keyword VALUE`; names begin with a letter."""
        found: dict[str, T] = {}
        position = 0
        while position + 1 < len(self._words):
            word, following = self._words[position : position + 2]
            position += 1
            if not following.text[:1].isalpha() or not _is_keyword(word.text, keyword, keywords):
                continue
            try:
                name = match_keyword(following.text, names)
            except WordError as error:
                self.problem(str(error), following.line, keyword, error.hint)
                name = ""
            position -= 1
            del self._words[position : position + 2]
            if position == len(self._words):
                self.problem("the value is missing", self._end_line, name or keyword)
                break
            value = self.convert(name or keyword, self._words.pop(position), convert)
            if value is not None and name:
                found[name] = value
        return found

    def read(
        self,
        valued: dict[str, Callable[[str], object]],
        flags: Iterable[str] = (),
        is_free: Callable[[str], bool] = lambda _text: False,
    ) -> None:
        """Read everything that is left.  An option may be repeated with the same value, never with another."""
        keywords = [*valued, *flags]
        while self._words:
            word = self._words.pop(0)
            if is_free(word.text):
                self.free.append(word)
                continue
            try:
                keyword = match_keyword(word.text, keywords)
            except WordError as error:
                self.problem(str(error), word.line, hint=error.hint)
                # The value of a misspelt option is no second fault.
                if self._words and self._words[0].text.isdecimal():
                    self._words.pop(0)
                continue
            value: object = True
            if keyword in valued:
                value = self.take(keyword, valued[keyword])
                if value is None:
                    continue
            if keyword in self.values and self.values[keyword] != value:
                self.problem(
                    f"given twice, as {_spelled(self.values[keyword])} and as {_spelled(value)}",
                    word.line,
                    keyword,
                )
                continue
            self.values[keyword] = value
            self._lines[keyword] = word.line

    def get(self, name: str, kind: type[R], default: R) -> R:
        value = self.values.get(name, default)
        assert isinstance(value, kind)
        return value

    def adopt(self, error: ConfigError, default_line: int) -> None:
        """Report what a model class refused; its fields are our keywords."""
        for problem in error.problems:
            line = self.line_of(problem.field, default_line)
            self.problem(problem.message, line, problem.field, problem.hint)

    def line_of(self, keyword: str, default: int) -> int:
        return self._lines.get(keyword, default)


def _is_keyword(text: str, keyword: str, keywords: Iterable[str]) -> bool:
    try:
        return match_keyword(text, keywords) == keyword
    except WordError:
        return False


def _spelled(value: object) -> str:
    return value.name.lower() if isinstance(value, Protocol) else str(value)
