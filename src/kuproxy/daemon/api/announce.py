"""`/v1/announce`: for speakers, and for who wants to know what they do; `/v1/announce/drain`."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kuproxy.daemon.announcing import NOT_CONFIGURED, Heard
from kuproxy.daemon.control import Controller
from kuproxy.daemon.schema import Record
from kuproxy.errors import ConfigError

__all__ = ["AnnounceBeat", "AnnounceOrder", "AnnounceView", "DrainRequest", "ask_announce", "get_announce", "set_drain"]


class AnnounceBeat(Record, frozen=True):
    """A speaker asks what to announce, and tells how far it is with the order of that tag."""

    speaker: Literal["bgp", "layer2"]
    tag: Annotated[str, Meta(max_length=16)] = ""
    settled: bool = False
    announced: Annotated[int, Meta(ge=0, le=1 << 32)] = 0
    problem: Annotated[str, Meta(max_length=1000)] = ""


class AnnounceOrder(msgspec.Struct, frozen=True):
    """`prefixes` is null where the tag is the one that the speaker has; with `complete` false nothing counts yet."""

    complete: bool
    tag: str
    prefixes: list[str] | None


class SpeakerView(msgspec.Struct, frozen=True):
    speaker: str
    age_s: float
    settled: bool
    announced: int
    problem: str


class AnnounceView(msgspec.Struct, frozen=True):
    """What can be served and so is announced, unless the node is drained; and what the speakers say."""

    configured: bool
    drained: bool
    stopping: bool
    prefixes: list[str]
    speakers: list[SpeakerView]


class DrainRequest(Record, frozen=True):
    on: bool


def ask_announce(controller: Controller, _query: object, body: AnnounceBeat) -> AnnounceOrder:
    announcing = controller.announcing
    if announcing.settings is None:
        raise ConfigError(NOT_CONFIGURED)
    heard = Heard(time.monotonic(), body.tag, body.settled, body.announced, body.problem)
    announcing.hear(body.speaker, heard)
    if not (controller.ready or announcing.stopping):
        return AnnounceOrder(complete=False, tag="", prefixes=None)
    prefixes, tag = announcing.order(controller.plane.store, controller.generation)
    new = None if tag == body.tag else list(map(str, prefixes))
    return AnnounceOrder(complete=True, tag=tag, prefixes=new)


def get_announce(controller: Controller, _query: object, _body: None) -> AnnounceView:
    announcing, now = controller.announcing, time.monotonic()
    prefixes, _ = announcing.servable(controller.plane.store, controller.generation)
    speakers = [
        SpeakerView(name, round(now - each.at, 3), each.settled, each.announced, each.problem)
        for name, each in sorted(announcing.present(now).items())
    ]
    return AnnounceView(
        configured=announcing.settings is not None,
        drained=announcing.drained,
        stopping=announcing.stopping,
        prefixes=list(map(str, prefixes)),
        speakers=speakers,
    )


def set_drain(controller: Controller, query: object, body: DrainRequest) -> AnnounceView:
    controller.announcing.drain(body.on)
    return get_announce(controller, query, None)
