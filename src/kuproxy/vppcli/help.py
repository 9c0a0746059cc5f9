"""The help text of the `ku` language, made from the command table so that it cannot disagree with it."""

from __future__ import annotations

import textwrap

from kuproxy.vppcli.grammar import COMMANDS

__all__ = ["help_text"]

_HEAD = """\
Every word may be shortened as long as it stays unambiguous: `ku` is `kube-proxy`, `sh ku v v` is
`show kube-proxy vips verbose`.  `#` starts a comment, a backslash at the end continues a line.
"""

_DEEP = " " * 10


def help_text(width: int = 100) -> str:
    """Every command with its usage and a sentence."""
    lines = [_HEAD]
    for command in COMMANDS:
        if command.hidden:
            continue
        usage = " ".join((*command.path, command.usage)).strip()
        lines.extend(textwrap.wrap(usage, width, initial_indent="  ", subsequent_indent="      "))
        lines.extend(textwrap.wrap(command.sentence, width, initial_indent=_DEEP, subsequent_indent=_DEEP))
    return "\n".join(lines) + "\n"
