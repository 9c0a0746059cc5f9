"""Which node of a link has an address: decided on the link itself, without a coordinator.  Time is passed in.

A node that can serve an address probes for it (RFC 5227 section 2.1, RFC 4862 for IPv6).  Who has it answers, and the
asker stands by and probes again later; if nobody answers, the asker announces it and has it.  Two that probe at the
same moment see each other's probes: the one with the lower MAC goes on, the other stands by.  Two that both have it
(the link was cut, and is whole again) see each other's claims: again the lower MAC keeps it.

    STANDBY ── nobody answers three probes ──► OWNER ── another claims it with a lower MAC ──► STANDBY
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kuproxy.announce.frames import Heard, announcement, answer, probe
from kuproxy.model.vip import Address

__all__ = ["Claim"]

PROBES = 3  # RFC 5227 section 1.1: PROBE_NUM
PROBE_S = 0.5  # between two; the RFC has 1 to 2 s, for links with spanning trees that still learn
STANDBY_S = 1.0  # from an answer to the next probe: how long a dead owner goes unnoticed, beside three probes
# RFC 5227 section 2.3 announces twice, 2 s apart; RFC 4861 section 7.2.6 up to three times, 1 s apart.
ANNOUNCEMENTS, ANNOUNCE_S = 3, 1.0
DEFEND_S = 0.2  # between two defences: two that both insist must not fill the link


@dataclass(slots=True)
class Claim:
    """One address on one link.  Every method returns the frames to be sent."""

    address: Address
    mac: bytes  # 6 bytes: ours
    due: float  # when `tick` has something to do
    owner: bool = False
    _probes: int = field(default=0, repr=False)
    _announced: int = field(default=0, repr=False)
    _defended_at: float = field(default=float("-inf"), repr=False)

    def tick(self, now: float) -> list[bytes]:
        """What is due by now."""
        if now < self.due:
            return []
        if self.owner:
            return self._announce(now)
        if self._probes < PROBES:
            self._probes += 1
            self.due = now + PROBE_S
            return [probe(self.address, self.mac)]
        self.owner, self._announced = True, 0
        return self._announce(now)

    def _announce(self, now: float) -> list[bytes]:
        self._announced += 1
        self.due = now + ANNOUNCE_S if self._announced < ANNOUNCEMENTS else float("inf")
        return [announcement(self.address, self.mac)]

    def hear(self, heard: Heard, now: float) -> list[bytes]:
        """A frame about this address, of another node."""
        if self.owner:
            if not heard.claims:
                return [answer(heard, self.mac)]
            if heard.mac < self.mac:
                self._stand_by(now)
                return []
            if now - self._defended_at < DEFEND_S:
                return []
            self._defended_at = now
            return [announcement(self.address, self.mac)]
        if heard.claims or (heard.probes and self._probes and heard.mac < self.mac):
            self._stand_by(now)
        return []

    def _stand_by(self, now: float) -> None:
        self.owner, self._probes, self.due = False, 0, now + STANDBY_S
