"""The floods are what they are said to be, and the accounts notice what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import packets
from bench.floods import sender, traffic
from bench.floods.__main__ import main
from bench.floods.collide import colliding, vpp_hash
from bench.floods.live import run, unaccounted
from bench.floods.traffic import FLOODS
from bench.soak import account
from kuproxy.errors import KuError

COUNT = 64


@pytest.mark.parametrize("name", FLOODS)
def test_frames_of_floods_are_well_formed(name):
    """But for the fragments, whose checksum nobody can know."""
    rows = traffic.flood(name, COUNT, 10).rows
    assert rows.shape == (COUNT, 64)
    assert len(np.unique(rows, axis=0)) > COUNT / 2
    if name == "fragments":
        return
    for row in rows:
        assert packets.verify_checksums(row.tobytes()) == []


def test_colliding_flows_are_different_and_share_a_bucket():
    first, vip = 41 << 24 | 1, 90 << 24 | 1
    clients, ports = colliding(first, 4000, vip, 80, 18, 2000)
    assert len(set(zip(clients.tolist(), ports.tolist(), strict=True))) == 2000
    mask = (1 << 18) - 1
    own = vpp_hash(first, 4000, vip, 80) & mask
    for client, port in zip(clients.tolist(), ports.tolist(), strict=True):
        assert vpp_hash(client, port, vip, 80) & mask == own
    with pytest.raises(ValueError, match="flows share a bucket"):
        colliding(first, 4000, vip, 80, 32, 2000)


def test_mixes_have_the_ratio():
    one, other = traffic.flood("syn", 4, 10), traffic.flood("icmp", 5, 10)
    mixed = traffic.interleaved(one, other, 3)
    assert len(mixed) == 16
    assert (mixed.rows[::4] == one.rows).all()
    assert (mixed.rows[1:4] == other.rows[:3]).all() and (mixed.rows[13:16] == other.rows[[4, 0, 1]]).all()


def test_messages_point_at_their_rows():
    rows = np.arange(128, dtype=np.uint8).reshape(2, 64)
    messages, kept = sender.messages_of(rows)
    words = messages.view(np.uint64).reshape(2, -1)
    vectors = kept[1]
    assert words[:, 2].tolist() == [vectors.ctypes.data, vectors.ctypes.data + 16]
    assert vectors.tolist() == [[rows.ctypes.data, 64], [rows.ctypes.data + 64, 64]]


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--rate", "300000"], ["--seconds", "61"]])
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "must be positive" in capsys.readouterr().err


def test_packets_without_an_outcome_are_noticed():
    outcomes = {"transmit": 5, "pass": 1, "drop": 2, "held": 0}
    assert unaccounted({"received": 8, "outcomes": outcomes}) == 0
    assert unaccounted({"received": 9, "outcomes": outcomes}) == 1


class _Said:
    """A daemon that says this."""

    def __init__(self, vips: list[dict[str, Any]], counters: dict[str, Any], listed: int = 8):
        flows = {"flows": [{}] * listed, "next": None}
        vip_page = {"vips": vips, "next": None}
        self._answers = {
            "/v1/vips": vip_page, "/v1/counters": counters, "/v1/flows?limit=10000": flows,
        }  # fmt: skip

    def request(self, method: str, target: str) -> Any:
        return self._answers[target]


def _vip(first: int = 8, packets_back: int = 40, flows: int = 8) -> dict[str, Any]:
    towards = {"to_pod_bytes": 2000, "from_pod_packets": packets_back, "from_pod_bytes": 2500}
    return {
        "vip": {"prefix": "10.99.0.1/32"},
        "flows": flows,
        "counters": {"first_packet": first, "next_packet": 32, "untracked_packet": 0, **towards},
        "pods": [{"flows": flows, "counters": {"flows": first, "to_pod_packets": 40, **towards}}],
    }


def _counters(received: int = 50, held: int = 0, flows: int = 8) -> dict[str, Any]:
    return {
        "received": received,
        "outcomes": {"transmit": 40, "pass": 6, "drop": 4, "held": held},
        "workers": [{"flows": flows, "states": {"udp": flows}}],
    }


def test_a_single_packet_too_few_is_a_fault(monkeypatch):
    monkeypatch.setattr(account, "TIMEOUT_S", 0.0)
    said = account.Sums(8, 40, 2000, 40, 2500)
    account.compare(_Said([_vip()], _counters()), "10.99.0.1/32", said)
    for wrong in (_vip(first=7), _vip(packets_back=39)):
        with pytest.raises(KuError, match="the clients counted"):
            account.compare(_Said([wrong], _counters()), "10.99.0.1/32", said)


def test_sums_that_do_not_agree_are_faults(monkeypatch):
    monkeypatch.setattr(account, "PATIENCE_S", 0.0)
    monkeypatch.setattr(account, "QUIET_S", 0.0)
    assert account.balance(_Said([_vip()], _counters())) == []
    [missing] = account.balance(_Said([_vip()], _counters(received=51)))
    assert "51 packets received" in missing
    assert account.balance(_Said([_vip(flows=7)], _counters())) == [], "one of a VIP that is gone, not yet swept"
    [flows] = account.balance(_Said([_vip(flows=9)], _counters()))
    assert flows == "8 flows in the tables, 8 by state, 8 listed, 9 by VIP, 9 by pod"
    assert len(account.balance(_Said([_vip()], _counters(), listed=9))) == 1
    assert len(account.balance(_Said([_vip()], _counters(received=51, held=1)))) == 1


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.timeout(300)
def test_no_request_fails_under_any_flood():
    """A round of each, live: every request is answered, every packet has one outcome."""
    found, report = run(rounds=1, seconds=0.5, rate=5000, flow_hash="keyed")
    assert set(found) == set(FLOODS)
    assert sum(each.failures for each in found.values()) == 0
    assert all(each.sent > 1000 for each in found.values())
    assert unaccounted(report) == 0
