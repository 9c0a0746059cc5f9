"""`ku announce`: the speakers, and what else there is to say to the daemon about announcing."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from kuproxy.announce.exabgp import ENVIRONMENT, configuration
from kuproxy.announce.settings import load_announce
from kuproxy.client import Client, Refusal
from kuproxy.confine import privilege
from kuproxy.errors import ConfigError, KuError, Problem
from kuproxy.main import run

_settings_option = click.option(
    "--settings",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("/etc/kuproxy/kuproxy.toml"),
    show_default=True,
    help="The daemon's settings; its [announce] counts here.",
)
_socket_option = click.option("--socket", metavar="PATH", default="", help="The daemon's socket.")
_json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group(name="announce")
def announce() -> None:
    """Tell the network which VIPs this node serves.

    A speaker is a process beside the daemon, which asks it what can be served; `show` tells what the two do. Settings
    are in [announce] of kuproxy.toml (docs/announcing.md).

    \b
    ku announce bgp --settings /etc/kuproxy/kuproxy.toml
    ku announce layer2
    ku announce show
    ku announce drain
    """


@announce.command()
@_settings_option
@click.option("--print-config", is_flag=True, help="Print what ExaBGP would read, and end.")
def bgp(path: Path, print_config: bool) -> None:
    """Announce VIPs to routers, by ExaBGP, until interrupted. Needs the extra `bgp`, and no privilege."""
    settings, _ = load_announce(path)
    if settings.bgp is None:
        raise ConfigError(Problem("is not there", str(path), field="announce.bgp"))
    command = [sys.executable, "-m", "kuproxy.announce.bgp", str(path.absolute())]
    if print_config:
        click.echo(configuration(settings.bgp, command), nl=False)
        return
    if importlib.util.find_spec("exabgp") is None:
        raise KuError("ExaBGP is not installed here: pip install 'kuproxy[bgp]'")
    privilege.keep_none()
    # There may be a password in it: for us alone, and gone when ExaBGP, which has read it, starts our process.
    fd, name = tempfile.mkstemp(prefix="kuproxy-exabgp-", dir=os.environ.get("RUNTIME_DIRECTORY"))
    with open(fd, "w", encoding="utf-8") as file:
        file.write(configuration(settings.bgp, [*command, name]))
    user = pwd.getpwuid(os.geteuid()).pw_name
    environment = {**os.environ, **ENVIRONMENT, "exabgp_daemon_user": user}
    words = [sys.executable, "-m", "exabgp", "server", name]
    os.execve(sys.executable, words, environment)


@announce.command()
@_settings_option
def layer2(path: Path) -> None:
    """Answer for VIPs on one link, by ARP and neighbour discovery, until interrupted. Needs CAP_NET_RAW to start."""
    from kuproxy.announce.layer2 import speak

    speak(*load_announce(path))


def _ask(method: str, target: str, path: str, body: object = None) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = Client(path).request(method, target, body)
    except Refusal as refusal:
        raise KuError(str(refusal)) from None
    return answer


def _told(view: dict[str, Any]) -> str:
    """The view in words."""
    if not view["configured"]:
        return "nothing is announced: there is no [announce] in the settings\n"
    state = "stopping" if view["stopping"] else "drained" if view["drained"] else "announced"
    lines = [f"{len(view['prefixes'])} prefixes can be served; {state}"]
    lines += [f"  {each}" for each in view["prefixes"]]
    for each in view["speakers"]:
        done = "settled" if each["settled"] else "at work"
        problem = f"; {each['problem']}" if each["problem"] else ""
        lines.append(
            f"{each['speaker']}: {each['announced']} announced, {done}, heard {each['age_s']:.1f} s ago{problem}"
        )
    if not view["speakers"]:
        lines.append("no speaker has asked lately: start `ku announce bgp` or `ku announce layer2`")
    return "\n".join(lines) + "\n"


def _show(view: dict[str, Any], as_json: bool) -> None:
    click.echo(json.dumps(view, indent=2) + "\n" if as_json else _told(view), nl=False)


@announce.command()
@_socket_option
@_json_option
def show(socket: str, as_json: bool) -> None:
    """What can be served, and what the speakers say."""
    _show(_ask("GET", "/v1/announce", socket), as_json)


@announce.command()
@_socket_option
@_json_option
def drain(socket: str, as_json: bool) -> None:
    """Withdraw everything, and announce nothing until `undrain`, over restarts too. Forwarding goes on."""
    _show(_ask("PUT", "/v1/announce/drain", socket, {"on": True}), as_json)


@announce.command()
@_socket_option
@_json_option
def undrain(socket: str, as_json: bool) -> None:
    """Announce again what can be served."""
    _show(_ask("PUT", "/v1/announce/drain", socket, {"on": False}), as_json)


if __name__ == "__main__":
    run(announce, name="ku announce")
