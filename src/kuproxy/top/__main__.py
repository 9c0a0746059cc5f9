"""The command `ku top`: says what is missing before the terminal is taken over."""

from __future__ import annotations

import sys

from kuproxy.client import Client, Refusal, take_options

HELP = """\
Usage: ku top [--socket PATH]

  Watch the running daemon: services with packets, bits and new flows per
  second, their pods, flows, drops by reason, and the workers. It only reads.

  1 to 4  services, flows, drops, workers     Enter   the pods of a service
  /       find a service, or flows            Escape  back
  p b n f o a  sort by packets, bits, new flows, flows, pods, name
  q       quit

Options:
  --socket PATH  Where the daemon listens.
"""


def main(words: list[str]) -> int:
    """Returns the exit status."""
    if words == ["--help"]:
        print(HELP, end="")
        return 0
    try:
        rest, as_json, path = take_options(words)
        if rest or as_json:
            raise Refusal(f"{rest[0] if rest else '--json'!r} is too much: `ku top` takes --socket PATH")
        client = Client(path)
        client.request("GET", "/v1/health")
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise Refusal("`ku top` draws on a terminal, and this is none; `ku show vips verbose` prints")
        try:
            from kuproxy.top.app import Top
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "textual":
                raise
            raise Refusal("`ku top` needs textual: pip install 'kuproxy[tui]'") from None
    except Refusal as refusal:
        print(f"ku: {refusal}", file=sys.stderr)
        return 2
    return Top(client).run() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
