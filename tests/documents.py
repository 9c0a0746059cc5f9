"""Pages of docs/ as tests run them: what stands in their blocks, in its order.

A page's blocks are

    ```python      run; what it prints stands in the ```text that follows
    ```ku, ```yaml, ```toml
                   files: their name is the last one in `backticks` in the paragraph before
    (indented)     shell lines; those that begin with `ku`, after a `$` or not, are commands; a backslash continues them
    ```sh          the same

Inline `ku …` in a sentence is a mention, no command.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
FILES = ("ku", "yaml", "toml")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"`([\w.-]+\.(?:ku|yaml|toml|conf))`")


@dataclass(frozen=True)
class Block:
    """`kind`: python, text, file, command, or what else the fence says; `name` of a file."""

    kind: str
    content: str
    line: int
    name: str = ""


def blocks(page: Path) -> list[Block]:
    """Every block of a page."""
    text = page.read_text()
    found: list[Block] = []

    def line_at(place: int) -> int:
        return text[:place].count("\n") + 1

    end = 0
    for fence in _FENCE.finditer(text):
        found += _indented(text[end : fence.start()], line_at(end))
        kind, content = fence[1], fence[2]
        if kind in FILES:
            before = text[: fence.start()].rstrip().rsplit("\n\n", 1)[-1]
            names = _FILE_NAME.findall(before)
            found.append(Block("file", content, line_at(fence.start()), names[-1] if names else ""))
        elif kind == "sh":
            found += _commands(content.splitlines(), line_at(fence.start()) + 1)
        else:
            found.append(Block(kind, content, line_at(fence.start())))
        end = fence.end()
    return found + _indented(text[end:], line_at(end))


def commands(page: Path) -> list[Block]:
    """Its `ku` commands, without the word `ku`."""
    return [each for each in blocks(page) if each.kind == "command"]


def _indented(text: str, first: int) -> list[Block]:
    """Of a stretch without fences: lines with four blanks before them, after an empty line or another such one."""
    lines, code = text.splitlines(), []
    may_begin = True
    for line in lines:
        is_code = line.startswith("    ") and may_begin
        code.append(line[4:] if is_code else "")
        may_begin = is_code or not line.strip()
    return _commands(code, first)


def _commands(lines: list[str], first: int) -> list[Block]:
    found = []
    at = 0
    while at < len(lines):
        begin, line = at, lines[at]
        while line.endswith("\\") and at + 1 < len(lines):
            at += 1
            line = line[:-1] + lines[at].strip()
        at += 1
        words = shlex.split(line.removeprefix("$ "), comments=True) if re.match(r"(\$ )?ku ", line) else []
        if words:
            found.append(Block("command", shlex.join(words[1:]), first + begin))
    return found


def run_python(page: Path) -> int:
    """Run the Python blocks, in one namespace; each must print what stands below it. Returns how many there were."""
    names: dict[str, Any] = {}
    printed, count = "", 0
    for block in blocks(page):
        if block.kind == "text":
            assert printed == block.content, f"{page.name}:{block.line}"
            printed = ""
        elif block.kind == "python":
            assert printed == "", f"{page.name}:{block.line}: what a block prints stands below it"
            heard = io.StringIO()
            with contextlib.redirect_stdout(heard):
                exec(compile(block.content, str(page), "exec"), names)
            printed, count = heard.getvalue(), count + 1
    assert printed == ""
    return count
