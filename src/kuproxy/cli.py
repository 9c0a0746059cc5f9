"""The `ku` command: a table of subcommands, each a program of its own.

This module imports nothing that is slow, so `ku --help` answers at once. A subcommand replaces this process with
`python -m` its module, which brings what it needs and nothing else.
"""

import os
import sys
from typing import NamedTuple

from kuproxy import __version__

USAGE_ERROR = 2


class Subcommand(NamedTuple):
    """One line of `ku --help`."""

    module: str
    summary: str
    kept: bool = False  # by a keeper, which starts the module and outlives it


SUBCOMMANDS = {
    "run": Subcommand(
        "kuproxy.daemon.foreground", "forward live traffic in this network namespace until interrupted"
    ),
    "daemon": Subcommand(
        "kuproxy.daemon.service", "the same as a service, with commands, an API and a memory", kept=True
    ),
    "kube-proxy": Subcommand("kuproxy.kubeproxy.service", "be the kube-proxy of this node", kept=True),
    "announce": Subcommand("kuproxy.announce", "tell routers or a link which VIPs this node serves; drain it"),
    "upgrade": Subcommand("kuproxy.upgrade", "have the installed version take over from the running daemon"),
    "shell": Subcommand("kuproxy.shell", "type commands to the daemon, with completion and history"),
    "top": Subcommand("kuproxy.top", "watch services, pods, flows and drops on a terminal"),
    "completion": Subcommand("kuproxy.completion", "print what makes a shell complete `ku`"),
    "replay": Subcommand("kuproxy.replay", "run a capture file through the data plane"),
    "check": Subcommand("kuproxy.check", "find what is wrong with configuration files"),
    "explain": Subcommand("kuproxy.explain", "tell what becomes of a packet, and why"),
    "simulate": Subcommand("kuproxy.sim", "what a change of pods would do to a trace's flows, by algorithm"),
    "plot": Subcommand(
        "kuproxy.plot", "draw new-flow tables, their differences and results of `ku simulate`"
    ),
    "ring": Subcommand("kuproxy.ring", "print the new-flow table of some pods"),
    "demo": Subcommand("kuproxy.demo", "show it all on real connections, in namespaces of its own"),
}

# The first words of lines for the running daemon, after `ku`; they may be abbreviated, as its grammar has it.
LANGUAGE = ("conf", "pod", "reload", "set", "show", "test", "trace", "vip")

EXAMPLES = """\
examples:
  ku ring --new-len 16 10.0.0.1 10.0.0.2 10.0.0.3
  ku replay --config services.ku in.pcapng out.pcapng
  ku check services.ku
  ku explain --config services.ku tcp 40.0.0.1:1024 90.0.0.1:80
  ku simulate run --config services.ku --plan plan.yaml --algorithm all trace.pcap
  ku run --config services.yaml
  ku daemon --settings kuproxy.toml
  ku kube-proxy --config /var/lib/kube-proxy/config.conf
  ku vip 90.0.0.0/8 port 3306 target_port 3307
  ku pod 90.0.0.0/8 10.0.0.1 10.0.0.2
  ku show vips verbose
  ku --json show node counters
  ku demo
"""


def usage() -> str:
    """The text of `ku --help`."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in SUBCOMMANDS.items()]
    lines += ["", "to the running daemon (--json, --socket PATH):", f"  {', '.join(LANGUAGE)}"]
    head = "usage: ku COMMAND [OPTIONS] ...\n\nkuproxy: services to pods, by Maglev, in user space.\n\ncommands:\n"
    tail = "\n`ku COMMAND --help` tells the rest.\n"
    return head + "\n".join(lines) + "\n\n" + EXAMPLES + tail


def is_line(words: list[str]) -> bool:
    """Whether these words are for the daemon: the first one that is no option begins one of its commands."""
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = word == "--socket"
            continue
        return word == "reload" or any(each.startswith(word) for each in LANGUAGE if each != "reload")
    return False


def main(arguments: list[str] | None = None) -> None:
    """Entry point; does not return."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        sys.exit(0 if words else USAGE_ERROR)
    if words[0] in ("-V", "--version", "version"):
        print(f"kuproxy {__version__}")
        sys.exit(0)
    command = SUBCOMMANDS.get(words[0])
    if command is None and is_line(words):
        from kuproxy.client import main as talk

        sys.exit(talk(words))
    if command is None:
        known = ", ".join((*SUBCOMMANDS, *LANGUAGE))
        print(f"ku: no command {words[0]!r}; there are {known}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    sys.stdout.flush()
    modules = ("kuproxy.keeper", command.module) if command.kept else (command.module,)
    os.execv(sys.executable, [sys.executable, "-m", *modules, *words[1:]])
