"""Flow state: docs/forwarding.md, "Flow state"; RFC 5382 and RFC 6146 for TCP, RFC 4787 for UDP."""

from __future__ import annotations

import pytest

from kuproxy.codes import FlowState, Node, Outcome, Reason, VipCounter
from kuproxy.model.config import DEFAULT_TIMEOUTS_S, Settings
from packets import ACK, FIN, RST, SYN, echo, frame, sctp, tcp, udp
from reference.worlds import key, send, verdict, vip, world

INSIDE = 1
POD = "10.0.0.1"
VIP = vip("90.0.0.1", [POD], port=80)


def make(*vips, **options):
    reference = world(*(vips or (VIP,)), inside=INSIDE, timeout_ticks=400, **options)
    for state, seconds in DEFAULT_TIMEOUTS_S.items():
        reference.set_timeout(round(seconds * 10), state)
    return reference


def client(reference, flags, now=0, port=1000, address="40.0.0.1"):
    return send(reference, frame(tcp(address, "90.0.0.1", port, 80, flags=flags)), now)


def answer(reference, flags, now=0, port=1000, address="40.0.0.1", pod=POD):
    return send(reference, frame(tcp(pod, address, 80, port, flags=flags)), now, interface=INSIDE)


def establish(reference, now=0, **who):
    client(reference, SYN, now, **who)
    answer(reference, SYN | ACK, now, **who)
    client(reference, ACK, now, **who)


def state(reference, now=0):
    [flow] = reference.live_flows(now)
    return flow.state, flow.expires - now


def test_handshake():
    reference = make()
    client(reference, SYN)
    assert state(reference) == (FlowState.TCP_HALF_OPEN, 300)
    answer(reference, SYN | ACK)
    assert state(reference) == (FlowState.TCP_HALF_OPEN, 300)
    client(reference, ACK)
    assert state(reference) == (FlowState.TCP_ESTABLISHED, 74400)


def test_established_is_kept_2_h_4_min_rfc5382_req5():
    """RFC 5382 REQ-5."""
    reference = make()
    establish(reference)
    last = 2 * 36000 + 4 * 600 - 1
    assert reference.live_flows(last)
    assert not reference.live_flows(last + 1)


def test_simultaneous_open_rfc5382_req2():
    """RFC 5382 REQ-2."""
    reference = make()
    client(reference, SYN)
    answer(reference, SYN)
    client(reference, SYN | ACK)
    answer(reference, SYN | ACK)
    client(reference, ACK)
    assert state(reference)[0] == FlowState.TCP_ESTABLISHED


def test_in_the_middle_of_a_connection():
    """RFC 5382 REQ-2, any valid sequence, after a restart, say: only a pod that answers a segment proves something."""
    reference = make()
    client(reference, ACK)
    assert state(reference)[0] == FlowState.TCP_HALF_OPEN
    answer(reference, ACK)
    assert state(reference)[0] == FlowState.TCP_ESTABLISHED


def test_the_answer_to_a_stray_segment_is_a_reset():
    reference = make()
    client(reference, ACK)
    answer(reference, RST)
    assert state(reference) == (FlowState.TCP_CLOSING, 50)


@pytest.mark.parametrize("by", [client, answer])
def test_reset_gone_within_6_s(by):
    reference = make()
    establish(reference)
    by(reference, RST | ACK, 100)
    assert state(reference, 100) == (FlowState.TCP_CLOSING, 50)
    by(reference, RST, 130)  # does not prolong it
    assert state(reference, 130) == (FlowState.TCP_CLOSING, 20)
    assert not reference.live_flows(160)


def test_a_forged_reset_does_not_end_a_living_connection_rfc6146():
    """RFC 6146 section 3.5.2.2."""
    reference = make()
    establish(reference)
    client(reference, RST, 10)
    answer(reference, ACK, 11)  # may have been on its way
    assert state(reference, 11)[0] == FlowState.TCP_CLOSING
    client(reference, ACK, 12)
    assert state(reference, 12) == (FlowState.TCP_ESTABLISHED, 74400)


def test_fin_of_one_side_leaves_the_other_open_rfc6146():
    reference = make()
    establish(reference)
    client(reference, FIN | ACK)
    assert state(reference) == (FlowState.TCP_ESTABLISHED, 74400)
    answer(reference, ACK)
    answer(reference, FIN | ACK)
    assert state(reference) == (FlowState.TCP_CLOSING, 50)
    client(reference, ACK, 20)
    answer(reference, ACK, 20)
    assert state(reference, 20) == (FlowState.TCP_CLOSING, 30)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: udp("40.0.0.1", "90.0.0.1", 7, 80), (FlowState.UDP, 3000)),  # RFC 4787 REQ-5
        (lambda: sctp("40.0.0.1", "90.0.0.1", 7, 80), (FlowState.SCTP, 2400)),
        (lambda: echo("40.0.0.1", "90.0.0.1"), (FlowState.ICMP, 600)),  # RFC 5508 REQ-2
    ],
)
def test_other_protocols(build, expected):
    reference = make(vip("90.0.0.1", [POD]))
    send(reference, frame(build()))
    assert state(reference) == expected


def test_one_timeout_for_all_as_in_vpp():
    timeouts = Settings(timeout_s=40.0).timeouts
    assert set(timeouts.values()) == {40.0}
    assert Settings(timeout_s=40.0, timeouts_s=((FlowState.UDP, 5.0),)).timeouts[FlowState.UDP] == 5.0
    assert Settings().timeouts == DEFAULT_TIMEOUTS_S


class TestNewConnection:
    def test_on_a_removed_pod(self):
        reference = make()
        establish(reference)
        reference.set_vip(vip("90.0.0.1", ["10.0.0.2"], port=80))
        assert str(client(reference, ACK).pod) == POD  # drains
        assert str(client(reference, SYN).pod) == "10.0.0.2"
        assert reference.counters[Node.BALANCE, Reason.CHOSEN_AFRESH] == 1

    def test_on_a_pod_of_weight_0(self):
        reference = make()
        establish(reference)
        ten, two = vip("90.0.0.1", [POD, "10.0.0.2"], port=80).pods
        reference.set_vip(
            vip("90.0.0.1", [], port=80).__class__(VIP.key, VIP.type, pods=(ten.weighing(0), two))
        )
        assert str(client(reference, ACK).pod) == POD
        assert str(client(reference, SYN).pod) == "10.0.0.2"

    def test_on_a_closed_flow(self):
        reference = make()
        establish(reference)
        answer(reference, RST)
        client(reference, SYN, 1)
        assert state(reference, 1) == (FlowState.TCP_HALF_OPEN, 300)

    def test_on_a_living_one_changes_nothing(self):
        reference = make()
        establish(reference)
        client(reference, SYN)
        assert state(reference)[0] == FlowState.TCP_ESTABLISHED


class TestFlood:
    """Half-open flows fill their share only."""

    def test_two_of_four_ways(self):
        reference = make(buckets=1)
        for port in range(2000, 2100):
            client(reference, SYN, port=port)
        assert [flow.state for flow in reference.live_flows(0)] == [FlowState.TCP_HALF_OPEN] * 2
        assert reference.counters[Node.BALANCE, Reason.HALF_OPEN_EVICTED] == 98
        assert reference.vip_counters[VIP.key][VipCounter.EVICTED] == 98

    def test_established_flows_stay_and_new_ones_come_through(self):
        reference = make(buckets=1)
        for number in range(4):
            for port in range(2000 + 50 * number, 2050 + 50 * number):
                client(reference, SYN, number, port=port, address="66.0.0.1")
            establish(reference, number, port=100 + number)
        flows = reference.live_flows(10)
        assert [flow.state for flow in flows] == [FlowState.TCP_ESTABLISHED] * 4
        before = reference.counters[Node.BALANCE, Reason.UNTRACKED]
        for port in range(3000, 3100):
            client(reference, SYN, 20, port=port, address="66.0.0.1")
        assert reference.live_flows(20) == flows
        assert reference.counters[Node.BALANCE, Reason.UNTRACKED] == before + 100

    def test_the_oldest_gives_way(self):
        reference = make(buckets=1)
        for now, port in enumerate((5, 6, 7)):
            client(reference, SYN, now, port=port)
        assert sorted(flow.client_port for flow in reference.live_flows(3)) == [6, 7]

    def test_the_reply_to_an_evicted_flow_finds_its_way(self):
        reference = make(buckets=1)
        for port in (5, 6, 7):
            client(reference, SYN, port, port=port)
        assert answer(reference, SYN | ACK, 8, port=5).reason == Reason.IN2OUT
        assert reference.counters[Node.NAT4_IN2OUT, Reason.IN2OUT_UNTRACKED] == 1


class TestFlush:
    def flushed(self, **policy):
        reference = make(vip("90.0.0.1", [POD], port=80, **policy))
        establish(reference)
        reference.set_vip(vip("90.0.0.1", ["10.0.0.2"], port=80, **policy))
        reference.flush(key("90.0.0.1", port=80), VIP.pods[0].address)
        return reference

    def test_flows_move(self):
        reference = self.flushed()
        assert str(client(reference, ACK).pod) == "10.0.0.2"

    def test_clients_are_reset_if_the_vip_says_so(self):
        reference = self.flushed(reset=True)
        assert client(reference, ACK)[:2] == (Outcome.TRANSMIT, Reason.REJECT_SENT)
        assert reference.live_flows(0) == []

    def test_but_not_those_that_begin_anew(self):
        reference = self.flushed(reset=True)
        assert str(client(reference, SYN).pod) == "10.0.0.2"


class TestSessionCap:
    def test_above_it_is_refused(self):
        reference = make(vip("90.0.0.1", [POD], port=80, session_cap=2))
        assert [client(reference, SYN, port=port).reason for port in (1, 2, 3)] == [
            Reason.FORWARDED,
            Reason.FORWARDED,
            Reason.SESSION_CAP,
        ]
        assert verdict(reference, frame(tcp("40.0.0.1", "90.0.0.1", 1, 80))) == (
            Outcome.TRANSMIT,
            Reason.FORWARDED,
        )
