"""The dialogue with ExaBGP: compared with a model of it that answers late, in pieces, and refuses some."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuproxy.announce.exabgp import BATCH, WINDOW, Dialogue, configuration
from kuproxy.announce.settings import Bgp, Neighbor
from kuproxy.errors import ConfigError

BGP = Bgp(
    asn=64512, router_id="192.0.2.1", next_hop4="192.0.2.1", next_hop6="2001:db8::1",
    neighbors=[Neighbor(address="192.0.2.254", asn=64513)], communities=["64512:1", "64512:2"], med=10,
)  # fmt: skip
ALL = [ip_network(f"90.0.0.{number}/32") for number in range(6)] + [ip_network("2001:db8:90::/64")]
REFUSED = ALL[5]


class Model:
    """What ExaBGP does with commands: in order, an answer each."""

    def __init__(self) -> None:
        self.routes: set[str] = set()
        self.answers = b""

    def feed(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            head, _, tail = line.partition(" nlri ")
            verb, word, hop, address, *_ = head.split()
            prefixes = tail.split()
            assert (word, hop) == ("attributes", "next-hop") and 0 < len(prefixes) <= BATCH
            assert {address} == {"2001:db8::1" if ":" in each else "192.0.2.1" for each in prefixes}
            if verb == "announce" and str(REFUSED) in prefixes:
                self.answers += b"error\n"
                continue
            (self.routes.update if verb == "announce" else self.routes.difference_update)(prefixes)
            self.answers += b"done\n"


@given(st.data())
def test_what_is_wanted_last_is_what_is_announced(data: st.DataObject) -> None:
    model, dialogue = Model(), Dialogue(BGP)
    wanted: set[object] = set()
    for _ in range(data.draw(st.integers(1, 8))):
        wanted = data.draw(st.sets(st.sampled_from(ALL)))
        dialogue.want(wanted)
        model.feed(dialogue.commands())
        size = data.draw(st.integers(0, len(model.answers)))  # wherever the pipe cuts
        dialogue.receive(model.answers[:size])
        model.answers = model.answers[size:]
    for _ in range(4):
        dialogue.receive(model.answers)
        model.answers = b""
        model.feed(dialogue.commands())
    dialogue.receive(model.answers)
    expected = {str(each) for each in wanted} - {str(REFUSED)}
    assert model.routes == expected == {str(each) for each in dialogue.announced}
    assert dialogue.settled
    assert ("refuses" in dialogue.problem) == (REFUSED in wanted)


def test_no_more_than_the_window_is_under_way() -> None:
    many = [ip_network(f"90.{number >> 8}.{number & 255}.0/32") for number in range(3 * WINDOW * BATCH)]
    dialogue = Dialogue(BGP)
    dialogue.want(many)
    assert dialogue.commands().count(b"\n") == WINDOW
    assert dialogue.commands() == b""
    dialogue.receive(b"done\n" * 5)
    assert dialogue.commands().count(b"\n") == 5
    dialogue.want([])  # withdrawals do not overtake what they withdraw
    assert dialogue.commands() == b""
    dialogue.receive(b"done\n" * WINDOW)
    assert dialogue.commands().startswith(b"withdraw attributes ")
    assert not dialogue.settled


def test_attributes_and_families() -> None:
    dialogue = Dialogue(BGP)
    dialogue.want(ALL[-1:])
    assert dialogue.commands() == (
        b"announce attributes next-hop 2001:db8::1 med 10 community [ 64512:1 64512:2 ] nlri 2001:db8:90::/64\n"
    )
    four = Dialogue(Bgp(asn=1, router_id="1.1.1.1", next_hop4="192.0.2.1", neighbors=BGP.neighbors))
    four.want(ALL[-1:])
    assert four.commands() == b"" and four.settled


def test_sessions_are_told() -> None:
    dialogue = Dialogue(BGP)
    assert dialogue.problem == "no session with 192.0.2.254"
    event = b'{"exabgp": "5.0.0", "neighbor": {"address": {"peer": "192.0.2.254"}, "state": "%s"}}\n'
    dialogue.receive(event % b"connected" + event % b"up")
    assert dialogue.problem == ""
    dialogue.receive(b'{"exabgp": 1\n[]\nhello\n' + event % b"down")
    assert dialogue.problem == "no session with 192.0.2.254"


def test_the_password_stands_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret word\n")
    neighbor = Neighbor(address="192.0.2.254", asn=64513, password_file=str(file), multihop=3)
    bgp = Bgp(asn=1, router_id="1.1.1.1", next_hop4="192.0.2.1", neighbors=[neighbor])
    text = configuration(bgp, ["a b", "c"])
    assert 'md5-password "s3cret word";' in text and "outgoing-ttl 3;" in text
    assert "run 'a b' c;" in text and "graceful-restart disable" in text
    for wrong in ("", 'a"b', "a;}", "x" * 81, "ä"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="password"):
            configuration(bgp, ["x"])
    with pytest.raises(ConfigError, match="No such file"):
        nowhere = Neighbor(address="192.0.2.9", asn=1, password_file="/nowhere/at/all")
        configuration(Bgp(asn=1, router_id="1.1.1.1", next_hop4="192.0.2.1", neighbors=[nowhere]), [])
