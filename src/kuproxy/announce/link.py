"""A speaker's line to the daemon: asks over the API's socket, and hands the judge what is heard."""

from __future__ import annotations

import time
from ipaddress import ip_network

from kuproxy.announce.judge import Judge
from kuproxy.announce.settings import Announce
from kuproxy.client import Absent, Client, Refusal
from kuproxy.model.vip import Prefix

__all__ = ["Link"]

# For one answer: control may be busy with ten thousand services, and its death must be seen within the patience.
ANSWER_S = 5.0


class Link:
    """One speaker's."""

    def __init__(self, settings: Announce, socket: str, speaker: str) -> None:
        self._speaker = speaker
        self._client = Client(socket, min(ANSWER_S, settings.patience_s))
        self.judge = Judge(settings.patience_s)
        self.refusal = ""  # what the daemon has said instead of an answer

    @property
    def trouble(self) -> str:
        """What is wrong with the daemon, in a line; empty if nothing is."""
        return "; ".join(each for each in (self.judge.why, self.refusal) if each)

    def ask(self, *, settled: bool, announced: int, problem: str) -> frozenset[Prefix]:
        """What may be announced now.  Blocks for as long as an answer may take."""
        judge = self.judge
        body = {
            "speaker": self._speaker,
            "tag": judge.tag,
            "settled": settled,
            "announced": announced,
            "problem": problem[:1000],
        }
        try:
            answer = self._client.request("POST", "/v1/announce", body)
        except Absent:
            self.refusal = ""
            judge.absent()
        except Refusal as refusal:
            self.refusal = str(refusal)
            judge.silent(time.monotonic())
        else:
            self.refusal = ""
            if answer["complete"]:
                texts = answer["prefixes"]
                prefixes = None if texts is None else frozenset(map(ip_network, texts))
                judge.answered(prefixes, answer["tag"], time.monotonic())
            else:
                judge.silent(time.monotonic())
        return judge.wanted
