"""`ku shell`: the command language at a prompt, with completion from the grammar, and a history.

Only this module needs prompt-toolkit (the extra `shell`).  What is typed goes to the daemon as it stands; `help` is
answered here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from kuproxy.client import Client, Refusal, output, take_options
from kuproxy.vppcli.grammar import COMMANDS
from kuproxy.vppcli.help import help_text
from kuproxy.vppcli.words import WordError, match_keyword

__all__ = ["candidates", "main"]


def candidates(text: str) -> list[str]:
    """What may stand where `text` ends: keywords of the grammar, never values."""
    words = text.split()
    begun = words.pop() if words and not text[-1].isspace() else ""
    path: tuple[str, ...] = ()
    following = _following(path)
    for position, word in enumerate(words):
        try:
            path = (*path, match_keyword(word, following))
        except WordError:
            following = set(_options(path)) if _is_command(path) and position else set()
            break
        following = _following(path) | (set(_options(path)) if _is_command(path) else set())
    return sorted(each for each in following if each.startswith(begun))


def _following(path: tuple[str, ...]) -> set[str]:
    depth = len(path)
    return {row.path[depth] for row in COMMANDS if row.path[:depth] == path and len(row.path) > depth}


def _is_command(path: tuple[str, ...]) -> bool:
    return any(row.path == path for row in COMMANDS)


def _options(path: tuple[str, ...]) -> Iterator[str]:
    """The keywords in a command's usage: what is not in angle brackets."""
    for row in COMMANDS:
        if row.path == path:
            usage = row.usage
            for mark in "[]|":
                usage = usage.replace(mark, " ")
            for word in usage.split():
                if word[0].isalpha() and "<" not in word:
                    yield word


def _ask(client: Client, line: str, as_json: bool) -> str:
    words = line.split()
    if words in (["help"], ["?"]):
        return help_text()
    rest, also_json, _ = take_options(words)
    return output(client.run(" ".join(rest)), as_json or also_json)


def _lines(history: Path) -> Iterable[str]:
    """What is typed, until Ctrl-D; without a terminal, the lines of standard input."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import CompleteEvent, Completer, Completion
        from prompt_toolkit.document import Document
        from prompt_toolkit.history import FileHistory
    except ImportError:
        raise Refusal("the shell needs prompt-toolkit: pip install 'kuproxy[shell]'") from None

    class FromGrammar(Completer):
        def get_completions(self, document: Document, _event: CompleteEvent) -> Iterator[Completion]:
            begun = document.get_word_before_cursor(WORD=True)
            for word in candidates(document.text_before_cursor):
                yield Completion(word, start_position=-len(begun))

    history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        "ku# ", completer=FromGrammar(), history=FileHistory(str(history)), complete_while_typing=False
    )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


HELP = """\
Usage: ku shell [--json] [--socket PATH]

  Type commands to the running daemon, as after `ku`: vip, pod, conf, set,
  show, trace, test, reload. The tabulator key completes words, the arrow keys
  bring back what was typed before, also in former shells. `quit` ends it.
  Lines may also come from a pipe.

Options:
  --json         Print answers as JSON.
  --socket PATH  Where the daemon listens.
"""


def main(words: list[str]) -> int:
    """Returns the exit status: 2 if the last line was refused."""
    if words == ["--help"]:
        print(HELP, end="")
        return 0
    status = 0
    try:
        rest, as_json, path = take_options(words)
        if rest:
            raise Refusal(f"{rest[0]!r} is too much: `ku shell` takes --json and --socket PATH")
        client = Client(path)
        client.request("GET", "/v1/health")  # no daemon: say so before anybody types
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        for line in _lines(home / "kuproxy/history"):
            text = line.strip()
            if text in ("quit", "exit", "q"):
                break
            if not text:
                continue
            status = 0
            try:
                print(_ask(client, text, as_json), end="", flush=True)
            except Refusal as refusal:
                status = 2
                print(refusal, file=sys.stderr, flush=True)
    except Refusal as refusal:
        print(f"ku: {refusal}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
