"""What becomes of a packet, and why: asked of the tables that forward, which do not change by it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kuproxy.daemon.control import Controller
from kuproxy.daemon.schema import Record, Text
from kuproxy.engine.packets import LONGEST, PacketIn
from kuproxy.engine.shadow import present_tick
from kuproxy.errors import ConfigError, Problem
from kuproxy.explain.report import Explanation
from kuproxy.explain.whatif import WhatIf, explain_both

__all__ = ["ExplainRequest", "explain_packet"]

MOST_PODS = 1024

PodText = Annotated[str, Meta(max_length=80)]


class ExplainRequest(Record, frozen=True):
    """A frame from its Ethernet header on, hexadecimal, and what should be different while we answer."""

    frame: Annotated[str, Meta(min_length=2, max_length=2 * LONGEST)]
    interface: Annotated[int, Meta(ge=0, le=255)] = 0
    worker: Annotated[int, Meta(ge=0, le=255)] | None = None
    without_pods: Annotated[tuple[PodText, ...], Meta(max_length=MOST_PODS)] = ()
    with_pods: Annotated[tuple[PodText, ...], Meta(max_length=MOST_PODS)] = ()
    new_len: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None
    policy: Text = ""


def explain_packet(controller: Controller, _query: msgspec.Struct, body: ExplainRequest) -> Explanation:
    try:
        data = bytes.fromhex(body.frame)
    except ValueError:
        hint = "two digits for each byte"
        raise ConfigError(Problem("is not hexadecimal", field="frame", hint=hint)) from None
    what_if = WhatIf(body.without_pods, body.with_pods, body.new_len, body.policy)
    return explain_both(
        controller.plane,
        PacketIn(data, body.interface),
        present_tick(),
        what_if,
        worker=body.worker,
        services=controller.service_behind,
    )
