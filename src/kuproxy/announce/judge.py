"""What a speaker may announce now, from what it hears of the daemon.  Time is passed in; nothing is read.

Three things can be heard.  An answer says what is wanted.  *Absent* means that nobody listens at the API's socket: the
keeper, which holds that socket as long as anything forwards, has gone, so everything is withdrawn at once.  *Silent*
means that the socket is there and control says nothing, or is not complete yet: it is being replaced or has died,
while the workers forward what they were told; the last answer holds for `patience_s`.
"""

from __future__ import annotations

from dataclasses import dataclass

from kuproxy.model.vip import Prefix

__all__ = ["Judge"]

_NOTHING: frozenset[Prefix] = frozenset()


@dataclass(slots=True)
class Judge:
    """One speaker's view of one daemon."""

    patience_s: float
    wanted: frozenset[Prefix] = _NOTHING
    tag: str = ""  # of the answer that `wanted` is
    why: str = "the daemon has not been heard yet"  # why nothing is announced; empty: it is in order
    _heard_at: float | None = None

    def answered(self, prefixes: frozenset[Prefix] | None, tag: str, now: float) -> None:
        """What is wanted; None: what the tag stood for before."""
        self._heard_at = now
        if prefixes is not None:
            self.wanted, self.tag = prefixes, tag
        self.why = ""

    def absent(self) -> None:
        """Nobody listens."""
        self._forget("no daemon runs")

    def silent(self, now: float) -> None:
        """Control does not answer, or not with anything that counts yet."""
        if self._heard_at is not None and now - self._heard_at >= self.patience_s:
            self._forget(f"the daemon has said nothing for {self.patience_s:g} s")

    def _forget(self, why: str) -> None:
        self.wanted, self.tag, self.why, self._heard_at = _NOTHING, "", why, None
