"""`ku explain`: asks the running daemon, or reads configuration files and answers itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import msgspec

from kuproxy.client import Client, Refusal
from kuproxy.errors import ConfigError, KuError, Problem
from kuproxy.explain.packet import five_tuple, frame_of, from_capture, from_hex
from kuproxy.explain.picture import picture
from kuproxy.explain.report import Explanation
from kuproxy.explain.text import render
from kuproxy.explain.whatif import WhatIf
from kuproxy.main import run

Packet = tuple[
    bytes, int, Path | None, int
]  # a frame, its interface, the capture that it is from, its number


def _packet(
    words: tuple[str, ...], hexadecimal: str, capture: Path | None, number: int | None, flags: str
) -> Packet:
    """From exactly one of the three ways to name it.  Raises KuError."""
    given = [bool(words), bool(hexadecimal), capture is not None]
    if sum(given) != 1:
        message = "no packet is named" if not any(given) else "a packet is named twice"
        raise ConfigError(
            Problem(
                message, hint="say PROTOCOL SOURCE DESTINATION, or --hex BYTES, or --capture FILE --packet N"
            )
        )
    if (capture is None) != (number is None):
        raise ConfigError(Problem("go together", field="--capture and --packet"))
    if capture is not None and number is not None:
        data, interface, _ = from_capture(capture, number)
        return data, interface, capture, number
    if hexadecimal:
        return from_hex(sys.stdin.read() if hexadecimal == "-" else hexadecimal), 0, None, 0
    if len(words) != 3:
        raise ConfigError(
            Problem(
                f"{len(words)} words are no packet",
                field="PACKET",
                hint="say PROTOCOL SOURCE:PORT DESTINATION:PORT, as tcp 40.0.0.1:1024 90.0.0.1:80",
            )
        )
    return frame_of(five_tuple(*words, flags)), 0, None, 0


def _ask(socket: str, packet: Packet, interface: int, worker: int | None, what_if: WhatIf) -> Explanation:
    body = {
        "frame": packet[0].hex(),
        "interface": interface,
        "without_pods": what_if.without_pods,
        "with_pods": what_if.with_pods,
        "new_len": what_if.new_len,
        "policy": what_if.policy,
        "worker": worker,
    }
    try:
        answer = Client(socket).request("POST", "/v1/explain", body)
    except Refusal as refusal:
        raise ConfigError(str(refusal)) from None
    return msgspec.convert(answer, Explanation)


def _answer(
    configs: tuple[Path, ...], packet: Packet, interface: int | None, what_if: WhatIf, *, fresh: bool
) -> Explanation:
    # The kernels are loaded only here.
    from kuproxy.explain.files import explain_files

    data, own, capture, number = packet
    before = (capture, number - 1) if capture is not None and not fresh else None
    return explain_files(configs, data, own if interface is None else interface, what_if, before=before)


@click.command(name="explain")
@click.option(
    "--config", "configs", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Files (*.ku, *.yaml, *.json) instead of the running daemon. May be repeated.",
)  # fmt: skip
@click.option("--socket", default="", metavar="PATH", help="Where the daemon listens.")
@click.option(
    "--hex", "hexadecimal", default="", metavar="BYTES", help="A frame or an IP packet; -: from stdin."
)
@click.option("--capture", metavar="FILE", type=click.Path(path_type=Path), help="A pcap or pcapng file.")
@click.option("--packet", "number", type=int, metavar="N", help="Which of its packets, from 1.")
@click.option("--fresh", is_flag=True, help="With files: as if nothing of the capture had come before.")
@click.option("--tcp-flags", default="syn", show_default=True, help="Of a TCP packet given as a 5-tuple.")
@click.option("--interface", type=click.IntRange(0, 255), help="Index of the interface that it comes in by.")
@click.option("--worker", type=int, help="Ask this worker, not the one that gets the packet.")
@click.option(
    "--without-pod", "without_pods", multiple=True, metavar="POD", help="What if this pod were gone?"
)
@click.option(
    "--with-pod", "with_pods", multiple=True, metavar="POD", help="What if there were this pod too?"
)
@click.option("--new-len", type=int, metavar="N", help="What if the new-flow table had so many slots?")
@click.option(
    "--policy", default="", metavar="[SIDE=]WORD",
    help="What if the traffic policy were Cluster or Local? SIDE: internal or external.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
@click.option("--diagram", is_flag=True, help="Draw the way in the text.")
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), help="Write the way as a picture.")
@click.argument("words", nargs=-1, metavar="[PROTOCOL SOURCE DESTINATION]")
def command(
    configs: tuple[Path, ...],
    socket: str,
    hexadecimal: str,
    capture: Path | None,
    number: int | None,
    fresh: bool,
    tcp_flags: str,
    interface: int | None,
    worker: int | None,
    without_pods: tuple[str, ...],
    with_pods: tuple[str, ...],
    new_len: int | None,
    policy: str,
    as_json: bool,
    diagram: bool,
    svg: Path | None,
    words: tuple[str, ...],
) -> None:
    """Tell what becomes of a packet, and why: the VIP, its rivals, the pods and their verdicts, the flow, the slot of
    the new-flow table, each byte that changes. Nothing changes by asking.

    \b
    ku explain tcp 40.0.0.1:1024 90.0.0.1:80
    ku explain --config services.yaml udp 10.244.1.9:5353 10.96.0.10:53
    ku explain --config services.ku --capture in.pcapng --packet 17
    ku explain --without-pod 10.0.0.3 tcp 40.0.0.1:1024 90.0.0.1:80
    ku explain --svg way.svg --hex 4500001c...
    """
    packet = _packet(words, hexadecimal, capture, number, tcp_flags)
    what_if = WhatIf(without_pods, with_pods, new_len, policy)
    if configs:
        if worker:
            raise ConfigError(Problem("with files there is one worker, 0", field="--worker"))
        told = _answer(configs, packet, interface, what_if, fresh=fresh)
    else:
        told = _ask(socket, packet, interface or 0, worker, what_if)
    if svg is not None:
        try:
            svg.write_text(picture(told))
        except OSError as error:
            raise KuError(f"{svg}: cannot be written: {error.strerror}") from None
    if as_json:
        print(json.dumps(msgspec.to_builtins(told), indent=2))
    else:
        print(render(told, with_diagram=diagram), end="")


if __name__ == "__main__":
    run(command, name="ku explain")
