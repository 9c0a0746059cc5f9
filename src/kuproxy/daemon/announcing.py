"""The daemon's end of announcing: what speakers are told, what they say, and whether this node shall be left alone.

Speakers (`kuproxy.announce`) ask; nothing is sent to anybody here.  Time is passed in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kuproxy.announce.settings import Announce
from kuproxy.announce.wanted import wanted
from kuproxy.daemon.persist import StateFileError
from kuproxy.errors import ConfigError, Problem
from kuproxy.model.vip import Prefix, Vip

__all__ = ["NOT_CONFIGURED", "Announcing", "Heard"]

NOT_CONFIGURED = Problem(
    "is not in the daemon's settings", field="announce", hint="add [announce], then `ku reload`"
)
FORGOTTEN_S = 60.0  # a speaker that has said nothing for so long is no longer told of
DRAINED = "drained"  # name of the file that says so, in the state directory


@dataclass(frozen=True, slots=True)
class Heard:
    """What a speaker has said last."""

    at: float
    tag: str  # of the order that it works on
    settled: bool  # whether it has carried it out
    announced: int  # prefixes
    problem: str


def _tag(prefixes: Iterable[Prefix]) -> str:
    """The same for the same prefixes, whichever control process is asked."""
    return hashlib.sha256("\n".join(map(str, prefixes)).encode()).hexdigest()[:16]


NOTHING = _tag(())


class Announcing:
    """Belongs to the controller, and is used in its thread; but for `stopping` and `may_attract`, which a stop uses."""

    def __init__(self, settings: Announce | None = None, directory: Path | None = None) -> None:
        """`directory`: where it is remembered that the node is drained; None: nowhere."""
        self.settings = settings
        self.stopping = False
        self.speakers: dict[str, Heard] = {}
        self._file = None if directory is None else directory / DRAINED
        self.drained = self._file is not None and self._file.exists()
        self._known: tuple[Announce, int, tuple[Prefix, ...], str] | None = None

    def drain(self, on: bool) -> None:
        """Announce nothing from now on, over restarts too, or again what is served.  Raises KuError."""
        if self.settings is None:
            raise ConfigError(NOT_CONFIGURED)
        if self._file is not None:
            try:
                if on:
                    self._file.touch()
                else:
                    self._file.unlink(missing_ok=True)
                directory = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
            except OSError as error:
                raise StateFileError(f"{self._file}: {error.strerror}; nothing was changed") from None
        self.drained = on

    def servable(self, vips: Iterable[Vip], generation: int) -> tuple[tuple[Prefix, ...], str]:
        """What could be announced, and its tag; computed once for each generation of the tables."""
        settings = self.settings
        if settings is None:
            return (), NOTHING
        if self._known is None or self._known[:2] != (settings, generation):
            prefixes = wanted(vips, settings.prefixes())
            self._known = (settings, generation, prefixes, _tag(prefixes))
        return self._known[2:]

    def order(self, vips: Iterable[Vip], generation: int) -> tuple[tuple[Prefix, ...], str]:
        """What shall be announced, and its tag."""
        return ((), NOTHING) if self.drained or self.stopping else self.servable(vips, generation)

    def hear(self, speaker: str, heard: Heard) -> None:
        """A speaker has asked, and said how far it is."""
        self.speakers[speaker] = heard

    def present(self, now: float) -> dict[str, Heard]:
        """Speakers that have spoken lately."""
        return {name: each for name, each in self.speakers.items() if now - each.at < FORGOTTEN_S}

    def may_attract(self, now: float) -> bool:
        """Whether the network may still send us something because a speaker said so."""
        patience = 0.0 if self.settings is None else self.settings.patience_s
        return any(
            not (each.settled and each.tag == NOTHING and not each.announced)
            for each in tuple(self.speakers.values())  # the loop's thread asks too, at a stop
            if now - each.at < patience
        )
