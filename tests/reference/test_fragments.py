"""kp-fragment of the reference."""

from collections import Counter

import pytest

import packets
from kuproxy.codes import Node, Outcome, Reason
from kuproxy.reference import RefPacket
from packets import fragments, frame, reply_to, udp, verify_checksums
from reference.worlds import send, verdict, vip, world

INSIDE = 1
FIVE = [f"10.0.0.{last}" for last in range(1, 6)]
DATA = bytes(range(256)) * 16
FORWARDED, HELD = Reason.FORWARDED, Reason.FRAGMENT_HELD


def services(**options):
    return world(
        vip("90.0.0.0/8", FIVE, protocol="udp", port=53, target_port=5353),
        vip("9000::/16", [f"2001::{last}" for last in range(1, 6)], protocol="udp", port=53),
        inside=INSIDE,
        **options,
    )


def pieces(version=4, identification=1, **how):
    if version == 4:
        return fragments(udp("40.0.0.1", "90.0.0.1", 7, 53, DATA), identification=identification, **how)
    return fragments(udp("4000::1", "9000::1", 7, 53, DATA), identification=identification, **how)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("together", [True, False])
def test_every_order_goes_to_one_pod(version, order, together):
    reference = services()
    sent = [RefPacket(pieces(version)[number]) for number in order]
    if together:
        results = reference.receive(sent, 0)
    else:
        results = [result for packet in sent for result in reference.receive([packet], 0)]
    forwarded = [result for result in results if result.outcome == Outcome.TRANSMIT]
    [pod] = {str(result.pod) for result in forwarded}
    # What the client would have sent to the pod itself, whole datagram's checksum included.
    if version == 4:
        expected = fragments(udp("40.0.0.1", pod, 7, 5353, DATA), identification=1, ttl=63)
    else:
        expected = fragments(udp("4000::1", pod, 7, 53, DATA), identification=1, ttl=63)
    assert sorted(result.data for result in forwarded) == sorted(expected)
    assert reference.outcomes == Counter({Outcome.TRANSMIT: 3})
    assert reference.received == 3
    counted = reference.counters
    released = counted[Node.FRAGMENT, Reason.FRAGMENT_RELEASED]
    assert counted[Node.FRAGMENT, Reason.FIRST_FRAGMENT] == 1
    assert counted[Node.FRAGMENT, Reason.LATER_FRAGMENT] + released == 2
    assert counted[Node.FRAGMENT, HELD] == released


def test_results_of_one_vector():
    reference = services()
    first, second, third = pieces()
    results = reference.receive([RefPacket(data) for data in (third, first, second)], 0)
    assert [result.reason for result in results] == [HELD, FORWARDED, FORWARDED, FORWARDED]
    assert results[0].data == third
    assert results[3].data[34:] == third[34:]


def test_only_the_address_of_a_later_fragment_changes():
    reference = services()
    first, second, _ = pieces()
    send(reference, first)
    result = send(reference, second)
    target = str(result.pod)
    assert result.data == fragments(udp("40.0.0.1", target, 7, 5353, DATA), identification=1, ttl=63)[1]


def test_datagrams_are_kept_apart():
    reference = services()
    send(reference, pieces(identification=1)[0])
    for other in (
        pieces(identification=2)[1],
        fragments(udp("40.0.0.2", "90.0.0.1", 7, 53, DATA), identification=1)[1],
        fragments(udp("40.0.0.1", "90.0.0.2", 7, 53, DATA), identification=1)[1],
        fragments(packets.tcp("40.0.0.1", "90.0.0.1", 7, 53, DATA), identification=1)[1],
        pieces(6, identification=1)[1],
    ):
        assert verdict(reference, other) == (Outcome.HELD, HELD)
    assert verdict(reference, pieces(identification=1)[1]) == (Outcome.TRANSMIT, FORWARDED)


def test_ports_are_known_for_five_seconds():
    first, second, _ = pieces()
    for age, expected in ((49, FORWARDED), (50, HELD)):
        reference = services()
        send(reference, first, 100)
        assert verdict(reference, second, 100 + age)[1] == expected
    reference = services()
    send(reference, first, 100)
    send(reference, first, 140)
    send(reference, second, 180)
    assert verdict(reference, second, 190)[1] == HELD  # later fragments refresh nothing


def test_identification_used_again():
    """The newest first fragment counts."""
    reference = services()
    send(reference, pieces()[0])
    send(reference, fragments(udp("40.0.0.1", "90.0.0.1", 8, 54, DATA), identification=1)[0])
    assert verdict(reference, pieces()[1]) == (Outcome.PASS, Reason.NO_VIP)


class TestHold:
    def test_what_cannot_be_ours_passes(self):
        reference = services()
        strange = fragments(udp("40.0.0.1", "40.0.0.2", 7, 53, DATA))[1]
        assert verdict(reference, strange) == (Outcome.PASS, Reason.NO_VIP)
        assert reference.counters == {(Node.FRAGMENT, Reason.NO_VIP): 1}

    def test_prefix_counts_whatever_the_port(self):
        reference = services()
        other = fragments(packets.tcp("40.0.0.1", "90.0.0.1", 7, 99, DATA))[1]
        assert verdict(reference, other) == (Outcome.HELD, HELD)

    def test_node_addresses_while_node_ports_exist(self):
        to_node = fragments(udp("40.0.0.1", "40.0.0.254", 7, 30053, DATA))
        reference = services()
        assert verdict(reference, to_node[1]) == (Outcome.PASS, Reason.NO_VIP)
        reference.set_vip(vip("90.0.0.1", FIVE, protocol="udp", port=54, node_port=30053))
        assert verdict(reference, to_node[1]) == (Outcome.HELD, HELD)
        results = reference.receive([RefPacket(to_node[0])], 0)
        assert [result.reason for result in results] == [FORWARDED, FORWARDED]
        loopback = fragments(udp("40.0.0.1", "127.0.0.1", 7, 30053, DATA))[1]
        assert verdict(reference, loopback) == (Outcome.PASS, Reason.NO_VIP)

    def test_replies_of_pods(self):
        reference = services()
        send(reference, frame(udp("40.0.0.1", "90.0.0.1", 7, 53)))
        [flow] = reference.live_flows(0)
        reply = fragments(udp(str(flow.pod), "40.0.0.1", 5353, 7, DATA))
        assert verdict(reference, reply[2]) == (Outcome.PASS, Reason.NO_VIP)  # another interface
        assert verdict(reference, reply[2], interface=INSIDE) == (Outcome.HELD, HELD)
        results = reference.receive([RefPacket(reply[0], INSIDE), RefPacket(reply[1], INSIDE)], 0)
        assert [result.reason for result in results] == [Reason.IN2OUT] * 3
        expected = fragments(udp("90.0.0.1", "40.0.0.1", 53, 7, DATA), ttl=63)
        assert [result.data for result in results] == expected

    def test_removed_pods_stay_pods_until_collected(self):
        reference = services()
        reply = [fragments(udp(one, "40.0.0.1", 5353, 7, DATA))[1] for one in FIVE]
        for one in range(40):
            send(reference, frame(udp("40.0.0.1", "90.0.0.1", one, 53)))
        used = {str(flow.pod) for flow in reference.live_flows(0)}
        assert used == set(FIVE)
        reference.set_vip(vip("90.0.0.0/8", FIVE[:4], protocol="udp", port=53))
        reference.collect(0)
        assert verdict(reference, reply[4], interface=INSIDE) == (Outcome.HELD, HELD)
        reference.collect(400)
        assert verdict(reference, reply[4], interface=INSIDE) == (Outcome.PASS, Reason.NO_VIP)
        assert verdict(reference, reply[3], interface=INSIDE) == (Outcome.HELD, HELD)

    @pytest.mark.parametrize(("size", "expected"), [(9206, HELD), (9207, Reason.FRAGMENT_TOO_LONG)])
    def test_longest(self, size, expected):
        data = frame(packets.other("40.0.0.1", "90.0.0.1", 17, bytes(size - 34)), offset=8)
        assert verdict(services(), data)[1] == expected

    def test_64_places(self):
        reference = services()
        for identification in range(64):
            assert verdict(reference, pieces(identification=identification)[1]) == (Outcome.HELD, HELD)
        full = (Outcome.DROP, Reason.FRAGMENT_HOLD_FULL)
        assert verdict(reference, pieces(identification=99)[1]) == full
        assert reference.outcomes == {Outcome.HELD: 64, Outcome.DROP: 1}
        reference.receive([RefPacket(pieces(identification=5)[0])], 0)
        assert verdict(reference, pieces(identification=99)[1]) == (Outcome.HELD, HELD)

    def test_timeout(self):
        reference = services()
        send(reference, pieces(identification=1)[1], 100)
        send(reference, pieces(identification=2)[1], 120)
        assert reference.sweep(149) == []
        [dropped] = reference.sweep(150)
        assert dropped[:2] == (Outcome.DROP, Reason.FRAGMENT_TIMEOUT)
        assert dropped.data == pieces(identification=1)[1]
        assert reference.outcomes == {Outcome.HELD: 1, Outcome.DROP: 1}
        assert reference.counters[Node.FRAGMENT, Reason.FRAGMENT_TIMEOUT] == 1

    def test_order_of_release(self):
        reference = services()
        first, second, third = pieces()
        for data in (third, second, second):
            send(reference, data)
        results = reference.receive([RefPacket(first)], 0)
        assert [result.data[20:22] for result in results] == [
            data[20:22] for data in (first, third, second, second)
        ]


def test_sctp_fragment_whose_port_changes():
    changes = vip("90.0.0.1", ["10.0.0.1"], protocol="sctp", port=80, target_port=8080)
    keeps = vip("90.0.0.2", ["10.0.0.1"], protocol="sctp", port=80)
    reference = world(changes, keeps)
    for destination, expected in (("90.0.0.1", Reason.SCTP_FRAGMENT), ("90.0.0.2", FORWARDED)):
        datagram = packets.sctp("40.0.0.1", destination, 7, 80)
        assert [verdict(reference, data)[1] for data in fragments(datagram, 24)] == [expected] * 2
    whole = send(reference, frame(packets.sctp("40.0.0.1", "90.0.0.1", 7, 80)))
    assert verify_checksums(whole.data) == []


def test_fragment_of_an_icmp_error_is_no_error():
    """Nobody sees its type: it goes where its datagram's hash says, like the rest of an echo would."""
    reference = world(vip("90.0.0.0/8", FIVE))
    echo = fragments(packets.echo("40.0.0.1", "90.0.0.1", data=DATA))
    assert [verdict(reference, data)[1] for data in echo] == [FORWARDED] * 3
    assert len(reference.live_flows(0)) == 1


def test_ipv6_later_fragment_learns_the_innermost_protocol():
    """The fragment header of both names destination options, behind which only the first one has UDP."""
    reference = services()
    first = frame(
        udp("4000::1", "9000::1", 7, 53, DATA[:1000]),
        extensions=[packets.fragment_header(0, True, 3), packets.extension(packets.DESTINATION)],
    )
    later = frame(
        packets.other("4000::1", "9000::1", packets.DESTINATION, DATA[:1000]),
        extensions=[packets.fragment_header(1016, False, 3)],
    )
    assert verdict(reference, later) == (Outcome.HELD, HELD)
    results = reference.receive([RefPacket(first)], 0)
    assert [result.reason for result in results] == [FORWARDED, FORWARDED]
    assert results[0].pod == results[1].pod
    assert results[1].data[54:] == later[54:]


def test_reply_helper_agrees():
    """`reply_to` swaps addresses of later fragments too."""
    assert reply_to(reply_to(pieces()[1])) == pieces()[1]
