"""Who has an address: several claimants on a simulated link that loses frames, is cut and heals, and they die."""

from __future__ import annotations

import random
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kuproxy.announce.claim import ANNOUNCEMENTS, PROBE_S, PROBES, STANDBY_S, Claim
from kuproxy.announce.frames import Heard, announcement, answer, parse, probe

ADDRESS = ip_address("90.0.0.1")
STEP_S = 0.05
TAKEN_OVER_WITHIN_S = STANDBY_S + (PROBES + 1) * PROBE_S


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


class Link:
    """Frames reach everybody on the same side, unless they are lost."""

    def __init__(self, chance: random.Random, loss: float) -> None:
        self.claims: dict[int, Claim] = {}
        self.sides: dict[int, int] = {}
        self.now = 0.0
        self._chance, self._loss = chance, loss

    def join(self, number: int) -> None:
        self.claims[number] = Claim(ADDRESS, mac(number), self.now)

    def run(self, seconds: float, loss: float | None = None) -> None:
        rate = self._loss if loss is None else loss
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            waiting = [(number, frame) for number, claim in self.claims.items() for frame in claim.tick(self.now)]
            rounds = 0
            while waiting:
                rounds += 1
                assert rounds < 10, "they talk for ever"
                sent, waiting = waiting, []
                for sender, frame in sent:
                    heard = parse(frame)
                    assert heard is not None
                    for number, claim in self.claims.items():
                        apart = self.sides.get(number, 0) != self.sides.get(sender, 0)
                        if number != sender and not apart and self._chance.random() >= rate:
                            waiting += [(number, each) for each in claim.hear(heard, self.now)]

    @property
    def owners(self) -> list[int]:
        return [number for number, claim in self.claims.items() if claim.owner]


@given(st.sets(st.integers(1, 200), min_size=1, max_size=6), st.randoms(use_true_random=False), st.data())
def test_there_is_one_owner_whatever_happens(
    numbers: set[int], chance: random.Random, data: st.DataObject
) -> None:
    link = Link(chance, data.draw(st.sampled_from([0.0, 0.1])))
    for number in numbers:
        link.join(number)
        link.run(data.draw(st.sampled_from([0.0, 0.05, 0.3, 2.0])))
    for _ in range(data.draw(st.integers(0, 4))):
        what = data.draw(st.sampled_from(["die", "join", "cut", "heal"]))
        if what == "die" and len(link.claims) > 1:
            del link.claims[data.draw(st.sampled_from(sorted(link.claims)))]
        elif what == "join":
            link.join(data.draw(st.integers(201, 250)))
        elif what == "cut":
            link.sides = {number: number % 2 for number in link.claims}
        else:
            link.sides = {}
        link.run(data.draw(st.sampled_from([0.0, 0.2, 5.0])))
    link.sides = {}
    link.run(20, loss=0.0)
    # Owners that have not heard of each other since the link healed meet at the first question of anybody.
    for owner in link.owners[:1]:
        for number in link.owners[1:]:
            other = link.claims[number]
            heard = parse(announcement(ADDRESS, mac(owner)))
            assert heard is not None
            for frame in other.hear(heard, link.now):
                back = parse(frame)
                assert back is not None
                link.claims[owner].hear(back, link.now)
    link.run(20, loss=0.0)
    assert len(link.owners) == 1


def test_the_owner_answers_and_others_do_not() -> None:
    link = Link(random.Random(1), 0)
    link.join(1)
    link.run(5)
    link.join(2)
    link.run(5)
    assert link.owners == [1]
    asked = Heard(ADDRESS, mac(9), claims=False, asker=ip_address("90.0.0.9"))
    assert link.claims[1].hear(asked, link.now) == [answer(asked, mac(1))]
    assert link.claims[2].hear(asked, link.now) == []


def test_a_dead_owner_is_replaced_in_the_stated_time() -> None:
    link = Link(random.Random(1), 0)
    for number in (1, 2, 3):
        link.join(number)
    link.run(5)
    (owner,) = link.owners
    assert owner == 1
    del link.claims[owner]
    link.run(TAKEN_OVER_WITHIN_S + 2 * STEP_S)
    assert len(link.owners) == 1


def test_probes_before_and_announcements_after() -> None:
    """RFC 5227: three probes, then the announcements, and no word more."""
    claim, frames, now = Claim(ADDRESS, mac(1), 0.0), [], 0.0
    while now < 60:
        frames += claim.tick(now)
        now += STEP_S
    assert frames == [probe(ADDRESS, mac(1))] * PROBES + [announcement(ADDRESS, mac(1))] * ANNOUNCEMENTS


def test_conflicts_are_decided_by_the_mac_and_do_not_fill_the_link() -> None:
    claim = Claim(ADDRESS, mac(5), 0.0)
    now = 0.0
    while not claim.owner:
        now += STEP_S
        claim.tick(now)
    higher, lower = Heard(ADDRESS, mac(9), claims=True), Heard(ADDRESS, mac(1), claims=True)
    assert claim.hear(higher, now) == [announcement(ADDRESS, mac(5))]
    assert claim.hear(higher, now + 0.01) == []
    assert claim.hear(lower, now + 0.02) == []
    assert not claim.owner
