"""`ku completion bash|zsh|fish`: a script that asks `ku completion --words` for what may come next.

The script knows no words itself, so it stays right when the grammar grows.
"""

from __future__ import annotations

import sys

from kuproxy.cli import SUBCOMMANDS
from kuproxy.shell import candidates

__all__ = ["SCRIPTS", "main", "words_after"]

SCRIPTS = {
    "bash": """\
_ku() {
    mapfile -t COMPREPLY < <(ku completion --words "${COMP_WORDS[@]:1:COMP_CWORD}")
}
complete -o default -F _ku ku
""",
    "zsh": """\
#compdef ku
_ku() {
    local -a found
    found=("${(@f)$(ku completion --words "${(@)words[2,CURRENT]}")}")
    compadd -a found
}
compdef _ku ku
""",
    "fish": """\
complete -c ku -a '(ku completion --words (commandline -opc)[2..-1] (commandline -ct))'
""",
}


def words_after(words: list[str]) -> list[str]:
    """What may stand for the last of these words, of which it is the beginning."""
    *before, begun = words or [""]
    found = candidates(" ".join(["kube-proxy", *before, begun]))
    if not before:
        found = sorted({*found, *(each for each in ("reload", *SUBCOMMANDS) if each.startswith(begun))})
    return found


HELP = """\
Usage: ku completion bash|zsh|fish

  Print what makes a shell complete `ku`, its commands and the words of the
  command language.

Examples:
  source <(ku completion bash)
  ku completion fish > ~/.config/fish/completions/ku.fish
"""


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if arguments == ["--help"]:
        print(HELP, end="")
        return 0
    if arguments[:1] == ["--words"]:
        for word in words_after(arguments[1:]):
            print(word)
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        print(f"ku completion: say one of {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    print(SCRIPTS[arguments[0]], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
